from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import write_null_bundle

from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import Job, State, StateFile
from edgekit.core.errors import WorldFailed
from edgekit.core.policy import PolicySpec, parse_budget

SLOT = Slot("a" * 64, "toy/3")
JOB = Job(
    "job-1", 4, "toy/4", PolicySpec("budget", parse_budget("3ms")), 2.0, 1e9, "trial", "golden", "off", 2
)
FILLED = State(
    4,
    9,
    JOB,
    replace(JOB, job_id="job-2"),
    SLOT,
    None,
    7,
    1,
    PolicySpec(),
    5.0,
    {"root": 1},
    1e9,
    (JOB,),
    "gone",
)


def test_every_field_comes_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    changes = {name: getattr(FILLED, name) for name in State.__dataclass_fields__}
    StateFile(path, State).commit(**changes)
    again = StateFile(path, State)
    assert again.current == FILLED
    assert again.repaired is None
    assert path.stat().st_mode & 0o077 == 0


GARBAGE: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: bytes(len(data)),
    lambda data: b"\xff" + data,
    lambda data: b"[" * 100_000,
    lambda data: data.replace(b'"rev":4', b'"rev":"four"'),
    lambda data: data.replace(b'"v":1', b'"v":2'),
]


@pytest.mark.parametrize("damage", GARBAGE)
def test_a_torn_or_strange_file_is_repaired_and_the_repair_is_kept(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "state.json"
    StateFile(path, State).commit(rev=4, active=SLOT)
    path.write_bytes(damage(path.read_bytes()))
    repaired = StateFile(path, lambda: State(active=SLOT, commits=3))
    assert repaired.repaired is not None
    assert repaired.current == State(active=SLOT, commits=3)
    again = StateFile(path, State)
    assert (again.repaired, again.current.active) == (None, SLOT)


def test_repair_takes_the_bundle_that_passed_its_trial_last(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 10**9)
    for number, version in ((5, 1), (6, 2)):
        part = slots.part(f"{version:064x}")
        bundle = write_null_bundle(part, version=version)
        slots.install(part, bundle.content_id)
        slots.mark(bundle.content_id, number)
    part = slots.part("f" * 64)
    slots.install(
        part, write_null_bundle(part, version=3).content_id
    )  # installed, but its trial was never passed
    assert [(number, slot.label) for number, slot in slots.committed()] == [(6, "toy/2"), (5, "toy/1")]


def test_a_slot_that_was_damaged_does_not_count_for_repair(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 10**9)
    part = slots.part("1" * 64)
    bundle = write_null_bundle(part)
    slots.install(part, bundle.content_id)
    slots.mark(bundle.content_id, 1)
    slots.path(bundle.content_id).write_bytes(b"torn")
    assert slots.committed() == ()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_refuses_a_commit_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    state = StateFile(path, State)
    state.commit(rev=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(WorldFailed, match="No space left"):
            state.commit(rev=2)
    assert state.current.rev == json.loads(path.read_text())["rev"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_what_a_full_disk_did_not_take_is_written_with_the_next_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    state = StateFile(path, State)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        assert state.note(rev=2).rev == 2
    assert not path.exists()
    state.note(n=5)
    saved = json.loads(path.read_text())
    assert (saved["rev"], saved["n"]) == (2, 5)
