"""Inputs from standard input: lines of both kinds, long ones, none at all."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import until
from bundles import write_null_bundle
from taking import Running, Take, png, text

from edgekit.agent.sources.stdin import StdinSource

LIMIT = 2000


@pytest.fixture
def take(tmp_path: Path) -> Take:
    return Take(write_null_bundle(tmp_path / "toy.edge").manifest)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def run(take: Take, pipe: tuple[int, int], *chunks: bytes) -> int:
    reader, writer = pipe
    with Running(StdinSource(LIMIT, reader), take) as running:
        for chunk in chunks:
            os.write(writer, chunk)
        os.close(writer)
        until(lambda: not running.thread.is_alive(), "its end")
    assert running.handed is not None
    return running.handed


def test_paths_and_objects_are_inputs_and_blank_lines_are_none(
    take: Take, pipe: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "an image.png"
    path.write_bytes(png(1))
    lines = [
        str(path),
        "",
        json.dumps({"file": str(path), "label": "two"}),
        json.dumps({"id": "mine", "image": text(png(2))}),
        "   ",
        str(tmp_path / "nowhere.png") + "\r",
    ]
    assert run(take, pipe, "\n".join(lines).encode()) == 4
    assert take.ids == [str(path)[-128:], "3", "mine", str(tmp_path / "nowhere.png")[-128:]]
    assert take.pixels == [1, 1, 2]
    assert [label for _, label in take.samples[:3]] == [None, 2, None]
    assert "no such file" in take.errors[0]


def test_a_line_may_come_in_pieces_and_many_in_one(take: Take, pipe: tuple[int, int]) -> None:
    line = json.dumps({"image": text(png(3))}).encode() + b"\n"
    pieces = [line[start : start + 7] for start in range(0, len(line), 7)]
    assert run(take, pipe, *pieces, line * 5) == 6
    assert take.pixels == [3] * 6


def test_a_line_that_is_too_long_is_broken_and_never_held(take: Take, pipe: tuple[int, int]) -> None:
    line = json.dumps({"id": "after", "image": text(png(4))}).encode()
    assert run(take, pipe, *[b"x" * 1500] * 30, b"\n" + line + b"\n" + b"y" * (LIMIT + 1)) == 3
    assert take.ids == ["1", "after", "3"]
    assert take.pixels == [4]
    assert take.errors == [f"line {n}: an input may have {LIMIT} bytes, got more" for n in (1, 3)]


def test_bytes_that_are_no_text_are_a_broken_input(take: Take, pipe: tuple[int, int]) -> None:
    assert run(take, pipe, b'\xff\xfe\x00\n{"id": "\xff"}\n{\n[]\n') == 4
    assert len(take.errors) == 4
    assert all(name.isprintable() for name in take.ids[1:])


def test_a_writer_that_is_faster_waits_in_its_pipe(take: Take, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    take.room.clear()
    line = json.dumps({"image": text(png(5))}).encode() + b"\n"
    written = [0]

    def write() -> None:
        for _ in range(5000):
            os.write(writer, line)
            written[0] += 1
        os.close(writer)

    thread = threading.Thread(target=write)
    with Running(StdinSource(LIMIT, reader), take):
        thread.start()
        until(lambda: take.begun)
        thread.join(0.2)
        assert written[0] * len(line) < 4 * 65536
        assert len(take.samples) == 0
        take.room.set()
        until(lambda: len(take.samples) == 5000)
    thread.join()


def test_no_input_at_all_ends_it(take: Take, pipe: tuple[int, int]) -> None:
    assert run(take, pipe) == 0
