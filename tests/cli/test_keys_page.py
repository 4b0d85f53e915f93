"""docs/keys.md shows commands that exist, with options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from edgekit.cli.main import cli as top

PAGE = (Path(__file__).parents[2] / "docs/keys.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^    edgekit (.+)$", PAGE, re.MULTILINE)
INLINE = re.findall(r"`edgekit ((?:repo|fleet) [^`]*)`", PAGE)


@pytest.mark.parametrize("line", [*SHOWN, *INLINE])
def test_a_command_on_the_page_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)
    found: click.Command = top
    context = click.Context(top)
    while isinstance(found, click.Group):
        following = found.get_command(context, words.pop(0))
        assert following is not None, line
        found, context = following, click.Context(following, parent=context)
    found.make_parser(context).parse_args(words)


def test_the_page_shows_every_verb_of_keys() -> None:
    verbs = {line.split()[1] for line in SHOWN if line.startswith("repo ")}
    assert verbs == {"init", "rotate", "sign", "revoke", "refresh"}
