from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_null_bundle
from PIL import Image

from edgekit.agent.config import Source
from edgekit.agent.runner import Request
from edgekit.agent.sources import folder as folder_source
from edgekit.agent.sources import open_source
from edgekit.core.errors import BadInput, EdgekitError
from edgekit.core.manifest import Manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_null_bundle(tmp_path / "toy.edge").manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name, value in (("two", "b", 30), ("one", "a", 20), ("one", "c", 10), ("zero", "d", 40)):
        path = tmp_path / "images" / label / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return tmp_path / "images"


def run(
    source: Source, manifest: Manifest, most: int, read: Callable[[Request], Any] | None = None
) -> tuple[list[Any], int]:
    """Read as a runner would; after `most` requests the agent stops. Gives samples and the number handed over."""
    stopped = threading.Event()
    seen: list[Any] = []

    def submit(request: Request) -> bool:
        if len(seen) == most:
            stopped.set()
            return False
        try:
            seen.append(read(request) if read else request.read(manifest))
        except EdgekitError as err:
            seen.append(err)
        return True

    return seen, open_source(source).run(submit, stopped)


def pixels(samples: list[Any]) -> list[tuple[int, int]]:
    return [(round(float(inputs["x"].flat[0]) * 255), label) for inputs, label in samples]


def test_a_folder_gives_every_image_once_in_the_order_of_names_with_its_label(
    folder: Path, manifest: Manifest
) -> None:
    samples, handed = run(Source("folder", folder, loop=False, rate_hz=None), manifest, 100)
    assert pixels(samples) == [(20, 1), (30, 2), (10, 1), (40, 0)]
    assert handed == 4


def test_a_looping_folder_begins_again(folder: Path, manifest: Manifest) -> None:
    samples, _ = run(Source("folder", folder, loop=True, rate_hz=None), manifest, 6)
    assert pixels(samples)[4:] == pixels(samples)[:2]


def test_a_rate_is_kept(folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], []

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            now[0] += timeout or 0.0
            return self.is_set()

    monkeypatch.setattr(folder_source.time, "monotonic", lambda: now[0])
    source = open_source(Source("folder", folder, loop=False, rate_hz=10.0))

    def submit(request: Request) -> bool:
        request.read(manifest)
        now[0] += 0.03
        return True

    source.run(submit, Stopped())
    assert waits == pytest.approx([0.07] * 3)


def test_data_that_does_not_fit_the_bundle_is_tried_again_until_it_does(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_source, "_RETRY_S", 0.0)
    later = folder.rename(folder.with_name("later"))
    folder.mkdir()
    calls: list[int] = []

    def read(request: Request) -> Any:
        calls.append(1)
        if len(calls) == 3:
            folder.rmdir()
            later.rename(folder)
        return request.read(manifest)

    samples, handed = run(Source("folder", folder, loop=False, rate_hz=None), manifest, 100, read)
    assert [isinstance(sample, BadInput) for sample in samples] == [True, True, False, False, False, False]
    assert handed == 6


@pytest.mark.parametrize("path", [None, Path("/nowhere")])
def test_a_folder_that_is_not_there_is_refused_when_the_agent_starts(path: Path | None) -> None:
    with pytest.raises(BadInput, match="source folder"):
        open_source(Source("folder", path, loop=False, rate_hz=None))


def test_no_source_waits_for_the_end() -> None:
    stopped = threading.Event()
    stopped.set()
    assert open_source(Source("none", None, loop=False, rate_hz=None)).run(lambda request: True, stopped) == 0
