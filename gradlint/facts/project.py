"""The files of a project as the model reader sees them: one :class:`ModuleEnv` each, made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradlint.facts.callsites import CallSite
from gradlint.facts.index import ProjectIndex, SourceFile
from gradlint.facts.modules import Evaluator, ModuleEnv


class Project:
    """Top levels of files. One reading at a time uses them."""

    def __init__(self, index: ProjectIndex) -> None:
        self.index = index
        self.evaluator = Evaluator()
        self._made: dict[str, ModuleEnv] = {}

    def module(self, file: SourceFile) -> ModuleEnv:
        """The top level of ``file``."""
        if file.real not in self._made:
            self._made[file.real] = ModuleEnv(
                file.tree,
                file.path,
                file.module,
                file.package,
                lambda name: self._resolve(name, file.real),
                file.text,
                self.evaluator,
            )
        return self._made[file.real]

    def sites(self, file: SourceFile) -> Callable[[str], Iterator[tuple[CallSite, ModuleEnv]]]:
        """For :func:`~gradlint.facts.models.read_models`: calls of a class of ``file`` anywhere in the project."""

        def of(name: str) -> Iterator[tuple[CallSite, ModuleEnv]]:
            for site in self.index.call_sites(file.path, name):
                if site.closed:
                    yield site, self.module(site.file or file)

        return of

    def trim(self, characters: int) -> bool:
        """As :meth:`ProjectIndex.trim`, here and in the index; whether anything was let go."""
        dropped = self.index.trim(characters)
        for real in dropped:
            self._made.pop(real, None)
        return bool(dropped)

    def _resolve(self, name: str, near: str) -> ModuleEnv | None:
        found = self.index.module(name, near)
        return self.module(found) if found is not None else None
