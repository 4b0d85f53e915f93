"""A part's bytes as a mapped file, so that the system can take their pages back. Knows no runtime.

A runtime that repacks weights and still wants its model's bytes holds them twice. Mapped from a file those bytes are
the page cache's: read again from disk when somebody asks, and given up first when memory is short.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

WORTH_A_FILE = 2**20  # bytes: smaller parts are not worth one
FOLDER = "/var/tmp"  # noqa: S108  (the file has no name there; /tmp is often in memory)
_DONTNEED = 4  # MADV_DONTNEED of madvise(2): a mapped file's pages are read again when touched


def opened_from_file(data: bytes, opened: Callable[[str], T]) -> T | None:
    """What `opened` makes of a path under which `data` can be read during the call; None where no file can be had.

    The file has no name, is nobody else's, and lives as long as it is mapped. Pages that the call read are let go.
    """
    file = _laid_down(data)
    if file is None:
        return None
    with file:
        made = opened(f"/proc/self/fd/{file.fileno()}")
        _let_go(file.fileno())
        return made


def _laid_down(data: bytes) -> IO[bytes] | None:
    try:
        file = tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", FOLDER), buffering=0)  # noqa: SIM115  (the caller's)
    except OSError:
        return None
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:  # the disk is full
        file.close()
        return None
    return file


def _let_go(file: int) -> None:
    """Give back the pages of a file that this process has mapped: whoever needs one gets it again."""
    about = os.fstat(file)
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        libc = ctypes.CDLL(None)
    except OSError:  # no Linux: they stay, and the system still may take them
        return
    for fields in map(str.split, lines):
        if fields[3:5] == [device, str(about.st_ino)] and fields[1].startswith("r-"):
            begin, end = (int(number, 16) for number in fields[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)
