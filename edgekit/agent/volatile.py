"""Lines in memory that outlives the process: a file that no disk sees. A power cut takes it, SIGKILL does not."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a tmpfs; what is opened there is checked)
_MAX_BYTES = 4 * 2**20
_FULL_BYTES = 2**20


class Volatile:
    """One file in shared memory, its owner's alone; where there is none, nothing is kept and nothing fails."""

    def __init__(self, beside: Path, folder: Path | None = None) -> None:
        """beside: the file on disk that it belongs to; two of these never share one. folder: None: SHARED_MEMORY."""
        name = hashlib.sha256(os.fsencode(beside.absolute())).hexdigest()[:32]
        self._path = (folder or SHARED_MEMORY) / f"edgekit-{name}"
        self._file: int | None = None
        self._bytes = 0
        self._open(0)

    def _open(self, create: int) -> None:
        with suppress(OSError):
            flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | create
            descriptor = os.open(self._path, flags, 0o600)
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
                self._file, self._bytes = descriptor, found.st_size
            else:  # somebody else's: anybody may make files there
                os.close(descriptor)

    def lines(self) -> Sequence[bytes]:
        """Every whole line that was added since the last `clear`."""
        if self._file is None:
            return ()
        try:
            data = os.pread(self._file, _MAX_BYTES, 0)
        except OSError:
            return ()
        return data.split(b"\n")[:-1]

    def add(self, line: bytes) -> None:
        """One more line, without a line break in it. The file is made when there is something to keep."""
        if self._file is None:
            self._open(os.O_CREAT)
        if self._file is not None:
            with suppress(OSError):
                self._bytes += os.write(self._file, line + b"\n")

    @property
    def full(self) -> bool:
        """Whether it should be cleared, and what still counts be added again."""
        return self._bytes > _FULL_BYTES

    def clear(self) -> None:
        """Forget all of it."""
        if self._file is not None:
            with suppress(OSError):
                os.ftruncate(self._file, 0)
                self._bytes = 0

    def close(self) -> None:
        """Let go of the file; what is in it stays, and without anything in it it goes."""
        if self._file is not None:
            if not self._bytes:
                with suppress(OSError):
                    self._path.unlink()
            os.close(self._file)
            self._file = None
