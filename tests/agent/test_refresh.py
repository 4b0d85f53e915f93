"""The look at the metadata without a job: what was revoked, what expires, and when the next look is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.agent.refresh import EXPIRING, REFUSED, Refresher
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.slots import Slot
from edgekit.agent.state import Job, State, StateFile
from edgekit.core.errors import WorldFailed
from edgekit.core.trust import LIVES_S, refusal

NOW = 1_800_000_000.0


class Repository:
    """Says what it is told, or raises it."""

    def __init__(self) -> None:
        self.states: dict[str, str | None] = {}
        self.fails: Exception | None = None
        self.asked: list[Sequence[str]] = []

    def standing(self, labels: Sequence[str]) -> Mapping[str, str | None]:
        self.asked.append(labels)
        if self.fails is not None:
            raise self.fails
        return {label: self.states.get(label) for label in labels}


class Board:
    def __init__(self, folder: Path) -> None:
        self.repository = Repository()
        self.state = StateFile(folder / "state.json", State)
        self.state.commit(active=Slot("a" * 64, "toy/2"), previous=Slot("b" * 64, "toy/1"), good_time=NOW)
        self.withdrawn: list[str] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.changes = 0
        self.now = NOW
        self.refresher = Refresher(
            state=self.state,
            repository=lambda: self.repository,  # type: ignore[arg-type,return-value]
            every_s=lambda: 3600.0,
            withdraw=self.withdrawn.extend,
            tell=lambda kind, detail: self.events.append((kind, detail)),
            changed=self._count,
            now=lambda: self.now,
            draw=lambda: 0.5,
        )

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_it_asks_for_both_bundles_and_comes_again_after_its_time(board: Board) -> None:
    board.repository.states = {"toy/2": "current", "toy/1": "allowed"}
    assert board.refresher.look() == 3600.0
    assert board.repository.asked == [["toy/2", "toy/1"]]
    assert (board.withdrawn, board.changes) == ([], 1)


def test_it_asks_for_the_bundle_of_a_job_that_has_not_ended_as_well(board: Board) -> None:
    job = Job("job-3", 3, "toy/3", None, None, NOW, state="trial")
    for target, state in (("toy/3", "trial"), ("toy/3", "failed"), ("toy/2", "trial"), (None, "received")):
        board.state.commit(job=replace(job, target=target, state=state))
        board.refresher.look()
    assert board.repository.asked == [["toy/2", "toy/1", "toy/3"], *3 * [["toy/2", "toy/1"]]]


def test_only_what_was_revoked_is_withdrawn(board: Board) -> None:
    board.repository.states = {"toy/2": "revoked", "toy/1": "allowed"}
    board.refresher.look()
    assert board.withdrawn == ["toy/2"]


def test_a_network_or_disk_that_fails_is_tried_again_sooner_and_withdraws_nothing(board: Board) -> None:
    for failure in (NetworkFailed("away"), WorldFailed("full")):
        board.repository.fails = failure
        assert board.refresher.look() < 3600.0
    assert (board.withdrawn, board.events) == ([], [])


def test_metadata_that_is_refused_is_told_once_until_it_is_good_again(board: Board) -> None:
    board.repository.fails = refusal("expired", "timestamp")
    board.refresher.look()
    board.refresher.look()
    assert [kind for kind, _ in board.events] == [REFUSED]
    assert board.events[0][1]["reason"] == "expired"
    board.repository.fails = None
    board.refresher.look()
    board.repository.fails = refusal("expired", "timestamp")
    board.refresher.look()
    assert len(board.events) == 2


@pytest.mark.parametrize("role", LIVES_S)
def test_less_than_a_third_of_a_life_is_told_once_for_each_date(board: Board, role: str) -> None:
    expires = NOW + LIVES_S[role] / 3
    board.state.commit(metadata_expires={role: expires, "measure": NOW})
    board.refresher.look()
    assert board.events == []
    board.now += 2
    board.refresher.look()
    board.refresher.look()
    assert [(kind, detail["role"]) for kind, detail in board.events] == [(EXPIRING, role)]
    board.state.commit(metadata_expires={role: expires + 1})
    board.refresher.look()
    assert len(board.events) == 2


def test_a_board_that_does_not_know_the_time_raises_no_alarm(board: Board) -> None:
    board.state.commit(metadata_expires={"timestamp": NOW - 1})
    board.now = 42.0
    board.refresher.look()
    assert board.events == []


def test_the_thread_ends_at_once_when_told(board: Board) -> None:
    board.refresher.start()
    begun = time.monotonic()
    board.refresher.stop(5)
    assert not board.refresher.is_alive()
    assert time.monotonic() - begun < 4
    assert board.repository.asked == [], "the first look comes later"
