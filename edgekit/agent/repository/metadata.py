"""The board's half of The Update Framework: which target is signed. Fetches no target.

python-tuf's client verifies the metadata; what must not be forgotten stands in the agent's state, whatever the client's
own cache says.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from tuf.api import exceptions
from tuf.api.metadata import Root, Signed, Snapshot, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgekit.agent import clock
from edgekit.agent.repository.base import Files, Found, NetworkFailed
from edgekit.agent.state import StateFile
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.target import Target, parse_label, target_path
from edgekit.core.trust import refusal

log = logging.getLogger(__name__)
T = TypeVar("T")
# A server that publishes while we read looks, once, like one that cheats.
_TRIES, _RETRY_S = 3, 0.5
_MAYBE_PUBLISHING = (
    exceptions.BadVersionNumberError,
    exceptions.LengthOrHashMismatchError,
    DeserializationError,
)


class MetadataClient:
    """Refreshes and looks up in one repository's metadata."""

    def __init__(self, files: Files, root: bytes, folder: Path, state: StateFile) -> None:
        """files: the repository's. folder: python-tuf's own cache."""
        self._files = files
        self._root = root
        self._folder = folder
        self._state = state
        self._finding = threading.Lock()  # one at a time in the cache

    def find(self, name: str, version: int, use: str = "run", files: Files | None = None) -> Found:
        """Refresh the metadata and look `name/version` up. files: of another copy of the repository.

        Raises Refused with the reason (unsigned, expired, rollback, tampered, unknown-target), NetworkFailed, or
        WorldFailed when the disk does not take the metadata.
        """
        path = target_path(name, version, use)
        with self._finding:
            file = self._refreshed(lambda updater: updater.get_targetinfo(path), files or self._files)
        if file is None:
            raise refusal("unknown-target", path)
        return _found(file, path)

    def standing(self, labels: Sequence[str], files: Files | None = None) -> Mapping[str, str | None]:
        """Refresh the metadata; the state of each bundle (`name/version`) in it, None where it names it no more.

        Raises as `find` does.
        """

        def look_up(updater: Updater) -> dict[str, str | None]:
            states: dict[str, str | None] = {}
            for label in labels:
                path = target_path(*parse_label(label, "slot"))
                file = updater.get_targetinfo(path)
                states[label] = None if file is None else _found(file, path).target.state
            return states

        with self._finding:
            return self._refreshed(look_up, files or self._files)

    def _refreshed(self, look_up: Callable[[Updater], T], files: Files) -> T:
        """Refresh, then look something up in what is signed now."""
        attempt, emptied = 1, False
        while True:
            try:
                updater = self._refresh(files)
                return look_up(updater)
            except _MAYBE_PUBLISHING as err:
                if attempt == _TRIES:
                    raise _refused(err) from err
                attempt += 1
                log.info("metadata does not fit together (%s), reading it again", one_line(err))
                time.sleep(_RETRY_S)
            except (exceptions.RepositoryError, exceptions.DownloadError) as err:
                raise _refused(err) from err
            except OSError as err:
                if emptied:
                    raise WorldFailed(
                        f"{self._folder}: metadata could not be kept: {err.strerror or err}"
                    ) from err
                # The cache may be no folder, or full of folders: nothing in it is needed, the state remembers.
                log.warning("%s: cannot be used (%s), begun anew", self._folder, err.strerror or err)
                emptied = True
                _remove(self._folder)

    def _refresh(self, files: Files) -> Updater:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        updater = Updater(
            str(self._folder),
            "metadata/",
            fetcher=_Fetcher(files),
            config=UpdaterConfig(prefix_targets_with_hash=False),
            bootstrap=self._root,
        )
        # python-tuf has no public clock and no public versions.
        trusted = updater._trusted_set  # noqa: SLF001
        now = clock.trusted_now(self._state.current.good_time)
        if now is None:
            floor = max(clock.EARLIEST, self._state.current.good_time)
            trusted.reference_time = datetime.fromtimestamp(floor, timezone.utc)
        updater.refresh()
        self._remember(trusted.root, (trusted.timestamp, trusted.targets), trusted.snapshot, now)
        return updater

    def _remember(self, root: Root, others: Sequence[Signed], snapshot: Snapshot, now: float | None) -> None:
        """Refuse metadata below the highest ever seen, whatever the cache says; otherwise note it.

        Versions seen under keys that a newer root has replaced count no more: who had stolen the old ones may have
        signed any number (TUF specification, 5.3.11).
        """
        state, signed = self._state.current, (root, snapshot, *others)
        keys = {role.type: _fingerprint(root, role.type) for role in signed if role is not root}
        for role in signed:
            replaced = role.type in keys and state.metadata_keys.get(role.type) not in (None, keys[role.type])
            seen = 0 if replaced else state.metadata.get(role.type, 0)
            if role.version < seen:
                raise refusal("rollback", f"{role.type} version {role.version}, this board has seen {seen}")
        delegated = snapshot.meta.get(
            "measure.json"
        )  # the client's own check holds for it; the server wants to know
        measure = {} if delegated is None else {"measure": delegated.version}
        self._state.note(
            metadata={role.type: role.version for role in signed} | measure,
            metadata_keys=keys,
            metadata_expires={role.type: role.expires.timestamp() for role in signed},
            good_time=max(now or 0.0, state.good_time),
        )


def _fingerprint(root: Root, role: str) -> str:
    """Of the keys that sign for a role."""
    return hashlib.sha256(" ".join(sorted(root.roles[role].keyids)).encode()).hexdigest()[:16]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _found(file: TargetFile, path: str) -> Found:
    sha256 = file.hashes.get("sha256")
    if sha256 is None:
        raise refusal("unknown-target", f"{path} has no sha256")
    try:
        target = Target.parse(file.custom, f"{path}: custom")
    except BadInput as err:
        raise refusal("unknown-target", one_line(err)) from err
    if target.path != path:
        raise refusal("unknown-target", f"{path} is described as {target.label}")
    return Found(target, path, file.length, sha256)


def _refused(err: Exception) -> Exception:
    """What an error of python-tuf means here."""
    if isinstance(err, exceptions.DownloadLengthMismatchError):
        return refusal("tampered", f"metadata: {one_line(err)}")
    if isinstance(err, exceptions.DownloadError):
        why = err.__cause__ if isinstance(err.__cause__, NetworkFailed) else None
        return why or NetworkFailed(f"repository: {one_line(err)}")
    reasons: dict[type[Exception], str] = {
        exceptions.ExpiredMetadataError: "expired",
        exceptions.UnsignedMetadataError: "unsigned",
        exceptions.BadVersionNumberError: "rollback",
    }
    reason = next((word for kind, word in reasons.items() if isinstance(err, kind)), "tampered")
    return refusal(reason, one_line(err))


class _Fetcher(FetcherInterface):
    """python-tuf's door to the files: ours, so that no foreign error and no temporary file comes through it."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            with self._files.open(url) as body:
                yield from body.chunks()
        except NetworkFailed as err:
            if err.status is not None:
                raise exceptions.DownloadHTTPError(one_line(err), err.status) from err
            raise exceptions.DownloadError(one_line(err)) from err

    def download_bytes(self, url: str, max_length: int) -> bytes:
        data = bytearray()
        for chunk in self.fetch(url):
            data += chunk
            if len(data) > max_length:
                raise exceptions.DownloadLengthMismatchError(f"{url}: more than {max_length} bytes")
        return bytes(data)
