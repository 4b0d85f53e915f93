from __future__ import annotations

from pathlib import Path

import pytest
from outboxes import Clock, record

from edgekit.agent import volatile
from edgekit.agent.outbox import LINGER_S, RECORD, Outbox
from edgekit.agent.volatile import Volatile
from edgekit.core.messages import Event


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(volatile, "SHARED_MEMORY", folder)
    return folder


def online(path: Path, clock: Clock, boot: str = "boot1") -> Outbox:
    """An outbox whose Records wait in memory for their acknowledgement."""
    box = Outbox(path, boot, 10**9, clock=clock)
    box.put(record())
    box.release(boot, 1)
    clock.now += LINGER_S
    return box


def test_a_record_that_waited_in_memory_is_there_after_the_process_was_killed(
    tmp_path: Path, memory: Path
) -> None:
    clock = Clock()
    box = online(tmp_path / "outbox.db", clock)
    assert box.put(record(7)) == 2
    box._db.close()  # a kill: nothing of ours runs any more
    again = Outbox(tmp_path / "outbox.db", "boot2", 10**9, clock=clock)
    assert again.boots() == ("boot1",)
    (item,) = again.after("boot1", 0, 10)
    assert (item.seq, item.kind, item.payload["requests"]) == (2, RECORD, 7)
    assert again.release("boot1", 2) == 1
    counts = again.counts(RECORD)
    assert counts.made == counts.acked + counts.held
    assert (counts.held, counts.dropped) == (0, 0)
    again.close()
    third = Outbox(tmp_path / "outbox.db", "boot3", 10**9, clock=clock)
    assert third.boots() == (), "it is taken over once"


def test_what_was_acknowledged_or_written_is_not_taken_over(tmp_path: Path, memory: Path) -> None:
    clock = Clock()
    box = online(tmp_path / "outbox.db", clock)
    assert list(memory.iterdir()) == [], "nothing is made before something waits"
    box.put(record())
    box.release("boot1", 2)
    box.put(Event("?", 1, "throttle", None))
    assert [file.stat().st_size for file in memory.iterdir()] == [0]
    box.put(record())
    assert [file.stat().st_size > 0 for file in memory.iterdir()] == [True]
    box.line_is_lost()
    assert [file.stat().st_size for file in memory.iterdir()] == [0]
    box.close()
    assert list(memory.iterdir()) == [], "nothing is left behind"


def test_it_does_not_grow_while_nothing_gets_out(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    box = online(tmp_path / "outbox.db", clock)
    monkeypatch.setattr(volatile, "_FULL_BYTES", 4000)
    for _ in range(100):
        box._failed_s = clock.now
        box.put(record())
    size = next(memory.iterdir()).stat().st_size
    assert size < 4000 + 100 * 1400
    assert len(Volatile(tmp_path / "outbox.db", memory).lines()) >= len(box._waiting)


@pytest.mark.parametrize("left", [b"", b"no json\n", b"[]\n{}\n", b'{"boot":1', b"\xff\n" * 9, b"null\n"])
def test_garbage_in_it_is_passed_over(tmp_path: Path, memory: Path, left: bytes) -> None:
    store = Volatile(tmp_path / "outbox.db", memory)
    store.close()
    name = store._path
    name.touch(mode=0o600)
    assert not store.lines()
    name.write_bytes(left)
    assert Outbox(tmp_path / "outbox.db", "boot1", 10**9).boots() == ()


def test_a_file_that_others_may_read_or_a_link_is_not_used(tmp_path: Path, memory: Path) -> None:
    path = Volatile(tmp_path / "a.db", memory)._path
    path.touch(mode=0o644)
    path.chmod(0o644)
    open_one = Volatile(tmp_path / "a.db", memory)
    open_one.add(b"secret")
    assert path.read_bytes() == b""
    path.unlink()
    target = tmp_path / "target"
    target.write_text("theirs\n")
    path.symlink_to(target)
    linked = Volatile(tmp_path / "a.db", memory)
    linked.add(b"secret")
    assert (linked.lines(), target.read_text()) == ((), "theirs\n")


def test_two_outboxes_do_not_share_one(tmp_path: Path, memory: Path) -> None:
    first, second = Volatile(tmp_path / "a.db", memory), Volatile(tmp_path / "b.db", memory)
    first.add(b"a")
    assert (list(first.lines()), list(second.lines())) == ([b"a"], [])
    assert all(file.stat().st_mode & 0o077 == 0 for file in memory.iterdir())


def test_without_shared_memory_nothing_fails(tmp_path: Path) -> None:
    none = Volatile(tmp_path / "a.db", tmp_path / "nowhere")
    none.add(b"a")
    none.clear()
    assert (none.lines(), none.full) == ((), False)
    none.close()
    assert list(tmp_path.iterdir()) == []
