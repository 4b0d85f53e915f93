"""Commands, reboots, network, clock and disk in any order: the worker never comes into a state that must not be."""

from __future__ import annotations

import base64
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from workers import PASSED, FakeServer, MemoryRepository, Reports, make_worker, state_from_slots

from edgekit.agent import clock, install, jobs
from edgekit.agent.commands import Commands
from edgekit.agent.config import Trial
from edgekit.agent.install import Worker
from edgekit.agent.repository.base import Found
from edgekit.agent.slots import Slots
from edgekit.agent.state import State, StateFile
from edgekit.agent.trial import TrialResult
from edgekit.core import messages
from edgekit.core.jobs import FINAL, TRANSITIONS
from edgekit.core.messages import Desired
from edgekit.core.trust import refusal

KEY = Ed25519PrivateKey.generate()
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ADDRESS = "demo/pi5"
TRUE_START = 1_800_000_000.0
DAY = 86_400.0
# version -> how the bundle fares: trial in the child, then with real requests.
GOOD = (1, 2, 4, 7, 10, 11, 12, 13)
FARES = {**dict.fromkeys(GOOD, "good"), 3: "golden", 5: "crash", 6: "live"}
OTHER_PROFILE, UNKNOWN = 8, 9
MEMORY = Path("/dev/shm")


class PowerCut(BaseException):
    """Out, here and now."""


class Baton:
    """Either the test runs or the worker's thread, never both: what happens is the same every time."""

    def __init__(self) -> None:
        self.test, self.worker = threading.Semaphore(0), threading.Semaphore(0)
        self.cut = False

    def park(self) -> None:
        """In the worker's thread: hand over, and wait for one's turn."""
        self.test.release()
        self.worker.acquire()
        if self.cut:
            raise PowerCut

    def resume(self) -> None:
        """In the test: let the worker run to where it parks next, or ends."""
        self.worker.release()
        assert self.test.acquire(timeout=5), "the worker got stuck"


class Driven(Worker):
    """A worker whose every wait and every check hands over to the test."""

    world: WorkerMachine
    idle = False

    @property
    def rests(self) -> bool:
        """Whether it waits for work, and there is none."""
        return self.idle and not self._unfinished() and not self._revoked

    def _wait_for(self, ready: Callable[[], object], timeout_s: float | None = None) -> None:
        end = None if timeout_s is None else self.world.mono + timeout_s
        while not (self._stopping or ready() or (end is not None and self.world.mono >= end)):
            self._wake.release()
            self.idle = True
            try:
                self.world.baton.park()
            finally:
                self.idle = False
                self._wake.acquire()

    def _check(self) -> None:
        self.world.baton.park()
        super()._check()


class Metadata(MemoryRepository):
    """Notes the time as the metadata client does, and refuses by a clock that is too late."""

    world: WorkerMachine

    def find(self, name: str, version: int, use: str = "run") -> Found:
        world = self.world
        job = world.state.current.job
        assert job is not None
        assert job.job_id not in world.ended, "a job that has ended is not begun again"
        found = super().find(name, version, use)
        now = clock.trusted(world.wall, world.state.current.good_time)
        if now is not None and now > world.true_time + DAY:
            raise refusal("expired", "timestamp")
        world.state.note(good_time=max(now or 0.0, world.state.current.good_time))
        return found


def reachable(state: str) -> set[str]:
    """States that a job may be in later, itself not counted unless it may come again."""
    found: set[str] = set()
    edge = [state]
    while edge:
        for following in TRANSITIONS[edge.pop()].values():
            if following not in found:
                found.add(following)
                edge.append(following)
    return found


class WorkerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.mono, self.true_time, self.drift = 0.0, TRUE_START, 0.0
        self.full, self.cut_in, self.fail_in = False, 0, 0
        self.rev = self.n = 0
        self.sent: list[Mapping[str, Any]] = []
        self.targets: dict[str, str | None] = {}  # job -> target
        self.ended: dict[str, str] = {}  # job -> the end that was told
        self.ran: dict[str, str | None] = {}  # job -> the active bundle when it ended
        self.told: list[tuple[str, str]] = []  # (job, state) as the server would hear them
        self.refused: list[str] = []
        self.good: set[str] = set()  # labels that passed a trial here
        self.revoked: set[str] = set()
        self.calm: str | None = None  # the last job, as long as nothing but the power disturbed it
        self.cuts = 0  # how often that went, or the agent was stopped, since then
        self.safe = State()  # what the disk surely has
        self.missed = False  # the outbox once did not take something
        self.lossy = False  # the power went while the disk was full: what was only in memory is forgotten
        self.state: Any = None
        self.true_fsync = os.fsync
        os.fsync = self.fsync
        self.repository = Metadata()
        self.repository.world = self
        for version in FARES:
            self.repository.add("toy", version, "allowed" if version in (1, 2) else "current", padding=3000)
        self.repository.add("toy", OTHER_PROFILE, profile="jetsonnano")
        self.thread: threading.Thread | None = None
        self.boot()

    @property
    def wall(self) -> float:
        """What the board's clock says."""
        return self.true_time + self.drift

    def fsync(self, descriptor: int) -> None:
        if self.cut_in:
            self.cut_in -= 1
            if not self.cut_in:
                raise PowerCut
        if self.fail_in:
            self.fail_in -= 1
            if not self.fail_in:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # --- the board ---

    def boot(self) -> None:
        """Power on: load, restore, start the thread; it may go off again in the middle of that."""
        unsaved = self.thread is None and self.state is not None and self.state._unsaved
        while True:
            with suppress(PowerCut):
                self.load()
                break
        self.check_state_after_boot()
        self.lossy |= unsaved
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()
        assert self.baton.test.acquire(timeout=5)
        self.cut_in = 0
        if self.sent:  # the broker hands out what it retained
            self.commands.receive("desired", self.sent[-1])

    def load(self) -> None:
        self.baton = Baton()
        self.slots = Slots(self.folder / "slots", 2**24)
        self.state = StateFile(self.folder / "state.json", lambda: state_from_slots(self.slots))
        self.server = FakeServer()
        self.server.failures = {f"toy/{version}" for version, fares in FARES.items() if fares == "live"}
        reports = Reports()
        reports.job = self.hear  # type: ignore[method-assign]
        self.reports = reports
        worker = make_worker(
            self.state,
            self.slots,
            self.repository,
            self.server,
            reports,
            kind=Driven,
            try_out=self.try_out,
            clock=lambda: self.mono,
            live=Trial(live_requests=5, live_seconds=2.0),
            now=lambda: self.wall,
        )
        assert isinstance(worker, Driven)
        worker.world = self
        self.worker = worker
        config: Any = SimpleNamespace(
            address=ADDRESS, path=Path("agent.toml"), trust=SimpleNamespace(control_key=PEM)
        )
        self.commands = Commands(config)
        none: Any = None
        self.commands.attach(
            self.state, worker, none, lambda job, target, reason, detail: self.refused.append(reason)
        )
        worker.restore()

    def live(self) -> None:
        """The worker's thread, which ends with the power."""
        with suppress(PowerCut):
            self.baton.park()
            self.worker.run()
        self.thread = None
        self.baton.test.release()

    def try_out(self, path: Path, policy: object, check: Callable[[], None]) -> TrialResult:
        check()
        bundle = self.slots.open(path.parent.name)
        fares = FARES[bundle.manifest.version]
        check()
        if fares in ("golden", "crash"):
            return TrialResult(fares, "as it was made", 0.1)
        return PASSED

    def hear(self, job: Any) -> bool:
        """The outbox: on the same disk."""
        if self.full:
            self.missed = True
            return False
        self.check_event(job.job_id, job.state)
        self.told.append((job.job_id, job.state))
        if job.state in FINAL:
            self.ended[job.job_id] = job.state
            active = self.state.current.active
            self.ran[job.job_id] = active.label if active is not None else None
        if job.state == "active" and job.target is not None:
            self.good.add(job.target)
        return True

    def go(self, points: int, seconds: float) -> None:
        """Let the worker come on by so many points, some time before each."""
        for _ in range(points):
            if self.thread is None or self.worker.rests:
                break
            self.mono += seconds
            self.true_time += seconds
            self.baton.resume()
        assert self.thread is not None, "it does not end by itself"

    # --- what must hold ---

    def check_event(self, job: str, state: str) -> None:
        states = [known for name, known in self.told if name == job]
        before = states[-1] if states else "received"
        if before in FINAL:
            assert state == before, f"{job} had ended as {before} and is now {state}"
        elif states and not self.missed and self.targets[job] is not None:
            allowed = set(TRANSITIONS[before].values())
            if before != "received":
                allowed.add(before)  # told, and cut before it was saved
            # Cut after it was saved and before it was told, it begins again: one state was never told.
            for following in tuple(allowed):
                allowed |= set(TRANSITIONS[following].values()) & {"received", "rolling_back", *FINAL}
            assert state in allowed | {before}, f"{job} went from {before} to {state}"
        else:
            assert state in reachable(before) | {before}, f"{job} went from {before} to {state}"
        others = {name: known for name, known in self.told if name != job}
        at_work = [name for name, known in others.items() if known not in FINAL]
        owed = {entry.job_id for entry in self.state.current.owed}
        if not self.missed and state not in FINAL:
            assert set(at_work) <= owed, f"{at_work} and {job} at once"

    def check_state_after_boot(self) -> None:
        now, safe = self.state.current, self.safe
        assert self.state.repaired is None
        assert (now.rev, now.n, now.commits, now.good_time) >= (
            safe.rev,
            safe.n,
            safe.commits,
            safe.good_time,
        )
        assert self.repository.asked is not None

    @invariant()
    def what_serves_was_tried_and_is_whole(self) -> None:
        serves, now = self.server.in_force, self.state.current
        if serves.label is None or serves.content_id is None:
            assert now.active is None or now.active.label in self.revoked, "it serves what it has"
            return
        assert self.slots.open(serves.content_id).label == serves.label
        version = int(serves.label.split("/")[1])
        if self.server.before is not None:
            assert now.job is not None
            assert (now.job.state, now.job.target) == ("trial", serves.label), "on trial"
        else:
            assert FARES[version] == "good"
            assert now.active is not None
            assert now.active.label == serves.label, "what serves is what the state says"

    @invariant()
    def a_slot_that_is_named_is_there(self) -> None:
        for slot in (self.state.current.active, self.state.current.previous):
            if slot is not None:
                assert FARES[int(slot.label.split("/")[1])] == "good"
                assert self.slots.open(slot.content_id).label == slot.label

    @invariant()
    def nothing_goes_back(self) -> None:
        now = self.state.current
        assert (now.rev, now.n) <= (self.rev, self.n)
        assert (now.rev, now.n, now.commits) >= (self.safe.rev, self.safe.n, self.safe.commits)
        assert now.good_time >= self.safe.good_time
        if not self.state._unsaved:
            self.safe = now
        self.lossy |= len(now.owed) == install._MAX_OWED  # the ends of more jobs than that are forgotten

    # --- commands ---

    def send(self, **changes: Any) -> None:
        self.n += 1
        desired = Desired(
            ADDRESS, self.rev, self.n, f"job-{self.rev}", None, None, None, self.true_time + 3600
        )
        payload = {**replace(desired, **changes).to_json(), "v": 1}
        payload["sig"] = base64.b64encode(KEY.sign(messages.signed_bytes(payload))).decode()
        self.sent.append(payload)
        self.commands.receive("desired", payload)

    @initialize(version=st.sampled_from([0, 1, 2, 4]), following=st.sampled_from([0, 7, 10]))
    def has_what_it_was_given_before(self, version: int, following: int) -> None:
        for given in filter(None, (version, following)):
            self.wants(given)
            self.all_is_well_and_it_settles()

    @rule(version=st.sampled_from([*FARES, OTHER_PROFILE, UNKNOWN]))
    def wants(self, version: int) -> None:
        self.rev += 1
        self.targets[f"job-{self.rev}"] = f"toy/{version}"
        undisturbed = not self.full and self.repository.up and self.repository.breaks_after is None
        self.send(target=f"toy/{version}")
        self.cuts = 0
        self.calm = f"job-{self.rev}" if undisturbed and abs(self.drift) < 60 else None
        assert self.state.current.next is not None
        assert self.state.current.next.job_id == f"job-{self.rev}"

    @rule(version=st.sampled_from([*FARES]), points=st.integers(0, 40), cut=st.booleans())
    def wants_and_gets(self, version: int, points: int, cut: bool) -> None:
        """All the way, perhaps with a power cut in between."""
        self.wants(version)
        if cut:
            self.go(points, 0.1)
            self.power_goes_now()
        self.all_is_well_and_it_settles()

    @rule(interval=st.sampled_from([None, 5.0, 0.5]), config=st.sampled_from([None, {"limits.threads": 1}]))
    def wants_other_settings(self, interval: float | None, config: Mapping[str, Any] | None) -> None:
        self.rev += 1
        self.calm = None
        self.targets[f"job-{self.rev}"] = None
        self.send(interval_s=interval, config=config)

    @precondition(lambda self: self.sent)
    @rule(back=st.integers(1, 9))
    def an_earlier_command_comes_again(self, back: int) -> None:
        before = self.state.current
        self.commands.receive("desired", self.sent[-min(back, len(self.sent))])
        assert self.state.current == before, "it came to nothing"

    @precondition(lambda self: self.sent)
    @rule()
    def the_last_command_comes_signed_anew(self) -> None:
        before = self.state.current
        last = self.sent[-1]
        self.send(
            target=last["target"], interval_s=last["interval"], config=last["config"], expires=last["expires"]
        )
        assert replace(self.state.current, n=before.n) == before, "only its number counts"

    @precondition(lambda self: self.sent)
    @rule()
    def a_forged_command_comes(self) -> None:
        before = self.state.current
        self.commands.receive("desired", {**self.sent[-1], "rev": self.rev + 1, "n": self.n + 1})
        assert self.state.current == before

    @precondition(lambda self: self.state.current.commits > 1 and len(self.revoked) < 4)
    @rule(version=st.sampled_from([0, 0, 0, *GOOD]))
    def is_revoked(self, version: int) -> None:
        active = self.state.current.active
        label = f"toy/{version}" if version or active is None else active.label
        if label not in self.repository.entries:
            return
        target, data = self.repository.entries[label]
        self.repository.entries[label] = (replace(target, state="revoked"), data)
        self.revoked.add(label)
        self.calm = None
        self.worker.withdraw({label})

    # --- the world ---

    @rule(points=st.sampled_from([1, 2, 5, 10, 40, 80]), seconds=st.sampled_from([0.0, 0.1, 5.0, 100.0]))
    def time_passes(self, points: int, seconds: float) -> None:
        self.go(points, seconds)

    @rule(state=st.sampled_from(["up", "up", "down", "half"]))
    def network(self, state: str) -> None:
        self.repository.up = state != "down"
        self.repository.breaks_after = 2048 if state == "half" else None
        self.calm = None if state != "up" else self.calm

    @rule(drift=st.sampled_from([0.0, 0.0, 0.0, -TRUE_START, -7200.0, 7200.0, 40 * DAY]))
    def the_clock_jumps(self, drift: float) -> None:
        self.drift = drift
        self.calm = None

    @rule(full=st.sampled_from([False, False, True]))
    def disk(self, full: bool) -> None:
        self.full = full
        self.calm = None
        if not full:
            self.worker.report_again()

    @rule(syncs=st.integers(1, 14))
    def one_write_fails(self, syncs: int) -> None:
        self.calm = None
        self.fail_in = syncs
        self.go(60, 0.1)
        self.fail_in = 0

    @rule()
    def power_goes_now(self) -> None:
        self.baton.cut = True
        self.baton.resume()
        self.cuts += 1
        self.boot()

    @rule(syncs=st.integers(1, 12), again=st.integers(0, 4))
    def power_goes_at_a_write(self, syncs: int, again: int) -> None:
        """At the n-th fsync from now, and perhaps once more while it comes back."""
        self.cuts += 1 + bool(again)
        self.cut_in = syncs
        for _ in range(60):
            if self.thread is None or self.worker.rests:
                break
            self.mono += 0.1
            self.baton.resume()
        if self.thread is None:
            self.cut_in = again
            self.boot()
        self.cut_in = 0

    @rule()
    def it_is_stopped_and_started(self) -> None:
        self.cuts += 1
        self.worker._stopping = True
        for _ in range(10):
            if self.thread is not None:
                self.baton.resume()
        assert self.thread is None, "it ends soon"
        self.worker.committed.ended()
        self.boot()

    @rule()
    def all_is_well_and_it_settles(self) -> None:
        calm = self.calm
        self.repository.up, self.repository.breaks_after = True, None
        self.full, self.drift = False, 0.0
        self.worker.withdraw(self.revoked)  # as the look at the metadata some minutes after a start finds it
        for _ in range(3000):
            if self.worker.rests:
                break
            self.go(1, 0.5)
        self.worker.report_again()
        now = self.state.current
        assert now.next is None
        assert now.job is None or now.job.ended, "every job ends"
        assert not now.owed
        told = {f"job-{self.rev}"} & set(self.targets) if self.lossy else set(self.targets)
        assert set(self.ended) >= told, "and is told"
        serves = self.server.in_force.label
        assert serves not in self.revoked
        if calm is not None and calm == f"job-{self.rev}":
            self.check_calm_end(calm)

    def check_calm_end(self, job: str) -> None:
        """Nothing disturbed the last job: its end is the one its target deserves."""
        target = self.targets[job]
        assert target is not None
        version = int(target.split("/")[1])
        end, serves = self.ended[job], self.server.in_force.label
        if version in (OTHER_PROFILE, UNKNOWN) or target in self.revoked:
            assert end == "refused"
        elif end == "refused":
            ran = self.ran[job]
            assert ran is not None
            assert version < int(ran.split("/")[1]), "only an older one is refused"
            assert version not in (1, 2), "these are allowed"
        elif FARES[version] == "good" and self.cuts < jobs.MAX_RESTARTS:
            assert end == "active"
            # Three short runs in a row, cut off by the power or not, count against a bundle that is not proven.
            assert serves == target or "died 3 times" in str(self.state.current.lost)
        elif FARES[version] == "good":
            assert end in ("active", "failed")
        else:
            assert end == "failed"
            assert serves != target

    def teardown(self) -> None:
        try:
            if self.thread is not None:
                self.cut_in = 0
                self.all_is_well_and_it_settles()
                self.what_serves_was_tried_and_is_whole()
        finally:
            if self.thread is not None:
                self.baton.cut = True
                self.baton.resume()
            os.fsync = self.true_fsync
            shutil.rmtree(self.folder, ignore_errors=True)


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
TestWorker = WorkerMachine.TestCase
TestWorker.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=CHECKS,
    print_blob=True,
)
TestWorker.__doc__ = "Up to 2,000 steps, the same ones every time."


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestWorkerLong(WorkerMachine.TestCase):  # type: ignore[name-defined,misc]
    """Up to 20,000 steps."""

    settings = settings(
        max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=CHECKS, print_blob=True
    )
