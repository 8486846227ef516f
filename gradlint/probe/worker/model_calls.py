"""Calls that a project makes, read from their text and made again; and what surrounds making one."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import re
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from modules import FILE_PREFIX, SlicedModules
from probe_errors import ProbeError
from torch import nn

LOAD_SECONDS = 1.0
"""CPU time for the statements of a module that holds a call site."""


def signature_of(target: Any) -> Optional[inspect.Signature]:
    """The parameters of a constructor or function, annotations resolved where they can be."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        signature = inspect.signature(function, eval_str=True) if sys.version_info >= (3, 10) else None
    except Exception:  # annotations may name anything
        signature = None
    try:
        signature = signature or inspect.signature(function)
    except (TypeError, ValueError):
        return None
    parameters = list(signature.parameters.values())
    if not inspect.isclass(target):
        return signature
    parameters = parameters[1:]
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters[-1:] = [*_inherited(target, {p.name for p in parameters}), parameters[-1]]
    return signature.replace(parameters=parameters)


def _inherited(target: type, known: Set[str]) -> Iterator[inspect.Parameter]:
    """What ``**kwargs`` of a constructor stands for: the parameters of the base class's."""
    own = next((c for c in target.__mro__ if "__init__" in vars(c)), None)
    after = target.__mro__[target.__mro__.index(own) + 1 :] if own is not None else ()
    plain = (object, nn.Module)
    base = next((c for c in after if "__init__" in vars(c) and c not in plain), None)
    signature = signature_of(base) if base is not None else None
    for p in signature.parameters.values() if signature is not None else ():
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in known:
            yield p.replace(kind=p.KEYWORD_ONLY)


def evaluate_call(
    slices: SlicedModules, module: str, signature: inspect.Signature, args: Sequence[str], kwargs: Mapping[str, str]
) -> Dict[str, Any]:
    """Parameter name -> value, for the arguments of a call that can be evaluated in its module."""
    try:
        with cpu_limit(LOAD_SECONDS):
            space = vars(slices.load(module))
    except (Exception, TooSlow) as error:  # the call site's module cannot run: its call tells nothing
        raise ProbeError("not-built", f"{module}: {short(error)}") from error
    positional: List[Any] = []
    for text in args:
        value = _evaluated(text.lstrip("*"), space)
        starred = text.startswith("*")
        if starred and value is UNKNOWN:
            break
        positional.extend(value if starred else [value])
    named: Dict[str, Any] = {}
    for name, text in kwargs.items():
        value = _evaluated(text.lstrip("*"), space)
        if name.isidentifier():
            named[name] = value
        elif isinstance(value, dict):
            named.update(value)
    try:
        bound = signature.bind_partial(*positional, **named).arguments
    except TypeError as error:
        raise ProbeError("not-built", f"the call does not fit: {error}") from error
    if any(isinstance(v, nn.Module) for v in bound.values()) and not slices.loading:
        slices.stale(module)  # the next build gets submodules of its own
    return {k: v for k, v in bound.items() if v is not UNKNOWN}


def evaluate_inputs(slices: SlicedModules, module: str, inputs: Mapping[str, Any]) -> Tuple[List[Any], Dict[str, Any]]:
    """The arguments of a call of the model; what cannot be evaluated is :data:`UNKNOWN`."""
    space = vars(slices.load(module))
    args = [_evaluated(text, space) for text in inputs.get("args", ())]
    return args, {name: _evaluated(text, space) for name, text in inputs.get("kwargs", {}).items()}


UNKNOWN = object()


def _evaluated(text: str, space: Dict[str, Any]) -> Any:
    try:
        return eval(compile(text.strip(), "<call site>", "eval"), space)
    except ProbeError:
        return UNKNOWN
    except Exception:  # names of a function's own, files, devices: whatever it is, it is not known here
        return UNKNOWN


def call_by_name(target: Any, signature: inspect.Signature, values: Mapping[str, Any]) -> Any:
    """Call with parameters by name, by place where they must be."""
    args: List[Any] = []
    kwargs: Dict[str, Any] = {}
    by_place = any(p.kind is p.VAR_POSITIONAL and values.get(p.name) for p in signature.parameters.values())
    for p in signature.parameters.values():
        if p.name not in values:
            if by_place and p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty:
                args.append(p.default)
            continue
        value = values[p.name]
        if p.kind is p.VAR_POSITIONAL:
            args.extend(value)
        elif p.kind is p.VAR_KEYWORD:
            kwargs.update(value)
        elif p.kind is p.POSITIONAL_ONLY or (by_place and p.kind is p.POSITIONAL_OR_KEYWORD):
            args.append(value)
        else:
            kwargs[p.name] = value
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        kwargs.update({k: v for k, v in values.items() if k not in signature.parameters})
    return target(*args, **kwargs)


def short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:120]


def blamed_by(error: BaseException, names: Sequence[str]) -> List[str]:
    """Arguments that the failing lines of sliced code speak of, innermost first."""
    lines: List[str] = []
    trace: Optional[TracebackType] = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(FILE_PREFIX):
            lines.append(linecache.getline(name, trace.tb_lineno))
        trace = trace.tb_next
    found: List[str] = []
    for line in [*reversed(lines), str(error)]:
        found.extend(n for n in names if re.search(rf"\b{re.escape(n)}\b", line) and n not in found)
    return found


class TooSlow(BaseException):
    """An attempt took longer than it may. No ``Exception``: the code under test may catch those."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` in the block once it has used so much CPU time, where the system has such a timer."""

    def stop(number: int, frame: Optional[FrameType]) -> None:
        raise TooSlow(f"more than {seconds} s to build and run it once")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def recorded_lines() -> Iterator[Dict[int, int]]:
    """While the block runs, note for each new module the line of sliced code that makes it."""
    lines: Dict[int, int] = {}
    original = nn.Module.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(FILE_PREFIX):
            frame = frame.f_back
        if frame is not None:
            lines[id(self)] = frame.f_lineno
        original(self, *args, **kwargs)

    nn.Module.__init__ = init  # type: ignore[method-assign]
    try:
        yield lines
    finally:
        nn.Module.__init__ = original  # type: ignore[method-assign]
