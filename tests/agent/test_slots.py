from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundles import write_null_bundle

from edgekit.agent.slots import MARGIN, Slots
from edgekit.core.errors import BadInput, WorldFailed


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "slots", 10**9)


def install(slots: Slots, version: int) -> str:
    part = slots.part(f"{version:064x}")
    bundle = write_null_bundle(part, version=version)
    slots.install(part, bundle.content_id)
    return bundle.content_id


def test_an_installed_bundle_opens_verified_under_its_content(slots: Slots) -> None:
    content = install(slots, 1)
    assert slots.open(content).label == "toy/1"
    assert sorted(entry.name for entry in slots.folder.iterdir()) == [content]


def test_a_damaged_slot_is_not_held_and_can_be_installed_again(slots: Slots) -> None:
    content = install(slots, 1)
    data = bytearray(slots.path(content).read_bytes())
    data[200] ^= 1
    slots.path(content).write_bytes(data)
    assert not slots.holds(content)
    assert install(slots, 1) == content
    assert slots.holds(content)


def test_a_bundle_with_other_content_than_promised_is_refused(slots: Slots) -> None:
    part = slots.part("1" * 64)
    write_null_bundle(part)
    with pytest.raises(BadInput, match="content must be"):
        slots.check(part, "0" * 64)


def test_a_bundle_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 1000)
    part = slots.part("1" * 64)
    bundle = write_null_bundle(part)
    with pytest.raises(BadInput, match="more than the 1000"):
        slots.check(part, bundle.content_id)


def test_keeping_removes_other_slots_and_what_interrupted_work_left(slots: Slots) -> None:
    first, second = install(slots, 1), install(slots, 2)
    slots.part("3" * 64).write_bytes(b"half")
    (slots.folder / f".gone-{'4' * 64}").mkdir()
    (slots.folder / "stray").mkdir()
    slots.keep({first}, parts=True)
    assert sorted(entry.name for entry in slots.folder.iterdir()) == [f".part-{'3' * 64}", first]
    slots.keep({first})
    assert [entry.name for entry in slots.folder.iterdir()] == [first]
    assert not slots.holds(second)


def test_a_disk_with_too_little_room_is_said_before_anything_is_fetched(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    free[0] = MARGIN + 10**6
    slots.check_room("1" * 64, 10**6)
    with pytest.raises(WorldFailed, match=r"1\.0 MB are still to come .* there are 17\.0 MB: make room"):
        slots.check_room("1" * 64, 10**6 + 1)
    slots.part("1" * 64).write_bytes(b"x" * 1000)  # what has come already
    slots.check_room("1" * 64, 10**6 + 1000)
    with pytest.raises(WorldFailed):
        slots.check_room("2" * 64, 10**6 + 1000)


def test_a_slot_that_is_installed_again_has_lost_its_mark(slots: Slots) -> None:
    content = install(slots, 1)
    assert not slots.is_marked(content)
    slots.mark(content, 4)
    assert slots.is_marked(content)
    assert [number for number, _ in slots.committed()] == [4]
    slots.path(content).write_bytes(b"torn")
    install(slots, 1)
    assert not slots.is_marked(content)
