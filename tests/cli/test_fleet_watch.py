"""`--watch`: round after round, over a server that is away, until Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from edgekit.cli.fleet import watching
from edgekit.cli.fleet.watching import Answer, show
from edgekit.core.errors import BadInput, WorldFailed


def answers(*given: int | Exception) -> Callable[[], Answer]:
    """What is asked gives these in turn."""
    left: Iterator[int | Exception] = iter(given)

    def ask() -> Answer:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return {"round": found}, [f"round {found}"]

    return ask


class Waits:
    """Waits no time, and is Ctrl-C after `most` rounds."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.waited: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waited.append(seconds)
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1


def test_each_round_is_an_object_a_line_until_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    waits = Waits(2)
    show(answers(1, 2, 3), 5.0, as_json=True, wait=waits)
    assert [json.loads(line)["round"] for line in capsys.readouterr().out.splitlines()] == [1, 2, 3]
    assert waits.waited == [5.0] * 3


def test_without_watch_it_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    show(answers(1), None, as_json=False, wait=Waits(0))
    assert capsys.readouterr().out == "round 1\n"


def test_a_server_that_is_away_is_said_to_be_and_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    show(answers(1, WorldFailed("it is [away]"), 2), 1.0, as_json=True, wait=Waits(2))
    out, err = capsys.readouterr()
    assert [json.loads(line)["round"] for line in out.splitlines()] == [1, 2]
    assert err.count("\n") == 1
    assert "it is [away]; asking again every 1 s" in err


def test_the_first_answer_and_refusals_end_it() -> None:
    with pytest.raises(WorldFailed):
        show(answers(WorldFailed("away")), 1.0, as_json=True, wait=Waits(0))
    with pytest.raises(BadInput):
        show(answers(1, BadInput("the token has ended")), 1.0, as_json=True, wait=Waits(1))


def test_a_terminal_shows_the_last_round_and_why_there_is_no_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, record=True, width=80)
    monkeypatch.setattr(watching, "console", screen)
    show(answers(1, 2, WorldFailed("away")), 1.0, as_json=False, wait=Waits(2))
    text = screen.export_text()
    assert "round 2" in text
    assert text.index("round 2") < text.index("away; asking again")
