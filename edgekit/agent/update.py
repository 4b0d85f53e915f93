"""The board's half of The Update Framework: which bundle is signed, and fetching exactly that file.

python-tuf's client verifies metadata only. The file itself is fetched here: beside its slot, resumed after a break,
safe on disk before it is believed, and checked against the signed length and hash. Decides nothing about profiles or
versions of bundles: core/trust.py does.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import urllib3
from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgekit.agent import clock
from edgekit.agent.config import Repository
from edgekit.agent.remote import Found, NetworkFailed
from edgekit.agent.state import StateFile
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.target import Target, target_path
from edgekit.core.trust import refusal

log = logging.getLogger(__name__)
_CHUNK = 1 << 16
_CONNECT_S, _SILENT_S = 10.0, 30.0
_PATIENCE_S, _SLOWEST = 60.0, 256  # after so many seconds, a mean of fewer bytes per second is no download
_SYNC_EVERY = 8 << 20
_PARTIAL, _NOT_SATISFIABLE = 206, 416
# A server that publishes while we read looks, once, like one that cheats.
_TRIES, _RETRY_S = 3, 0.5
_MAYBE_PUBLISHING = (
    exceptions.BadVersionNumberError,
    exceptions.LengthOrHashMismatchError,
    DeserializationError,
)


class RepositoryClient:
    """Talks to one repository with the board's token."""

    def __init__(self, repository: Repository, root: bytes, folder: Path, state: StateFile) -> None:
        """folder: python-tuf's own cache; what must not be forgotten stands in `state`."""
        self._url = repository.url
        self._root = root
        self._folder = folder
        self._state = state
        self._http = _pool(repository)
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

    def fetch(self, found: Found, part: Path, check: Callable[[], None]) -> None:
        """Bring the file of `found` to `part`, whole, synced and with the signed hash; go on with what is there.

        check: called between chunks; whatever it raises ends the download. Raises Refused (tampered), NetworkFailed,
        WorldFailed (disk).
        """
        try:
            resumed = part.exists()
            digest = self._complete(found, part, check)
            if digest != found.sha256 and resumed:
                log.warning(
                    "%s: what was kept of an earlier download is no good, fetching all of it", found.path
                )
                part.unlink()
                digest = self._complete(found, part, check)
            if digest != found.sha256:
                part.unlink()
                raise refusal(
                    "tampered", f"{found.path}: sha256 {digest[:12]}…, signed is {found.sha256[:12]}…"
                )
        except NetworkFailed as err:
            if err.status == _NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
            raise
        except OSError as err:
            raise WorldFailed(f"{part}: could not be written: {err.strerror or err}") from err

    def _complete(self, found: Found, part: Path, check: Callable[[], None]) -> str:
        """Fetch what is missing of the file; the sha256 of all of it."""
        digest = hashlib.sha256()
        with part.open("a+b") as file:
            file.seek(0)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            have = file.tell()
            if have > found.length:
                have, digest = _restart(file.fileno())
            if have < found.length:
                url = f"{self._url}/targets/{found.path}"
                with _get(self._http, url, have) as response:
                    if have and response.status != _PARTIAL:
                        have, digest = _restart(file.fileno())
                    for chunk in _chunks(response, url):
                        check()
                        have += len(chunk)
                        if have > found.length:
                            break
                        file.write(chunk)
                        digest.update(chunk)
                        if have // _SYNC_EVERY != (have - len(chunk)) // _SYNC_EVERY:
                            _sync(file.fileno(), file.flush)
            _sync(file.fileno(), file.flush)
        if have > found.length:
            part.unlink()
            raise refusal("tampered", f"{found.path}: longer than the {found.length} bytes that were signed")
        if have < found.length:
            raise NetworkFailed(
                f"{found.path}: the repository broke off after {have} of {found.length} bytes"
            )
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.clear()


def reachable(repository: Repository) -> None:
    """Ask for the newest metadata and believe none of it. Raises NetworkFailed."""
    _get(_pool(repository), f"{repository.url}/metadata/timestamp.json", 0).response.close()


def _pool(repository: Repository) -> urllib3.PoolManager:
    headers = {"Accept-Encoding": "identity", "User-Agent": "edgekit-agent"}
    if repository.token is not None:
        headers["Authorization"] = f"Bearer {repository.token}"
    timeout = urllib3.Timeout(connect=_CONNECT_S, read=_SILENT_S)
    return urllib3.PoolManager(num_pools=2, headers=headers, retries=False, timeout=timeout)


def _restart(descriptor: int) -> tuple[int, hashlib._Hash]:
    os.ftruncate(descriptor, 0)
    return 0, hashlib.sha256()


def _sync(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)


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
            with _get(self._http, url, 0) as response:
                yield from _chunks(response, url)
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


class _Response:
    """A response that is given back when left."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.response = response
        self.status = response.status

    def __enter__(self) -> _Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()


def _get(http: urllib3.PoolManager, url: str, offset: int) -> _Response:
    """GET from `offset`. Raises NetworkFailed."""
    headers = {**http.headers, "Range": f"bytes={offset}-"} if offset else None
    try:
        response = http.request("GET", url, headers=headers, preload_content=False, redirect=False)
    except urllib3.exceptions.HTTPError as err:
        raise NetworkFailed(f"{url}: {_plain(err)}") from err
    if response.status not in (200, _PARTIAL):
        response.close()
        raise NetworkFailed(f"{url}: the repository answered {response.status}", response.status)
    return _Response(response)


def _chunks(answer: _Response, url: str) -> Iterator[bytes]:
    """The body in pieces. Raises NetworkFailed when it breaks off or crawls."""
    begun, total = time.monotonic(), 0
    try:
        for chunk in answer.response.stream(_CHUNK, decode_content=False):
            total += len(chunk)
            spent = time.monotonic() - begun
            if spent > _PATIENCE_S and total < _SLOWEST * spent:
                raise NetworkFailed(f"{url}: too slow, {total} bytes in {spent:.0f} s")
            yield chunk
    except urllib3.exceptions.HTTPError as err:
        raise NetworkFailed(f"{url}: {_plain(err)}") from err


def _plain(err: Exception) -> str:
    """urllib3's errors without object addresses."""
    reason = getattr(err, "reason", None) or err
    return f"{type(reason).__name__}: {one_line(reason).rpartition('>: ')[2]}"[:200]
