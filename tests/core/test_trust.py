"""Trust rules, one test per reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.core.errors import BadInput, Refused
from edgekit.core.target import Target, parse_label
from edgekit.core.trust import REASONS, Board, Running, decide, refusal

TARGET = Target("cnn", 3, ("raspberrypi5", "host"), "run", "current", "a" * 64)
BOARD = Board("raspberrypi5")
OLDER, SAME, NEWER = (Running("cnn", version, "b" * 64) for version in (2, 3, 4))


@pytest.mark.parametrize("running", [None, OLDER, Running("other", 9, "c" * 64), Running("cnn", 3, "a" * 64)])
def test_a_newer_or_same_target_for_this_profile_is_accepted(running: Running | None) -> None:
    decision = decide(TARGET, BOARD, running)
    assert decision.accepted
    decision.enforce()


@pytest.mark.parametrize(
    ("target", "board", "running", "reason"),
    [
        (replace(TARGET, state="revoked"), BOARD, None, "revoked"),
        (TARGET, Board("pynq-z1"), None, "wrong-profile"),
        (TARGET, BOARD, NEWER, "older"),
        (TARGET, BOARD, SAME, "changed-content"),
        (replace(TARGET, use="measure"), BOARD, None, "wrong-use"),
        (replace(TARGET, executes_code=True), BOARD, None, "code-not-accepted"),
    ],
)
def test_each_rule_refuses_with_its_reason(
    target: Target, board: Board, running: Running | None, reason: str
) -> None:
    decision = decide(target, board, running)
    assert decision.reason == reason
    with pytest.raises(Refused) as caught:
        decision.enforce()
    assert caught.value.reason == reason
    assert str(caught.value).startswith(REASONS[reason])


def test_measuring_needs_the_boards_consent() -> None:
    target = replace(TARGET, use="measure")
    assert decide(target, BOARD, None, "measure").reason == "measure-not-accepted"
    assert decide(target, Board("raspberrypi5", accepts_measure=True), None, "measure").accepted


def test_what_is_to_be_measured_is_for_the_one_board_it_is_called_after() -> None:
    target = replace(TARGET, use="measure", name="pi5-a")
    for name, reason in (("pi5-a", None), ("pi5-b", "other-board")):
        board = Board("raspberrypi5", accepts_measure=True, name=name)
        assert decide(target, board, None, "measure").reason == reason
        assert decide(TARGET, board, None).accepted


def test_a_target_to_run_is_not_measured_and_a_revoked_one_neither() -> None:
    board = Board("raspberrypi5", accepts_measure=True)
    assert decide(TARGET, board, None, "measure").reason == "wrong-use"
    revoked = replace(TARGET, use="measure", state="revoked")
    assert decide(revoked, board, None, "measure").reason == "revoked"


def test_an_allowed_older_target_may_come_back() -> None:
    assert decide(replace(TARGET, state="allowed"), BOARD, NEWER).accepted


def test_code_is_accepted_where_the_board_allows_it() -> None:
    assert decide(
        replace(TARGET, executes_code=True), Board("raspberrypi5", accepts_code=True), None
    ).accepted


def test_a_revoked_target_is_refused_even_when_it_runs() -> None:
    assert decide(replace(TARGET, state="revoked"), BOARD, Running("cnn", 3, "a" * 64)).reason == "revoked"


def test_an_unknown_reason_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        refusal("because")


def test_a_target_survives_the_way_through_metadata() -> None:
    assert Target.parse(TARGET.to_custom(), "custom") == TARGET
    assert TARGET.path == "run/cnn/3.edge"
    assert parse_label("cnn/3", "target") == ("cnn", 3)


@pytest.mark.parametrize("label", [None, "cnn", "cnn/0", "cnn/-1", "../x/1", "cnn/1/2", "cnn/99999999999", 3])
def test_a_bad_label_is_refused(label: object) -> None:
    with pytest.raises(BadInput):
        parse_label(label, "target")
