"""What an error says about the inputs that led to it, as better inputs.

The texts are those of PyTorch 2.4 to 2.13, of einops, and of asserts in the code itself, whose two sides are
evaluated where they failed.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from dataclasses import replace
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Match, Optional, Tuple

from model_shapes import Arg, channels_of, image_of, options_for, vocabulary
from modules import FILE_PREFIX
from torch import nn

Spec = Tuple[Arg, ...]

_LARGER = (64, 128, 224, 256)
"""Sizes of images to try where the first one was too small for the layers."""
_COUNT = 16
"""A length that a forward is given as a number."""
_ROUND = (28, 32, 48, 64, 84, 96, 112, 128, 160, 224, 256)


def asked_for(spec: Spec, error: BaseException, model: nn.Module, sizes: Mapping[str, Any]) -> Iterator[Spec]:
    """Inputs that the error asks for, most promising first."""
    text = " ".join(str(error).split())
    context = _Context(model, sizes)
    for pattern, rule in _RULES:
        match = re.search(pattern, text)
        if match:
            for i, arg in enumerate(spec):
                if arg.shape and not arg.fixed:
                    for better in rule(arg, match, context):
                        yield (*spec[:i], better, *spec[i + 1 :])
    if isinstance(error, TypeError) and re.search(
        r"(arange|range|zeros|ones)\(\)( received|:)|interpreted as an integer", text
    ):
        yield tuple(replace(a, shape=(), kind="value", value=_COUNT, fixed=True) for a in spec)  # numbers, not tensors
    if isinstance(error, AssertionError):
        yield from _from_assert(spec, error)
    if isinstance(error, (TypeError, AttributeError, AssertionError)):
        yield from _optional_given(spec, text, error, model, sizes)


class _Context:
    def __init__(self, model: nn.Module, sizes: Mapping[str, Any]) -> None:
        self.model = model
        self.sizes = sizes


Rule = Callable[[Arg, Match[str], _Context], Iterator[Arg]]


def _with_dim(arg: Arg, position: int, size: int) -> Arg:
    shape = list(arg.shape)
    shape[position] = size
    return replace(arg, shape=tuple(shape))


def _resized(arg: Arg, size: int) -> Arg:
    """All spatial dimensions set to ``size``."""
    return replace(arg, shape=(*arg.shape[:2], *[size] * (len(arg.shape) - 2)))


def _matmul(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    have, want = int(m[2]), int(m[3])
    if arg.shape[-1] == have and len(arg.shape) > 1:
        yield _with_dim(arg, -1, want)
    if 1 < len(arg.shape) < 4 and arg.kind == "float" and max(1, have - want) < arg.shape[-1] + want - have != want:
        yield _with_dim(arg, -1, arg.shape[-1] + want - have)  # it is joined with others to what has the wrong size
    if len(arg.shape) >= 4:
        # Flattened features: their number grows with the area.
        side = arg.shape[-1] * (want / max(have, 1)) ** (1.0 / (len(arg.shape) - 2))
        near = sorted(_ROUND, key=lambda s: abs(s - side))
        yield from (_resized(arg, s) for s in dict.fromkeys([round(side), *near]) if s not in (0, arg.shape[-1]))
    if len(arg.shape) == 3 and arg.shape[-1] != have:
        scaled = arg.shape[-1] * want / max(have, 1)
        if scaled >= 1 and scaled == int(scaled):
            yield _with_dim(arg, -1, int(scaled))
    yield replace(arg, shape=(arg.shape[0], want))
    yield replace(arg, shape=(arg.shape[0], 16, want))


def _conv_channels(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    weight, want, got = [int(n) for n in m[1].split(",")], int(m[3]), int(m[4])
    space = len(weight) - 2
    if len(arg.shape) == space + 2:
        if arg.shape[1] == got:
            yield _with_dim(arg, 1, want)
        if arg.shape[-1] == got:
            yield _with_dim(arg, -1, want)
    elif arg.shape[-1] == got:
        yield _with_dim(arg, -1, want)
    yield _image(arg, want, space, context)


def _image(arg: Arg, channels: int, space: int, context: _Context) -> Arg:
    h, w = image_of(context.sizes)
    shape = {1: (64,), 2: (h, w), 3: (8, h, w)}.get(space, (h, w))
    return replace(arg, shape=(arg.shape[0], channels, *shape), kind="float")


def _conv_rank(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    space = int(m[1])
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.get(space)
    layers = [layer for layer in context.model.modules() if kind is not None and isinstance(layer, kind)]
    yield _image(arg, layers[0].in_channels if layers else channels_of(context.sizes), space, context)
    if len(arg.shape) == space + 1:
        yield replace(arg, shape=(*arg.shape, arg.shape[-1]))


def _last_dims(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    wanted = [int(n) for n in re.findall(r"\d+", m[1])]
    keep = max(len(arg.shape) - len(wanted), 1)
    yield replace(arg, shape=(*arg.shape[:keep], *wanted))
    yield replace(arg, shape=(arg.shape[0], 16, *wanted))
    if len(arg.shape) == 4:
        yield _with_dim(arg, 1, wanted[-1])


def _features(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    have, want = int(m[1]), int(m[2])
    for position in range(len(arg.shape) - 1, 0, -1):
        if arg.shape[position] == have:
            yield _with_dim(arg, position, want)
    yield replace(arg, shape=(arg.shape[0], want, *arg.shape[2:]))


def _features_reversed(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    have, want = int(m[2]), int(m[1])
    for position in range(len(arg.shape) - 1, 0, -1):
        if arg.shape[position] == have:
            yield _with_dim(arg, position, want)


def _rank(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    for rank in [int(n) for n in re.findall(r"\d", m[1])]:
        yield from _of_rank(arg, rank, context)


def _dims(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    yield from _of_rank(arg, int(m[1]), context)


def _of_rank(arg: Arg, rank: int, context: _Context) -> Iterator[Arg]:
    if rank == len(arg.shape) or not 1 <= rank <= 6:
        return
    batch, last, sizes = arg.shape[0], arg.shape[-1], context.sizes
    h, w = image_of(sizes)
    channels = channels_of(sizes)
    if rank == 1:
        yield replace(arg, shape=(batch,))
    elif rank == 2:
        yield replace(arg, shape=(batch, last))
    elif rank == 3:
        yield replace(arg, shape=(batch, 16, last))
        yield replace(arg, shape=(batch, last, 64))
    elif rank == 4:
        narrow = len(arg.shape) == 3
        yield replace(arg, shape=(batch, last, 8, 8) if narrow else (batch, channels, h, w))
        yield replace(arg, shape=(batch, channels, h, w) if narrow else (batch, last, 8, 8))
        yield replace(arg, shape=(batch, 8, 8, last))
    elif rank == 5:
        yield replace(arg, shape=(batch, channels, 8, h, w))
        yield replace(arg, shape=(batch, 8, channels, h, w))
    elif rank == 6:
        yield replace(arg, shape=(batch, last, 4, 4, 4, 4))


def _multiple(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    length, chunk = int(m[1]), int(m[2])
    shape = tuple(-(-n // chunk) * chunk if i and n == length else n for i, n in enumerate(arg.shape))
    yield replace(arg, shape=shape)
    yield replace(arg, shape=tuple(chunk * 2 if i and n == length else n for i, n in enumerate(arg.shape)))


def _mismatch(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    a, b = int(m[1]), int(m[2])
    for have, want in ((a, b), (b, a)):
        for position in range(len(arg.shape) - 1, 0, -1):
            if arg.shape[position] == have and want > 0:
                yield _with_dim(arg, position, want)
    for have, want in ((a, b), (b, a)):  # one token more than the input is long: a class token
        for position in range(len(arg.shape) - 1, 0, -1):
            shifted = arg.shape[position] + want - have
            if arg.shape[position] != have and shifted > 0 and abs(have - arg.shape[position]) <= 2:
                yield _with_dim(arg, position, shifted)
    if len(arg.shape) >= 4:
        yield from (_resized(arg, s) for s in _LARGER if s != arg.shape[-1])


def _too_small(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    if len(arg.shape) >= 4:
        yield from (_resized(arg, s) for s in _LARGER if s > arg.shape[-1])
    elif len(arg.shape) == 3:
        yield from (_with_dim(arg, -1, s) for s in (256, 1024, 16000) if s > arg.shape[-1])
        yield from (_with_dim(arg, 1, s) for s in (64, 256) if s > arg.shape[1])


def _integers(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    if arg.kind == "float":
        high = vocabulary(context.model, context.sizes)
        shape = arg.shape if len(arg.shape) <= 2 else arg.shape[:2]
        yield replace(arg, kind="int", high=high, shape=(shape[0], min(shape[1], 64)) if len(shape) > 1 else shape)


def _floats(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    if arg.kind in ("int", "bool"):
        yield replace(arg, kind="float")


def _booleans(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    if arg.kind != "bool":
        yield replace(arg, kind="bool")


def _lower(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    if arg.kind == "int" and arg.high > 2:
        yield replace(arg, high=10 if arg.high > 10 else 2)


def _list_of_tensors(arg: Arg, m: Match[str], context: _Context) -> Iterator[Arg]:
    if arg.kind == "float":
        h, w = image_of(context.sizes)
        yield replace(arg, kind="list", shape=(arg.shape[0], channels_of(context.sizes), h, w))


_SHAPE = r"\[([\d, ]*)\]"
_RULES: Tuple[Tuple[str, Rule], ...] = (
    (r"cannot be multiplied \((\d+)x(\d+) and (\d+)x\d+\)", _matmul),
    (r"weight of size " + _SHAPE + r", expected input" + _SHAPE + r" to have (\d+) channels, but got (\d+)",
     _conv_channels),
    (r"batched\) input to conv_?(?:transpose)?(\d)d", _conv_rank),
    (r"expected input with shape \[\*,? ?([\d, ]+)\]", _last_dims),
    (r"running_mean should contain (\d+) elements not (\d+)", _features),
    (r"(?:must be equal to|expected) .*[Ee]xpected (\d+), got (\d+)", _features_reversed),
    (r"expected to have .*?(\d+) channels.*?got.*?(\d+)", _features_reversed),
    (r"weight to be a vector of size equal to the "
     r"number of channels in input, but got weight of shape \[(\d+)\] and input of shape \[\d+, (\d+)",
     _features_reversed),
    (r"expected ((?:\dD(?: or |, )?)+)(?: \(.*?\))? ?input", _rank),
    (r"not enough values to unpack \(expected (\d+), got \d+\)", _dims),
    (r"too many values to unpack \(expected (\d+)", _dims),
    (r"[Ee]xpected (\d+) dims\.? Received", _dims),
    (r"is not equal to len\(dims\) = (\d+)", _dims),
    (r"Shape mismatch, (\d+) != (\d+)", _mismatch),
    (r"can't divide axis of length (\d+) in chunks of (\d+)", _multiple),
    (r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", _mismatch),
    (r"Expected size (\d+) but got size (\d+)", _mismatch),
    (r"but got sizes? \[\d+, (\d+).*?\[\d+, (\d+)", _mismatch),
    (r"does not equal|operands? .*subscript|einsum\(\)", _too_small),
    (r"[Kk]ernel size can't be greater|Output size is too small|output size .*too small|Calculated padded input size"
     r"|should be less than the corresponding input dimension|non-empty|Expected more than 1 (value|spatial)"
     r"|out of range \(expected to be in range|[Ii]nput size .* too small|must be positive|invalid for input of size",
     _too_small),
    (r"(Long|Int|long|int)\b.*(indices|scalar types)|tensors used as indices must be|expected.*(Long|Int)\b.*but"
     r"|Expected tensor for argument #1 'indices'|indices must be", _integers),
    (r"\(got torch\.\w*FloatTensor|\"\w+\" not implemented for 'Float'", _integers),
    (r"not implemented for '(Long|Int|Bool)'|same dtype|expected scalar type Float|Long and Float|long int|c10::Half"
     r"|can only .* floating|Float but found|found dtype Long|should be the same|floating point or complex", _floats),
    (r"[Bb]ool", _booleans),
    (r"index out of range|out of bounds|Class values must be smaller", _lower),
    (r"expected Tensor as element|must be a? ?(list|tuple) of|'Tensor' object .*(append|extend)", _list_of_tensors),
    (r"Dimension out of range \(expected to be in range of \[-(\d)", lambda a, m, c: _of_rank(a, int(m[1]) + 1, c)),
)  # fmt: skip


def _from_assert(spec: Spec, error: BaseException) -> Iterator[Spec]:
    """Evaluate both sides of a failed ``assert a == b`` (or ``a % b == 0``) where it stands."""
    frame, node = failed_assert(error)
    if frame is None or node is None:
        return
    for compare in ast.walk(node.test):
        if not isinstance(compare, ast.Compare) or len(compare.ops) != 1:
            continue
        left, right = value_in(compare.left, frame), value_in(compare.comparators[0], frame)
        if isinstance(compare.left, ast.BinOp) and isinstance(compare.left.op, ast.Mod) and right == 0:
            size, chunk = value_in(compare.left.left, frame), value_in(compare.left.right, frame)
            yield from _replaced(spec, [(size, _up(size, chunk))])
        elif isinstance(left, int) and isinstance(right, int) and left != right:
            yield from _replaced(spec, [(left, right), (right, left)])
            if _asks_for_rank(compare, right):
                context = _Context(nn.Identity(), {})
                for i, arg in enumerate(spec):
                    for better in _of_rank(arg, right, context) if arg.shape else ():
                        yield (*spec[:i], better, *spec[i + 1 :])
        elif isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
            yield from _replaced(spec, [(a, b) for a, b in zip(left, right) if a != b])


def _asks_for_rank(compare: ast.Compare, right: int) -> bool:
    text = ast.unparse(compare.left)
    return right <= 6 and ("ndim" in text or "dim()" in text or "len(" in text)


def failed_assert(error: BaseException) -> Tuple[Optional[FrameType], Optional[ast.Assert]]:
    """The innermost assert of sliced code that an error came from, and its frame."""
    trace, last = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(FILE_PREFIX):
            last = (trace.tb_frame, trace.tb_lineno)
        trace = trace.tb_next
    if last is None:
        return None, None
    frame, line = last
    for node in ast.walk(ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
            return frame, node
    return None, None


def value_in(node: ast.expr, frame: FrameType) -> Any:
    """The value of an expression in a frame; None where it raises."""
    code = compile(ast.Expression(node), "<assert>", "eval")
    try:
        return eval(code, frame.f_globals, frame.f_locals)
    except Exception:  # the user's code, evaluated for a hint only
        return None


def _up(size: Any, chunk: Any) -> Optional[int]:
    return -(-size // chunk) * chunk if isinstance(size, int) and isinstance(chunk, int) and chunk > 0 else None


def _replaced(spec: Spec, pairs: List[Tuple[Any, Any]]) -> Iterator[Spec]:
    """Every argument with a size replaced by the one that was asked for."""
    changes: Dict[int, int] = {a: b for a, b in pairs if isinstance(a, int) and isinstance(b, int) and b > 0}
    for i, arg in enumerate(spec):
        if arg.fixed or not arg.shape:
            continue
        for a, b in changes.items():
            shape = tuple(b if j and n == a else n for j, n in enumerate(arg.shape))
            if shape != arg.shape:
                yield (*spec[:i], replace(arg, shape=shape), *spec[i + 1 :])


def _optional_given(
    spec: Spec, text: str, error: BaseException, model: nn.Module, sizes: Mapping[str, Any]
) -> Iterator[Spec]:
    """An optional argument that the code cannot do without after all."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    given = {a.name for a in spec}
    for parameter in parameters:
        if parameter.default is not None or parameter.name in given:
            continue
        if "NoneType" in text or parameter.name in text or isinstance(error, AssertionError):
            for option in options_for(parameter, model, sizes, False)[:2]:
                yield (*spec, replace(option, keyword=True))
