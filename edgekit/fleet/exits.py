"""The order in which exits are shown. Knows their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"([0-9]+)")


def exit_order(names: Iterable[str]) -> list[str]:
    """Exits from early to late, as far as names tell: numbers in them count by value, so exit10 comes after exit9.

    The order of a board's report tells less: payloads are JSON with sorted keys.
    """
    return sorted(set(names), key=lambda name: (_parts(name), name))


def _parts(name: str) -> list[str | int]:
    """Text and numbers in turns, text first: two names are compared part by part."""
    return [int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(name))]
