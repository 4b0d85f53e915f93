"""Write files so that a reader, or a power cut, sees the old content or the new one and nothing between."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgekit.core.errors import BadInput, WorldFailed

_PART = ".part"


def sync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it, where they are missing; they survive a power cut. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for path in missing:
        with contextlib.suppress(PermissionError):  # one that may be written to, but not read
            sync_folder(path.parent)


def remove_interrupted(folder: Path) -> None:
    """Remove what writes that were killed have left in `folder`; nobody may be writing there."""
    for path in folder.glob(f".*{_PART}"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`: temporary name, fsync of file and folder, rename.

    A link stays one: the file it leads to is replaced. Raises BadInput where something stands there that is no file
    (a device, a folder), WorldFailed (disk full, read-only, no folder). Then, and when interrupted, nothing of the new
    file is left.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: must be a file to be written, and is none")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as err:  # Ctrl-C as well
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(err, OSError):
            raise WorldFailed(f"{path}: could not be written: {err.strerror or err}") from err
        raise
