"""Answers as JSON lines in a file that rotates by size: `path`, `path.1` (the newest of the old ones) ... `path.N`.

Only whole lines stand there: what a full disk took of a line is cut off again, and what a power cut left of one when
the file is next opened. Nothing waits for the disk (no fsync): a power cut may cost the last seconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from edgekit.core.errors import BadInput, WorldFailed

_TAIL = 2**20


class FileSink:
    """max_bytes: of one file; a longer line has one of its own. keep: how many old ones stay."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        """Raises BadInput where no file can be there."""
        if path.is_dir() or not path.parent.is_dir():
            raise BadInput(f"sink file: path must be a file in a folder that is there, got {path}")
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor: int | None = None
        self._size = 0

    def write(self, line: bytes, stopped: threading.Event) -> None:
        try:
            if self._descriptor is None:
                self._open()
            if self._size and self._size + len(line) > self._max_bytes:
                self._rotate()
            self._append(line)
        except OSError as err:
            self.close()
            raise WorldFailed(f"{self._path}: cannot be written: {err.strerror or err}") from err

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        start = max(0, self._size - _TAIL)
        tail = os.pread(self._descriptor, self._size - start, start)
        whole = start + tail.rfind(b"\n") + 1
        if whole < self._size and (start == 0 or whole > start):
            os.ftruncate(self._descriptor, whole)
            self._size = whole

    def _append(self, line: bytes) -> None:
        assert self._descriptor is not None  # noqa: S101  (for the reader: write opens it)
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell; opening cuts it off, too
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1)
            if newer.exists():
                newer.replace(older)
        if not self._keep:
            self._path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
