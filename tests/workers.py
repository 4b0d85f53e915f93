"""The agent's worker on fakes, without threads: a repository in memory, a server that serves nothing."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bundles import null_bundle

from edgekit.agent.commit import Committer
from edgekit.agent.config import Limits, Trial
from edgekit.agent.install import Worker
from edgekit.agent.live import Watch
from edgekit.agent.outbox import Outbox
from edgekit.agent.repository.base import Found, NetworkFailed
from edgekit.agent.restore import Committed
from edgekit.agent.serving import InForce, Loaded
from edgekit.agent.slots import Slots
from edgekit.agent.state import Job, State, StateFile
from edgekit.agent.trial import TrialResult
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import WorldFailed
from edgekit.core.messages import Event, JobEvent
from edgekit.core.policy import PolicySpec
from edgekit.core.target import Target, target_path
from edgekit.core.trust import Board, refusal

PROFILE = "raspberrypi5"
LIMITS = Limits(
    threads=1,
    throttled_factor=0.5,
    accepts_code=False,
    max_bundle_bytes=2**24,
    min_interval_s=1.0,
    golden_timeout_s=10.0,
    golden_memory_mb=512,
)
PASSED = TrialResult(None, None, 0.1)
_CHUNK = 1024


@cache
def made_bundle(name: str, version: int, padding: int = 0, profile: str = PROFILE) -> tuple[bytes, str]:
    """A null bundle's bytes and its content_id."""
    data = null_bundle(name=name, version=version, padding=padding, profiles=(profile,))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.edge"
        path.write_bytes(data)
        return data, open_bundle(path).content_id


class MemoryRepository:
    """Signed targets as the metadata client would find them. up: whether it answers; breaks_after: bytes of a file."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Target, bytes]] = {}
        self.up = True
        self.breaks_after: int | None = None
        self.asked: list[str] = []

    def add(self, name: str, version: int, state: str = "current", **options: Any) -> str:
        data, content_id = made_bundle(name, version, **options)
        target = Target(
            name, version, (options.get("profile", PROFILE),), "run", state, content_id, executes_code=False
        )
        self.entries[target.label] = (target, data)
        return target.label

    def find(self, name: str, version: int, use: str = "run") -> Found:
        self.asked.append(f"{name}/{version}")
        if not self.up:
            raise NetworkFailed("repository: no answer")
        if f"{name}/{version}" not in self.entries:
            raise refusal("unknown-target", f"{name}/{version}")
        target, data = self.entries[f"{name}/{version}"]
        path = target_path(name, version, use)
        return Found(target, path, len(data), hashlib.sha256(data).hexdigest())

    def fetch(self, found: Found, part: Path, check: Callable[[], None], **_: Any) -> None:
        """Go on with what is there, as the real one does; what was kept and is wrong goes."""
        data = self.entries[found.target.label][1]
        have = part.read_bytes() if part.exists() else b""
        if not data.startswith(have):
            part.write_bytes(b"")
            have = b""
        with part.open("ab") as file:
            for at in range(len(have), len(data), _CHUNK):
                check()
                if not self.up or (self.breaks_after is not None and at >= self.breaks_after):
                    raise NetworkFailed("repository: broke off")
                file.write(data[at : at + _CHUNK])
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as err:
                raise WorldFailed(f"{part}: could not be written: {err.strerror}") from err


class FakeServer:
    """Opens bundles for what they are and says which one serves; runs none.

    failures: labels whose requests fail while they are on trial.
    """

    throttled = False

    def __init__(self) -> None:
        self.in_force = InForce(None, None, None, None)
        self.before: InForce | None = None  # what is kept ready while another one is on trial
        self.failures: set[str] = set()

    def open(self, bundle: Bundle) -> Loaded:
        for member in bundle.manifest.files:
            bundle.read(member.name)
        session: Any = SimpleNamespace(close=lambda: None)
        costs: Any = None
        return Loaded(bundle.label, bundle.content_id, session, costs, bundle)

    def serve(self, loaded: Loaded | None, wanted: PolicySpec) -> None:
        label, content_id = (loaded.label, loaded.content_id) if loaded else (None, None)
        self.in_force = InForce(label, content_id, wanted if loaded else None, None)

    def try_live(self, loaded: Loaded, wanted: PolicySpec, watch: Watch) -> None:
        self.before = self.in_force
        self.serve(loaded, wanted)
        for _ in range(3):
            if loaded.label in self.failures:
                watch.error("it fails", ours=True)
            else:
                watch.answered += 1

    def keep(self) -> None:
        self.before = None

    def go_back(self) -> None:
        if self.before is not None:
            self.in_force, self.before = self.before, None

    def want(self, wanted: PolicySpec) -> None:
        if self.in_force.label is not None:
            self.in_force = InForce(self.in_force.label, self.in_force.content_id, wanted, None)


@dataclass
class Reports:
    """Where a worker's events go: an outbox, and a list. takes: False where the outbox is full."""

    outbox: Outbox | None = None
    takes: bool = True
    jobs: list[Job] = field(default_factory=list)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def job(self, job: Job) -> bool:
        if not self.takes:
            return False
        if self.outbox is not None:
            event = JobEvent("", 1, job.job_id, job.state, job.target, None, job.reason, job.detail)
            if self.outbox.put(event) is None:
                return False
        self.jobs.append(job)
        return True

    def tell(self, kind: str, detail: Any) -> None:
        if self.outbox is not None:
            self.outbox.put(Event("", 1, kind, None, dict(detail)))
        self.events.append((kind, dict(detail)))


def state_from_slots(slots: Slots) -> State:
    """As the daemon repairs a state file that cannot be read."""
    found = slots.committed()
    entries = [slot for _, slot in found[:2]] + [None, None]
    return State(active=entries[0], previous=entries[1], commits=found[0][0] if found else 0)


def make_worker(
    state: StateFile,
    slots: Slots,
    repository: Any,
    server: Any,
    reports: Reports,
    *,
    kind: type[Worker] = Worker,
    try_out: Callable[..., TrialResult] = lambda *_: PASSED,
    clock: Callable[[], float] = time.monotonic,
    live: Trial | None = None,
    **options: Any,
) -> Worker:
    """A worker that is not started; `work` drives it. live: the trial with real requests; none by default."""
    policy = PolicySpec()
    committed = Committed(state, slots, server, policy, reports.tell, clock)
    trial = live or replace(Trial(), live_requests=0)
    committer = Committer(
        state=state,
        slots=slots,
        server=server,
        committed=committed,
        try_out=try_out,
        live=lambda: trial,
        policy=policy,
        tell=reports.tell,
        clock=clock,
    )
    return kind(
        state=state,
        slots=slots,
        repository=lambda: repository,
        server=server,
        committed=committed,
        committer=committer,
        board=Board(PROFILE),
        limits=LIMITS,
        policy=policy,
        report=reports.job,
        changed=lambda: None,
        **options,
    )


def work(worker: Worker) -> None:
    """Do what the worker's thread would do until it has nothing to do."""
    while worker._unfinished():
        worker._work()
