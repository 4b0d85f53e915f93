"""The board's half of The Update Framework: which target is signed. Fetches no target.

python-tuf's client verifies the metadata; what must not be forgotten stands in the agent's state, whatever the client's
own cache says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import urllib3
from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgekit.agent import clock
from edgekit.agent.http import chunks, get
from edgekit.agent.remote import Found, NetworkFailed
from edgekit.agent.state import StateFile
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.target import Target, target_path
from edgekit.core.trust import refusal

log = logging.getLogger(__name__)
# A server that publishes while we read looks, once, like one that cheats.
_TRIES, _RETRY_S = 3, 0.5
_MAYBE_PUBLISHING = (
    exceptions.BadVersionNumberError,
    exceptions.LengthOrHashMismatchError,
    DeserializationError,
)


class MetadataClient:
    """Refreshes and looks up in one repository's metadata."""

    def __init__(
        self, url: str, root: bytes, folder: Path, state: StateFile, http: urllib3.PoolManager
    ) -> None:
        """folder: python-tuf's own cache."""
        self._url = url
        self._root = root
        self._folder = folder
        self._state = state
        self._http = http
        self._finding = threading.Lock()  # one at a time in the cache

    def find(self, name: str, version: int, use: str = "run") -> Found:
        """Refresh the metadata and look `name/version` up.

        Raises Refused with the reason (unsigned, expired, rollback, tampered, unknown-target), NetworkFailed, or
        WorldFailed when the disk does not take the metadata.
        """
        with self._finding:
            return self._find_again(target_path(name, version, use))

    def _find_again(self, path: str) -> Found:
        for attempt in range(_TRIES):
            try:
                return self._find(path)
            except _MAYBE_PUBLISHING as err:
                if attempt + 1 == _TRIES:
                    raise _refused(err) from err
                log.info("metadata does not fit together (%s), reading it again", one_line(err))
                time.sleep(_RETRY_S)
            except (exceptions.RepositoryError, exceptions.DownloadError) as err:
                raise _refused(err) from err
            except OSError as err:
                raise WorldFailed(
                    f"{self._folder}: metadata could not be kept: {err.strerror or err}"
                ) from err
        raise AssertionError("the last attempt returns or raises")

    def _find(self, path: str) -> Found:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        updater = Updater(
            str(self._folder),
            f"{self._url}/metadata/",
            fetcher=_Fetcher(self._http),
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
        roles = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
        self._remember({role.type: role.version for role in roles}, now)
        file = updater.get_targetinfo(path)
        if file is None:
            raise refusal("unknown-target", path)
        return _found(file, path)

    def _remember(self, versions: dict[str, int], now: float | None) -> None:
        """Refuse metadata below the highest ever seen, whatever the cache says; otherwise note it."""
        state = self._state.current
        for role, version in versions.items():
            seen = state.metadata.get(role, 0)
            if version < seen:
                raise refusal("rollback", f"{role} version {version}, this board has seen {seen}")
        self._state.note(metadata=versions, good_time=max(now or 0.0, state.good_time))


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
        return NetworkFailed(f"repository: {one_line(err)}")
    reasons: dict[type[Exception], str] = {
        exceptions.ExpiredMetadataError: "expired",
        exceptions.UnsignedMetadataError: "unsigned",
        exceptions.BadVersionNumberError: "rollback",
    }
    reason = next((word for kind, word in reasons.items() if isinstance(err, kind)), "tampered")
    return refusal(reason, one_line(err))


class _Fetcher(FetcherInterface):
    """python-tuf's door to the network: ours, so that no foreign error and no temporary file comes through it."""

    def __init__(self, http: urllib3.PoolManager) -> None:
        self._http = http

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            with get(self._http, url, 0) as response:
                yield from chunks(response, url)
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
