"""Values for constructor arguments that the project does not state, by name and annotation.

Small and mutually consistent: sizes are powers of two, so that what has to divide divides. How deep a model is, is
never made up beyond :data:`DEPTH`: a finding about depth must not rest on a guess.
"""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any, Dict, List, Tuple

import torch
from torch import nn

DEPTH = 2
"""Guess for a number of layers. The rules speak of no chain this short."""

_DEPTH = re.compile(
    r"^(n_?|num_?)?(depth|layers?|blocks?|res(idual)?(_?blocks?|_?layers?)?|stages?|stacks?|hidden_?layers|levels)$"
    r"|(^|_)(depth|num_?layers|n_?layers|nlayers|num_?blocks|n_?blocks|hidden_layers|num_hidden_layers|layers_num)$"
)
_SIZES: Tuple[Tuple[str, Any], ...] = (
    (r"^(num_?|n_?)?(class(es)?|labels|categories)$|num_class|n_class|nb_class|^(n_?out|num_?outputs?|nout)$", 10),
    (r"^(out|output)_?(dim|size|features)?$|action_(dim|size)|num_actions|n_actions|act_dim", 10),
    (r"pool_?size|^n_?dims?$|^num_?dims$|spatial_dims", 2),
    (r"patch", 8),
    (r"window_?size", 4),
    (r"^(ksize|ks|kernel)$|kernel_?size|_kernel$|filter_size", 3),
    (r"^(image|img|input)_?(size|res(olution)?|height|width|h|w)$|resolution|^(height|width|size|h|w)$|img_dim", 32),
    (r"dim_?head|head_?dim|d_?head|dim_key|dim_value|d_k$|d_v$", 16),
    (r"heads?$|^n_?head|num_?head", 4),
    (r"keep_?prob", 0.9),
    (r"drop(out|path|_|$)|_dp$|p_drop|^p$|^prob$", 0.1),
    (r"(mask|masking|sampling|prob).*(ratio|rate|prob)|(ratio|rate|prob).*mask", 0.5),
    (r"^(in|input|inp)_?(ch|chan|channels?|planes|nc|c)$|^(img|image)?_?channels?(_in)?$|^n_?channels$|^c_?in$|^nc$"
     r"|^num_channels$|^num_input_channels$", 3),
    (r"channels?|planes|filters|^(n|d|g)f$|^n[gde]f$|num_feat|n_feat|^c_?out$|^width$|ch$", 64),
    (r"vocab|(num|n)_?tokens|ntokens?$|num_?embeddings|num_?words|codebook_size|dictionary", 100),
    (r"frames?$|num_frames", 8),
    (r"seq|max_?len|length|context|block_?size|num_?patches|n_?positions|n_?ctx|time_?steps|max_pos|num_queries"
     r"|window", 16),
    (r"num_?experts|n_experts|num_?groups|groups_?num", 4),
    (r"^(in|input|inp)_?(features|dim|size|feats|shape)?$|^n_?in(puts)?$|(state|obs|observation)_?(dim|size)|n_?features"
     r"|num_?features|feature_?(dim|size)", 32),
    (r"stride|dilation|^groups$|padding$|^pad$|growth_?step", 1),
    (r"mlp|ff|inner|hidden|dim|embed|d_?model|latent|^z|code|units|neurons|features|feats|width|size", 64),
    (r"mult|expan|factor|scale|ratio|upscale|downsample", 2),
    (r"eps", 1e-5),
    (r"temp|tau|alpha|beta|gamma|lambda|lamb|weight|sigma|std|omega|w0", 1.0),
    (r"^k$|top_?k|num_|^n_|^nb_", 4),
)  # fmt: skip
_FLAG = re.compile(
    r"^(use|is|has|with|no|return|enable|add|do|learn|apply|include)_|bias|causal|bidirectional|flag|bool"
    r"|residual|pre_?norm|verbose|pretrained|inplace"
)
_CONFIG = re.compile(
    r"^(config|cfg|conf|args|hparams|hyper_?params|opts?|options|settings|model_args|model_config|"
    r"params|hps)$|(_config|_cfg|_args)$"
)
_NORM = re.compile(r"norm(_layer|_fn|_cls|alization)?$")
_ACTIVATION = re.compile(r"act(ivation)?(_fn|_func|_layer|_cls|_function)?$|non_?lin|^nl$")
_PLURAL = re.compile(
    r"(dims|sizes|channels_list|depths|kernels|strides|widths|filters_list|channel_mults?|mults)$|list$"
)
_MODULE = re.compile(
    r"^(fn|net|module|layer|block|model|encoder|decoder|backbone|vit|transformer|sub_?module|extractor|"
    r"student|teacher|generator|discriminator|unet|attn|ff|inner|to_.*|.*_(net|encoder|decoder|fn|module|transformer))$"
)


class NoGuess(Exception):
    """Nothing can stand in for this argument; the text says which it is."""


def is_depth(name: str) -> bool:
    """Whether an argument of this name says how many layers a model has."""
    return bool(_DEPTH.search(name.lower()))


def is_plural(name: str) -> bool:
    """Whether an argument of this name lists one number for each layer."""
    return bool(_PLURAL.search(name.lower()))


class Config:
    """A configuration object whose values are guessed as they are asked for, and remembered."""

    def __init__(self, name: str, notes: Dict[str, Any]) -> None:
        self.__dict__.update(_name=name, _notes=notes, _values={})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._get(name)

    def _get(self, name: str, default: Any = inspect.Parameter.empty) -> Any:
        if name not in self._values:
            if default is not inspect.Parameter.empty:
                return default
            try:
                value = guess(name, inspect.Parameter.empty, self._notes)
            except NoGuess:
                value = Config(f"{self._name}.{name}", self._notes)
            if not isinstance(value, Config):
                self._notes[f"{self._name}.{name}"] = describe(value)
            self._values[name] = value
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value

    __setitem__ = __setattr__

    def __getitem__(self, name: str) -> Any:
        return self._get(name)

    def __contains__(self, name: str) -> bool:
        return False

    def get(self, name: str, default: Any = None) -> Any:
        """What the code gives as default, where it gives one."""
        return self._get(name, default)

    def __iter__(self) -> Any:
        return iter(self._values)

    def keys(self) -> Any:
        """Names asked for so far."""
        return self._values.keys()


def describe(value: Any) -> Any:
    """A value as evidence shows it: plain data, or a short text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 8:
        return [describe(v) for v in value]
    if isinstance(value, type):
        return value.__name__
    return type(value).__name__ + "(...)" if not isinstance(value, nn.Module) else type(value).__name__ + "()"


def guess(name: str, annotation: Any, notes: Dict[str, Any]) -> Any:
    """A value for the argument ``name``. Raises :class:`NoGuess` for what only the project can supply.

    ``notes`` collects what is assumed beside the value itself: ``depth_guessed``, a config's fields.
    """
    low = name.lower().strip("_")
    if is_depth(low):
        notes["depth_guessed"] = True
    hint = _unwrap(annotation)
    by_type = _by_annotation(low, hint, notes)
    if by_type is not inspect.Parameter.empty:
        return by_type
    if low in ("device", "dtype"):
        return torch.device("cpu") if low == "device" else torch.float32
    if _CONFIG.search(low):
        return Config(name, notes)
    if is_depth(low):
        return (DEPTH, DEPTH) if low in ("layers", "depths", "blocks") and hint is not int else DEPTH
    if _PLURAL.search(low):
        notes["depth_guessed"] = True  # as many layers as there are widths
        return (DEPTH, DEPTH) if low.startswith("depth") else _pair(low)
    if _FLAG.search(low) and hint is not int and not low.startswith(("num_", "n_")):
        return False
    if _ACTIVATION.search(low):
        return nn.ReLU
    if _NORM.search(low):
        return nn.LayerNorm
    for pattern, value in _SIZES:
        if hint is not nn.Module and re.search(pattern, low) and not _MODULE.search(low):
            return value
    if _MODULE.search(low) or hint is nn.Module:
        raise NoGuess(name)
    return 4


def _pair(name: str) -> Tuple[int, ...]:
    return (3, 3) if "kernel" in name else (1, 1) if "stride" in name else (1, 2) if "mult" in name else (32, 64)


def _unwrap(annotation: Any) -> Any:
    """The type inside ``Optional[...]``; of a union its first member. Texts are matched by name."""
    if annotation is inspect.Parameter.empty:
        return None
    if isinstance(annotation, str):
        names = {"int": int, "float": float, "bool": bool, "str": str, "nn.Module": nn.Module, "Module": nn.Module}
        text = annotation.replace("Optional[", "").split("|")[0].strip(" ]")
        return names.get(text, annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Union or type(annotation).__name__ == "UnionType":
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _unwrap(members[0]) if members else None
    return annotation


def _by_annotation(name: str, hint: Any, notes: Dict[str, Any]) -> Any:
    empty = inspect.Parameter.empty
    origin = typing.get_origin(hint)
    if hint is bool:
        return False
    if hint is str:
        return "relu" if _ACTIVATION.search(name) else "mean" if "pool" in name or "reduc" in name else "default"
    if typing.get_args(hint) and type(hint).__name__ == "_LiteralGenericAlias":
        return typing.get_args(hint)[0]
    if isinstance(hint, type) and issubclass(hint, nn.Module) and hint is not nn.Module:
        raise NoGuess(name)
    if hint in (list, tuple) or origin in (list, tuple) or str(hint).startswith(("List", "Tuple", "list[", "tuple[")):
        return _sequence(name, hint, notes)
    if hint is float:
        value = guess(name, empty, notes)
        return float(value) if isinstance(value, (int, float)) and value != 64 else 0.5
    return empty


def _sequence(name: str, hint: Any, notes: Dict[str, Any]) -> Any:
    args = [a for a in typing.get_args(hint) if a is not Ellipsis]
    if is_depth(name):
        return (DEPTH, DEPTH)
    stem = name[:-1] if name.endswith("s") else name
    count = len(args) if typing.get_origin(hint) is tuple and len(args) > 1 else 2
    inner = args[0] if args else inspect.Parameter.empty
    if _PLURAL.search(name) and inner in (int, inspect.Parameter.empty):
        values: Tuple[Any, ...] = _pair(name)
    else:
        value = guess(stem, inner, notes)
        values = tuple(value for _ in range(count))
    return list(values) if hint is list or typing.get_origin(hint) is list else values


def alternatives(name: str, value: Any, error: BaseException) -> List[Any]:
    """Other values to try after ``value`` led to ``error``, most promising first."""
    text = str(error)
    found: List[Any] = []
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if re.search(r"not iterable|not subscriptable|has no len|cannot unpack|\b(tuple|list|sequence)\b", text):
            found = [(value, value), [value, value, value]]
        elif "not callable" in text:
            found = [nn.ReLU, nn.ReLU()]
        elif "NoneType" in text:
            found = []
        elif "must be float" in text or "float" in text:
            found = [float(value)]
    elif isinstance(value, (tuple, list)) and re.search(r"tuple|list|must be an? (int|number)|unsupported", text):
        found = [value[0]]
    elif value is nn.ReLU:
        found = [nn.ReLU(), "relu", torch.relu]
    elif value is nn.LayerNorm:
        found = [nn.BatchNorm2d, "batch", True]
    elif value == "default":
        found = _choices_in(text)
    elif value is False:
        found = [True]
    elif value is None:
        found = _guess_or_nothing(name)
    return found


def _guess_or_nothing(name: str) -> List[Any]:
    try:
        return [guess(name, inspect.Parameter.empty, {})]
    except NoGuess:
        return []


def _choices_in(text: str) -> List[Any]:
    """Quoted words in an error message: often the values that would do."""
    return [word for word in re.findall(r"['\"]([\w\-]+)['\"]", text) if word != "default"][:3]
