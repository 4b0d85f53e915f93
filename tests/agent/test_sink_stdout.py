"""Standard output: a slow reader, one that goes away, and one that takes a line in pieces."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from agents import WAIT_S, until

from edgekit.agent.sinks.base import SinkOver
from edgekit.agent.sinks.outlet import Outlet
from edgekit.agent.sinks.stdout import StdoutSink
from edgekit.core.errors import WorldFailed


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_a_reader_that_is_gone_ends_the_sink_and_what_comes_later_is_counted(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    told: list[str] = []
    outlet = Outlet("stdout", StdoutSink(writer), tell=lambda kind, _: told.append(kind))
    outlet.start()
    os.close(reader)
    outlet.put(b"{}\n")
    until(lambda: told == ["sink-over"], "its end")
    until(lambda: outlet.lost == 1)
    for _ in range(5):
        outlet.put(b"{}\n")
    assert outlet.lost == 6
    outlet.finish(WAIT_S)
    assert not outlet.is_alive()
    assert caplog.text.count("its reader is gone") == 1


def test_a_reader_that_stands_still_holds_nobody_up_and_loses_no_part_of_a_line(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    outlet = Outlet("stdout", StdoutSink(writer), held_bytes=10**6)
    outlet.start()
    lines = [bytes([65 + number % 26]) * 5000 + b"\n" for number in range(60)]
    for line in lines:
        outlet.put(line)
    until(lambda: len(outlet._lines) < 60, "a full pipe")
    came = b""
    while len(came) < sum(map(len, lines)):
        came += os.read(reader, 1000)
    assert came == b"".join(lines)
    assert outlet.lost == 0
    outlet.finish(WAIT_S)


def test_a_reader_that_stands_still_does_not_hold_up_the_end(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    outlet = Outlet("stdout", StdoutSink(writer))
    outlet.start()
    for _ in range(40):
        outlet.put(b"x" * 5000 + b"\n")
    outlet.finish(0.3)
    assert not outlet.is_alive()
    assert outlet.lost > 0


def test_a_line_that_was_begun_goes_on_where_it_stopped(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    sink, true_write, never = StdoutSink(writer), os.write, threading.Event()
    line = b"a" * 5000 + b"\n"
    calls: list[int] = []

    def failing(descriptor: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return true_write(descriptor, data[:3000])

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(WorldFailed, match="standard output cannot be written"):
        sink.write(line, never)
    sink.write(line, never)
    sink.write(b"b\n", never)
    assert os.read(reader, 10_000) == line + b"b\n"


def test_its_end_says_so_by_its_own_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    with pytest.raises(SinkOver):
        StdoutSink(writer).write(b"{}\n", threading.Event())
