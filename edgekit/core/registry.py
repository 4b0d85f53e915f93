"""Look a plug-in up by name in a built-in table; an unknown name lists the known ones. No entry points here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from edgekit.core.errors import BadInput

T = TypeVar("T")


def pick(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry called `name`. Raises BadInput that names `kind` and lists what is known."""
    try:
        return table[name]
    except KeyError:
        known = ", ".join(sorted(table))
        raise BadInput(f"unknown {kind} {name!r}; known: {known}") from None
