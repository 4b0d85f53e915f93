"""Files as they appear in a folder: each is answered once, when all of it is there. Looks now and then, by name.

A file is whole when it was renamed into place (its last change lies longer back than `SETTLE_S`), or when its size and
time of change have stayed the same that long. Hidden names and unknown suffixes are left alone, so a writer may use
`.name` or `name.part` until it renames. Images, and .npz files of one sample; the first sub-folder is the label, where
the bundle has a class of that name.

`done` says what becomes of a file that was answered, or found broken: "keep", "delete", or "move:FOLDER" (under the
same sub-folder; a name that is taken there gets a number). An agent that dies in between answers a file again.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from edgekit.agent.runner import Sample
from edgekit.agent.sources.base import Input, Taker, read_file
from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest
from edgekit.runtime.data import IMAGE_SUFFIXES

log = logging.getLogger(__name__)
LOOK_S = 0.25
SETTLE_S = 0.5
_IDLE = 20  # a folder of very many files is looked at more rarely: at most a twentieth of the time
_SUFFIXES = IMAGE_SUFFIXES | {".npz"}

State = tuple[int, int, int]  # size, time of the last change in ns, inode


class SpoolSource:
    """Watches `path`. delete, target: what becomes of a file that is done; neither: it stays."""

    def __init__(
        self,
        path: Path,
        *,
        delete: bool,
        target: Path | None,
        rate_hz: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises BadInput where `target` leads back into `path`."""
        self._path = path
        self._period_s = None if rate_hz is None else 1 / rate_hz
        self._clock = clock
        self._delete = delete
        self._target = target
        if target is not None and target.resolve().is_relative_to(path.resolve()):
            raise BadInput(f"source folder: done: {target} lies in the watched folder {path}")
        # What was seen and is still there: its state, since when, and whether it was handed over.
        self._seen: dict[Path, tuple[State, float, bool]] = {}
        self._put_away: deque[Path] = deque()  # by the runner's thread; what comes under that name is new
        self._complaint: str | None = None

    def run(self, take: Taker, stopped: threading.Event) -> int:
        handed = 0
        while not stopped.is_set():
            begun = self._clock()
            ready = self._whole()
            took_s = self._clock() - begun
            for path in ready:
                if stopped.is_set() or not take(self._input(path)):
                    return handed
                handed += 1
                state, since, _ = self._seen[path]
                self._seen[path] = (state, since, True)
                if self._period_s is not None:
                    stopped.wait(self._period_s)
            stopped.wait(max(LOOK_S, _IDLE * took_s))
        return handed

    def _whole(self) -> list[Path]:
        """Files that are all there and were not handed over, in the order of their names."""
        while self._put_away:
            self._seen.pop(self._put_away.popleft(), None)
        now, found = self._clock(), {}
        ready = []
        for path, state in self._files():
            before = self._seen.get(path)
            if before is None or before[0] != state:
                before = (state, now, False)
            found[path] = before
            age_s = time.time() - state[1] / 1e9
            if not before[2] and (age_s >= SETTLE_S or now - before[1] >= SETTLE_S):
                ready.append(path)
        self._seen = found
        return sorted(ready, key=lambda path: (path.name, path))

    def _files(self) -> Iterator[tuple[Path, State]]:
        try:
            for folder, folders, names in os.walk(self._path, onerror=_raise):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(folder, name)
                    if name.startswith(".") or path.suffix.lower() not in _SUFFIXES:
                        continue
                    try:
                        status = path.stat()
                    except OSError:  # gone again
                        continue
                    yield path, (status.st_size, status.st_mtime_ns, status.st_ino)
            self._say(None)
        except OSError as err:
            self._say(f"{self._path}: cannot be read: {err.strerror}")

    def _say(self, complaint: str | None) -> None:
        if complaint is not None and complaint != self._complaint:
            log.warning("source: %s; trying again", complaint)
        self._complaint = complaint

    def _input(self, path: Path) -> Input:
        relative = path.relative_to(self._path)
        name = str(relative).encode("utf-8", "replace").decode()

        def read(manifest: Manifest) -> Sample:
            sample, label = read_file(path, manifest)
            folder = relative.parts[0] if len(relative.parts) > 1 else None
            if folder is not None and manifest.labels is not None and folder in manifest.labels:
                label = manifest.labels.index(folder)
            return sample, label

        return Input(lambda: name, read, self._finisher(path, relative))

    def _finisher(self, path: Path, relative: Path) -> Callable[[], None] | None:
        if self._delete:
            return partial(self._finish, path, path.unlink)
        if self._target is not None:
            return partial(self._finish, path, partial(_move, path, self._target / relative))
        return None

    def _finish(self, path: Path, action: Callable[[], object]) -> None:
        """Put a file away. One that cannot be was answered all the same, and is not answered again."""
        try:
            action()
        except OSError as err:
            log.warning("source: %s was answered and cannot be put away: %s", path, err.strerror or err)
        else:
            self._put_away.append(path)


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free, number = target, 0
    while free.exists():
        number += 1
        free = target.with_name(f"{target.stem}.{number}{target.suffix}")
    shutil.move(path, free)


def _raise(err: OSError) -> None:
    raise err
