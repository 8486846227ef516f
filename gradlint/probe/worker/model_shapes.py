"""First guesses at a model's inputs: from the names in ``forward``, the sizes in the constructor, the first layers."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

Shape = Tuple[int, ...]

BATCH = 4
"""Stands in the first place of a shape until the batch is known."""
IMAGE, LENGTH, FRAMES, VOCABULARY = 32, 16, 8, 100


@dataclass(frozen=True)
class Arg:
    """One argument of ``forward``. The first number of ``shape`` is the batch, unless ``fixed``."""

    name: str
    shape: Shape = ()
    kind: str = "float"
    """``float``, ``int`` (below ``high``), ``bool``, ``list`` (one tensor per sample), ``none``, ``value``."""
    high: int = VOCABULARY
    keyword: bool = False
    fixed: bool = False
    value: Any = field(default=None, compare=False)

    def make(self, batch: Optional[int], generator: torch.Generator, double: bool) -> Any:
        """The argument itself."""
        if self.kind == "none":
            return None
        if self.kind == "value":
            return _copied(self.value, double)
        shape = self.shape if self.fixed or batch is None or not self.shape else (batch, *self.shape[1:])
        dtype = torch.float64 if double else torch.float32
        if self.kind == "list":
            return [torch.randn(shape[1:], generator=generator).to(dtype) for _ in range(shape[0])]
        if self.kind == "int":
            return torch.randint(0, max(self.high, 1), shape, generator=generator)
        if self.kind == "bool":
            return torch.ones(shape, dtype=torch.bool)
        return torch.randn(shape, generator=generator).to(dtype)

    @staticmethod
    def like(name: str, value: Any, batch: int, keyword: bool) -> Arg:
        """An argument like one that was seen: tensors over the batch are drawn anew, the rest is kept."""
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch and not value.is_complex():
            kind = "float" if value.is_floating_point() else "bool" if value.dtype is torch.bool else "int"
            high = int(value.max()) + 1 if kind == "int" and value.numel() else VOCABULARY
            return Arg(name, tuple(value.shape), kind, high, keyword)
        kept = _copied(value, False)
        return Arg(name, kind="value", keyword=keyword, value=kept, fixed=True)


def _copied(value: Any, double: bool) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().clone()
        return value.double() if double and value.is_floating_point() else value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_copied(v, double) for v in value)
    return value


def number(sizes: Mapping[str, Any], *patterns: str) -> Optional[int]:
    """The first whole number among constructor arguments whose name matches; the first item of a pair."""
    for pattern in patterns:
        for name, value in sizes.items():
            if re.fullmatch(pattern, name.lower()):
                if isinstance(value, (tuple, list)) and value:
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
    return None


def channels_of(sizes: Mapping[str, Any]) -> int:
    """How many channels an image has."""
    found = number(sizes, r"(in|input)_?(ch|chans?|channels?|planes|nc|c)", r"(img|image)?_?channels", r"n?_?channels")
    return found or 3


def image_of(sizes: Mapping[str, Any]) -> Tuple[int, int]:
    """Height and width of an image."""
    for name, value in sizes.items():
        if re.fullmatch(r"(image|img|input)_?(size|res|resolution|shape)|resolution|size", name.lower()):
            if isinstance(value, (tuple, list)) and len(value) >= 2 and all(isinstance(v, int) for v in value):
                return (int(value[-2]), int(value[-1]))
            if isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 512:
                return (value, value)
    height, width = number(sizes, r"(image|img|input)?_?(height|h)"), number(sizes, r"(image|img|input)?_?(width|w)")
    return (height or IMAGE, width or height or IMAGE)


def states_image(sizes: Mapping[str, Any]) -> bool:
    """Whether the constructor speaks of an image's size."""
    return number(sizes, r"(image|img)_?(size|height|h|resolution)", r"(input_)?resolution") is not None


def frames_of(sizes: Mapping[str, Any]) -> int:
    """Frames of a video."""
    return number(sizes, r"(num_|n_)?(frames|video_frames|frame_size)", r"max_.*frames") or FRAMES


def length_of(sizes: Mapping[str, Any]) -> int:
    """Length of a sequence."""
    found = number(
        sizes, r"(max_)?seq(uence)?_?(len|length|size)?", r"num_patches|n_patches", r"max_?len(gth)?|block_?size|n_ctx",
        r"(num_|n_)?(tokens_per_.*|positions)|window_size|context_?(len|length|size)",
    )  # fmt: skip
    return found if found and found <= 512 else LENGTH


def vocabulary(model: nn.Module, sizes: Mapping[str, Any]) -> int:
    """A number below which every index is good."""
    sizes_found = [m.num_embeddings for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return min([*sizes_found, number(sizes, r".*(vocab|tokens|words).*") or VOCABULARY])


def first_guesses(
    model: nn.Module, signature: inspect.Signature, sizes: Mapping[str, Any]
) -> Iterator[Tuple[Arg, ...]]:
    """Inputs to begin with, best first."""
    choices = []
    for i, parameter in enumerate(needed(signature)):
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        options = [replace(a, keyword=keyword) for a in options_for(parameter, model, sizes, i == 0)]
        choices.append(options[: 6 if i == 0 else 2])
    if not choices:
        yield ()
        return
    for rest in itertools.islice(itertools.product(*choices[1:]), 4):
        for first in choices[0]:
            yield (first, *rest)


def needed(signature: inspect.Signature) -> List[inspect.Parameter]:
    """The parameters that must be given; the first one always."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = [p for p in signature.parameters.values() if p.kind in plain and p.default is p.empty]
    if found:
        return found
    first = next(iter(signature.parameters.values()), None)
    if first is None:
        return []
    return [] if first.kind is first.VAR_KEYWORD else [first.replace(name="x") if first.kind not in plain else first]


_IDS = re.compile(
    r"(^|_)(ids?|tokens?|text|idx|index|indices|words?|seqs?|sentences?|src|tgt|caption|labels?|targets?)$"
)
_MASK = re.compile(r"mask")
_TIME = re.compile(r"^(t|ts|time|times|timesteps?|time_?steps?|sigma|noise_?levels?|noise_cond|step|cond_time)$")
_VIDEO = re.compile(r"video|clip$|frames")
_IMAGE = re.compile(r"im(g|age)s?|pixel|photo|picture|^fmap|feature_map")


def options_for(parameter: inspect.Parameter, model: nn.Module, sizes: Mapping[str, Any], main: bool) -> List[Arg]:
    """What one parameter of ``forward`` could be, best first."""
    name, low = parameter.name, parameter.name.lower()
    text = str(parameter.annotation).lower() if parameter.annotation is not parameter.empty else ""
    high = vocabulary(model, sizes)
    shapes = [Arg(name, s) for s in main_shapes(model, sizes)]
    ids = [Arg(name, (BATCH, length_of(sizes)), "int", high), Arg(name, (BATCH,), "int", high)]
    c, (h, w) = channels_of(sizes), image_of(sizes)
    image, video = Arg(name, (BATCH, c, h, w)), Arg(name, (BATCH, c, frames_of(sizes), h, w))
    if _MASK.search(low):
        return [Arg(name, (BATCH, length_of(sizes)), "bool"), Arg(name, kind="none")]
    if _TIME.search(low):
        return [Arg(name, (BATCH,)), Arg(name, (BATCH,), "int", 10), Arg(name, (BATCH, 1))]
    if _VIDEO.search(low):
        return [video, *shapes]
    if _IMAGE.search(low) and not isinstance(first_layer(model), (nn.Linear, nn.Embedding)):
        return _unique([*([] if states_image(sizes) else shapes[:1]), image, *shapes])
    if _IMAGE.search(low):
        return _unique([image, *shapes])
    if low in ("edge_index", "edges"):
        return [Arg(name, (2, LENGTH), "int", BATCH, fixed=True)]
    if low in ("h", "w", "height", "width") and not main and "tensor" not in text:
        return [Arg(name, kind="value", value=math.isqrt(length_of(sizes)), fixed=True), *shapes]
    own = _own_size(low, sizes)
    if own is not None and not isinstance(first_layer(model), nn.modules.conv._ConvNd):
        return _unique([Arg(name, (BATCH, own)), Arg(name, (BATCH, length_of(sizes), own)), *shapes])
    if "int" in text.split(".")[-1] and "tensor" not in text:
        return [Arg(name, kind="value", value=1, fixed=True)]
    if "bool" in text and "tensor" not in text:
        return [Arg(name, kind="value", value=False, fixed=True)]
    if _IDS.search(low):
        return [*ids, *shapes] if _has_lookup(model) else [*shapes, *ids]
    if "list" in text and main:
        return [Arg(name, (BATCH, c, h, w), "list"), *shapes]
    return shapes if not main or not isinstance(first_layer(model), nn.Embedding) else _unique([*ids, *shapes])


_SHORT = {"s": "state", "a": "action", "o": "obs", "z": "latent", "c": "cond"}


def _own_size(name: str, sizes: Mapping[str, Any]) -> Optional[int]:
    """The constructor's argument that gives the width of an input by its name: ``obs_dim`` of ``obs``."""
    names = {name, _SHORT.get(name, name)}
    for size, value in sizes.items():
        match = re.fullmatch(r"(?:n_|num_|d_|dim_)?([a-z0-9_]+?)_?(dims?|sizes?|features|feats|d)", size.lower())
        if match is None or isinstance(value, bool) or not isinstance(value, int) or value < 1:
            continue
        if any(len(n) > 1 and (n.startswith(match[1]) or match[1].startswith(n)) for n in names):
            return value
    return None


def _has_lookup(model: nn.Module) -> bool:
    return any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in model.modules())


def _unique(args: List[Arg]) -> List[Arg]:
    return list(dict.fromkeys(args))


_CONSUMERS = (
    nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.LayerNorm,
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.MultiheadAttention, nn.Bilinear,
)  # fmt: skip


def first_layer(model: nn.Module) -> Optional[nn.Module]:
    """The first layer, in the order of registration, that fixes the shape of its input."""
    return next((m for m in model.modules() if isinstance(m, _CONSUMERS)), None)


def main_shapes(model: nn.Module, sizes: Mapping[str, Any]) -> List[Shape]:
    """Shapes for the main input, best first."""
    layer = first_layer(model)
    h, w = image_of(sizes)
    length = length_of(sizes)
    found: List[Shape] = []
    if states_image(sizes):
        if number(sizes, r".*frames?(_size)?"):
            found.append((BATCH, channels_of(sizes), frames_of(sizes), h, w))
        found.append((BATCH, channels_of(sizes), h, w))
    found.extend(_layer_shapes(layer, sizes, h, w, length))
    dim = number(sizes, r"dim|d_?model|embed_?dim|hidden_?(size|dim)|n_embd|width", r"(in|input)_?(dim|features|size)")
    if dim:
        found.extend([(BATCH, length, dim), (BATCH, dim), (BATCH, dim, 8, 8)])
    if not found:
        found = [(BATCH, 32), (BATCH, length, 64), (BATCH, 3, h, w)]
    return list(dict.fromkeys(found))


def _layer_shapes(layer: Optional[nn.Module], sizes: Mapping[str, Any], h: int, w: int, length: int) -> List[Shape]:
    if isinstance(layer, nn.modules.conv._ConvNd):
        c, dims = layer.in_channels or 3, len(layer.kernel_size)
        if "Transpose" in type(layer).__name__:
            return [(BATCH, c, *[1] * dims), (BATCH, c, *[4] * dims), (BATCH, c)]
        space = {1: (64,), 2: (h, w), 3: (frames_of(sizes), h, w)}[dims]
        return [(BATCH, c, *space), (BATCH, *space)] if c == 1 else [(BATCH, c, *space)]
    if isinstance(layer, nn.Linear):
        n = layer.in_features or 32
        flat: List[Shape] = [(BATCH, n), (BATCH, length, n)]
        return flat[::-1] if number(sizes, r".*heads?", r"dim_head|.*seq_?len.*") else flat
    if isinstance(layer, nn.LayerNorm):
        return [(BATCH, length, *layer.normalized_shape), (BATCH, *layer.normalized_shape)]
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        n = layer.num_features or 32
        if isinstance(layer, nn.BatchNorm1d):
            return [(BATCH, n), (BATCH, n, length)]
        return [(BATCH, n, 8, 8, 8)] if isinstance(layer, nn.BatchNorm3d) else [(BATCH, n, h, w)]
    if isinstance(layer, nn.GroupNorm):
        return [(BATCH, layer.num_channels, 8, 8), (BATCH, layer.num_channels, length)]
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        sequence: Shape = (BATCH, length, layer.input_size)
        return [sequence] if isinstance(layer, nn.RNNBase) else [(BATCH, layer.input_size), sequence]
    if isinstance(layer, nn.MultiheadAttention):
        return [(BATCH, length, layer.embed_dim)]
    if isinstance(layer, nn.Bilinear):
        return [(BATCH, layer.in1_features)]
    return []


def ladder(model: nn.Module, signature: inspect.Signature, sizes: Mapping[str, Any]) -> Iterator[Tuple[Arg, ...]]:
    """Shapes to fall back on when nothing speaks for any."""
    parameters = needed(signature)
    if not parameters:
        return
    rest = [options_for(p, model, sizes, False)[0] for p in parameters[1:]]
    rest = [replace(a, keyword=p.kind is p.KEYWORD_ONLY) for a, p in zip(rest, parameters[1:])]
    name, keyword = parameters[0].name, parameters[0].kind is inspect.Parameter.KEYWORD_ONLY
    dims = dict.fromkeys(m.in_features for m in model.modules() if isinstance(m, nn.Linear))
    shapes: List[Shape] = [(BATCH, 3, 64, 64), (BATCH, 1, 28, 28), (BATCH, 3, 224, 224), (BATCH, 3, IMAGE, IMAGE)]
    for n in list(dims)[:4]:
        shapes.extend([(BATCH, n), (BATCH, LENGTH, n), (BATCH, n, 8, 8)])
    shapes.extend([(BATCH,), (BATCH, 1), (BATCH, 3, FRAMES, IMAGE, IMAGE), (BATCH, 1, 64)])
    for shape in shapes:
        yield (Arg(name, shape, keyword=keyword), *rest)
    yield (Arg(name, (BATCH, LENGTH), "int", vocabulary(model, sizes), keyword=keyword), *rest)
