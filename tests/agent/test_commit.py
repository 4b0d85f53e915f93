"""The trial with real requests: what holds is committed, what does not gives way, and nobody's request is lost."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from bundles import SHAPE, null_files, null_manifest, write_null_bundle

from edgekit.agent import commit
from edgekit.agent.commit import Committer, Surroundings
from edgekit.agent.config import Trial
from edgekit.agent.jobs import Outcome, Stopping, Superseded
from edgekit.agent.restore import Committed
from edgekit.agent.runner import Request, Runner
from edgekit.agent.serving import Server
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import Job, State, StateFile
from edgekit.agent.trial import TrialResult
from edgekit.core.bundle import Bundle, open_bundle, pack
from edgekit.core.errors import BadBundle, EdgekitError, WorldFailed
from edgekit.core.manifest import BoardLimits
from edgekit.core.policy import PolicySpec, parse_budget
from edgekit.runtime import command
from edgekit.runtime.policy import BudgetPolicy
from edgekit.runtime.power import open_sensor
from edgekit.runtime.session import Answer

FULL = PolicySpec()
LONG = Trial(live_requests=10**6, live_seconds=60.0)
JOB = Job("job-2", 2, "toy/2", None, None, 2e9, state="trial")


@dataclass
class Board:
    """A runner that serves toy/1, and a committer that is given toy/2. said: what is reported meanwhile."""

    folder: Path
    runner: Runner
    slots: Slots
    state: StateFile
    server: Server
    trial: Trial = LONG
    said: list[str | None] = field(default_factory=list)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.committed = Committed(self.state, self.slots, self.server, FULL, self.tell)

    @property
    def serves(self) -> str | None:
        return self.server.in_force.label

    def install(self, version: int, **options: Any) -> Bundle:
        part = self.slots.part(f"{version:064x}")
        content = write_null_bundle(part, version=version, **options).content_id
        self.slots.install(part, content)
        return self.slots.open(content)

    def put(self, bundle: Bundle, policy: PolicySpec | None = None) -> Outcome:
        """The step `trial`; the child has passed it."""
        committer = Committer(
            state=self.state,
            slots=self.slots,
            server=self.server,
            committed=self.committed,
            try_out=lambda path, spec, check: TrialResult(None, "latency 1 ms", 0.1),
            live=lambda: self.trial,
            policy=FULL,
            tell=self.tell,
        )
        pause = threading.Event().wait
        around = Surroundings(
            self.check, pause, self.said.append, lambda job, figures: Outcome("pass", None, figures)
        )
        return committer.try_and_commit(replace(JOB, policy=policy), bundle, around)

    def tell(self, kind: str, detail: Any) -> None:
        self.events.append((kind, dict(detail)))


@pytest.fixture
def board(tmp_path: Path, runner: Runner) -> Board:
    sensor = open_sensor("none", tmp_path, command.runner(tmp_path))
    server = Server(runner, FULL, 0.5, 1, ("CPUExecutionProvider",), accepts_code=False, sensor=sensor)
    slots = Slots(tmp_path / "slots", 10**9)
    made = Board(tmp_path, runner, slots, StateFile(tmp_path / "state.json", State), server)
    first = made.install(1)
    made.state.commit(active=Slot(first.content_id, "toy/1"), commits=1, job=JOB)
    server.serve(server.open(first), FULL)
    return made


@contextmanager
def asking(runner: Runner, value: float = 0.5) -> Iterator[list[Answer | EdgekitError]]:
    """A source and a caller that ask without pause; in the end everything they asked must have been answered.

    value: of all inputs. Gives the answers.
    """
    inputs = {"x": np.full(SHAPE, value, np.float32)}
    got: list[Answer | EdgekitError] = []
    asked, stop = [0, 0], threading.Event()

    def ask(index: int, give: Callable[[Request], bool]) -> None:
        while not stop.is_set():
            done = threading.Event()

            def answered(result: Answer | EdgekitError, done: threading.Event = done) -> None:
                got.append(result)
                done.set()

            assert give(Request(lambda manifest: (inputs, None), answered))
            asked[index] += 1
            assert done.wait(20.0), "a request was lost"

    def source(request: Request) -> bool:
        return runner.submit(request, 20.0)

    threads = [threading.Thread(target=ask, args=(i, to)) for i, to in enumerate((source, runner.call))]
    for thread in threads:
        thread.start()
    until(lambda: len(got) > 50, "answers before the switch")
    try:
        yield got
        count = len(got)
        until(lambda: len(got) > count + 50, "answers after the switch")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20.0)
    assert not any(thread.is_alive() for thread in threads)
    assert len(got) == sum(asked)


@pytest.fixture
def hammer(board: Board) -> Iterator[list[Answer | EdgekitError]]:
    with asking(board.runner) as got:
        yield got
    assert all(isinstance(result, Answer) for result in got), "each was answered"


def test_a_bundle_that_holds_is_committed_after_so_many_requests_and_the_one_before_is_closed(
    board: Board, hammer: list[Answer | EdgekitError]
) -> None:
    board.trial = Trial(live_requests=200, live_seconds=60.0)
    before = board.runner.serving
    outcome = board.put(board.install(2))
    assert (outcome.event, outcome.reason) == ("pass", None)
    found = re.fullmatch(r"latency 1 ms; (\d+) real requests, median \S+ ms", outcome.detail or "")
    assert found is not None
    assert int(found[1]) >= 200
    assert board.serves == "toy/2"
    state = State.parse(board.state.current.to_json(), "state")
    assert state.active is not None
    assert state.previous is not None
    assert (state.active.label, state.previous.label, state.commits) == ("toy/2", "toy/1", 2)
    assert before is not None
    assert before.session._runs == ()
    assert board.said == ["toy/2 serves on trial, toy/1 stays ready", None]


def test_while_it_is_on_trial_the_state_file_still_names_the_one_before(
    board: Board, hammer: list[Answer | EdgekitError]
) -> None:
    seen = []

    def check() -> None:
        if board.serves == "toy/2":
            kept = StateFile(board.folder / "state.json", State).current
            seen.append((kept.active and kept.active.label, kept.job and kept.job.state))
            board.trial = replace(board.trial, live_requests=1)

    board.check = check
    board.trial = Trial(live_requests=100, live_seconds=60.0)
    assert board.put(board.install(2)).event == "pass"
    assert seen[0] == ("toy/1", "trial")


def test_a_board_without_requests_ends_its_trial_after_its_time(board: Board) -> None:
    board.trial = Trial(live_requests=100, live_seconds=0.05)
    outcome = board.put(board.install(2))
    assert (outcome.event, outcome.detail) == ("pass", "latency 1 ms; 0 real requests")


@pytest.mark.parametrize(
    "trial", [Trial(live_requests=0, live_seconds=60.0), Trial(live_requests=9, live_seconds=0)]
)
def test_a_trial_of_nothing_is_none(board: Board, trial: Trial) -> None:
    board.trial = trial
    outcome = board.put(board.install(2))
    assert (outcome.event, outcome.detail, board.said) == ("pass", "latency 1 ms", [None])


def failed(board: Board, bundle: Bundle, policy: PolicySpec | None = None) -> Outcome:
    """The trial must fail, and all be as it was."""
    before = board.runner.serving
    outcome = board.put(bundle, policy)
    assert outcome.event == "fail"
    after = board.runner.serving
    assert before is not None
    assert after is not None
    assert after.session is before.session, "no loading"
    assert after.session._runs, "still open"
    assert (board.serves, after.label) == ("toy/1", "toy/1")
    active = board.state.current.active
    assert active is not None
    assert (active.label, board.state.current.commits) == ("toy/1", 1)
    return outcome


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the overflow
def test_answers_that_are_no_numbers_bring_the_one_before_back(board: Board) -> None:
    files, parts = null_files()
    files["stages/2.json"] = files["stages/2.json"].replace(b'"scale": 4.0', b'"scale": 3e+38')
    parts[2] = replace(parts[2], sha256=hashlib.sha256(files["stages/2.json"]).hexdigest())
    part = board.slots.part("9" * 64)
    part.write_bytes(pack(null_manifest(files, parts, version=2), files, {"v": 1}))
    content = open_bundle(part).content_id
    board.slots.install(part, content)
    with asking(board.runner, 100.0):  # far beyond what the golden cases hold
        outcome = failed(board, board.slots.open(content))
    assert outcome.reason == "not-finite"
    assert "hold what is no number" in (outcome.detail or "")


def test_inputs_that_are_no_numbers_are_not_held_against_the_bundle(board: Board) -> None:
    board.trial = Trial(live_requests=50, live_seconds=60.0)
    with asking(board.runner, float("nan")):
        assert board.put(board.install(2)).event == "pass"


def test_a_bundle_slower_than_its_limit_brings_the_one_before_back(
    board: Board, hammer: list[Answer | EdgekitError]
) -> None:
    bundle = board.install(2, delay_ms=2.0, limits=BoardLimits(latency_ms=3.0))
    outcome = failed(board, bundle)
    assert outcome.reason == "latency"
    assert "limit 3 ms" in (outcome.detail or "")


def test_on_a_throttled_board_no_latency_is_held_against_the_bundle(
    board: Board, hammer: list[Answer | EdgekitError]
) -> None:
    board.trial = Trial(live_requests=60, live_seconds=60.0)
    board.server.throttle(True)
    assert board.put(board.install(2, delay_ms=1.0, limits=BoardLimits(latency_ms=2.0))).event == "pass"


def test_an_agent_that_grows_beyond_the_bundles_limit_brings_the_one_before_back(
    board: Board, hammer: list[Answer | EdgekitError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "private_mb", lambda: 1e4)
    board.trial = Trial(live_requests=30, live_seconds=60.0)
    outcome = failed(board, board.install(2, limits=BoardLimits(memory_mb=50.0)))
    assert outcome.reason == "memory"
    assert "limit 50 MB" in (outcome.detail or "")


def test_deadlines_that_are_missed_clearly_more_often_bring_the_one_before_back(
    board: Board, hammer: list[Answer | EdgekitError]
) -> None:
    anytime = PolicySpec("anytime", deadline_ms=4.0)
    board.server.want(anytime)
    count = len(hammer)
    until(lambda: len(hammer) > count + 100, "answers under the deadline")
    outcome = failed(board, board.install(2, delay_ms=5.0), anytime)
    assert outcome.reason == "deadline"
    assert "came late" in (outcome.detail or "")


def test_a_runtime_that_fails_brings_the_one_before_back(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_open = Server.open

    def breaks(*_: object) -> Answer:
        raise BadBundle("the runtime gave up")

    def opened(server: Server, bundle: Bundle) -> Any:
        loaded = true_open(server, bundle)
        loaded.session.run = breaks  # type: ignore[method-assign]
        return loaded

    monkeypatch.setattr(Server, "open", opened)
    with asking(board.runner) as got:
        outcome = failed(board, board.install(2))
    assert sum(not isinstance(result, Answer) for result in got) > 0, "those it was tried on"
    assert outcome.reason == "runtime"
    assert "the runtime gave up" in (outcome.detail or "")


@pytest.mark.parametrize("why", [Superseded("revision 3 came"), Stopping()])
def test_a_trial_that_is_broken_off_goes_back_cleanly(
    board: Board, hammer: list[Answer | EdgekitError], why: Exception
) -> None:
    def check() -> None:
        if board.serves == "toy/2":
            raise why

    board.check = check
    with pytest.raises(type(why)):
        board.put(board.install(2))
    assert board.serves == "toy/1"
    assert board.said[-1] is None


def test_a_commit_that_the_disk_does_not_take_goes_back(
    board: Board, hammer: list[Answer | EdgekitError], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, true_fsync = board.install(2), os.fsync

    def full(descriptor: int) -> None:
        if "state.json" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true_fsync(descriptor)

    board.trial = Trial(live_requests=20, live_seconds=60.0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldFailed):
        board.put(bundle)
    assert board.serves == "toy/1"
    assert StateFile(board.folder / "state.json", State).current.active == board.state.current.active


def test_what_was_known_of_the_one_before_is_there_again_after_going_back(board: Board) -> None:
    budget = PolicySpec("budget", parse_budget("60%"))
    board.server.want(budget)
    with asking(board.runner):
        pass
    before = board.runner.serving
    assert before is not None
    assert isinstance(before.policy, BudgetPolicy)
    learnt = before.policy.state

    def check() -> None:
        if board.serves == "toy/2":
            raise Superseded("revision 3 came")

    board.check = check
    with pytest.raises(Superseded):
        board.put(board.install(2))
    after = board.runner.serving
    assert after is not None
    assert isinstance(after.policy, BudgetPolicy)
    assert after.watch is before.watch
    assert after.policy.state.hardness == learnt.hardness != 1.0
    assert after.watch.answered > 50


def test_a_bundle_that_serves_and_whose_slot_was_installed_anew_is_marked_again(board: Board) -> None:
    """What a lost state file is repaired from."""
    active = board.state.current.active
    assert active is not None
    board.slots.mark(active.content_id, 1)
    board.slots.path(active.content_id).write_bytes(b"torn")
    board.committed.damaged = "toy/1 serves from memory"
    bundle = board.install(1)
    assert board.slots.committed() == ()
    assert board.put(bundle).event == "pass"
    assert [slot.label for _, slot in board.slots.committed()] == ["toy/1"]
    assert (board.state.current.active, board.state.current.previous) == (active, None)
    assert board.committed.damaged is None, "it will serve at the next start"
