"""Read one parsed TOML table key by key; remember the keys nobody asked for. Knows no format of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TypeGuard

from edgekit.core.checks import shown
from edgekit.core.errors import BadInput
from edgekit.core.figure import PROVENANCES, Figure, Provenance, unknown


class Table:
    """One table of a file: typed getters whose errors name the file, the key, what was wanted and what came.

    `extra` is shared by a table and those below it; `close` on the topmost fills it with the keys not taken.
    """

    def __init__(
        self, data: Mapping[str, object], where: str, path: str = "", extra: dict[str, object] | None = None
    ) -> None:
        self.data = data
        self.where = where
        self.path = path
        self.extra: dict[str, object] = {} if extra is None else extra
        self._taken: set[str] = set()
        self._children: list[Table] = []

    def key(self, key: str) -> str:
        """The dotted path of a key of this table."""
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, wanted: str, got: object) -> BadInput:
        """The error for the value under `key`."""
        came = "nothing" if got is None else shown(str(got) if isinstance(got, date) else got)
        return BadInput(f"{self.where}: {self.key(key)} must be {wanted}, got {came}")

    def take(self, key: str) -> object:
        """The raw value, None where there is none; the key counts as known."""
        self._taken.add(key)
        return self.data.get(key)

    def close(self) -> None:
        """Add the keys nobody took, here and in the tables below, to `extra`."""
        for key, value in self.data.items():
            if key not in self._taken:
                self.extra[self.key(key)] = value
        for child in self._children:
            child.close()

    def table(self, key: str) -> Table:
        """The table under `key`."""
        return self._child(key, self.take(key))

    def optional_table(self, key: str) -> Table:
        """The table under `key`; an empty one where there is none."""
        value = self.take(key)
        return self._child(key, {} if value is None else value)

    def tables(self, key: str) -> tuple[Table, ...]:
        """The tables of a list that has at least one."""
        value = self.take(key)
        if not _is_list(value) or not value:
            raise self.wrong(key, "a list of at least one table", value)
        return tuple(self._child(f"{key}[{index}]", item) for index, item in enumerate(value))

    def text(self, key: str) -> str:
        """A text that is not blank."""
        value = self.take(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """A text that is not blank, or None where the key is missing."""
        return None if self.take(key) is None else self.text(key)

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of a few words."""
        value = self.take(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, f"one of {', '.join(allowed)}", value)
        return value

    def count(self, key: str) -> int:
        """A positive integer."""
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a positive integer", value)
        return value

    def optional_count(self, key: str) -> int | None:
        """A positive integer, or None where the key is missing."""
        return None if self.take(key) is None else self.count(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty where the key is missing."""
        value = self.take(key)
        if value is None:
            return ()
        if not _is_list(value):
            raise self.wrong(key, "a list of texts", value)
        texts = tuple(item for item in value if isinstance(item, str) and item)
        if len(texts) != len(value):
            raise self.wrong(key, "a list of texts", value)
        return texts

    def figure(self, key: str, unit: str) -> Figure:
        """The figure under `key`, a positive number in `unit`. No table, or one without `value`: unknown.

        A value needs a provenance and `on`: the machine or profile it was obtained on, or what published it.
        """
        if self.take(key) is None:
            return unknown(unit)
        table = self.table(key)
        if table.take("unit") != unit:
            raise table.wrong("unit", shown(unit), table.data.get("unit"))
        value, provenance, on, when = (table.take(name) for name in ("value", "provenance", "on", "when"))
        if value is None:
            return Figure(None, unit, on=table.optional_text("on"))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise table.wrong("value", "a positive number, or left out where nobody knows it", value)
        if on is None:
            raise table.wrong("on", "the machine, profile or source the value comes from", on)
        moment = when.isoformat() if isinstance(when, date) else table.optional_text("when")
        return Figure(value, unit, table.provenance(provenance), moment, table.text("on"))

    def provenance(self, value: object) -> Provenance:
        """One of the four words."""
        if value == "measured" or value == "simulated" or value == "estimated" or value == "published":  # noqa: PLR1714  (narrows the type)
            return value
        raise self.wrong("provenance", f"one of {', '.join(PROVENANCES)}", value)

    def _child(self, key: str, value: object) -> Table:
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a table", value)
        table = Table(value, self.where, self.key(key), self.extra)
        self._children.append(table)
        return table


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
