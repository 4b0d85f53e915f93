#!/usr/bin/env python3
"""Write the table of steps in docs/recipes.md from the passes themselves. A script: never imported but by its test."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

from edgekit.host.passes import PASSES, Pass

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
START, END = "<!-- steps -->\n", "<!-- end of steps -->\n"


def main() -> None:
    """Replace what stands between the two marks."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(text), encoding="utf-8")
    sys.stderr.write(f"{PAGE}: {len(PASSES)} steps\n")


def page(text: str) -> str:
    """The page with its table made anew."""
    before, rest = text.split(START)
    return before + START + "\n".join(map(section, PASSES.values())) + END + rest.split(END)[1]


def section(step: Pass) -> str:
    """One step: what it does, what its options mean, and their defaults."""
    module = inspect.getdoc(sys.modules[step.apply.__module__]) or ""
    lines = [f"### `{step.name}`", "", module.splitlines()[0], ""]
    fields = dataclasses.fields(step.options)
    if fields:
        lines += [
            " ".join((inspect.getdoc(step.options) or "").split()),
            "",
            "| option | default | may be |",
            "|---|---|---|",
        ]
        lines += [f"| `{field.name}` | {default(field)} | {limits(field)} |" for field in fields] + [""]
    return "\n".join(lines) + "\n"


def default(field: dataclasses.Field[object]) -> str:
    """As TOML writes it."""
    if field.default is dataclasses.MISSING:
        return "`{}`"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value!r}`"


def limits(field: dataclasses.Field[object]) -> str:
    """The words or the range that are allowed."""
    if "choices" in field.metadata:
        return ", ".join(f'`"{word}"`' for word in field.metadata["choices"])
    low, high = (field.metadata.get(key) for key in ("min", "max"))
    return "" if low is None else f"from {low}" + ("" if high is None else f" to {high}")


if __name__ == "__main__":
    main()
