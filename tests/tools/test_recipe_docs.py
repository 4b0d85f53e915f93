"""The page about recipes says what the steps are, and its example works."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from edgekit.core.toml import parse_toml
from edgekit.host.passes import PASSES, step

TOOL = Path(__file__).parents[2] / "tools" / "recipe_docs.py"


def test_the_list_of_steps_is_the_one_the_passes_give() -> None:
    spec = importlib.util.spec_from_file_location("recipe_docs", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text(encoding="utf-8")
    assert tool.page(text) == text, "run tools/recipe_docs.py"
    assert re.findall(r"### `(\w+)`", text) == list(PASSES)


def test_the_example_of_a_recipe_is_read() -> None:
    text = (TOOL.parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    example = "\n".join(lines[lines.index("[[step]]") :])
    tables = parse_toml(example, "docs/recipes.md")["step"]
    names = [str(table.pop("pass")) for table in tables]  # type: ignore[union-attr, attr-defined]
    assert names == ["recover", "quantize_weights"]
    for name, options in zip(names, tables, strict=True):  # type: ignore[arg-type]
        step(name, **options)  # raises where an option is unknown
