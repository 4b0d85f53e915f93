from __future__ import annotations

from pathlib import Path

import pytest
from bundles import write_null_bundle

from edgekit.agent.slots import Slots
from edgekit.core.errors import BadInput


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
