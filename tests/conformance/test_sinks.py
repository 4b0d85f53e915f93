"""What every sink must do, whatever it writes to: behind its outlet, as the agent uses it."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import WAIT_S, until
from bundles import write_null_bundle

from edgekit.agent import config
from edgekit.agent.sinks import SINKS, Sink, Sinks, file, open_sink, outlet, stdout
from edgekit.agent.sinks.line import line_of
from edgekit.agent.sinks.mqtt import MqttSink
from edgekit.agent.sinks.outlet import Outlet
from edgekit.core import messages
from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest
from edgekit.runtime.session import Answer


@dataclass
class Opened:
    """A sink, what came out of it, and a way to break and to mend what it writes to."""

    sink: Sink
    read: Callable[[], list[dict[str, Any]]]
    break_: Callable[[], object]
    mend: Callable[[], object]
    stack: ExitStack = field(default_factory=ExitStack)


class Writes:
    """os for one module: while `broken`, a write takes half of what it gets and fails the next time."""

    def __init__(self, module: Any) -> None:
        self.broken = False
        self._half = False
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(module, "os", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: Any) -> int:
        if not self.broken:
            return os.write(descriptor, data)
        self._half = not self._half
        if self._half and len(data) > 1:
            return os.write(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def undo(self) -> None:
        self._patch.undo()


def open_stdout(_: Path) -> Opened:
    reader, writer = os.pipe()
    came: list[bytes] = []

    def drain() -> None:
        while chunk := os.read(reader, 65536):
            came.append(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    writes, stack = Writes(stdout), ExitStack()
    stack.callback(os.close, reader)
    stack.callback(thread.join)
    stack.callback(os.close, writer)
    stack.callback(writes.undo)
    return Opened(
        stdout.StdoutSink(writer),
        lambda: [json.loads(line) for line in b"".join(came).split(b"\n")[:-1]],
        lambda: setattr(writes, "broken", True),
        lambda: setattr(writes, "broken", False),
        stack,
    )


def open_file(folder: Path) -> Opened:
    writes, stack = Writes(file), ExitStack()
    stack.callback(writes.undo)
    path = folder / "answers.jsonl"
    return Opened(
        file.FileSink(path, 10**9, 3),
        lambda: [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else [],
        lambda: setattr(writes, "broken", True),
        lambda: setattr(writes, "broken", False),
        stack,
    )


class FakeUplink:
    """The uplink, as a sink sees it."""

    def __init__(self) -> None:
        self.connected = threading.Event()
        self.connected.set()
        self.posted: list[bytes] = []

    def post(self, data: bytes, qos: int) -> bool:
        if self.connected.is_set():
            self.posted.append(data)
        return self.connected.is_set()


def open_mqtt(_: Path) -> Opened:
    uplink = FakeUplink()
    return Opened(
        MqttSink(lambda: uplink, 1),
        lambda: [dict(messages.decode(data)) for data in uplink.posted],
        uplink.connected.clear,
        uplink.connected.set,
    )


CASES = {"stdout": open_stdout, "file": open_file, "mqtt": open_mqtt}
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(outlet, "MAX_DELAY_S", 0.02)


@pytest.fixture
def opened(tmp_path: Path, name: str) -> Iterator[Opened]:
    made = CASES[name](tmp_path)
    with made.stack:
        yield made


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def out(opened: Opened, name: str, told: list[tuple[str, dict[str, Any]]]) -> Iterator[Outlet]:
    made = Outlet(name, opened.sink, tell=lambda kind, detail: told.append((kind, detail)), held_bytes=2000)
    made.start()
    yield made
    made.finish(WAIT_S)
    assert not made.is_alive()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_null_bundle(tmp_path / "toy.edge").manifest


def answer(best: int = 1, confidence: float | None = 0.75) -> Answer:
    outputs = {"exit2": np.eye(3, dtype=np.float32)[best : best + 1]}
    return Answer(outputs, "exit2", 1, confidence, 1.25)


def line(number: int) -> bytes:
    return line_of(f"in-{number}", BadInput("made up"), None, None)


def ids(opened: Opened) -> list[str]:
    return [entry["id"] for entry in opened.read()]


def test_every_kind_of_the_table_has_a_case() -> None:
    assert {*CASES, "none"} == set(SINKS)


@every
def test_an_answer_is_one_object_with_every_field(opened: Opened, out: Outlet, manifest: Manifest) -> None:
    out.put(line_of("a1", answer(), manifest, 1_800_000_000.0))
    assert until(opened.read) == [
        {
            "v": 1,
            "id": "a1",
            "label": "one",
            "class": 1,
            "exit": "exit2",
            "confidence": 0.75,
            "latency_ms": 1.25,
            "bundle": "toy/1",
            "time": 1_800_000_000.0,
        }
    ]


@every
def test_answers_come_out_in_order_small_and_large(opened: Opened, out: Outlet, manifest: Manifest) -> None:
    large = line_of(
        "large", Answer({"y": np.arange(20_000.0)}, "exit1", 0, None, 1.0), manifest, None, outputs=True
    )
    for entry in (line(0), large, line(1)):
        out.put(entry)
        until(lambda: not out._lines, "the thread's taking it")
    until(lambda: len(opened.read()) == 3, "three answers")
    assert ids(opened) == ["in-0", "large", "in-1"]
    assert opened.read()[1]["outputs"]["y"] == list(range(20_000))
    assert out.lost == 0


@every
def test_a_failure_holds_nobody_up_is_said_once_and_ends(
    opened: Opened,
    out: Outlet,
    told: list[tuple[str, dict[str, Any]]],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out.put(line(0))
    until(opened.read)
    opened.break_()
    for number in range(1, 6):  # whoever waited for the sink here would wait for ever
        out.put(line(number))
    until(lambda: told, "the event")
    until(lambda: out._lines or out.lost, "the others' waiting")
    assert ids(opened)[:1] == ["in-0"]
    opened.mend()
    until(lambda: ids(opened) == [f"in-{number}" for number in range(6)], "all answers, each once")
    until(lambda: len(told) == 2, "the second event")
    assert [kind for kind, _ in told] == ["sink-failing", "sink-works"]
    assert caplog.text.count(f"sink {name}:") == 1
    assert out.lost == 0


@every
def test_while_it_fails_memory_is_bounded_and_the_oldest_are_counted_as_lost(
    opened: Opened, out: Outlet
) -> None:
    opened.break_()
    for number in range(1000):
        out.put(line(number))
    assert sum(map(len, out._lines)) <= 2000
    opened.mend()
    until(lambda: ids(opened) and ids(opened)[-1] == "in-999", "the newest one")
    until(lambda: len(ids(opened)) + out.lost == 1000, "all accounted for")
    assert out.lost > 900


@every
def test_the_end_comes_in_time_although_it_fails_and_what_is_left_is_counted(
    opened: Opened, name: str
) -> None:
    before = set(threading.enumerate())
    made = Outlet(name, opened.sink)
    made.start()
    opened.break_()
    for number in range(5):
        made.put(line(number))
    begun = time.monotonic()
    made.finish(2.0)
    assert time.monotonic() - begun < 10.0
    assert set(threading.enumerate()) == before
    assert made.lost == 5
    opened.mend()


@every
def test_what_was_put_before_the_end_is_written(opened: Opened, name: str) -> None:
    made = Outlet(name, opened.sink)
    made.start()
    for number in range(20):
        made.put(line(number))
    made.finish(WAIT_S)
    assert not made.is_alive()
    until(lambda: len(opened.read()) == 20, "all of them")
    made.put(line(20))
    assert made.lost == 1


def test_none_is_no_sink() -> None:
    assert open_sink(config.Sink("none"), FakeUplink) is None


def test_an_unknown_sink_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match="unknown sink 'printer'; known: file, mqtt, none, stdout"):
        open_sink(config.Sink("printer"), FakeUplink)


def test_every_answer_goes_to_every_sink_and_outputs_only_where_asked_for(
    tmp_path: Path, manifest: Manifest
) -> None:
    posted = FakeUplink()
    configs = (
        config.Sink("file", path=tmp_path / "a.jsonl"),
        config.Sink("file", path=tmp_path / "b.jsonl", outputs=True),
        config.Sink("mqtt"),
    )
    sinks = Sinks(configs, lambda: posted, lambda: None, lambda kind, detail: None)
    sinks.start()
    sinks.give("a1", answer(2, float("nan")), manifest)
    sinks.give(None, BadInput("two\nlines"), None)
    sinks.finish(WAIT_S)
    plain = [json.loads(entry) for entry in (tmp_path / "a.jsonl").read_text().splitlines()]
    full = [json.loads(entry) for entry in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [(e["id"], e["class"], e["label"], e["confidence"], e.get("error")) for e in plain] == [
        ("a1", 2, "two", None, None),
        (None, None, None, None, "two lines"),
    ]
    assert full[0] == {**plain[0], "outputs": {"exit2": [[0.0, 0.0, 1.0]]}}
    assert [messages.decode(data) for data in posted.posted] == plain
    assert sinks.lost == 0


def test_outputs_that_are_no_numbers_are_null(manifest: Manifest) -> None:
    outputs = {"y": np.array([[1.0, np.nan, -np.inf]], np.float32)}
    made = json.loads(line_of("a", Answer(outputs, "exit1", 0, None, 1.0), manifest, None, outputs=True))
    assert made["outputs"] == {"y": [[1.0, None, None]]}
