"""What torch's layers and functions are, seen as nodes of a layer graph.

Names follow ``torch.nn`` and ``torch.nn.functional`` (PyTorch 2 documentation). The canonical operation
names are those of :mod:`gradlint.probe.worker.layergraph`.
"""

from __future__ import annotations

from gradlint.probe.worker.layergraph import ACTIVATION, ATTENTION, CONSTANT, JOIN, NORM, RECURRENT, TRANSPARENT, WEIGHT

WEIGHT_LAYERS: dict[str, tuple[str, str, str]] = {
    # class: (op, name of the argument that gives fan_in's channels, name of the one for fan_out)
    "Linear": ("linear", "in_features", "out_features"),
    "LazyLinear": ("linear", "", "out_features"),
    "Conv1d": ("conv1d", "in_channels", "out_channels"),
    "Conv2d": ("conv2d", "in_channels", "out_channels"),
    "Conv3d": ("conv3d", "in_channels", "out_channels"),
    "LazyConv1d": ("conv1d", "", "out_channels"),
    "LazyConv2d": ("conv2d", "", "out_channels"),
    "LazyConv3d": ("conv3d", "", "out_channels"),
    "ConvTranspose1d": ("conv_transpose1d", "in_channels", "out_channels"),
    "ConvTranspose2d": ("conv_transpose2d", "in_channels", "out_channels"),
    "ConvTranspose3d": ("conv_transpose3d", "in_channels", "out_channels"),
    "LazyConvTranspose2d": ("conv_transpose2d", "", "out_channels"),
}
SPATIAL_DIMS = {"1d": 1, "2d": 2, "3d": 3}

ACTIVATION_LAYERS = {
    "Sigmoid": "sigmoid", "LogSigmoid": "logsigmoid", "Hardsigmoid": "hardsigmoid",
    "Tanh": "tanh", "Hardtanh": "hardtanh", "Softsign": "softsign", "Tanhshrink": "tanhshrink",
    "ReLU": "relu", "ReLU6": "relu6", "LeakyReLU": "leaky_relu", "PReLU": "prelu", "RReLU": "rrelu",
    "Threshold": "threshold", "ELU": "elu", "SELU": "selu", "CELU": "celu", "GELU": "gelu",
    "SiLU": "silu", "Mish": "mish", "Softplus": "softplus", "Hardswish": "hardswish",
}  # fmt: skip

NORM_LAYERS = {
    "BatchNorm1d": "batch_norm", "BatchNorm2d": "batch_norm", "BatchNorm3d": "batch_norm",
    "LazyBatchNorm1d": "batch_norm", "LazyBatchNorm2d": "batch_norm", "LazyBatchNorm3d": "batch_norm",
    "SyncBatchNorm": "sync_batch_norm", "LayerNorm": "layer_norm", "RMSNorm": "rms_norm",
    "GroupNorm": "group_norm", "InstanceNorm1d": "instance_norm", "InstanceNorm2d": "instance_norm",
    "InstanceNorm3d": "instance_norm", "LocalResponseNorm": "local_response_norm",
}  # fmt: skip

TRANSPARENT_LAYERS = frozenset(
    [
        "Identity",
        "Flatten",
        "Unflatten",
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "AlphaDropout",
        "FeatureAlphaDropout",
        "MaxPool1d",
        "MaxPool2d",
        "MaxPool3d",
        "AvgPool1d",
        "AvgPool2d",
        "AvgPool3d",
        "LPPool1d",
        "LPPool2d",
        "FractionalMaxPool2d",
        "AdaptiveAvgPool1d",
        "AdaptiveAvgPool2d",
        "AdaptiveAvgPool3d",
        "AdaptiveMaxPool1d",
        "AdaptiveMaxPool2d",
        "AdaptiveMaxPool3d",
        "ZeroPad1d",
        "ZeroPad2d",
        "ZeroPad3d",
        "ReflectionPad1d",
        "ReflectionPad2d",
        "ReflectionPad3d",
        "ReplicationPad1d",
        "ReplicationPad2d",
        "ReplicationPad3d",
        "ConstantPad1d",
        "ConstantPad2d",
        "ConstantPad3d",
        "CircularPad1d",
        "CircularPad2d",
        "Upsample",
        "UpsamplingNearest2d",
        "UpsamplingBilinear2d",
        "PixelShuffle",
        "PixelUnshuffle",
        "ChannelShuffle",
        "Fold",
        "Unfold",
    ]
)
RECURRENT_LAYERS = frozenset({"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"})
ATTENTION_LAYERS = frozenset(
    [
        "MultiheadAttention",
        "Transformer",
        "TransformerEncoder",
        "TransformerDecoder",
        "TransformerEncoderLayer",
        "TransformerDecoderLayer",
    ]
)
EMBEDDING_LAYERS = frozenset({"Embedding", "EmbeddingBag"})
LEAF_LAYERS = (
    frozenset(WEIGHT_LAYERS)
    | frozenset(ACTIVATION_LAYERS)
    | frozenset(NORM_LAYERS)
    | frozenset(TRANSPARENT_LAYERS)
    | frozenset(EMBEDDING_LAYERS)
)
CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})

_FUNCTIONAL_ACTIVATIONS = {
    "sigmoid": "sigmoid", "logsigmoid": "logsigmoid", "hardsigmoid": "hardsigmoid", "tanh": "tanh",
    "hardtanh": "hardtanh", "softsign": "softsign", "tanhshrink": "tanhshrink", "relu": "relu", "relu6": "relu6",
    "leaky_relu": "leaky_relu", "prelu": "prelu", "rrelu": "rrelu", "threshold": "threshold", "elu": "elu",
    "selu": "selu", "celu": "celu", "gelu": "gelu", "silu": "silu", "mish": "mish", "softplus": "softplus",
    "hardswish": "hardswish", "sin": "sin", "cos": "cos", "expit": "sigmoid",
}  # fmt: skip
_FUNCTIONAL_NORMS = {
    "batch_norm": "batch_norm", "layer_norm": "layer_norm", "rms_norm": "rms_norm", "group_norm": "group_norm",
    "instance_norm": "instance_norm", "local_response_norm": "local_response_norm", "normalize": "normalize",
}  # fmt: skip
_JOINS = [
    "cat",
    "concat",
    "concatenate",
    "stack",
    "hstack",
    "vstack",
    "dstack",
    "add",
    "sub",
    "mul",
    "multiply",
    "subtract",
    "div",
    "divide",
    "true_divide",
    "bmm",
    "matmul",
    "mm",
    "einsum",
    "where",
    "maximum",
    "minimum",
    "outer",
    "ger",
    "dot",
    "inner",
    "addmm",
    "baddbmm",
    "lerp",
    "cross",
    "cdist",
    "kron",
    "logaddexp",
    "cosine_similarity",
    "add_",
    "mul_",
    "sub_",
    "div_",
    "addcmul",
]
_TRANSPARENT = [
    "view",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "float",
    "double",
    "half",
    "bfloat16",
    "to",
    "type",
    "type_as",
    "cuda",
    "cpu",
    "clone",
    "mean",
    "sum",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "dropout",
    "dropout_",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "interpolate",
    "upsample",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "unfold",
    "fold",
    "rearrange",
    "reduce",
    "repeat",
    "tile",
    "expand",
    "expand_as",
    "roll",
    "chunk",
    "split",
    "narrow",
    "select",
    "t",
    "swapaxes",
    "movedim",
    "moveaxis",
    "requires_grad_",
    "view_as",
    "reshape_as",
    "unflatten",
    "ravel",
    "flip",
    "index_select",
    "gather",
    "squeeze_",
    "unsqueeze_",
    "neg",
    "real",
    "amax",
    "max",
    "min",
    "repeat_interleave",
    "broadcast_to",
    "unbind",
    "tensor_split",
]
_CONSTANT = [
    "detach",
    "detach_",
    "size",
    "dim",
    "numel",
    "argmax",
    "argmin",
    "item",
    "tolist",
    "numpy",
    "zeros",
    "ones",
    "zeros_like",
    "ones_like",
    "randn",
    "rand",
    "randint",
    "arange",
    "linspace",
    "full",
    "full_like",
    "randn_like",
    "rand_like",
    "tensor",
    "as_tensor",
    "from_numpy",
    "eye",
    "empty",
    "empty_like",
    "eq",
    "ne",
    "lt",
    "gt",
    "le",
    "ge",
    "shape",
    "bincount",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_tensor",
    "normal",
    "bernoulli",
    "manual_seed",
    "is_floating_point",
    "triu",
    "tril",
    "meshgrid",
    "nonzero",
    "any",
    "all",
    "isnan",
    "isinf",
]


def _table() -> dict[str, tuple[str, str]]:
    table: dict[str, tuple[str, str]] = {}
    for name, op in _FUNCTIONAL_ACTIVATIONS.items():
        table[name] = (ACTIVATION, op)
        table[name + "_"] = (ACTIVATION, op)
    table.update({name: (NORM, op) for name, op in _FUNCTIONAL_NORMS.items()})
    table.update({name: (JOIN, name) for name in _JOINS})
    table.update({name: (TRANSPARENT, name) for name in _TRANSPARENT})
    table.update({name: (CONSTANT, name) for name in _CONSTANT})
    for name in ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        table[name] = (WEIGHT, name)
    table["scaled_dot_product_attention"] = (ATTENTION, "attention")
    table["multi_head_attention_forward"] = (ATTENTION, "attention")
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        table[name] = (RECURRENT, name)
    return table


FUNCTIONS = _table()
"""Functions of ``torch`` and ``torch.nn.functional`` and methods of ``Tensor``: name -> (kind, op)."""

INITIALISERS = {
    "kaiming_normal_": "he", "kaiming_uniform_": "he", "kaiming_normal": "he", "kaiming_uniform": "he",
    "xavier_normal_": "xavier", "xavier_uniform_": "xavier", "xavier_normal": "xavier", "xavier_uniform": "xavier",
    "orthogonal_": "orthogonal", "orthogonal": "orthogonal", "zeros_": "zeros", "constant_": "constant",
    "ones_": "constant", "sparse_": "unknown", "dirac_": "unknown", "eye_": "unknown", "trunc_normal_": "normal",
    "normal_": "normal", "uniform_": "uniform", "normal": "normal", "uniform": "uniform", "constant": "constant",
}  # fmt: skip
"""Functions of ``torch.nn.init``: name -> family of the resulting weights."""

SGD_FAMILY = frozenset({"SGD", "ASGD", "Rprop", "LBFGS"})
ADAM_FAMILY = frozenset(
    [
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adamax",
        "SparseAdam",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Adafactor",
        "Lion",
        "LAMB",
        "Lamb",
        "AdaBelief",
        "AdaBound",
        "FusedAdam",
        "DeepSpeedCPUAdam",
        "Adam8bit",
        "AdamW8bit",
        "Ranger",
        "NovoGrad",
        "Prodigy",
        "Sophia",
        "Shampoo",
        "SOAP",
        "Muon",
    ]
)
