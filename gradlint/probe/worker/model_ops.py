"""What torch's functions are, seen as nodes of a layer graph.

Names follow ``torch``, ``torch.nn.functional`` and the methods of ``torch.Tensor`` (PyTorch 2 documentation), without
underscores at either end: ``relu_`` and ``__iadd__`` are ``relu`` and ``add``.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

from layergraph import ACTIVATION, ATTENTION, CONSTANT, INPUT, JOIN, NORM, RECURRENT, TRANSPARENT, UNKNOWN, WEIGHT

PRODUCT = "product"
"""Matrix products: a weight layer where exactly one operand comes from parameters alone, else a join."""

_ACTIVATIONS = (
    "sigmoid logsigmoid hardsigmoid tanh hardtanh softsign tanhshrink relu relu6 leaky_relu prelu rrelu threshold "
    "elu selu celu gelu silu mish softplus hardswish sin cos hardshrink softshrink"
)
_ALIASES = {"expit": "sigmoid", "log_sigmoid": "logsigmoid", "log_sigmoid_forward": "logsigmoid", "swish": "silu"}
_WEIGHTS = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
_PRODUCTS = "matmul mm bmm mv addmm baddbmm einsum tensordot rmatmul inner"
_NORMS = "batch_norm sync_batch_norm layer_norm rms_norm group_norm instance_norm local_response_norm normalize"
_LINEAR_JOINS = (
    "add sub mul div cat concat concatenate stack hstack vstack dstack column_stack where lerp addcmul addcdiv "
    "masked_scatter scatter scatter_add index_add index_copy index_put copy setitem masked_fill fill"
)
_JOINS = (
    "maximum minimum max min outer ger dot vdot cross cdist kron logaddexp cosine_similarity bilinear "
    "pairwise_distance glu atan2 hypot block_diag"
)
_TRANSPARENT = (
    "view reshape flatten permute transpose squeeze unsqueeze contiguous float double half bfloat16 to type type_as "
    "cuda cpu clone mean sum max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d fractional_max_pool2d max_unpool1d max_unpool2d max_unpool3d dropout dropout1d dropout2d "
    "dropout3d alpha_dropout feature_dropout feature_alpha_dropout interpolate upsample pad pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle unfold fold repeat tile expand expand_as roll chunk split "
    "narrow select t swapaxes swapdims movedim moveaxis view_as reshape_as unflatten ravel flip fliplr flipud "
    "index_select gather take_along_dim neg real amax amin nanmean repeat_interleave broadcast_to unbind tensor_split "
    "getitem requires_grad get:T get:mT get:H get:mH get:real get:imag tril triu diagonal diag masked_select rot90 "
    "grid_sample affine_grid atleast_1d atleast_2d atleast_3d positive adjoint split_with_sizes hsplit vsplit dsplit "
    "detach_copy alias as_strided rename refine_names align_to nan_to_num pin_memory iter max_pool1d_with_indices "
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d_with_indices median"
)
_CONSTANT = (
    "detach get:data argmax argmin argsort item tolist numpy zeros_like ones_like rand_like randn_like randint_like "
    "empty_like full_like new_zeros new_ones new_full new_empty new_tensor eq ne lt gt le ge isnan isinf isfinite "
    "bincount nonzero any all bernoulli sign round floor ceil trunc long int bool byte short zero random normal "
    "uniform exponential cauchy log_normal geometric bernoulli_ get:grad"
)
_ATTENTION = "scaled_dot_product_attention multi_head_attention_forward"
_RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
_LOOKUPS = "embedding embedding_bag"

_SAME_NAME = {
    "radd": "add", "iadd": "add", "rsub": "sub", "isub": "sub", "rmul": "mul", "imul": "mul", "multiply": "mul",
    "truediv": "div", "itruediv": "div", "rtruediv": "reciprocal", "rdiv": "reciprocal", "idiv": "div",
    "divide": "div", "true_divide": "div", "subtract": "sub", "imatmul": "matmul", "clip": "clamp",
}  # fmt: skip

_QUESTIONS = (
    "size dim ndimension numel nelement stride len is_floating_point is_complex storage_offset set_grad_enabled "
    "data_ptr element_size is_contiguous is_same_size backward register_hook retain_grad repr format hash "
    "get:shape get:dtype get:device get:ndim get:requires_grad get:grad_fn get:is_nested get:is_cuda get:is_leaf "
    "get:layout get:names get:itemsize get:is_sparse get:is_quantized get:_base get:_version get:is_mkldnn"
)
QUESTIONS = frozenset(_QUESTIONS.split())
"""They only ask: no tensor of theirs can carry a gradient. Passed over before anything is looked up."""

LINEAR_JOINS = frozenset(_LINEAR_JOINS.split())
"""Joins that only shift, scale or move a single live operand: with constants beside it they are transparent."""

REPLACES_FIRST = frozenset({"copy", "zero", "fill"})
"""In place, these forget what the tensor held."""


def _table() -> Dict[str, Tuple[str, str]]:
    table: Dict[str, Tuple[str, str]] = {}
    for names, kind in (
        (_TRANSPARENT, TRANSPARENT),
        (_LINEAR_JOINS, JOIN),
        (_JOINS, JOIN),
        (_CONSTANT, CONSTANT),
        (_ACTIVATIONS, ACTIVATION),
        (_NORMS, NORM),
        (_WEIGHTS, WEIGHT),
        (_PRODUCTS, PRODUCT),
        (_ATTENTION, ATTENTION),
        (_RECURRENT, RECURRENT),
        (_LOOKUPS, INPUT),
    ):
        table.update({name: (kind, name) for name in names.split()})
    table.update({alias: (ACTIVATION, op) for alias, op in _ALIASES.items()})
    return table


OPERATIONS = _table()
"""Name of a function -> (kind, canonical operation)."""


def operation(func: Any) -> Tuple[str, str, str]:
    """The (name, kind, operation) of a function that a ``TorchFunctionMode`` was handed."""
    name = getattr(func, "__name__", "") or type(func).__name__
    name = "get:" + str(getattr(func.__self__, "__name__", "?")) if name == "__get__" else name.strip("_")
    name = _SAME_NAME.get(name, name)
    kind, op = OPERATIONS.get(name, (UNKNOWN, name))
    return name, kind, op
