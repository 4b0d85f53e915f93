"""What sources hand over to in tests: as the runner reads, in the same thread; and a cv2 of nothing but frames."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from agents import WAIT_S
from PIL import Image

from edgekit.agent.sources import Input, Source
from edgekit.core.errors import EdgekitError
from edgekit.core.manifest import Manifest


class Take:
    """Reads each input at once. `room`: cleared, the next one waits as behind a full queue."""

    def __init__(self, manifest: Manifest, most: int = 10**6) -> None:
        self.manifest = manifest
        self.most = most
        self.ids: list[str] = []
        self.samples: list[Any] = []  # (inputs, label) or the error
        self.inputs: list[Input] = []
        self.refused: list[tuple[str | None, str]] = []
        self.dropped = 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.serves = True
        self.begun = 0
        self.room = threading.Event()
        self.room.set()
        self.stopped = threading.Event()

    def __call__(self, given: Input, /) -> bool:
        self.begun += 1
        while not self.room.wait(0.01):
            if self.stopped.is_set():
                return False
        if self.stopped.is_set() or len(self.samples) >= self.most:
            self.stopped.set()
            return False
        try:
            sample: Any = given.read(self.manifest)
        except EdgekitError as err:
            sample = err
        self.ids.append(given.id())
        self.inputs.append(given)
        self.samples.append(sample)
        if given.done is not None:
            given.done()
        return True

    def refuse(self, name: str | None, why: str) -> None:
        self.refused.append((name, why))

    def let_go(self, count: int) -> None:
        self.dropped += count

    def tell(self, kind: str, detail: dict[str, Any]) -> None:
        self.told.append((kind, detail))

    @property
    def errors(self) -> list[str]:
        return [str(sample) for sample in self.samples if isinstance(sample, EdgekitError)]

    @property
    def pixels(self) -> list[int]:
        """The first pixel of every sample that could be read."""
        good = (sample for sample in self.samples if not isinstance(sample, EdgekitError))
        return [round(float(inputs["x"].flat[0]) * 255) for inputs, _ in good]


class Running:
    """A source in a thread of its own, until the block ends."""

    def __init__(self, source: Source, take: Take) -> None:
        self.take = take
        self.handed: int | None = None
        self.thread = threading.Thread(target=self._run, args=(source,), daemon=True)

    def _run(self, source: Source) -> None:
        self.handed = source.run(self.take, self.take.stopped)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.take.stopped.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def png(value: int | np.ndarray[Any, Any]) -> bytes:
    """A 4x4 image of one grey, or these pixels, as a PNG file."""
    pixels = np.full((4, 4), value, np.uint8) if isinstance(value, int) else value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fake_cv2(
    openings: Iterable[Sequence[Any]],
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Any:
    """A module like cv2. openings: the frames of each VideoCapture in turn; an exception is raised by retrieve.

    before: called by each grab. after: called by the grab that finds no more frames. An opening of None cannot be
    opened. What was opened and not released is counted in `open`.
    """
    turns = iter(openings)
    module = SimpleNamespace(
        error=type("error", (Exception,), {}),
        CAP_PROP_BUFFERSIZE=38,
        CAP_PROP_OPEN_TIMEOUT_MSEC=53,
        CAP_PROP_READ_TIMEOUT_MSEC=54,
        CAP_FFMPEG=1900,
        opened=[],
        open=0,
    )

    class VideoCapture:
        def __init__(self, *given: Any) -> None:
            module.opened.append(given)
            module.open += 1
            frames = next(turns, None)
            self._frames = None if frames is None else list(frames)
            self._now: Any = None

        def isOpened(self) -> bool:  # noqa: N802
            return self._frames is not None

        def set(self, _key: int, _value: float) -> bool:
            return True

        def grab(self) -> bool:
            before()
            if not self._frames:
                after()
                return False
            self._now = self._frames.pop(0)
            return True

        def retrieve(self) -> tuple[bool, Any]:
            if isinstance(self._now, Exception):
                raise self._now
            return self._now is not None, self._now

        def release(self) -> None:
            module.open -= 1

    module.VideoCapture = VideoCapture
    return module
