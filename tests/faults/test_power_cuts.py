"""Every state that a power cut may leave of an install: the agent comes back with a bundle, the truth and the job."""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import Repository, make_site, until
from power_cuts import Cut, Disk, Tree, digest, lay_out, states
from recording import Op, environment, read_log
from workers import FakeServer, MemoryRepository, Reports, make_worker, state_from_slots, work

from edgekit.agent.config import Repository as Address
from edgekit.agent.jobs import judge
from edgekit.agent.outbox import Outbox
from edgekit.agent.repository.client import RepositoryClient
from edgekit.agent.slots import Slots
from edgekit.agent.state import Job, State, StateFile
from edgekit.core.checks import SHA256
from edgekit.core.messages import Desired

# Run before the agent: it notes, in order with its operations, what it now relies on.
NOTES = """
import json, os, threading
from edgekit.agent import state
from edgekit.agent.outbox import KINDS, Outbox
from edgekit.core.record import Record
def note(kind, value):
    try:
        os.open({root!r} + "/.mark/" + kind + " " + json.dumps(value), os.O_RDONLY)
    except FileNotFoundError:
        pass
put, release, write, one_at_a_time = Outbox.put, Outbox.release, state.write_atomic, threading.RLock()
def noted_put(self, item, *given, **named):
    with one_at_a_time:
        if os.path.exists({empty!r}):
            os.unlink({empty!r})
        seq = put(self, item, *given, **named)
        if seq is not None and not isinstance(item, Record):  # those may wait in memory
            note("put", [self.boot_id, seq])
    return seq
def noted_release(self, *given):
    released = release(self, *given)
    if self.counts(*KINDS).held == 0:
        open({empty!r}, "w").close()
    return released
def noted_write(path, data, *given, **named):
    write(path, data, *given, **named)
    note("state", json.loads(data))
Outbox.put, Outbox.release, state.write_atomic = noted_put, noted_release, noted_write
"""
PADDING = 3000


@dataclass
class Recorded:
    """The install of toy/2 over toy/1. base: the state folder before it. root: its path then."""

    base: Disk
    ops: list[Op]
    root: str
    repository: Repository

    @property
    def saved(self) -> list[State]:
        """The state before, and every one that was said to be on disk, in order."""
        before = next(leaf for path, leaf in self.base.tree(()).items() if path == "state.json")
        return [
            State.parse(value, "noted") for value in (json.loads(before.content), *noted("state", self.ops))
        ]

    def cuts(self, ops: list[Op] | None = None, start: int = 0) -> Iterator[Cut]:
        """Every distinct state; with other operations than the recorded ones, theirs. start: no cut before that."""
        done = self.ops if ops is None else ops
        base = copy.deepcopy(self.base)
        return states(base, done, self.root, lambda tree, marks: (board(tree), marks), start)


def noted(kind: str, ops: Iterable[Op]) -> list[Any]:
    marks = [op.path for op in ops if op.kind == "mark"]
    return [json.loads(mark.removeprefix(kind)) for mark in marks if mark.startswith(f"{kind} ")]


def looked_at(path: str) -> bool:
    """What is recovered from: not SQLite's shared memory, which it makes anew, nor the metadata cache, for itself."""
    return not path.endswith("-shm") and path != "lock" and not path.startswith("metadata")


def board(tree: Tree) -> frozenset[object]:
    return digest(tree, looked_at)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("recorded")
    with make_site(folder) as site:
        root = site.board.folder / "state"
        site.board.write(telemetry={"interval_s": 3600.0, "resend_s": 600.0})
        env = environment(root, log=folder / "log", arm=folder / "armed")
        process = site.board.spawn(
            NOTES.format(root=str(root.resolve()), empty=str(folder / "empty")), env=env
        )
        assert site.run(site.add(version=1, padding=PADDING), 1)["state"] == "active"
        until(lambda: site.board.state["job"]["reported"] and len(site.board.slots) == 1, "the end of toy/1")
        until((folder / "empty").exists, "the acks")
        site.server.acks = False  # else what is released would be missed below
        target = site.add(version=2, padding=PADDING)
        base = Disk.of(root)
        (folder / "armed").touch()
        assert site.run(target, 2)["state"] == "active"
        until(lambda: site.board.state["job"]["reported"] and len(site.board.slots) == 2, "the end of toy/2")
        process.kill()
        process.communicate()
        ops = read_log(folder / "log")
        while ops[-1].kind != "mark":  # what the kill broke off
            ops.pop()
        yield Recorded(base, ops, str(root.resolve()), site.repository)


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    """A folder where files cost little."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


DESIRED = Desired("demo/pi5", 2, 2, "job-2", "toy/2", None, None, 4e9)


def recover(cut: Cut, saved: Sequence[State], folder: Path) -> None:
    """Come back from this state and finish the job; every promise is asserted."""
    puts = {tuple(json.loads(mark[4:])) for mark in cut.marks if mark.startswith("put ")}
    count = sum(mark.startswith("state ") for mark in cut.marks)
    lay_out(cut.tree, folder, looked_at)
    outbox = Outbox(folder / "outbox.db", "boot-after", 2**20)
    try:
        assert outbox.damaged is None, "the outbox is whole"
        assert outbox.durable
        held = held_by(outbox)
        assert puts <= set(held), "what the outbox took is there"
        slots = Slots(folder / "slots", 2**24)
        state = StateFile(folder / "state.json", lambda: state_from_slots(slots))
        assert state.repaired is None, "the state file is the old one or the new one"
        assert state.current in saved[count : count + 2], "it is the one that was saved, or was being saved"
        check_state(state.current, held, slots)
        check_finish(state, slots, outbox)
    finally:
        outbox.close()


def held_by(outbox: Outbox) -> dict[tuple[str, int], dict[str, Any]]:
    boots = outbox.boots()
    return {
        (item.boot_id, item.seq): {"kind": item.kind, **item.payload}
        for boot in boots
        for item in outbox.after(boot, 0, 1000)
    }


def check_state(now: State, held: dict[Any, dict[str, Any]], slots: Slots) -> None:
    assert now.active is not None, "never neither"
    assert now.active.label in ("toy/1", "toy/2")
    for folder in slots.folder.iterdir():
        if SHA256.fullmatch(folder.name):
            assert slots.holds(folder.name), "a folder under its final name is whole"
    assert slots.open(now.active.content_id).label == now.active.label
    told = [item for item in held.values() if item.get("job_id") == "job-2"]
    if any(item["state"] == "active" for item in told):
        assert now.active.label == "toy/2", "what was reported is true"
    if now.job is not None and now.job.rev == 2 and now.job.reported:
        assert any(item["state"] == "active" for item in told), "what counts as reported will be sent"
    repaired = state_from_slots(slots).active
    assert repaired is not None, "a lost state file is repaired from the slots"
    assert repaired.label in (now.active.label, "toy/2")


def check_finish(state: StateFile, slots: Slots, outbox: Outbox) -> None:
    """Start as the agent does, hear the command again, and come to its end."""
    repository, server, reports = MemoryRepository(), FakeServer(), Reports(outbox)
    for version in (1, 2):
        repository.add("toy", version, padding=PADDING)
    worker = make_worker(state, slots, repository, server, reports)
    active = state.current.active
    worker.restore()
    assert server.in_force.label == (active.label if active else None), "it serves at once"
    verdict = judge(DESIRED, "demo/pi5", state.current)
    if verdict.take:
        worker.take(Job("job-2", 2, "toy/2", None, None, 4e9), 2)
    assert verdict.reason is None
    work(worker)
    now = state.current
    assert now.job is not None
    assert now.active is not None
    assert (now.job.rev, now.job.state, now.active.label) == (2, "active", "toy/2")
    assert now.job.reported
    assert server.in_force.label == "toy/2"
    assert slots.open(now.active.content_id).label == "toy/2"
    told = [item["state"] for item in held_by(outbox).values() if item.get("job_id") == "job-2"]
    assert told[-1] == "active"
    kept = {slot.content_id for slot in (now.active, now.previous) if slot is not None}
    assert {entry.name for entry in slots.folder.iterdir()} == kept, "nothing is left behind"


def check_metadata(cut: Cut, recorded: Recorded, folder: Path) -> None:
    """The cache of the metadata client as the cut left it: what is signed is found, whatever is in there."""
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(cut.tree, folder, lambda path: path.startswith("metadata"))
    state = StateFile(folder / "state.json", State)
    state.current = recorded.saved[-1]
    address = Address(recorded.repository.url, recorded.repository.TOKEN)
    client = RepositoryClient(address, recorded.repository.root_json, folder / "metadata", state)
    try:
        assert client.find("toy", 2).target.label == "toy/2"
    finally:
        client.close()


def test_after_a_cut_anywhere_the_metadata_is_found_again(recorded: Recorded, here: Path) -> None:
    def cache(tree: Tree) -> frozenset[object]:
        return digest(tree, lambda path: path.startswith("metadata"))

    base, count = copy.deepcopy(recorded.base), 0
    for cut in states(base, recorded.ops, recorded.root, lambda tree, _: cache(tree)):
        check_metadata(cut, recorded, here / "cache")
        count += 1
    assert count > 20


def failure(cut: Cut, saved: Sequence[State], here: Path) -> str | None:
    """What is wrong after this cut, if anything."""
    folder = here / "state"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        recover(cut, saved, folder)
    except Exception as err:  # noqa: BLE001  (a crash of the recovery is what is looked for)
        return f"after {cut.after} operations: {type(err).__name__}: {err}"
    return None


def test_the_recording_saw_the_whole_install(recorded: Recorded) -> None:
    kinds = {op.kind for op in recorded.ops}
    assert not [str(op) for op in recorded.ops if op.kind == "unseen"]
    assert kinds >= {"open", "write", "rename", "mkdir", "fsync", "fdatasync", "mark"}
    touched = {op.path.removeprefix(recorded.root + "/").split("/")[0] for op in recorded.ops}
    assert {"slots", "outbox.db-wal", ".state.json.part", "metadata"} & touched
    assert sum(op.path.startswith("put ") for op in recorded.ops) >= 6


def test_after_a_cut_anywhere_the_agent_comes_back_and_finishes(recorded: Recorded, here: Path) -> None:
    """A drawn part of the states; all of them below."""
    found = list(recorded.cuts())
    assert len(found) > 200
    drawn, saved = random.Random(5).sample(found, 150), recorded.saved
    assert [wrong for cut in drawn if (wrong := failure(cut, saved, here))] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_every_cut_the_agent_comes_back_and_finishes(recorded: Recorded, here: Path) -> None:
    saved = recorded.saved
    assert [wrong for cut in recorded.cuts() if (wrong := failure(cut, saved, here))] == []


def harm_without(index: int, recorded: Recorded, here: Path, good: set[object]) -> str | None:
    """The first thing that goes wrong without this operation; states known to be good are not tried again."""
    saved = recorded.saved
    for cut in recorded.cuts(recorded.ops[:index] + recorded.ops[index + 1 :], start=index):
        known = (board(cut.tree), cut.marks)
        if known not in good:
            wrong = failure(cut, saved, here)
            if wrong is not None:
                return wrong
            good.add(known)
    return None


def promised(ops: Sequence[Op], index: int) -> bool:
    """Whether something relies on this fsync: all of ours; of SQLite's those that end the commit of an event.

    SQLite's others are its own business: checkpoints, and commits of Records, which a cut may take.
    """
    if not is_sqlite(ops[index]):
        return True
    if not ops[index].path.endswith("-wal"):
        return False
    following = next((op for op in ops[index + 1 :] if op.kind == "mark" or is_sqlite(op)), None)
    return following is not None and following.path.startswith("put ")


def is_sqlite(op: Op) -> bool:
    return op.kind != "mark" and Path(op.path).name.startswith("outbox.db")


def test_without_any_single_fsync_some_cut_does_harm(recorded: Recorded, here: Path) -> None:
    """To leave one out of the recording is what swallowing it would be: the program cannot tell."""
    good: set[object] = {(board(cut.tree), cut.marks) for cut in recorded.cuts()}
    first = next(iter(recorded.cuts()))
    assert failure(first, recorded.saved, here) is None
    syncs = [index for index, op in enumerate(recorded.ops) if op.kind in ("fsync", "fdatasync")]
    relied_on = [index for index in syncs if promised(recorded.ops, index)]
    assert sum(not is_sqlite(recorded.ops[index]) for index in relied_on) > 15
    assert sum(is_sqlite(recorded.ops[index]) for index in relied_on) >= 5
    needless = [
        str(recorded.ops[index]) for index in relied_on if harm_without(index, recorded, here, good) is None
    ]
    assert needless == [], "no cut does harm without these: what are they for?"
