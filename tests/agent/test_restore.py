"""Which committed bundle serves: after deaths that come soon, clean ends, and rot while it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bundles import write_null_bundle

from edgekit.agent import serving
from edgekit.agent.restore import HEALTHY_S, LOOK_S, MAX_FAILED_STARTS, Committed
from edgekit.agent.runner import Runner
from edgekit.agent.serving import Server
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import State, StateFile
from edgekit.core.bundle import Bundle
from edgekit.core.errors import WorldFailed
from edgekit.core.policy import PolicySpec
from edgekit.runtime import command
from edgekit.runtime.power import open_sensor

FULL = PolicySpec()


@dataclass
class Board:
    """A state folder; every start has its own runner. now: of the monotonic clock."""

    folder: Path
    start_runner: Callable[[], Runner]
    now: float = 1000.0
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = Slots(self.folder / "slots", 10**9)
        self.state = StateFile(self.folder / "state.json", State)

    def install(self, version: int) -> Slot:
        part = self.slots.part(f"{version:064x}")
        bundle = write_null_bundle(part, version=version)
        self.slots.install(part, bundle.content_id)
        return Slot(bundle.content_id, bundle.label)

    def start(self) -> Committed:
        """A new start of the agent; the one before may have died anywhere."""
        self.state = StateFile(self.folder / "state.json", State)
        sensor = open_sensor("none", self.folder, command.runner(self.folder))
        self.server = Server(
            self.start_runner(), FULL, 0.5, 1, ("CPUExecutionProvider",), accepts_code=False, sensor=sensor
        )
        made = Committed(self.state, self.slots, self.server, FULL, self.tell, lambda: self.now)
        made.serve()
        return made

    def tell(self, kind: str, detail: Any) -> None:
        self.events.append((kind, dict(detail)))

    @property
    def serves(self) -> str | None:
        return self.server.in_force.label


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(serving, "private_mb", lambda: None)  # a look through all of this process's memory
    runners: list[Runner] = []

    def start() -> Runner:
        runners.append(Runner())
        runners[-1].start()
        return runners[-1]

    made = Board(tmp_path, start)
    one, two = made.install(1), made.install(2)
    made.state.commit(active=two, previous=one, commits=2, proven=one.content_id)
    yield made
    for runner in runners:
        runner.stop(5.0)


def test_three_deaths_soon_after_the_start_bring_the_bundle_before_back(board: Board) -> None:
    for _ in range(MAX_FAILED_STARTS):
        board.start()
        assert board.serves == "toy/2"
        board.now += 5.0
    board.start()
    assert board.serves == "toy/1"
    kind, detail = board.events[-1]
    assert (kind, detail["from"], detail["reason"]) == ("rollback", "toy/2", "crash")
    assert detail["detail"] == "the agent died 3 times within 60 s of serving it"
    assert (
        board.state.current.lost
        == "toy/2 cannot serve (crash): the agent died 3 times within 60 s of serving it"
    )


def test_a_clean_end_is_no_death(board: Board) -> None:
    for _ in range(MAX_FAILED_STARTS + 1):
        board.start().ended()
    board.start()
    assert board.serves == "toy/2"


def test_who_has_served_for_a_minute_has_proven_itself_for_good(board: Board) -> None:
    committed = board.start()
    assert committed.due_s == HEALTHY_S
    board.now += HEALTHY_S
    assert committed.due_s == 0.0
    committed.look()
    for _ in range(MAX_FAILED_STARTS + 1):  # power cuts, say
        board.start()
    assert board.serves == "toy/2"
    assert board.state.current.short_runs == 0


def test_deaths_before_the_minute_is_over_count_however_often_it_was_looked(board: Board) -> None:
    for _ in range(MAX_FAILED_STARTS):
        committed = board.start()
        board.now += HEALTHY_S - 0.1
        committed.look()
    board.start()
    assert board.serves == "toy/1"


def test_with_none_before_it_a_bundle_goes_on_serving_whatever_happens(board: Board) -> None:
    board.state.commit(previous=None)
    for _ in range(MAX_FAILED_STARTS + 1):
        board.start()
        assert board.serves == "toy/2"


def test_deaths_while_opening_count_also_for_a_bundle_that_was_proven(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = board.state.current.active
    assert active is not None
    board.state.commit(proven=active.content_id)
    true_open = Server.open

    def dies(server: Server, bundle: Any) -> Any:
        if bundle.label == "toy/2":
            raise KeyboardInterrupt
        return true_open(server, bundle)

    monkeypatch.setattr(Server, "open", dies)
    for _ in range(MAX_FAILED_STARTS):
        with pytest.raises(KeyboardInterrupt):
            board.start()
    board.start()
    assert board.serves == "toy/1"


def test_counts_are_of_one_bundle_and_begin_anew_with_the_next(board: Board) -> None:
    for _ in range(MAX_FAILED_STARTS + 1):
        board.start()
    assert (board.serves, board.state.current.short_runs) == ("toy/1", 0), "it was proven before"


def test_power_cuts_long_after_the_start_are_no_deaths_of_a_bundle_that_cannot_be_read_now(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_open, active = Slots.open, board.state.current.active
    assert active is not None

    def fails(slots: Slots, content_id: str) -> Bundle:
        if content_id == active.content_id:
            raise WorldFailed("Input/output error")
        return true_open(slots, content_id)

    with monkeypatch.context() as patched:
        patched.setattr(Slots, "open", fails)
        for _ in range(MAX_FAILED_STARTS + 1):
            committed = board.start()
            assert board.serves == "toy/1"
            board.now += HEALTHY_S
            committed.look()
    board.start()
    assert board.serves == "toy/2"
    assert board.state.current.proven != active.content_id


@pytest.mark.parametrize("harm", ["flipped", "truncated", "replaced", "gone"])
def test_a_slot_that_rots_while_it_serves_is_told_and_gives_way_at_the_next_start(
    board: Board, harm: str
) -> None:
    committed = board.start()
    active = board.state.current.active
    assert active is not None
    path = board.slots.path(active.content_id)
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "truncated":
        path.write_bytes(data[:-100])
    elif harm == "replaced":
        write_null_bundle(path, version=9)
    else:
        path.unlink()
    board.now += LOOK_S
    assert committed.look(), "there is something new to report"
    assert [kind for kind, _ in board.events] == ["slot-damaged"]
    assert board.serves == "toy/2", "from memory, as it was verified"
    assert "toy/2 serves from memory, its slot is damaged" in (committed.damaged or "")
    board.now += LOOK_S
    assert not committed.look(), "told once"
    board.start()
    assert board.serves == "toy/1"
    assert board.events[-1][1]["reason"] == "damaged"


def test_a_damaged_slot_of_the_bundle_before_is_told_too(board: Board) -> None:
    committed = board.start()
    previous = board.state.current.previous
    assert previous is not None
    board.slots.path(previous.content_id).write_bytes(b"torn")
    board.now += LOOK_S
    assert committed.look()
    assert board.events[-1][1]["bundle"] == "toy/1"
    assert committed.damaged is None
