"""Every sample of a folder of images (or another data file), in order, once or over and over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgekit.agent.runner import Sample
from edgekit.agent.sources.base import Input, Taker
from edgekit.core.errors import EdgekitError, one_line
from edgekit.core.manifest import Manifest
from edgekit.runtime.data import Data, load_data

log = logging.getLogger(__name__)
_RETRY_S = 5.0


class FolderSource:
    """The samples of `path`; an input's id is its file's path below it.

    What the samples must look like is the serving bundle's to say: they are read when their turn has come, and the
    data is opened anew when a bundle with other inputs or classes serves.
    """

    def __init__(self, path: Path, *, loop: bool, rate_hz: float | None) -> None:
        self._path = path
        self._loop = loop
        self._period_s = None if rate_hz is None else 1 / rate_hz
        self._opened: tuple[object, Data] | None = None
        self._first = threading.Event()
        self._count: int | None = None

    def run(self, take: Taker, stopped: threading.Event) -> int:
        handed = index = 0
        due = time.monotonic()
        while not stopped.is_set():
            if not take(Input(self._namer(index), self._reader(index))):
                break
            handed += 1
            count = self._wait_for_count(stopped)
            if count is None:  # the data could not be opened for this bundle: perhaps for the next
                stopped.wait(_RETRY_S)
                continue
            index += 1
            if index >= count:
                if not self._loop:
                    break
                index = 0
            if self._period_s is not None:
                due = max(due + self._period_s, time.monotonic() - self._period_s)
                stopped.wait(max(0.0, due - time.monotonic()))
        return handed

    def _wait_for_count(self, stopped: threading.Event) -> int | None:
        """How many samples there are, once the runner has read the first one."""
        while self._count is None and not stopped.is_set():
            if self._first.wait(0.2):
                self._first.clear()
                break
        return self._count

    def _namer(self, index: int) -> Callable[[], str]:
        def name() -> str:
            opened = self._opened
            return (
                f"{self._path.name}[{index}]" if opened is None else opened[1].name(index % opened[1].count)
            )

        return name

    def _reader(self, index: int) -> Callable[[Manifest], Sample]:
        def read(manifest: Manifest) -> Sample:
            data = self._data(manifest)
            number = index % data.count
            label = None if data.labels is None else int(data.labels[number])
            return data.inputs(number), label

        return read

    def _data(self, manifest: Manifest) -> Data:
        wanted = (manifest.inputs, manifest.labels)
        if self._opened is None or self._opened[0] != wanted:
            try:
                self._opened = (wanted, load_data(self._path, manifest.inputs, manifest.labels))
                self._count = self._opened[1].count
            except EdgekitError as err:
                self._opened, self._count = None, None
                log.warning("source: %s", one_line(err))
                raise
            finally:
                self._first.set()
        return self._opened[1]
