"""The rotating file: whole lines only, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.agent import config
from edgekit.agent.sinks import file, open_sink
from edgekit.agent.sinks.file import FileSink
from edgekit.core.errors import BadInput, WorldFailed

NEVER = threading.Event()


def line(number: int, size: int = 20) -> bytes:
    return json.dumps({"id": f"{number:0{size}}"}).encode() + b"\n"


def numbers(path: Path) -> list[int]:
    return [int(json.loads(entry)["id"]) for entry in path.read_bytes().splitlines()]


def test_it_rotates_by_size_and_keeps_so_many(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    sink = FileSink(path, 5 * len(line(0)), 2)
    for number in range(23):
        sink.write(line(number), NEVER)
    sink.close()
    assert numbers(path) == [20, 21, 22]
    assert numbers(tmp_path / "answers.jsonl.1") == [15, 16, 17, 18, 19]
    assert numbers(tmp_path / "answers.jsonl.2") == [10, 11, 12, 13, 14]
    assert len(list(tmp_path.iterdir())) == 3


def test_with_none_kept_the_file_begins_anew(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "a", 2 * len(line(0)), 0)
    for number in range(5):
        sink.write(line(number), NEVER)
    assert numbers(tmp_path / "a") == [4]
    assert len(list(tmp_path.iterdir())) == 1
    sink.close()


def test_a_line_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "a", 100, 3)
    for number, size in ((1, 10), (2, 500), (3, 10)):
        sink.write(line(number, size), NEVER)
    assert [numbers(tmp_path / name) for name in ("a", "a.1", "a.2")] == [[3], [2], [1]]
    sink.close()


def test_it_goes_on_after_a_restart_and_cuts_off_what_a_power_cut_left_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for torn in (b"", b'{"id": "00', b"\x00" * 100):
        path.write_bytes(line(1) + line(2) + torn)
        sink = FileSink(path, 10**6, 1)
        sink.write(line(3), NEVER)
        sink.close()
        assert numbers(path) == [1, 2, 3]
    path.write_bytes(b"torn from the start")
    sink = FileSink(path, 10**6, 1)
    sink.write(line(3), NEVER)
    sink.close()
    assert numbers(path) == [3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200), st.integers(0, 3))
def test_no_file_is_larger_than_allowed_and_no_line_is_torn(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int, keep: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    sink = FileSink(folder / "a", most, keep)
    for number, size in enumerate(sizes):
        sink.write(line(number, size), NEVER)
    sink.close()
    paths = [folder / (f"a.{number}" if number else "a") for number in range(keep, -1, -1)]
    found = [number for path in paths if path.exists() for number in numbers(path)]
    assert found == list(range(len(sizes)))[len(sizes) - len(found) :]
    assert len(list(folder.iterdir())) <= keep + 1
    for path in folder.iterdir():
        assert path.stat().st_size <= most or len(numbers(path)) == 1


@pytest.mark.parametrize("at", ["open", "write", "replace"])
def test_a_disk_that_fails_is_reported_and_tried_again_without_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    sink = FileSink(tmp_path / "a", 2 * len(line(0)), 2)
    sink.write(line(0), NEVER)
    sink.write(line(1), NEVER)
    true_write = os.write
    calls: list[int] = []

    def full(*given: Any) -> Any:
        calls.append(1)
        if at == "write" and len(calls) == 1:
            return true_write(given[0], bytes(given[1])[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path if at == "replace" else file.os, at, full)
        with pytest.raises(WorldFailed, match="cannot be written: No space left on device"):
            sink.write(line(2), NEVER)
    sink.write(line(2), NEVER)
    sink.close()
    found = [path for path in (tmp_path / "a.2", tmp_path / "a.1", tmp_path / "a") if path.exists()]
    assert [number for path in found for number in numbers(path)] == [0, 1, 2]


def test_nothing_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", forbidden)
    sink = FileSink(tmp_path / "a", 50, 2)
    for number in range(10):
        sink.write(line(number), NEVER)
    sink.close()


@pytest.mark.parametrize("path", ["nowhere/a", "folder"])
def test_a_path_that_cannot_be_a_file_is_refused_when_the_agent_starts(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="path must be a file in a folder that is there"):
        open_sink(config.Sink("file", path=tmp_path / path), lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(BadInput, match="needs a path"):
        open_sink(config.Sink("file"), lambda: None)  # type: ignore[arg-type,return-value]
