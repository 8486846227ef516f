"""Lists, dicts and torch containers: items in, items out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlint.facts.values import (
    UNKNOWN,
    Container,
    Instance,
    OpenList,
    Value,
)

if TYPE_CHECKING:
    from gradlint.facts.calls import CallTable
    from gradlint.facts.interp import Interp


class Containers:
    """Containers and plain collections, for one reading."""

    def __init__(self, table: CallTable, interp: Interp) -> None:
        self.table = table
        self.interp = interp

    def set_item(self, owner: Value, index: Value, value: Value) -> None:
        """``owner[index] = value``."""
        if isinstance(owner, dict):
            if isinstance(index, (str, int)):
                owner[index] = value
        elif isinstance(owner, list):
            if isinstance(index, int) and -len(owner) <= index < len(owner):
                owner[index] = value
        elif isinstance(owner, Container):
            self.add_item(owner, index if isinstance(index, (str, int)) else None, value)

    def get_item(self, owner: Value, index: Value) -> Value:
        """``owner[index]``."""
        if isinstance(owner, Instance) and "__items__" in owner.attrs:
            owner = owner.attrs["__items__"]
        if isinstance(owner, (list, tuple, str)) and isinstance(index, (int, slice)):
            try:
                return owner[index]
            except IndexError:
                return UNKNOWN
        if isinstance(owner, dict):
            return owner.get(index, UNKNOWN) if isinstance(index, (str, int, float, bool, tuple)) else UNKNOWN
        if isinstance(owner, Container):
            if isinstance(index, slice):
                part = Container(owner.cls, owner.items[index], owner.names[index], owner.line, nested=True)
                part.open = owner.open
                return part
            if isinstance(index, int) and owner.cls != "ModuleDict" and -len(owner.items) <= index < len(owner.items):
                return owner.items[index]
            if index in owner.names and isinstance(index, str):
                return owner.items[owner.names.index(index)]
        return UNKNOWN

    def add_item(self, container: Container, name: str | int | None, value: Value) -> None:
        """One more module in a container."""
        if isinstance(value, Container):
            value.nested = True
        if self.interp.uncertain:
            container.open = True
        if name is not None and name in container.names:
            container.items[container.names.index(name)] = value
            return
        container.names.append(name if name is not None else str(len(container.items)))
        container.items.append(value)

    def extend_container(self, container: Container, values: Value) -> None:
        """Several more modules, as ``Sequential(*...)`` and ``ModuleList(...)`` take them."""
        if isinstance(values, OpenList):
            container.open = True
        if isinstance(values, dict):
            for key, value in values.items():
                self.add_item(container, key, value)
            return
        items = self.interp.iterate(values)
        if items is None:
            container.open = True
            self.interp.complete = False
            return
        for value in items:
            if isinstance(value, dict) and container.cls == "Sequential":
                self.extend_container(container, value)
            else:
                self.add_item(container, None, value)

    def list_extend(self, target: list[Value], values: Value) -> None:
        """``list.extend``, ``+=``; what is not known leaves the list as it is and the reading incomplete."""
        items = self.interp.iterate(values)
        if items is None:
            self.interp.complete = False
            return
        target.extend(items)
