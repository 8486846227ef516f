"""What happens to one file before any experiment: facts, candidates, and the requests that can contradict them."""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gradlint.facts import FileFacts
from gradlint.facts.index import ProjectIndex, SourceFile
from gradlint.facts.models import ModelFacts, read_models
from gradlint.facts.modules import ModuleEnv
from gradlint.facts.project import Project
from gradlint.facts.steps import Source, StepFacts, Units, read_steps
from gradlint.facts.surroundings import Surroundings, placed, read_project, read_surroundings
from gradlint.facts.vanishing import worth_a_look
from gradlint.own_findings import Crash, crash_of
from gradlint.probe.requests import Prepared, Unsliced, prepare
from gradlint.rule import Candidate, Rule
from gradlint.sources.suppress import Suppressions, Unused, read_suppressions
from gradlint.sources.text import Problem, decode, parse, read, too_deep

Shape = tuple[int, ...]

_INITIALISES = re.compile(r"\b(?:(?:normal|uniform|constant|zeros|ones|fill|zero|orthogonal)_|xavier_|kaiming_)")
"""A file that writes weights: how code outside of a model initialises it matters then."""
MAX_HELD = 2_200_000
"""Characters of source whose trees one process keeps between files: a tree takes about fifty bytes for each."""


@dataclass(frozen=True)
class Analysis:
    """One file, ready for the probe. ``prepared[i]`` belongs to ``candidates[i]``."""

    path: str
    text: str = ""
    considered: bool = True
    candidates: tuple[Candidate, ...] = ()
    prepared: tuple[Prepared | Unsliced | None, ...] = ()
    suppressions: Suppressions = field(default_factory=Suppressions)
    unused: tuple[Unused, ...] = ()
    problem: Problem | None = None
    crashes: tuple[Crash, ...] = ()


class Analyst:
    """Reads files of one project. Holds what was parsed; one per process."""

    def __init__(
        self,
        index: ProjectIndex,
        rules: Mapping[str, Rule],
        selected: Collection[str],
        inputs: Mapping[str, tuple[Shape, ...]],
        probing: bool,
    ) -> None:
        self.index = index
        self.project = Project(index)
        self.rules = rules
        self.selected = selected
        self.inputs = inputs
        self.probing = probing
        self._surroundings: dict[str, Surroundings] = {}
        self._forget()

    def analyse(self, path: str, data: bytes | None = None) -> Analysis:
        """Read the file (or take ``data`` for it) and find its candidates. Never raises on what a file holds."""
        if self.project.trim(MAX_HELD):
            self._forget()
            gc.collect()
        source = read(path) if data is None else decode(path, data)
        if source is None:
            return Analysis(path, considered=False)
        if isinstance(source, Problem):
            return Analysis(path, problem=source)
        if data is not None:
            self.index = self.index.with_text(path, source.text)
            self.project = Project(self.index)
            self._forget()
        file = self.index.parse(path)
        tree = file.tree if file is not None and file.text == source.text else parse(source)
        suppressions = read_suppressions(source.text)
        if isinstance(tree, Problem):
            return Analysis(path, source.text, suppressions=suppressions, problem=tree)
        if tree is None:  # newer syntax than the running Python reads
            return Analysis(path, source.text, suppressions=suppressions)
        try:
            return self._analyse(path, source.text, tree, suppressions)
        except (RecursionError, MemoryError):
            return Analysis(path, source.text, suppressions=suppressions, problem=too_deep(source))

    def _analyse(self, path: str, text: str, tree: ast.Module, suppressions: Suppressions) -> Analysis:
        crashes: list[Crash] = []
        facts = self.facts(path, text, tree, crashes)
        found = list(self._candidates(facts, crashes))
        names = {code: rule.name for code, rule in self.rules.items()}
        kept = tuple(
            c for c in found if not self._suppressions(c, facts, suppressions).covers(c.code, names[c.code], c.location)
        )
        unused = suppressions.unused([(c.code, c.location) for c in found if c.path == path], names, self.selected)
        prepared: tuple[Prepared | Unsliced | None, ...] = (None,) * len(kept)
        if self.probing:
            prepared = tuple(self._prepare(c, suppressions, crashes) for c in kept)
        return Analysis(path, text, True, kept, prepared, suppressions, tuple(unused), None, tuple(crashes))

    def _suppressions(self, candidate: Candidate, facts: FileFacts, own: Suppressions) -> Suppressions:
        """The comments of the file that a candidate is in: a helper of another file has its own."""
        if candidate.path == facts.path or facts.steps is None:
            return own
        return read_suppressions(facts.steps.text(candidate.path))

    def facts(self, path: str, text: str, tree: ast.Module, crashes: list[Crash]) -> FileFacts:
        """Everything that rules may ask of the file; what a reader fails on is added to ``crashes``."""
        file = self.index.parse(path) or SourceFile(path, path, "", "", False, text, tree)
        models: tuple[ModelFacts, ...] = ()
        steps: StepFacts | None = None
        try:
            if self._wants("GL2", "GL3"):
                models = self._models(file)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:  # a reader that fails on one file must not cost the others
            crashes.append(crash_of(path, "the model reader", error))
        try:
            if self._wants("GL1"):
                steps = read_steps(self._source(file, path), self._units)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            crashes.append(crash_of(path, "the reader of training steps", error))
        return FileFacts(path, file.module, text, tree, models, steps)

    def _forget(self) -> None:
        """Let go of what belongs to trees that may have gone."""
        self._sources: dict[str, Source] = {}
        self._units = Units()

    def _source(self, file: SourceFile, path: str = "") -> Source:
        """A file as the reader of training steps takes it; ``path`` is what it is called where it is being linted."""
        known = self._sources.get(file.real)
        if known is None or (path and known.path != path):

            def locate(name: str) -> tuple[ast.stmt, Source] | None:
                found = self.index.locate(name, file)
                return (found[1], self._source(found[0])) if found is not None else None

            self._sources[file.real] = Source(
                path or file.path, file.text, file.tree, file.package, file.module, locate
            )
        return self._sources[file.real]

    def _wants(self, *prefixes: str) -> bool:
        own = any(not code.startswith("GL") for code in self.selected)
        return own or any(code.startswith(prefixes) for code in self.selected)

    def _models(self, file: SourceFile) -> tuple[ModelFacts, ...]:
        models = read_models(self.project.module(file), self.project.sites(file))
        deep = [m for m in models if any(worth_a_look(c) for c in m.chains)]
        if not deep and _INITIALISES.search(file.text) is None:
            return models
        around = read_surroundings(file.tree)
        makers = frozenset(m.qualname for m in deep if m.kind != "variable")
        makers |= frozenset(outer for maker in makers for outer in around.outer(maker))
        project = read_project(self.index, file, makers, self._surroundings) if makers else None

        def home(real: str) -> ModuleEnv | None:
            found = self.index.parse(real)
            return self.project.module(found) if found is not None else None

        return placed(models, around, project, self.project.module(file), home)

    def _candidates(self, facts: FileFacts, crashes: list[Crash]) -> Sequence[Candidate]:
        found: list[Candidate] = []
        for code in sorted(self.selected):
            rule = self.rules.get(code)
            if rule is None or rule.proof == "static":
                continue
            try:
                found.extend(rule.check(facts))
            except (RecursionError, MemoryError):
                raise
            except Exception as error:
                crashes.append(crash_of(facts.path, f"the rule {code}", error))
        return found

    def _prepare(
        self, candidate: Candidate, suppressions: Suppressions, crashes: list[Crash]
    ) -> Prepared | Unsliced | None:
        line = candidate.location.line
        shapes = self.inputs.get(candidate.symbol) or suppressions.inputs.get(line) or suppressions.inputs.get(line - 1)
        try:
            return prepare(self.index, candidate, shapes or ())
        except (RecursionError, MemoryError):
            return Unsliced("not-sliced", "the code around it is nested too deep")
        except Exception as error:
            crashes.append(crash_of(candidate.path, f"slicing for {candidate.code}", error))
            return Unsliced("not-sliced", "gradlint failed to slice it: please report this")
