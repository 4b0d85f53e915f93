"""What boards say reaches the operator's terminal as text, never as an order to it."""

from __future__ import annotations

import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from edgekit.cli.output import print_json
from edgekit.cli.screen import Console
from edgekit.core.errors import BadInput, one_line

HOSTILE = "a\x1b[2J\x9b1mb\u202ec\x07\x00\ud800"


def test_a_table_and_a_line_show_control_characters_and_keep_their_own_colours() -> None:
    table = Table("board")
    table.add_row(Text(HOSTILE, "red"))
    for shown in (table, Text(HOSTILE, "red")):
        stream = io.StringIO()
        Console(file=stream, force_terminal=True, width=80).print(shown)
        text = stream.getvalue()
        assert r"a\x1b[2J" in text
        assert "\x1b[31m" in text
        assert not any(part in text for part in ("\x1b[2J", "\x9b", "\u202e", "\x07", "\x00", "\ud800"))


def test_thin_spaces_and_other_languages_stay() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(Text("1\u202f000 \xa0 é 板"))
    assert stream.getvalue() == "1\u202f000 \xa0 é 板\n"


def test_json_on_a_terminal_is_plain_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"why": HOSTILE})
    text = capsys.readouterr().out
    assert json.loads(text)["why"] == HOSTILE
    assert text.rstrip("\n").isprintable()
    print_json({"why": "é"})
    assert "é" in capsys.readouterr().out


def test_an_error_that_quotes_a_peer_is_one_plain_line() -> None:
    assert one_line(BadInput("got \x1b[2J\n and more")) == r"got \x1b[2J and more"
