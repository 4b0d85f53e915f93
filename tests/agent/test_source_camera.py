"""Frames: the newest one and no other, through the same preprocessing as files, whatever the camera does."""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from bundles import write_null_bundle
from PIL import Image
from taking import Running, Take, fake_cv2

from edgekit.agent import config
from edgekit.agent.sources import camera, open_source
from edgekit.agent.sources.camera import CameraSource
from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.manifest import Input, Manifest, Preprocess, Tensor
from edgekit.runtime.preprocess import preprocess, sent_image


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(camera, "MAX_DELAY_S", 0.002)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_null_bundle(tmp_path / "toy.edge").manifest


def frame(value: int) -> np.ndarray[Any, Any]:
    return np.full((4, 4, 3), value, np.uint8)


def live(cv2: Any, device: int | str = 0, rate_hz: float | None = None) -> CameraSource:
    return CameraSource(cv2, device, loop=False, rate_hz=rate_hz)


@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_a_frame_gives_the_same_tensor_as_the_file_of_the_same_picture(
    channels: str, resize: str, manifest: Manifest
) -> None:
    depth = 1 if channels == "L" else 3
    entry = Input(
        Tensor("x", "float32", (1, depth, 8, 8)),
        "NCHW",
        Preprocess(channels=channels, scale=1 / 255, mean=(0.4,) * depth, std=(0.2,) * depth, resize=resize),
    )
    pixels = np.random.default_rng(3).integers(0, 256, (12, 17, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    take = Take(replace(manifest, inputs=(entry,)))
    take.most = 1
    with Running(live(fake_cv2([[pixels[:, :, ::-1]]])), take):
        until(lambda: take.samples)
    assert np.array_equal(take.samples[0][0]["x"], preprocess(sent_image(file.getvalue()), entry))


@pytest.mark.parametrize(
    ("pixels", "grey"),
    [
        (np.full((4, 4), 9, np.uint8), 9),
        (np.full((4, 4, 1), 9, np.uint8), 9),
        (np.full((4, 4, 4), 9, np.uint8), 9),
    ],
    ids=["grey", "grey with an axis", "with alpha"],
)
def test_grey_frames_and_those_with_alpha_are_frames(pixels: Any, grey: int, manifest: Manifest) -> None:
    take = Take(manifest)
    with Running(live(fake_cv2([[pixels]])), take):
        until(lambda: take.samples)
    assert take.pixels == [grey]


def test_a_slow_network_gets_the_newest_frame_and_the_others_are_counted_as_dropped(
    manifest: Manifest,
) -> None:
    shown = threading.Event()
    cv2 = fake_cv2([[frame(value) for value in range(100)]], after=shown.set)
    taken: list[Any] = []

    class Slow(Take):
        def __call__(self, given: Any, /) -> bool:
            taken.append(given)  # queued, not read
            return True

    take = Slow(manifest)
    with Running(live(cv2), take):
        assert shown.wait(10)
        assert len(taken) == 1, "one waits at a time, however many frames come"
        assert take.dropped == 99
        inputs, label = taken[0].read(manifest)
    assert round(float(inputs["x"].flat[0]) * 255) == 99
    assert (taken[0].id(), label) == ("1", None)


def test_at_a_rate_frames_in_between_are_neither_decoded_nor_counted(manifest: Manifest) -> None:
    now = [0.0]

    def pass_time() -> None:
        now[0] += 0.01

    cv2 = fake_cv2([[frame(value) for value in range(100)]], before=pass_time)
    take = Take(manifest)
    with Running(CameraSource(cv2, 0, loop=False, rate_hz=10.0, clock=lambda: now[0]), take):
        until(lambda: take.told, "the end of the picture")
    assert len(take.pixels) in (10, 11)
    assert all(9 <= step <= 11 for step in np.diff(take.pixels)[1:])
    assert take.dropped == 0


def test_a_camera_that_is_lost_is_opened_again_and_told_of_once(
    manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]

    def pass_time() -> None:
        now[0] += camera.STABLE_S

    cv2 = fake_cv2([[frame(1)], None, None, None, [frame(2)]], before=pass_time)  # type: ignore[list-item]
    take = Take(manifest)
    with Running(CameraSource(cv2, 0, loop=False, rate_hz=None, clock=lambda: now[0]), take):
        until(lambda: take.pixels == [1, 2], "the second picture")
        until(lambda: len(take.told) == 2, "the second loss")
    assert len(cv2.opened) >= 5
    assert cv2.open == 0
    assert [kind for kind, _ in take.told] == ["source-lost", "source-lost"]
    assert caplog.text.count("gives no picture") == 2
    assert take.ids == ["1", "2"]


def test_a_camera_that_comes_and_goes_is_told_of_once(manifest: Manifest) -> None:
    take = Take(manifest)
    with Running(live(fake_cv2([[frame(value)] for value in range(20)])), take):
        until(lambda: len(take.pixels) == 20)
    assert take.told == [("source-lost", {"source": "camera"})]


BROKEN = [
    ("not decoded", None, "cannot be decoded"),
    ("empty", np.zeros((0, 4, 3), np.uint8), "cannot be decoded"),
    ("floats", np.zeros((4, 4, 3), np.float32), "must be uint8"),
    ("two channels", np.zeros((4, 4, 2), np.uint8), "must be uint8"),
    ("no array", "frame", "cannot be decoded"),
]


@pytest.mark.parametrize(("pixels", "said"), [entry[1:] for entry in BROKEN], ids=[e[0] for e in BROKEN])
def test_a_broken_frame_is_an_error_and_the_next_one_is_read(
    pixels: Any, said: str, manifest: Manifest
) -> None:
    take = Take(manifest)
    with Running(live(fake_cv2([[pixels, frame(7)]])), take):
        until(lambda: take.pixels == [7])
    assert len(take.errors) == 1
    assert said in take.errors[0]
    assert take.ids == ["1", "2"]


def test_an_error_of_opencv_is_a_broken_frame(manifest: Manifest) -> None:
    cv2 = fake_cv2([[RuntimeError("made up"), frame(7)]])
    cv2.error = RuntimeError
    take = Take(manifest)
    with Running(live(cv2), take):
        until(lambda: take.pixels == [7])
    assert "made up" in take.errors[0]


def test_a_video_file_gives_every_frame_in_order_and_over_and_over_where_asked(
    manifest: Manifest, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    cv2 = fake_cv2([[frame(1), frame(2)], [frame(1), frame(2)]])
    take = Take(manifest)
    with Running(CameraSource(cv2, str(clip), loop=True, rate_hz=None), take) as running:
        until(lambda: not running.thread.is_alive(), "the end: the third opening fails")
    assert take.pixels == [1, 2, 1, 2]
    assert "is no video" in take.errors[0]
    assert cv2.open == 0


def test_a_stream_is_opened_with_limits_on_its_silence(manifest: Manifest) -> None:
    cv2 = fake_cv2([[frame(1)]])
    take = Take(manifest)
    with Running(live(cv2, "rtsp://127.0.0.1:9/x"), take):
        until(lambda: take.pixels)
    assert cv2.opened[0] == ("rtsp://127.0.0.1:9/x", 1900, [53, 5000, 54, 5000])


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgekit\[camera\]'"):
        open_source(config.Source("camera", device=0))


def test_without_a_device_it_is_refused() -> None:
    with pytest.raises(BadInput, match="needs a device"):
        open_source(config.Source("camera"))


def test_no_other_source_needs_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it raises
    for kind in ("none", "mqtt", "stdin"):
        open_source(config.Source(kind))


def test_a_real_video_file_is_read_through_opencv_itself(manifest: Manifest, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in (10, 60, 110):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:] = (0, 0, value)  # red, as OpenCV has it
        writer.write(pixels)
    writer.release()
    take = Take(manifest)
    with Running(open_source(config.Source("camera", device=str(clip))), take) as running:
        until(lambda: not running.thread.is_alive(), "its end")
    assert np.allclose(take.pixels, [0.299 * value for value in (10, 60, 110)], atol=3)
