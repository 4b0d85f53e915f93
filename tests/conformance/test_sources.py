"""What every source must do, whatever it reads: five inputs, of which the third is broken."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from bundles import write_null_bundle
from taking import Running, Take, fake_cv2, png, text

from edgekit.agent import config
from edgekit.agent.sources import SOURCES, Source, camera, mqtt, open_source, spool, stdin
from edgekit.agent.sources.camera import CameraSource
from edgekit.agent.sources.mqtt import Message, MqttSource
from edgekit.agent.sources.stdin import StdinSource
from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest

VALUES = (10, 20, None, 40, 50)  # None: broken
GOOD = [value for value in VALUES if value is not None]


@dataclass
class Opened:
    """A source and its surroundings. ends: it has no more after the five. feed: brings them, once it runs."""

    source: Source
    kind: str
    ends: bool
    feed: Callable[[], object] = lambda: None
    taken: Callable[[], object] = lambda: None  # told after every input that was read
    stack: ExitStack = field(default_factory=ExitStack)


def files(folder: Path) -> None:
    folder.mkdir()
    for number, value in enumerate(VALUES):
        (folder / f"{number}.png").write_bytes(b"\x89PNG broken" if value is None else png(value))


def open_folder(folder: Path) -> Opened:
    files(folder / "images")
    return Opened(open_source(config.Source("folder", folder / "images")), "folder", ends=True)


def open_spool(folder: Path) -> Opened:
    (folder / "in").mkdir()

    def feed() -> None:
        files(folder / "made")
        for path in sorted((folder / "made").iterdir()):
            os.utime(path, (1, 1))
            path.rename(folder / "in" / path.name)

    return Opened(
        open_source(config.Source("folder", folder / "in", watch=True)), "folder", ends=False, feed=feed
    )


def open_mqtt(_: Path) -> Opened:
    source = MqttSource(10_000, 16)

    def feed() -> None:
        for value in VALUES:
            source.receive(Message(b"\x00broken" if value is None else png(value), None, lambda: None))

    return Opened(source, "mqtt", ends=False, feed=feed)


def lines() -> bytes:
    entries = [
        "{" if value is None else json.dumps({"id": f"in-{value}", "image": text(png(value))})
        for value in VALUES
    ]
    return "\n".join(entries).encode()  # the last one has no end


def open_stdin(_: Path) -> Opened:
    reader, writer = os.pipe()
    stack = ExitStack()
    stack.callback(os.close, reader)

    def feed() -> None:
        os.write(writer, lines())
        os.close(writer)

    return Opened(StdinSource(10_000, reader), "stdin", ends=True, feed=feed, stack=stack)


def frames() -> list[Any]:
    return [None if value is None else np.full((4, 4, 3), value, np.uint8) for value in VALUES]


def open_video(folder: Path) -> Opened:
    (folder / "clip.mp4").write_bytes(b"")
    source = CameraSource(fake_cv2([frames()]), str(folder / "clip.mp4"), loop=False, rate_hz=None)
    return Opened(source, "camera", ends=True)


def open_live(_: Path) -> Opened:
    """A camera that gives the next frame when the last one was taken, then is silent until it is closed."""
    stack = ExitStack()
    turn, over = threading.Semaphore(1), threading.Event()
    stack.callback(over.set)

    def wait() -> None:
        while not turn.acquire(timeout=0.02):
            if over.is_set():
                return

    cv2 = fake_cv2([frames()], before=wait)
    return Opened(
        CameraSource(cv2, 0, loop=False, rate_hz=None), "camera", ends=False, taken=turn.release, stack=stack
    )


def open_none(_: Path) -> Opened:
    return Opened(open_source(config.Source("none")), "none", ends=False)


CASES = {
    "folder": open_folder,
    "folder that is watched": open_spool,
    "messages": open_mqtt,
    "standard input": open_stdin,
    "video file": open_video,
    "camera": open_live,
    "none": open_none,
}
BRINGING = [name for name in CASES if name != "none"]
every = pytest.mark.parametrize("name", CASES)
bringing = pytest.mark.parametrize("name", BRINGING)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LOOK_S", 0.01)
    monkeypatch.setattr(mqtt, "LOOK_S", 0.01)
    monkeypatch.setattr(stdin, "LOOK_MS", 10)
    monkeypatch.setattr(camera, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_null_bundle(tmp_path / "toy.edge").manifest


@pytest.fixture
def opened(tmp_path: Path, name: str) -> Iterator[Opened]:
    made = CASES[name](tmp_path)
    with made.stack:
        yield made


class Telling(Take):
    """Says so whenever an input was read."""

    def __init__(self, manifest: Manifest, opened: Opened) -> None:
        super().__init__(manifest)
        self._opened = opened

    def __call__(self, given: Any, /) -> bool:
        taken = super().__call__(given)
        self._opened.taken()
        return taken


def test_every_kind_of_the_table_has_a_case(tmp_path: Path) -> None:
    kinds = set()
    for number, make in enumerate(CASES.values()):
        (tmp_path / str(number)).mkdir()
        made = make(tmp_path / str(number))
        kinds.add(made.kind)
        made.stack.close()
    assert kinds == set(SOURCES)


@bringing
def test_a_broken_input_is_handed_over_as_one_and_the_others_are_read(
    opened: Opened, manifest: Manifest
) -> None:
    take = Telling(manifest, opened)
    with Running(opened.source, take) as running:
        opened.feed()
        until(lambda: len(take.samples) == len(VALUES), "five inputs")
    assert take.pixels == GOOD
    assert len(take.errors) == 1
    assert [isinstance(sample, BadInput) for sample in take.samples] == [value is None for value in VALUES]
    assert running.handed == len(VALUES)
    assert (take.refused, take.dropped) == ([], 0)


@bringing
def test_every_input_has_an_id_of_its_own_that_can_be_printed(opened: Opened, manifest: Manifest) -> None:
    take = Telling(manifest, opened)
    with Running(opened.source, take):
        opened.feed()
        until(lambda: len(take.samples) == len(VALUES), "five inputs")
    assert len(set(take.ids)) == len(VALUES)
    assert all(name.isprintable() and 0 < len(name) <= 128 for name in take.ids)


@every
def test_it_ends_when_it_has_no_more_or_when_it_is_stopped_and_leaves_no_thread(
    opened: Opened, manifest: Manifest
) -> None:
    before = set(threading.enumerate())
    take = Telling(manifest, opened)
    with Running(opened.source, take) as running:
        opened.feed()
        until(lambda: opened.kind == "none" or len(take.samples) == len(VALUES), "five inputs")
        if opened.ends:
            until(lambda: not running.thread.is_alive(), "its end")
        else:
            running.thread.join(0.1)
            assert running.thread.is_alive()
    assert set(threading.enumerate()) == before


@bringing
def test_it_waits_for_room_with_one_input_in_its_hand_and_can_be_stopped_there(
    opened: Opened, manifest: Manifest
) -> None:
    take = Telling(manifest, opened)
    take.room.clear()
    with Running(opened.source, take) as running:
        opened.feed()
        until(lambda: take.begun, "the first input")
        running.thread.join(0.1)
        assert running.thread.is_alive()
        assert (take.begun, take.samples) == (1, [])
    assert running.handed == 0


@bringing
def test_a_runner_that_stops_ends_it(opened: Opened, manifest: Manifest) -> None:
    take = Telling(manifest, opened)
    take.most = 2
    with Running(opened.source, take) as running:
        opened.feed()
        until(lambda: not running.thread.is_alive(), "its end")
    assert (running.handed, take.pixels) == (2, GOOD[:2])


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match="unknown source 'radio'; known: camera, folder, mqtt, none, stdin"):
        open_source(config.Source("radio"))
