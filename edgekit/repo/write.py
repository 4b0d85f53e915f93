"""Write a repository's files: one publisher at a time, every write atomic, timestamp.json last.

Nothing that is in force is touched, so a kill between any two writes leaves a repository that clients still refresh
from: the old state until timestamp.json is replaced, the new one after. Decides nothing about what is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import sync_folder, write_atomic
from edgekit.core.trust import LIVES_S
from edgekit.repo.keys import signer
from edgekit.repo.metadata import Current, metadata_folder

T = TypeVar("T", Snapshot, Timestamp)
SNAPSHOT_LIFE = timedelta(seconds=LIVES_S["snapshot"])
TIMESTAMP_LIFE = timedelta(seconds=LIVES_S["timestamp"])
_KEPT_VERSIONS = 10  # a client that read the timestamp before the last ones still finds its files
_VERSIONED = re.compile(r"([1-9]\d{0,9})\.(snapshot|targets|measure)\.json")
_CHUNK = 1 << 20


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One publisher at a time; the lock ends with its process, however that ends. Raises WorldFailed."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as err:
        raise BadInput(f"{folder}: is no repository; make one with: edgekit repo init {folder}") from err
    except OSError as err:
        raise WorldFailed(f"{folder}: could not be locked: {err.strerror or err}") from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_folders(base: Path, below: str) -> Path:
    """`base/below` with its parents, each entry synced. Raises WorldFailed."""
    folder = base
    try:
        for part in Path(below).parts:
            folder = folder / part
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
    except OSError as err:
        raise WorldFailed(f"{folder}: could not be made: {err.strerror or err}") from err
    return folder


def write_online(
    folder: Path, name: str, metadata: Metadata[T], online: Sequence[Ed25519PrivateKey]
) -> MetaFile:
    """Sign with the online keys and write atomically; how the file above names this one. Raises WorldFailed."""
    metadata.signatures.clear()
    for key in online:
        metadata.sign(signer(key), append=True)
    data = metadata.to_bytes()
    write_atomic(metadata_folder(folder) / name, data)
    return meta_file(metadata.signed.version, data)


def meta_file(version: int, data: bytes) -> MetaFile:
    """How snapshot and timestamp name a file: version, length and hash."""
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def write_role(folder: Path, role: str, version: int, data: bytes) -> MetaFile:
    """Write a role's next file; how the snapshot names it. Raises WorldFailed."""
    write_atomic(metadata_folder(folder) / f"{version}.{role}.json", data)
    return meta_file(version, data)


def write_online_roles(
    folder: Path,
    current: Current,
    changed: Mapping[str, MetaFile] | None,
    now: datetime,
    online: Sequence[Ed25519PrivateKey],
    past: Mapping[str, int] | None = None,
) -> Current:
    """Sign a snapshot with what has `changed` (None: the old one stays) and, last of all, the timestamp.

    past: by role, a version that the new one must be above, beside its own last one. Raises WorldFailed.
    """
    past = past or {}
    snapshot, timestamp = deepcopy(current.snapshot), deepcopy(current.timestamp)
    if changed is not None:
        snapshot.signed.version = max(snapshot.signed.version, past.get("snapshot", 0)) + 1
        snapshot.signed.expires = (now + SNAPSHOT_LIFE).replace(microsecond=0)
        snapshot.signed.meta.update(changed)
        name = f"{snapshot.signed.version}.snapshot.json"
        timestamp.signed.snapshot_meta = write_online(folder, name, snapshot, online)
    timestamp.signed.version = max(timestamp.signed.version, past.get("timestamp", 0)) + 1
    timestamp.signed.expires = (now + TIMESTAMP_LIFE).replace(microsecond=0)
    write_online(folder, "timestamp.json", timestamp, online)
    _prune(folder, snapshot.signed)
    return replace(current, timestamp=timestamp, snapshot=snapshot)


def copy_atomic(source: Path, destination: Path) -> None:
    """Copy a file of any size: temporary name, fsync of file and folder, rename. Raises WorldFailed."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(destination)
        sync_folder(destination.parent)
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WorldFailed(f"{destination}: could not be written: {err.strerror or err}") from err


def _prune(folder: Path, snapshot: Snapshot) -> None:
    """Remove versions that no client can still be on its way to. Roots stay for ever: clients walk them."""
    newest = {name.removesuffix(".json"): file.version for name, file in snapshot.meta.items()}
    newest["snapshot"] = snapshot.version
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in metadata_folder(folder).iterdir():
        match = _VERSIONED.fullmatch(path.name)
        if match and int(match[1]) <= newest.get(match[2], 0):
            found.setdefault(match[2], []).append((int(match[1]), path))
    for versions in found.values():
        for _, path in sorted(versions)[:-_KEPT_VERSIONS]:
            with contextlib.suppress(OSError):  # next time
                path.unlink()
