"""Write a profile as the TOML file that core/profile.py reads. Unknown figures are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.core.profile import Profile


def profile_toml(profile: Profile, comment: str = "") -> str:
    """The file's text. comment: lines put above it. Reading it back gives an equal profile (without its `extra`)."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    return "\n".join([*lines, *_table((), profile.to_json())]).strip() + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    """Plain values first, then the tables below, each under its header."""
    for key, value in table.items():
        text = _value(value)
        if text is not None:
            yield f"{_key(key)} = {text}"
    for key, value in table.items():
        if isinstance(value, Mapping) and not _is_figure(value):
            body = list(_table((*path, key), value))
            if any(line and not line.startswith("[") for line in body[:1]):
                yield from ("", f"[{'.'.join(map(_key, (*path, key)))}]")
            yield from body
        if _is_tables(value):
            for entry in value:
                yield from ("", f"[[{'.'.join(map(_key, (*path, key)))}]]", *_table((*path, key), entry))


def _value(value: Any) -> str | None:
    """A value that stands on one line; None for a table, and for what is unknown."""
    if value is None or _is_tables(value):
        return None
    if isinstance(value, Mapping):
        return _figure(value) if _is_figure(value) and value["value"] is not None else None
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence):
        return f"[{', '.join(filter(None, map(_value, value)))}]"
    return repr(value)


def _figure(figure: Mapping[str, Any]) -> str:
    parts = [f"{key} = {_value(value)}" for key, value in figure.items() if value is not None]
    return f"{{ {', '.join(parts)} }}"


def _is_figure(value: Mapping[str, Any]) -> bool:
    return set(value) == {"value", "unit", "provenance", "when", "on"}


def _is_tables(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _key(key: str) -> str:
    plain = key.replace("_", "").replace("-", "")
    return key if plain.isascii() and plain.isalnum() else json.dumps(key, ensure_ascii=False)
