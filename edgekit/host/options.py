"""A frozen dataclass as a table of a TOML file and back. Its fields are the keys, its defaults what may be left out.

A field is a bool, int, float, str, tuple[str, ...] or Mapping[str, number or str]; its metadata may hold "choices" for
a text, "min" and "max" for a number.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_origin, get_type_hints

from edgekit.core import checks
from edgekit.core.errors import BadInput

T = TypeVar("T")


def option(default: Any, **limits: Any) -> Any:
    """A field with a default and limits: choices=(...), min=..., max=... ."""
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=limits)
    return dataclasses.field(default=default, metadata=limits)


def read_options(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """The options in a table. Raises BadInput for an unknown key, a wrong type or a value out of its limits."""
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise BadInput(f"{where}: has no option {key!r}; it has {known}")
    hints = get_type_hints(cls)
    return cls(
        **{
            key: _read(value, f"{where}.{key}", hints[key], fields[key].metadata)
            for key, value in table.items()
        }
    )


def write_options(options: Any) -> str:
    """The options as lines of a TOML table, all of them: what is resolved needs no default."""
    lines = (
        f"{entry.name} = {_written(getattr(options, entry.name))}" for entry in dataclasses.fields(options)
    )
    return "".join(f"{line}\n" for line in lines)


def _read(value: Any, where: str, hint: Any, limits: Mapping[str, Any]) -> Any:
    if hint is bool:
        return checks.flag(value, where)
    if hint is int:
        return checks.integer(value, where, limits.get("min", 0), limits.get("max", 2**53))
    if hint is float:
        return checks.number(value, where, limits.get("min", -math.inf), limits.get("max", math.inf))
    if hint is str:
        if "choices" in limits:
            return checks.choice(value, where, limits["choices"])
        return "" if value == "" else checks.text(value, where)
    if get_origin(hint) is tuple:
        return checks.rows(value, where, checks.text)
    return {
        checks.text(key, where): _entry(entry, f"{where}.{key}")
        for key, entry in checks.table(value, where).items()
    }


def _entry(value: Any, where: str) -> str | int | float:
    if isinstance(value, str):
        return checks.text(value, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return checks.number(value, where)


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        rows = ", ".join(
            f"{json.dumps(key, ensure_ascii=False)} = {_written(entry)}" for key, entry in value.items()
        )
        return f"{{ {rows} }}" if rows else "{}"
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
