"""Read the small text files of /sys and /proc, and say why one could not be read. Interprets no content."""

from __future__ import annotations

import errno
import math
from pathlib import Path

_WHY = {
    errno.EACCES: "no permission to read {path}",
    errno.EPERM: "no permission to read {path}",
    errno.ENOENT: "{path} is not there",
    errno.ENODEV: "the device behind {path} is gone",
    errno.ENXIO: "the device behind {path} is gone",
    errno.ENODATA: "{path} has no data",
}


class Unreadable(Exception):
    """A file gave no value; the text says why, in words for a person."""


def read_text(path: Path) -> str:
    """The content without white space and NUL around it. Raises Unreadable."""
    try:
        return _content(path).strip(" \t\r\n\0")
    except OSError as err:
        why = _WHY.get(err.errno or 0, "{path} cannot be read: " + (err.strerror or type(err).__name__))
        raise Unreadable(why.format(path=path)) from err


def read_number(path: Path) -> float:
    """The one finite number in the file. Raises Unreadable, also for `nan` and an empty file."""
    text = read_text(path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Unreadable(f"{path} says {text[:40]!r}, not a number")
    return value


def text_or_none(path: Path) -> str | None:
    """The content, or None for whatever reason."""
    try:
        return read_text(path)
    except Unreadable:
        return None


def number_or_none(path: Path) -> float | None:
    """The number, or None for whatever reason."""
    try:
        return read_number(path)
    except Unreadable:
        return None


def _content(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
