"""Put signed targets metadata in force: bundles first, then targets, snapshot, and timestamp last.

Every write is atomic and nothing that is in force is touched, so a kill between any two writes leaves a repository
that clients still refresh from: the old state until timestamp.json is replaced, the new one after.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata, Targets

from edgekit.core.candidates import target_of_candidates, unpack_candidates
from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.core.target import Target
from edgekit.repo.add import (
    TARGETS_LIFE,
    Conflict,
    check_successor,
    measure,
    open_publishable,
    sign_targets,
    target_of,
)
from edgekit.repo.delegate import check_measure, delegation, no_candidates
from edgekit.repo.keyring import online_keys
from edgekit.repo.metadata import (
    MEASURE,
    Current,
    Entry,
    measure_of,
    parse,
    read_current,
    target_file,
    verify,
    verify_measure,
)
from edgekit.repo.write import (
    SNAPSHOT_LIFE,
    TIMESTAMP_LIFE,
    copy_atomic,
    locked,
    make_folders,
    write_online_roles,
    write_role,
)

RENEW_TIMESTAMP_AFTER = timedelta(days=1)
RENEW_SNAPSHOT_AFTER = timedelta(days=10)
MAX_TARGETS_BYTES = 5_000_000  # what python-tuf's client reads; about 11,000 targets


def publish(folder: Path, data: bytes, bundles: Mapping[str, Path], now: datetime) -> Current:
    """Verify and put in force the targets metadata `data`.

    bundles: sha256 -> file, for each target that is new; the file is copied, or found in its place from a publication
    that was cut short. Needs the online key in the folder.

    Raises Conflict (not the next version, or another delegation), BadInput (not signed by the targets key of the root,
    expired, a bundle that is missing or not what the metadata says), WorldFailed (disk).
    """
    if len(data) > MAX_TARGETS_BYTES:
        raise BadInput(f"targets metadata must be at most {MAX_TARGETS_BYTES} bytes, got {len(data)}")
    new = parse(data, Targets, "targets metadata")
    with locked(folder):
        current = read_current(folder)
        online = keys_of(folder, current)
        verify(current.root.signed, new, "targets metadata")
        if new.signed.is_expired(now):
            raise BadInput(f"targets metadata has expired on {new.signed.expires:%Y-%m-%d}")
        added = check_successor(current.targets.signed, new.signed)
        if new.signed.delegations != current.targets.signed.delegations:
            raise Conflict(
                f"targets metadata must delegate as before; to change it: edgekit repo measure {folder}"
            )
        _place_all(folder, added, bundles)
        named = {"targets.json": write_role(folder, "targets", new.signed.version, data)}
        return replace(write_online_roles(folder, current, named, now, online), targets=new)


def publish_measure(folder: Path, data: bytes, files: Mapping[str, Path], now: datetime) -> Current:
    """Verify and put in force measure metadata; what it names no more is removed from the disk.

    files: sha256 -> file, for each round that is new. Needs the online key in the folder. Raises as `publish` does;
    what the key of this role may not sign, nobody publishes for it.
    """
    if len(data) > MAX_TARGETS_BYTES:
        raise BadInput(f"measure metadata must be at most {MAX_TARGETS_BYTES} bytes, got {len(data)}")
    new = parse(data, Targets, "measure metadata")
    with locked(folder):
        current = read_current(folder)
        online = keys_of(folder, current)
        old = measure_of(current, folder)
        verify_measure(current.targets.signed, new, "measure metadata")
        added, dropped = check_measure(old.signed, new.signed, now)
        _place_all(folder, added, files)
        named = {f"{MEASURE}.json": write_role(folder, MEASURE, new.signed.version, data)}
        current = replace(write_online_roles(folder, current, named, now, online), measure=new)
        for path in dropped:
            with contextlib.suppress(OSError):  # a leftover that nobody is told of
                target_file(folder, path).unlink(missing_ok=True)
        return current


def delegate(folder: Path, targets_key: Ed25519PrivateKey, key: Ed25519PrivateKey, now: datetime) -> Current:
    """Let this key, and no other, sign for measuring: new targets and empty measure metadata, in one step.

    Raises BadInput where the targets key is not the one of the root, WorldFailed.
    """
    with locked(folder):
        current = read_current(folder)
        online = keys_of(folder, current)
        targets = deepcopy(current.targets.signed)
        targets.delegations = delegation(key)
        targets.version += 1
        targets.expires = (now + TARGETS_LIFE).replace(microsecond=0)
        data = sign_targets(Metadata(targets), targets_key)
        new = parse(data, Targets, "targets metadata")
        verify(current.root.signed, new, "targets metadata")
        last = current.snapshot.signed.meta.get(f"{MEASURE}.json")
        empty = no_candidates(1 if last is None else last.version + 1, now)
        named = {
            f"{MEASURE}.json": write_role(folder, MEASURE, empty.signed.version, sign_targets(empty, key)),
            "targets.json": write_role(folder, "targets", targets.version, data),
        }
        return replace(write_online_roles(folder, current, named, now, online), targets=new, measure=empty)


def renew(folder: Path, now: datetime) -> bool:
    """Sign the timestamp anew when it is a day old, and the snapshot when it is ten: the server's daily duty.

    Returns whether anything was due. Raises BadInput, WorldFailed.
    """
    with locked(folder):
        return renew_online(folder, read_current(folder), now) is not None


def renew_online(folder: Path, current: Current, now: datetime) -> Current | None:
    """The same for who holds the lock; None where nothing was due."""
    snapshot, timestamp = current.snapshot.signed, current.timestamp.signed
    snapshot_due = snapshot.expires - now < SNAPSHOT_LIFE - RENEW_SNAPSHOT_AFTER
    if not snapshot_due and timestamp.expires - now > TIMESTAMP_LIFE - RENEW_TIMESTAMP_AFTER:
        return None
    online = keys_of(folder, current)
    return write_online_roles(folder, current, {} if snapshot_due else None, now, online)


def keys_of(folder: Path, current: Current) -> tuple[Ed25519PrivateKey, ...]:
    """The online keys, as the root in force names them. Raises BadInput, WorldFailed."""
    role = current.root.signed.roles["timestamp"]
    return online_keys(folder, set(role.keyids), role.threshold)


def _place_all(folder: Path, added: Mapping[str, Entry], files: Mapping[str, Path]) -> None:
    for path, entry in added.items():
        make_folders(folder, f"targets/{PurePosixPath(path).parent}")
        _place(target_file(folder, path), entry, files.get(entry.sha256))


def _place(destination: Path, entry: Entry, source: Path | None) -> None:
    """Copy a new target's file to its place, unless it is there. Raises BadInput, WorldFailed."""
    label = entry.target.label
    if _is(destination, entry):
        return
    if source is None:
        raise BadInput(
            f"targets metadata names {label}, whose bundle (sha256 {entry.sha256}) was not uploaded"
        )
    if not _is(source, entry):
        raise BadBundle(f"{label}: the bundle is not the one that was signed: length or sha256 differ")
    if _described(source, entry.target) != replace(entry.target, state="current"):
        raise BadBundle(f"{label}: the signed metadata does not describe the bundle that was uploaded")
    copy_atomic(source, destination)


def _described(source: Path, target: Target) -> Target:
    """What the file itself says it is. Raises BadBundle, BadInput, WorldFailed."""
    if target.use != MEASURE:
        return target_of(open_publishable(source))
    with tempfile.TemporaryDirectory(prefix=".round-", dir=source.parent) as unpacked:
        return target_of_candidates(target.name, target.version, unpack_candidates(source, Path(unpacked)))


def _is(path: Path, entry: Entry) -> bool:
    """Whether the file has the signed length and hash."""
    try:
        return path.stat().st_size == entry.length and measure(path) == (entry.length, entry.sha256)
    except FileNotFoundError:
        return False
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
