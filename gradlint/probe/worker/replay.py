"""Runs the user's own training statements on real PyTorch and reports what happened to the gradients.

``run(body)`` takes the sliced modules of a request, the region to run and the lines of interest, and returns the
events of every path that was run. It decides nothing: the rules do, from the events.

A path is one assignment of the unknown guards. The first path answers them so that the lines of interest are
reached; then every guard that matters for training is flipped, one at a time. Each path runs twice: once to learn
the clips and their limits, and once with every backward scaled so that the gradient is ten times the limit.

Further options of a request:

* ``same_batch``: weights do not move (learning rate 0), every iteration of a training loop gets the same data and
  random numbers, and a backward pass from the same place adds the same gradient; clips are recorded and do not clip,
  nothing is scaled up, and an unknown accumulation count is 4. So each path runs once.
* ``accumulation``: an option that counts micro-batches and is 1 by default is this instead.
* ``overflow``: the first backward of a scaled loss gives an infinite gradient, as half precision does.
* ``iterators``: ``[[line, path], ...]``; an iterator bound there is watched, and each of its consumers recorded.

The events are described in ``step_record``.
"""

from __future__ import annotations

import ast
import functools
import math
import time
import types
import warnings
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import cpu_standins
import ghost_world
import integrity
import step_accumulation
import step_layers
import step_optim
import step_patch
import step_remedy
import step_scaling
import step_slim
import step_tolerance
import torch
from ghost import Ghost
from ghost_math import weights_of
from modules import filename_of
from probe_errors import ProbeError
from step_clock import TooSlow, alarm
from step_flow import Flow, Place, read
from step_globals import fill_before
from step_grads import ClipSeen
from step_helpers import Helpers
from step_imports import StepModules
from step_record import Recorder, number_iterations
from step_region import call_region
from step_rewrite import rewrite
from step_roles import Roles, infer
from step_same import SameBatch
from step_world import RunWorld

MAX_PATHS = 8
FIRST_SHARE, LEAST_SHARE = 0.35, 0.15
"""Share of the CPU limit after which the first path begins anew, with stand-ins for the program's own models; and
the share it has at least, where reading the program has taken long."""
TIME_SHARE, LAST_SHARE, ALARM_SHARE = 0.4, 0.8, 0.85
"""Shares of the CPU limit after which no further path is begun, after which a running one is left at its next event,
and after which it is left wherever it is."""
DEFAULT_CPU_SECONDS = 5.0


def run(body: Dict[str, Any]) -> Dict[str, Any]:
    """Carry out one step request. Raises :class:`ProbeError` (``not-sliced``) where nothing could be run."""
    warnings.simplefilter("ignore")
    started = time.process_time()
    assumed: Dict[str, Any] = {}
    program = Program(body["modules"], body, assumed)
    paths = program.explore([{}], started)
    for forced in (set(), program.passed):  # loops that have no items first: a guard within may be a known one
        if _reached(paths, body["lines"]):
            break
        program.forced = set(forced)
        paths = program.explore([{}], started)
    for region in body.get("fallbacks", ()):
        if _reached(paths, body["lines"]):
            break
        # what leads to the calls cannot be run: begin in the function that holds them
        body = {**body, "region": region}
        program = Program(body["modules"], body, assumed)
        paths = program.explore([{}], started)
    if not any(path["events"] for path in paths):
        raise ProbeError("not-sliced", _why(paths))
    edited_paths: List[Dict[str, Any]] = []
    edited, remedy = body.get("edited"), step_remedy.read(body.get("remedy"))
    if edited or remedy:
        edited = edited or {"source": None, "lines": body["lines"]}
        modules = [_with_source(m, edited.get("module") or body["entry"], edited["source"]) for m in body["modules"]]
        other = Program(modules, {**body, "lines": edited["lines"]}, {})
        other.forced, other.slim, other.remedy = program.forced, program.slim, remedy
        other.premade, other.thawing = program.premade, program.thawing
        chosen = [dict(path.pop("assigned")) for path in paths]
        edited_paths = [
            other.path(assignment)
            for number, assignment in enumerate(chosen)
            if not number or time.process_time() - started < LAST_SHARE * _cpu_limit()
        ]
    kinds = {path.pop("kind") for path in [*paths, *edited_paths]}
    for path in [*paths, *edited_paths]:
        path.pop("assigned", None)
    result = {
        "kind": "replay" if "replay" in kinds else "replica",
        "paths": paths,
        "edited_paths": edited_paths,
        "assumed": assumed,
    }
    plain: Dict[str, Any] = _plain(result)
    return plain


def _reached(paths: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> bool:
    wanted = set(lines)
    return any(wanted.intersection(e.get("lines", ())) for path in paths for e in path["events"])


class Program:
    """One version of the sliced program."""

    def __init__(self, modules: Sequence[Mapping[str, Any]], body: Mapping[str, Any], assumed: Dict[str, Any]) -> None:
        self.modules = modules
        self.entry: str = body["entry"]
        self.region: str = body["region"]
        self.values: Dict[str, str] = dict(body.get("values") or {})
        self.stubs: List[str] = [v for k, v in (body.get("controls") or {}).items() if k == "stub"]
        self.remedy: Optional[step_remedy.Remedy] = None
        self.accumulation = int(body.get("accumulation") or 1)
        self.overflow = bool(body.get("overflow"))
        self.asked = frozenset(body["lines"])
        self.same_batch = bool(body.get("same_batch"))
        self.iterators = {
            (str(more[0]) if more else self.entry, int(line), str(name))
            for line, name, *more in body.get("iterators") or ()
        }
        self.assumed = assumed
        self.trees = {str(m["name"]): _parse(m) for m in modules}
        self.files = {filename_of(str(m["path"])): str(m["name"]) for m in modules}
        self.roles: Roles = infer(self.trees.values())
        self.flow: Flow = read(self.trees, self.entry, body["lines"])
        self.next_flips: Dict[str, bool] = {}
        self.slim = False
        self.late: Tuple[str, ...] = ()
        """Stand-ins of the latest run, where some were made only after its first backward."""
        self.thawing = False
        """Whether nothing is to be frozen, see :func:`step_patch.thaw`."""
        self.premade: Tuple[str, ...] = ()
        """Stand-ins that a run makes at its beginning."""
        self.forced: Optional[Set[Place]] = None
        self.passed: Set[Place] = set()
        self._code: Dict[str, types.CodeType] = {}
        _install_once()
        step_tolerance.install(lambda name: name in self.trees)

    def explore(self, todo: List[Dict[str, bool]], started: float) -> List[Dict[str, Any]]:
        """The first path, and one for every relevant guard that it, or a later one first, asked: that guard flipped."""
        paths: List[Dict[str, Any]] = []
        asked: Set[str] = set()
        budget = TIME_SHARE * _cpu_limit()
        while todo and len(paths) < MAX_PATHS:
            if paths and time.process_time() - started > budget:
                break
            assigned = todo.pop(0)
            paths.append(self.path(assigned) if paths else self._first(assigned, started))
            todo.extend({**assigned, key: not told} for key, told in self.next_flips.items() if key not in asked)
            asked.update(self.next_flips)
        return paths

    def _first(self, assigned: Mapping[str, bool], started: float) -> Dict[str, Any]:
        """The first path; where the program's own models are too slow for it, with stand-ins for them."""
        if not self.slim:
            at = max(started + FIRST_SHARE * _cpu_limit(), time.process_time() + LEAST_SHARE * _cpu_limit())
            try:
                return self.path(assigned, at)
            except TooSlow:
                self.slim = True
        return self.path(assigned)

    def path(self, assigned: Mapping[str, bool], at: Optional[float] = None) -> Dict[str, Any]:
        """Run one path; where it met a clip, a second time with the gradients scaled up and all clips known.

        ``at``: CPU time of the process at which :class:`TooSlow` is raised; without it the path just ends in time.
        """
        result, met = self._once(assigned, (), at)
        late, self.late = self.late, ()
        if step_patch.Hooks.frozen and not self.thawing:
            self.thawing = True
            self.assumed["frozen"] = "all but unknown layers: nothing is frozen here"
            late = late or ("",)
        if (met and not self.same_batch) or late:
            self.premade = tuple(p for p in dict.fromkeys([*self.premade, *late]) if p)
            result, _ = self._once(assigned, () if self.same_batch else met, at)
        return result

    def _once(
        self, assigned: Mapping[str, bool], seen: Sequence[ClipSeen], at: Optional[float]
    ) -> "tuple[Dict[str, Any], Sequence[ClipSeen]]":
        same = SameBatch() if self.same_batch else None
        recorder = Recorder(self.entry, self.files, self.stubs, seen, LAST_SHARE * _cpu_limit(), same)
        recorder.remedy, recorder.overflow, recorder.asked = self.remedy, self.overflow, self.asked
        world = RunWorld(recorder, self.roles, self.flow, self.values, assigned, self.assumed)
        world.forced = self.forced
        step_patch.Hooks.unknown_parameters = staticmethod(world.unknown_parameters)
        step_patch.Hooks.known_parameters = staticmethod(world.known_parameters)
        step_patch.Hooks.number = staticmethod(world.limit)
        step_patch.Hooks.thawing, step_patch.Hooks.frozen = self.thawing, False
        step_tolerance.start()
        step_optim.start()
        watched = integrity.take(integrity.TORCH)
        ghost_world.enter(world)
        error: Optional[str] = None
        names = Helpers(world).names()
        names["_gl_accumulated"] = step_accumulation.at_least(self.accumulation, self.assumed)
        modules = StepModules(self.modules, self._compile, names, lambda m: self._prepare(m, world))
        try:
            step_patch.Hooks.recorder = recorder
            with modules, alarm(at if at is not None else ALARM_SHARE * _cpu_limit()):
                world.standins.premake(self.premade)
                if self.slim:
                    heavy = step_slim.replaceable(self.trees, self.entry, self.region, self.flow.trains)
                    step_slim.replace(heavy, world.slimmed)
                error = call_region(modules, self.entry, self.region, self.trees, world)
        except TooSlow:
            if at is not None:
                raise
        finally:
            step_slim.stop()
            step_patch.Hooks.recorder = None
            ghost_world.enter(ghost_world.World())
        watched.verify()
        if recorder.unknown_inputs:
            self.assumed.setdefault("inputs", "unknown data")
        number_iterations(recorder.events)
        self.next_flips = dict(world.flippable)
        self.passed |= world.passed
        if world.late:
            self.late = tuple(p for p in world.standins.order if p not in self.premade)
        path = {
            "guards": world.guards,
            "error": error,
            "troubles": recorder.troubles,
            "events": recorder.events,
            "assigned": dict(assigned),
            "kind": _kind(recorder, world),
        }
        return path, recorder.grads.met

    def _prepare(self, module: types.ModuleType, world: RunWorld) -> None:
        if module.__name__ in self.trees:
            fill_before(module, self.trees[module.__name__], world)

    def _compile(self, source: str, filename: str, name: str) -> types.CodeType:
        if name in self._code:
            return self._code[name]
        # a function's slice keeps of a main block only what feeds it: as if the program had been started
        is_main = name == self.entry
        roles = {p: r for p, r in self.roles.by_path.items() if not _is_child(self.roles, p)}
        capture = self.region if is_main and "<locals>" in self.region else ""
        watched = frozenset((line, path) for module, line, path in self.iterators if module == name)
        widened = self.accumulation > 1
        key = (source, filename, is_main, capture, watched, widened, frozenset(roles.items()))
        if key not in _CODE:
            tree = ast.parse(source)  # anew: a copy of a tree takes longer than its text
            tree = rewrite(step_accumulation.widen(tree) if widened else tree, roles, is_main, capture, watched)
            _CODE[key] = _compiled(tree, filename)
        self._code[name] = _CODE[key]
        return self._code[name]


def _compiled(tree: ast.Module, filename: str) -> types.CodeType:
    try:
        return compile(tree, filename, "exec", dont_inherit=True)
    except TypeError:  # a node has no place
        return compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True)


_CODE: Dict[Tuple[Any, ...], types.CodeType] = {}
"""Compiled modules: the edited program shares most of them with the one as written."""


class _Installed:
    """Whether this process has its stand-ins."""

    done = False


def _install_once() -> None:
    if not _Installed.done:
        _Installed.done = True
        cpu_standins.install()
        step_patch.install()
        step_optim.install()
        step_scaling.install()
        step_layers.install()
        step_slim.install()


def _is_child(roles: Roles, path: str) -> bool:
    base, _, child = path.rpartition(".")
    return child in roles.children.get(base, ())


def _kind(recorder: Recorder, world: RunWorld) -> str:
    """``replica`` where the program ran on parameters and a loss of its own, else ``replay``."""
    made = {id(p) for m in world.standins.made if isinstance(m, torch.nn.Module) for p in weights_of(m)}
    if "loss" in world.assumed or any(id(p) in made for p in recorder.grads.touched.values()):
        return "replay"
    return "replica"


def _parse(module: Mapping[str, Any]) -> ast.Module:
    try:
        return _tree(str(module["source"]))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ProbeError("not-sliced", f"{module['path']}: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=512)
def _tree(source: str) -> ast.Module:
    """Each text is parsed once: the edited program shares most of its modules with the one as written."""
    return ast.parse(source)


def _with_source(module: Mapping[str, Any], entry: str, source: Optional[str]) -> Mapping[str, Any]:
    return {**module, "source": source} if module["name"] == entry and source is not None else module


def _why(paths: Sequence[Mapping[str, Any]]) -> str:
    errors = [str(path["error"]) for path in paths if path["error"]]
    return errors[0] if errors else "no training event was reached"


def _cpu_limit() -> float:
    """The CPU seconds this process may use, as its limit says."""
    try:
        import resource
    except ImportError:
        return DEFAULT_CPU_SECONDS
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    return float(soft) if soft != resource.RLIM_INFINITY else DEFAULT_CPU_SECONDS


def _plain(value: Any) -> Any:
    """Plain data: numbers that are not finite as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Ghost):
        return value.gl_name
    return value
