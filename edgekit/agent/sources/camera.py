"""Frames of a camera, a stream or a video file, through OpenCV (extra `camera`), which nothing else loads.

A live picture is never behind: a frame that nobody took is replaced by the next one and counted as dropped, and the
network gets the newest one when its turn comes. A camera that is lost is opened again, with growing pauses. Of a video
file every frame is answered in order, and its end ends the source (`loop`: begins it again). OpenCV gives BGR; frames
go through the one preprocessing of files as RGB. A frame's id counts from 1 in every run of the agent.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.agent import config
from edgekit.agent.runner import Sample
from edgekit.agent.sources.base import Input, Taker, broken
from edgekit.core.errors import BadInput, MissingExtra, one_line
from edgekit.core.manifest import Manifest
from edgekit.runtime.data import image_sample

log = logging.getLogger(__name__)
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
STABLE_S = 5.0
_EARLY = 0.25  # of a period: a camera at the wanted rate is now and then a little early
_NETWORK_MS = 5000  # what a stream may be silent
Frame = NDArray[np.uint8]


def open_camera(source: config.Source) -> CameraSource:
    """Raises BadInput where no device is named, MissingExtra where OpenCV is not installed."""
    if source.device is None:
        raise BadInput("source camera needs a device: a number, a path (/dev/video0, clip.mp4) or an address")
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as err:
        raise MissingExtra(
            f"source camera needs OpenCV: pip install 'edgekit[camera]' ({one_line(err)})"
        ) from err
    return CameraSource(cv2, source.device, loop=source.loop, rate_hz=source.rate_hz)


class CameraSource:
    """cv2: the module, or one like it. device: number, path or address."""

    def __init__(
        self,
        cv2: Any,
        device: int | str,
        *,
        loop: bool,
        rate_hz: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cv2 = cv2
        self._device = device
        self._file = isinstance(device, str) and Path(device).is_file()
        self._loop = loop
        self._period_s = 0.0 if rate_hz is None else 1 / rate_hz
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: Frame | None = None
        self._asked = False  # an input waits for its turn, and will take the newest frame then
        self._number = 0

    def run(self, take: Taker, stopped: threading.Event) -> int:
        return self._play(take, stopped) if self._file else self._watch(take, stopped)

    # --- a file --------------------------------------------------------------------------------------------------

    def _play(self, take: Taker, stopped: threading.Event) -> int:
        handed = 0
        while not stopped.is_set():
            before, capture = handed, self._open()
            try:
                if not capture.isOpened():
                    take(broken("1", f"camera: {self._device} is no video that can be read"))
                    return handed + 1
                while not stopped.is_set() and capture.grab():
                    self._number += 1
                    name = str(self._number)
                    frame, why = self._retrieve(capture)
                    given = broken(name, why) if frame is None else _input(name, frame)
                    if not take(given):
                        return handed
                    handed += 1
                    stopped.wait(self._period_s)
            finally:
                capture.release()
            if not self._loop or handed == before:
                break
        return handed

    # --- live ----------------------------------------------------------------------------------------------------

    def _watch(self, take: Taker, stopped: threading.Event) -> int:
        handed, delay, complained = 0, FIRST_DELAY_S, False
        while not stopped.is_set():
            capture, begun = self._open(), self._clock()
            try:
                if capture.isOpened():
                    handed += self._follow(capture, take, stopped)
                    if self._clock() - begun >= STABLE_S:  # one that comes and goes is told of once
                        complained, delay = False, FIRST_DELAY_S
            finally:
                capture.release()
            if stopped.is_set():
                break
            if not complained:
                complained = True
                log.warning("source: camera %s gives no picture; trying again", self._device)
                take.tell("source-lost", {"source": "camera"})
            stopped.wait(delay)
            delay = min(2 * delay, MAX_DELAY_S)
        return handed

    def _follow(self, capture: Any, take: Taker, stopped: threading.Event) -> int:
        """Until the camera gives no more: how many inputs that made."""
        handed = 0
        due = self._clock()
        while not stopped.is_set() and capture.grab():
            now = self._clock()
            if now < due - _EARLY * self._period_s:
                continue  # not wanted at this rate: never decoded, never counted
            due = max(due + self._period_s, now)
            frame, why = self._retrieve(capture)
            if frame is None:
                self._number += 1
                if not take(broken(str(self._number), why)):
                    break
                handed += 1
                continue
            with self._lock:
                replaced, self._newest = self._newest is not None, frame
                ask, self._asked = not self._asked, True
            if replaced:
                take.let_go(1)
            if ask:
                if not take(self._newest_input()):
                    break
                handed += 1
        return handed

    def _newest_input(self) -> Input:
        """Becomes the frame that is the newest when its turn comes."""
        names: list[str] = []

        def read(manifest: Manifest) -> Sample:
            with self._lock:
                frame, self._newest, self._asked = self._newest, None, False
                self._number += 1
                names.append(str(self._number))
            if frame is None:
                raise BadInput("camera: the frame is gone")
            return image_sample(_rgb(frame), manifest.inputs, f"frame {names[0]}"), None

        return Input(lambda: names[0], read)

    # --- both ----------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        cv2 = self._cv2
        if isinstance(self._device, str) and "://" in self._device:
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                _NETWORK_MS,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                _NETWORK_MS,
            ]
            return cv2.VideoCapture(self._device, cv2.CAP_FFMPEG, limits)
        capture = cv2.VideoCapture(self._device)
        if not self._file:
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver keeps frames, they are old ones
        return capture

    def _retrieve(self, capture: Any) -> tuple[Frame | None, str]:
        """The frame, or None and what is wrong with it."""
        try:
            good, frame = capture.retrieve()
        except self._cv2.error as err:
            return None, f"camera: a frame cannot be decoded: {one_line(err)}"
        if not good or not isinstance(frame, np.ndarray) or frame.size == 0:
            return None, "camera: a frame cannot be decoded"
        if (
            frame.dtype != np.uint8
            or frame.ndim not in (2, 3)
            or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4))
        ):
            return (
                None,
                f"camera: a frame must be uint8 (height, width[, 1, 3 or 4]), got {frame.dtype} {frame.shape}",
            )
        return frame, ""


def _rgb(frame: Frame) -> Frame:
    """Blue, green, red[, alpha] as OpenCV has them -> red, green, blue; grey stays grey."""
    if frame.ndim == 2:
        return frame
    return frame[:, :, 0] if frame.shape[2] == 1 else np.ascontiguousarray(frame[:, :, 2::-1])


def _input(name: str, frame: Frame) -> Input:
    return Input(
        lambda: name, lambda manifest: (image_sample(_rgb(frame), manifest.inputs, f"frame {name}"), None)
    )
