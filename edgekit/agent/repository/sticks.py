"""A repository and commands in a folder that somebody carried here, such as a USB stick's. Trusts nothing on it.

    FOLDER/repository/metadata  FOLDER/repository/targets       as a server serves them
    FOLDER/commands/FLEET/DEVICE.json                           a signed `desired`, as it goes over MQTT

The metadata is verified as the network's is, a bundle must have the signed hash, and a command the control key's
signature and a number above the last. Only regular files are opened, no link is followed, and of each no more is read
than may be wanted: a stick may hold anything, and may be pulled out at any moment.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from edgekit.agent.repository.base import CHUNK, Found, NetworkFailed
from edgekit.agent.threads import Loop
from edgekit.core.errors import BadInput, one_line
from edgekit.core.messages import decode

log = logging.getLogger(__name__)
EVERY_S = 3.0
_MOST = 8  # folders at a time
_MAX_COMMAND_BYTES = 1 << 16
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPOSITORY, _COMMANDS = "repository", "commands"
_MISSING = 404
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Identity = tuple[int, int, int, int]
"""Device, inode, time and size of a file: another one means that it must be looked at again."""


def open_inside(folder: Path, path: str) -> tuple[int, Identity]:
    """A descriptor of the regular file `path` below `folder`. Raises NetworkFailed (404: no such file there)."""
    *folders, name = path.split("/")
    if not all(_SEGMENT.fullmatch(segment) for segment in (*folders, name)):
        raise NetworkFailed(f"{folder}: no file is called {path[:80]!r}", _MISSING)
    try:
        with ExitStack() as opened:

            def enter(name: str | Path, inside: int | None) -> int:
                descriptor = os.open(name, _FOLDER, dir_fd=inside)
                opened.callback(os.close, descriptor)
                return descriptor

            here = enter(folder, None)
            for segment in folders:
                here = enter(segment, here)
            if stat.S_ISREG(
                os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
            ):  # not even opened otherwise
                descriptor = os.open(name, _FILE, dir_fd=here)
                found = os.fstat(descriptor)
                if stat.S_ISREG(found.st_mode):
                    return descriptor, (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
                os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise NetworkFailed(f"{folder / path}: {err.strerror}", _MISSING) from err
    except OSError as err:
        raise NetworkFailed(f"{folder / path}: {err.strerror or err}") from err
    raise NetworkFailed(f"{folder / path}: is no regular file", _MISSING)


class FolderBody:
    """A file's bytes from `start` to `end`."""

    def __init__(self, descriptor: int, where: str, start: int, end: int | None) -> None:
        self.start = start
        self._descriptor = descriptor
        self._where = where
        self._end = end

    def __enter__(self) -> FolderBody:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """As remote.Body says."""
        at = self.start
        while self._end is None or at < self._end:
            wanted = size if self._end is None else min(size, self._end - at)
            try:
                chunk = os.pread(self._descriptor, wanted, at)
            except OSError as err:  # pulled out
                raise NetworkFailed(f"{self._where}: {err.strerror or err}") from err
            if not chunk:
                return
            at += len(chunk)
            yield chunk


class FolderFiles:
    """The copy of a repository in one folder of that kind: a base.Files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[Identity, str] = {}

    def open(self, path: str, start: int = 0, end: int | None = None) -> FolderBody:
        """As base.Files says."""
        descriptor, _ = open_inside(self.folder, f"{_REPOSITORY}/{path}")
        return FolderBody(descriptor, str(self.folder / _REPOSITORY / path), start, end)

    def has(self, path: str) -> bool:
        """Whether a file of that name is there."""
        try:
            descriptor, _ = open_inside(self.folder, f"{_REPOSITORY}/{path}")
        except NetworkFailed:
            return False
        os.close(descriptor)
        return True

    def holds(self, found: Found, check: Callable[[], None]) -> bool:
        """Whether the file of `found` is there with the signed length and hash: one that is not is never copied."""
        try:
            descriptor, identity = open_inside(self.folder, f"{_REPOSITORY}/targets/{found.path}")
            with FolderBody(descriptor, str(self.folder), 0, found.length) as body:
                if identity[-1] != found.length:
                    return False
                if identity not in self._hashes:
                    digest = hashlib.sha256()
                    for chunk in body.chunks():
                        check()
                        digest.update(chunk)
                    self._hashes = {identity: digest.hexdigest()}
        except NetworkFailed as err:
            log.info("%s", one_line(err))
            return False
        if self._hashes[identity] != found.sha256:
            log.warning("%r: %s is not the file that was signed, left alone", str(self.folder), found.path)
            return False
        return True


class Sticks:
    """The folders of that kind that are here now."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """patterns: as the shell has them, such as /media/*/*/edgekit."""
        self._patterns = tuple(patterns)
        self._known: dict[Path, FolderFiles] = {}

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def present(self) -> list[FolderFiles]:
        """Every folder that the patterns mean, with what must be in it; links are none."""
        found: list[FolderFiles] = []
        for pattern in self._patterns:
            names = glob.iglob(pattern)  # noqa: PTH207  (it may be an absolute one)
            for name in islice(names, _MOST - len(found)):
                folder = Path(name)
                if _is_stick(folder):
                    found.append(self._known.get(folder) or FolderFiles(folder))
        self._known = {files.folder: files for files in found}
        return found

    def bring(self, path: str) -> bool:
        """Whether one of them has a file of that name: nobody's server is asked for it then."""
        return any(files.has(f"targets/{path}") for files in self.present())


def _is_stick(folder: Path) -> bool:
    inner = folder / _REPOSITORY
    try:
        return all(
            stat.S_ISDIR(os.lstat(path).st_mode)
            for path in (folder, inner, inner / "metadata", inner / "targets")
        )
    except OSError:
        return False


class StickWatch(Loop):
    """Looks now and then whether a stick came, and hands its command on."""

    def __init__(
        self,
        sticks: Sticks,
        address: str,
        receive: Callable[[str, Mapping[str, Any]], None],
        newest: Callable[[], int],
        appeared: Callable[[], None],
        every_s: float = EVERY_S,
    ) -> None:
        """address: fleet/device. receive: takes ("desired", payload) as from MQTT. newest: the last command's number.

        appeared: told that a stick is here that was not: what waits for a network may try again.
        """
        super().__init__("sticks")
        self._sticks = sticks
        self._path = f"{_COMMANDS}/{address}.json"
        self._receive = receive
        self._newest = newest
        self._appeared = appeared
        self._every_s = every_s
        self._here: set[Path] = set()
        self._seen: dict[Path, Identity] = {}
        self._told: dict[Path, str] = {}

    def run(self) -> None:
        """The thread."""
        while not self._stopping:
            try:
                self.look()
            except Exception:
                log.exception("the look at sticks met a defect and goes on")
            self._pause(self._every_s)

    def look(self) -> None:
        """Look once."""
        here = {files.folder for files in self._sticks.present()}
        new = here - self._here
        self._here = here
        self._seen = {folder: identity for folder, identity in self._seen.items() if folder in here}
        self._told = {folder: why for folder, why in self._told.items() if folder in here}
        for folder in sorted(here):
            self._command(folder)
        if new:
            log.info("there is a stick: %s", ", ".join(repr(str(folder)) for folder in sorted(new)))
            self._appeared()

    def _command(self, folder: Path) -> None:
        """Hand on the command for this board, once as long as the file stays the same."""
        try:
            descriptor, identity = open_inside(folder, self._path)
            with FolderBody(descriptor, str(folder / self._path), 0, _MAX_COMMAND_BYTES + 1) as body:
                if self._seen.get(folder) == identity:
                    return
                data = b"".join(body.chunks())
            self._seen[folder] = identity
            payload = decode(data, str(folder / self._path), _MAX_COMMAND_BYTES)
        except NetworkFailed as err:
            if err.status != _MISSING:
                self._tell_once(folder, one_line(err))
            return
        except BadInput as err:
            self._tell_once(folder, one_line(err))
            return
        n = payload.get("n")
        if isinstance(n, int) and n <= self._newest():
            log.info("%r: its command is known, or a newer one is", str(folder))
            return
        self._receive("desired", payload)

    def _tell_once(self, folder: Path, why: str) -> None:
        if self._told.get(folder) != why:
            log.warning("%s", why)
        self._told[folder] = why
