"""A fixed clock, and python-tuf's own client reading a repository's folder as a board would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, TargetFile, Updater, UpdaterConfig

from edgekit.core import files
from edgekit.repo import keyring, pending, write

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=timezone.utc)


class FolderFetcher(FetcherInterface):
    """Gives a folder's files for http://repo/... as a web server would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.folder / url.removeprefix("http://repo/")
        if not path.is_file():
            raise DownloadHTTPError("no such file", 404)
        yield path.read_bytes()


class BoardClient:
    """A board's metadata client with a cache of its own."""

    def __init__(self, repository: Path, cache: Path) -> None:
        cache.mkdir()
        self.cache, self.repository, self.now = cache, repository, NOW
        self.root = (repository / "metadata" / "1.root.json").read_bytes()

    def refresh(self) -> Updater:
        """Walk the metadata; raises python-tuf's errors."""
        updater = Updater(
            str(self.cache),
            "http://repo/metadata/",
            str(self.cache),
            "http://repo/targets/",
            FolderFetcher(self.repository),
            UpdaterConfig(prefix_targets_with_hash=False),
            bootstrap=self.root,
        )
        updater._trusted_set.reference_time = self.now
        updater.refresh()
        return updater

    def versions(self) -> dict[str, int]:
        """Refresh; the version of each role that the board then trusts."""
        trusted = self.refresh()._trusted_set
        roles = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
        return {role.type: role.version for role in roles}

    def twin(self, cache: Path) -> BoardClient:
        """Another board that has seen what this one has."""
        made = BoardClient(self.repository, cache)
        shutil.copytree(self.cache, cache, dirs_exist_ok=True, symlinks=True)
        made.root, made.now = self.root, self.now
        return made

    def target(self, path: str) -> TargetFile | None:
        """What the signed metadata says of a target."""
        return self.refresh().get_targetinfo(path)

    def download(self, path: str) -> bytes:
        """The target's file, checked by python-tuf."""
        updater = self.refresh()
        info = updater.get_targetinfo(path)
        assert info is not None
        return Path(updater.download_target(info)).read_bytes()


class Killed(BaseException):
    """Stands for a SIGKILL: no handler of ours sees it."""


def kill_at_rename(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Callable[[], int]:
    """Die before or after the number-th rename or folder sync; returns how many have happened."""
    seen = 0

    def counting(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal seen
            seen = own = seen + 1
            if own == number and not after:
                raise Killed
            result = real(*args)
            if own == number:
                raise Killed
            return result

        return call

    monkeypatch.setattr("os.replace", counting(os.replace))
    real = files.sync_folder
    for module in (files, write, keyring, pending):
        monkeypatch.setattr(module, "sync_folder", counting(real))
    return lambda: seen
