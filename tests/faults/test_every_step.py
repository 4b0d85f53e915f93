"""A real agent is killed, finds its disk failing, or loses its servers at every step of an install; files are damaged.

The steps are found by the recording layer, not listed: every call by which the agent changes its state folder.
"""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agents import Site, make_site, until
from recording import FAILED, OPS, environment, read_log
from workers import FakeServer, MemoryRepository, Reports, make_worker, state_from_slots, work

from edgekit.agent.outbox import Outbox
from edgekit.agent.slots import Slots
from edgekit.agent.state import Job, StateFile
from edgekit.core.messages import Event

STEPS = OPS[1 : OPS.index("fdatasync") + 1]
LASTING = ("rename", "mkdir", "fsync", "fdatasync")  # a commit of the database is an fdatasync
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS)


class Bench:
    """One board that installs version after version, each over the one before."""

    def __init__(self, site: Site) -> None:
        self.site, self.rev = site, 0
        self.root = site.board.folder / "state"
        quick = {"requests": 1, "seconds": 0.1, "live_requests": 0}
        site.board.write(
            telemetry={"interval_s": 3600.0, "resend_s": 0.5}, trial=quick, update={"jitter_s": 0}
        )
        self.count = 0

    def start(self, **settings: Any) -> subprocess.Popen[str]:
        """An agent under the shim; it is armed by `arm`."""
        self.count += 1
        arm = self.site.folder / f"arm-{self.count}"
        log = self.site.folder / f"log-{self.count}"
        heard = len(self.site.server.heard)
        named = {"arm": arm, "log": log, "kinds": STEPS, **settings}
        process = self.site.board.spawn(env=environment(self.root, **named))
        until(lambda: self.said("reported", heard), "the agent's start")
        return process

    def said(self, kind: str, since: int) -> list[Mapping[str, Any]]:
        return [payload for topic, payload in self.site.server.heard[since:] if topic == kind]

    @property
    def arm(self) -> Path:
        return self.site.folder / f"arm-{self.count}"

    @property
    def log(self) -> Path:
        return self.site.folder / f"log-{self.count}"

    def want(self) -> None:
        """Command the next version."""
        self.rev += 1
        self.site.server.desire("pi5", self.site.add(version=self.rev), self.rev)

    def settled(self, since: int = 0) -> None:
        """The last command was obeyed, truly, and nothing is left lying about."""

        def done() -> bool:
            told = self.said("reported", since)
            return bool(told) and (told[-1]["rev"], told[-1]["state"]) == (self.rev, "active")

        until(done, f"the end of {self.rev}")
        told = self.said("reported", since)[-1]
        state = self.site.board.state
        assert (told["bundle"], told["content_id"]) == (f"toy/{self.rev}", state["active"]["content_id"])
        assert self.site.server.ended(f"job-{self.rev}")["state"] == "active"
        kept = {state[slot]["content_id"] for slot in ("active", "previous") if state[slot]}
        until(lambda: self.site.board.slots == kept, "the cleaning up")
        slots = Slots(self.root / "slots", 2**24)
        assert all(slots.holds(content) for content in kept)

    def steps(self) -> list[str]:
        """What an install of the next version does, in order."""
        process = self.start()
        self.want()
        self.settled()
        since = len(self.site.server.heard)
        self.arm.touch()
        self.want()
        self.settled(since)
        until(lambda: self.site.board.state["job"]["reported"])
        ops = [op for op in read_log(self.log) if op.kind in STEPS]
        process.kill()
        process.communicate()
        return [op.kind for op in ops]

    def killed(self, kill: str, again: int | None = None, kinds: tuple[str, ...] = LASTING) -> None:
        """Install the next version, killed on the way; with `again` once more while it comes back."""
        process = self.start(kill=kill, kinds=kinds)
        self.arm.touch()
        self.want()
        self.wait_for_death(process)
        active = self.site.board.state["active"]["label"]
        assert active in (f"toy/{self.rev - 1}", f"toy/{self.rev}"), kill
        if again is not None:
            self.count += 1
            self.arm.touch()
            env = environment(self.root, kill=f"before:{again}", kinds=LASTING)
            self.wait_for_death(self.site.board.spawn(env=env))
        since = len(self.site.server.heard)
        process = self.start()
        self.settled(since)
        process.kill()
        process.communicate()

    def wait_for_death(self, process: subprocess.Popen[str]) -> None:
        """It may get through: no two installs do exactly the same number of steps."""
        end = f"job-{self.rev}"
        states = self.site.server.states
        until(lambda: process.poll() is not None or "active" in states(end), "the kill")
        process.kill()
        process.communicate()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with make_site(tmp_path) as site:
        yield Bench(site)


def test_killed_at_drawn_steps_it_ends_in_a_verified_slot_and_a_true_report(bench: Bench) -> None:
    lasting = sum(kind in LASTING for kind in bench.steps())
    assert lasting > 30
    chance = random.Random(1)
    for when in ("before", "after"):
        bench.killed(f"{when}:{chance.randrange(2, lasting)}")
    bench.killed(f"after:{chance.randrange(2, lasting)}", again=chance.randrange(1, 6))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_step_it_ends_in_a_verified_slot_and_a_true_report(bench: Bench) -> None:
    """Before and after every fsync, rename, mkdir and commit, once and again; before every other change."""
    steps = bench.steps()
    lasting, points = sum(kind in LASTING for kind in steps), 0
    for step in range(1, lasting + 1):
        bench.killed(f"before:{step}")
        bench.killed(f"after:{step}", again=1 + step % 7)
        points += 3
    for step in range(1, len(steps) + 1, 2):
        bench.killed(f"before:{step}", kinds=STEPS)
        points += 1
    assert points >= 200


def fails(bench: Bench, code: int, step: int, how: str) -> None:
    """The disk fails from that step on, or once; when it is well again, so is the board."""
    bench.site.board.write(telemetry={"interval_s": 0.5})  # so often it tries to report what the disk refused
    heal = bench.site.folder / f"heal-{bench.count}"
    process = bench.start(fail=f"{code}:{step}:{how}", heal=heal)
    bench.arm.touch()
    told = len(bench.site.server.heard)  # before it is asked: it may have failed before desire() is back
    bench.want()
    states, job = bench.site.server.states, f"job-{bench.rev}"

    def hit() -> bool:
        return any(op.flags & FAILED for op in read_log(bench.log))

    def over() -> bool:
        last = bench.said("reported", told)
        return bool(last) and last[-1]["rev"] == bench.rev and last[-1]["state"] in ("active", "failed")

    until(lambda: (hit() and over()) or over() or process.poll() is not None, f"{code} at {step}", 20)
    assert process.poll() is None, f"errno {code} at step {step} ended the agent"
    heal.touch()
    end = bench.site.server.ended(job)
    assert end["state"] in ("active", "failed"), states(job)
    assert end["state"] == "active" or end["reason"]
    serves = bench.said("reported", 0)[-1]["bundle"]
    assert serves in (f"toy/{bench.rev}", f"toy/{bench.rev - 1}", f"toy/{bench.rev - 2}")
    since = len(bench.site.server.heard)
    bench.want()
    bench.settled(since)
    process.kill()
    process.communicate()


def test_a_disk_that_fails_at_drawn_steps_fails_the_job_and_never_the_agent(bench: Bench) -> None:
    steps, chance = len(bench.steps()), random.Random(2)
    for code in ERRNOS:
        fails(bench, code, chance.randrange(1, steps), "on")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disk_that_fails_at_any_step_fails_the_job_and_never_the_agent(bench: Bench) -> None:
    steps = len(bench.steps())
    for step in range(1, steps, 2):
        fails(bench, ERRNOS[step // 2 % 3], step, "on" if step // 2 % 2 else "once")


class Dying(list[Any]):
    """The repository's requests: from the n-th on it hangs up without a word, until it is well again."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.well = at, False

    def append(self, request: Any) -> None:
        super().append(request)
        if len(self) >= self.at and not self.well:
            raise ConnectionAbortedError


def test_a_repository_that_dies_at_each_request_is_waited_for(bench: Bench) -> None:
    process = bench.start()
    bench.want()
    bench.settled()
    requests: Any = Dying(10**6)
    bench.site.repository.requests = requests
    bench.want()
    bench.settled()
    for at in range(1, len(requests) + 1):
        dying: Any = Dying(at)
        bench.site.repository.requests = dying
        since = len(bench.site.server.heard)
        bench.want()
        until(lambda dying=dying: len(dying) >= dying.at, f"request {at}")  # type: ignore[misc]
        assert process.poll() is None
        dying.well = True
        bench.settled(since)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_broker_that_dies_on_the_way_learns_the_whole_way_later(bench: Bench, share: float) -> None:
    steps = len(bench.steps())
    process = bench.start()
    bench.arm.touch()
    bench.want()
    until(lambda: len(read_log(bench.log)) >= share * steps, "the step")
    bench.site.broker.stop()
    until(lambda: bench.site.board.state["active"]["label"] == f"toy/{bench.rev}", "the install")
    bench.site.broker.start()
    bench.settled()
    states = bench.site.server.states(f"job-{bench.rev}")
    assert states[-4:] == ["verifying", "installed", "trial", "active"], "nothing of the way is lost"
    assert process.poll() is None
    process.kill()
    process.communicate()


# --- damaged files ---------------------------------------------------------------------------------------------------


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"x")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(random.Random(3).randbytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 100),
    "a folder": _folder,
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all")),
    "another's": lambda path: path.write_bytes(b'{"v": 1, "number": "one"}'),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder of a board that has toy/1 and toy/2."""
    folder = tmp_path_factory.mktemp("installed") / "state"
    folder.mkdir()
    come_back(folder, 1)
    come_back(folder, 2)
    return folder


def come_back(folder: Path, rev: int) -> tuple[str | None, StateFile]:
    """Start, and install toy/`rev`: what served before, and the state afterwards."""
    outbox = Outbox(folder / "outbox.db", f"boot-{rev}", 2**20)
    try:
        slots = Slots(folder / "slots", 2**24)
        state = StateFile(folder / "state.json", lambda: state_from_slots(slots))
        repository, server, reports = MemoryRepository(), FakeServer(), Reports(outbox)
        for version in range(1, rev + 1):
            repository.add("toy", version)
        worker = make_worker(state, slots, repository, server, reports)
        worker.restore()
        serves = server.in_force.label
        outbox.put(Event("", 1, "started", None, {}))
        worker.take(Job(f"job-{rev}", rev, f"toy/{rev}", None, None, 4e9), rev)
        work(worker)
        assert server.in_force.label == f"toy/{rev}"
        active = state.current.active
        assert active is not None
        assert slots.open(active.content_id).label == f"toy/{rev}"
        told = [item.payload.get("state") for item in outbox.after(f"boot-{rev}", 0, 100)]
        assert "active" in told
        return serves, state
    finally:
        outbox.close()


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_costs_what_was_in_it_and_no_more(
    installed: Path, tmp_path: Path, damage: str
) -> None:
    files = [path.relative_to(installed) for path in sorted(installed.rglob("*")) if path.is_file()]
    assert len(files) >= 6
    for file in files:
        folder = tmp_path / "state"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(installed, folder)
        DAMAGES[damage](folder / file)
        serves, _ = come_back(folder, 3)
        assert serves in ("toy/1", "toy/2"), f"{file} {damage}"


def test_with_all_of_it_damaged_the_next_bundle_is_installed_all_the_same(
    installed: Path, tmp_path: Path
) -> None:
    for damage, hurt in DAMAGES.items():
        folder = tmp_path / damage
        shutil.copytree(installed, folder)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            hurt(path)
        serves, _ = come_back(folder, 3)
        assert damage == "longer" or serves is None
