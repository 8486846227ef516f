"""What a name can stand for while the source of a model is read.

Python's own ints, floats, strings, booleans, None, tuples, lists and dicts stand for themselves.
Everything the reader cannot know is :data:`UNKNOWN`; nothing is ever executed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlint.facts.modules import ModuleEnv

Value = Any


class _Unknown:
    """The value of everything that the text does not tell."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


Place = tuple[str, int]
"""A file and a line in it."""


@dataclass(eq=False)
class Ref:
    """Something outside the project, by its full dotted name: ``torch.nn.Linear``."""

    name: str


@dataclass(eq=False)
class Layer:
    """A leaf module of ``torch.nn``."""

    cls: str
    kind: str
    op: str
    line: int
    fan_in: int | None = None
    fan_out: int | None = None
    init: str = "default"
    path: str = ""
    uncertain: bool = False
    """Made in a loop whose length is not known, or on a branch that may not be taken."""
    attrs: dict[str, Value] = field(default_factory=dict)
    init_at: Place | None = None
    """The call that gave the weight the values it has, where the text says so."""


@dataclass(eq=False)
class Container:
    """``nn.Sequential``, ``nn.ModuleList`` or ``nn.ModuleDict``. ``open``: of unknown length."""

    cls: str
    items: list[Value]
    names: list[Value]
    line: int
    column: int = 0
    end: tuple[int, int] = (0, 0)
    file: str = ""
    open: bool = False
    nested: bool = False


class OpenList(list[Value]):
    """A list that may hold more of the same: it was filled in a loop of unknown length."""


@dataclass(eq=False)
class ClassValue:
    """A class of the project."""

    node: ast.ClassDef
    module: ModuleEnv
    env: Env | None = None


@dataclass(eq=False)
class Instance:
    """An object of a project class."""

    cls: ClassValue
    attrs: dict[str, Value] = field(default_factory=dict)
    is_module: bool = False
    made_with: tuple[tuple[Value, ...], dict[str, Value]] = ((), {})
    """The arguments of its constructor."""


@dataclass(eq=False)
class FuncValue:
    """A function, lambda or method of the project, with the object it is bound to."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    module: ModuleEnv
    env: Env | None = None
    bound: Value = None
    owner: ClassValue | None = None


@dataclass(eq=False)
class Partial:
    """``functools.partial`` of something callable."""

    func: Value
    args: tuple[Value, ...]
    kwargs: dict[str, Value]


@dataclass(eq=False)
class Bound:
    """A method of a value the reader models itself: a list, a string, a layer, a tensor."""

    owner: Value
    name: str


@dataclass(eq=False)
class Weight:
    """A parameter of a layer, or (``data``) the tensor behind it; one that is made by hand is a layer of its own."""

    layer: Layer
    name: str


@dataclass(eq=False)
class Tensor:
    """A live value in the graph: the id of the node that made it."""

    node: int


@dataclass(eq=False)
class Super:
    """``super()`` inside a method of ``owner``."""

    instance: Instance
    owner: ClassValue


class Env:
    """Local names, with the enclosing function's behind them."""

    __slots__ = ("module", "parent", "vars")

    def __init__(self, module: ModuleEnv, parent: Env | None = None) -> None:
        self.module = module
        self.parent = parent
        self.vars: dict[str, Value] = {}

    def lookup(self, name: str) -> Value:
        """The value of ``name``, here, in an enclosing function, or in the module."""
        env: Env | None = self
        while env is not None:
            if name in env.vars:
                return env.vars[name]
            env = env.parent
        return self.module.lookup(name)
