"""Put a bundle, or an environment of the agent, into targets metadata and sign that. Publishes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata, TargetFile, Targets

from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.environment import (
    EnvironmentFile,
    is_environment,
    open_environment,
    target_of_environment,
)
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.target import Target
from edgekit.repo.keys import signer
from edgekit.repo.metadata import Entry, entries

TARGETS_LIFE = timedelta(days=365)
_CHUNK = 1 << 20
Publishable = Bundle | EnvironmentFile


class Conflict(BadInput):
    """What is published does not go with what was asked: somebody else was first, or a version is taken."""


def open_publishable(path: Path) -> Publishable:
    """The bundle or the environment in a file, verified. Raises BadBundle, BadInput, WorldFailed."""
    return open_environment(path) if is_environment(path) else open_bundle(path)


def target_of(bundle: Publishable) -> Target:
    """The target that publishes it: a bundle for running, an environment for the agent."""
    if isinstance(bundle, EnvironmentFile):
        return target_of_environment(bundle.environment)
    manifest = bundle.manifest
    return Target(
        name=manifest.name,
        version=manifest.version,
        profiles=manifest.profiles,
        use="run",
        state="current",
        content_id=bundle.content_id,
        executes_code=manifest.executes_code,
    )


def published(targets: Targets, bundle: Publishable) -> Entry | None:
    """The entry that holds this bundle's content already, None where its version is still free.

    Raises Conflict where that version has other content.
    """
    found = entries(targets).get(target_of(bundle).path)
    if found is not None and found.target.content_id != bundle.content_id:
        raise Conflict(
            f"{bundle.label} is published with other content ({found.target.content_id[:12]}…, this file is "
            f"{bundle.content_id[:12]}…): give the bundle a higher version"
        )
    return found


def with_bundle(metadata: Metadata[Targets], bundle: Publishable, now: datetime) -> Metadata[Targets]:
    """The next version of the targets metadata, unsigned, with the bundle as current.

    The version before it under the same name becomes `allowed`, so that a board may go back to it without a key.
    Raises Conflict where the version is taken or does not grow.
    """
    new = deepcopy(metadata.signed)
    target = target_of(bundle)
    if published(new, bundle) is not None:
        raise Conflict(f"{bundle.label} is published already, with this content")
    known = [
        entry.target
        for entry in entries(new).values()
        if (entry.target.name, entry.target.use) == _line(target)
    ]
    newest = max((other.version for other in known), default=0)
    if target.version < newest:
        raise Conflict(f"{bundle.label}: version {newest} is published; a new version must be above it")
    for other in known:
        if other.state == "current":
            new.targets[other.path] = with_state(new.targets[other.path], "allowed")
    length, sha256 = measure(bundle.path)
    new.targets[target.path] = TargetFile(
        length, {"sha256": sha256}, target.path, {"custom": target.to_custom()}
    )
    new.version += 1
    new.expires = (now + TARGETS_LIFE).replace(microsecond=0)
    return Metadata(new)


def sign_targets(metadata: Metadata[Targets], key: Ed25519PrivateKey) -> bytes:
    """The file's bytes, signed by this key alone."""
    metadata.sign(signer(key))
    return metadata.to_bytes()


def check_successor(old: Targets, new: Targets) -> Mapping[str, Entry]:
    """The entries that `new` adds to `old`: what a publisher accepts whoever signed it.

    Raises Conflict where `new` is not the next version, drops a target, changes what a published one is, or brings a
    bundle back.
    """
    if new.version != old.version + 1:
        raise Conflict(
            f"targets metadata must be version {old.version + 1}, got {new.version}: somebody else published "
            "meanwhile; fetch the metadata and sign again"
        )
    before, after = entries(old), entries(new)
    for path, entry in before.items():
        kept = after.get(path)
        if kept is None or _fixed(kept) != _fixed(entry):
            raise Conflict(f"targets metadata must keep {entry.target.label} as it was published")
        if entry.target.state == "revoked" and kept.target.state != "revoked":
            raise Conflict(f"targets metadata must keep {entry.target.label} revoked")
    added = {path: entry for path, entry in after.items() if path not in before}
    for entry in added.values():
        line = _line(entry.target)
        newest = max((e.target.version for e in before.values() if _line(e.target) == line), default=0)
        if entry.target.version < newest:
            raise Conflict(
                f"{entry.target.label}: version {newest} is published; a new version must be above it"
            )
    return added


def measure(path: Path) -> tuple[int, str]:
    """Length and sha256 of a file. Raises WorldFailed."""
    digest, length = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                length += len(chunk)
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    return length, digest.hexdigest()


def _line(target: Target) -> tuple[str, str]:
    """What a target's versions count within."""
    return target.name, target.use


def _fixed(entry: Entry) -> tuple[object, ...]:
    """All of a published entry but its state."""
    target = entry.target
    runs_on = (target.pythons, target.machines, target.glibc)
    return entry.length, entry.sha256, target.content_id, target.profiles, target.executes_code, runs_on


def with_state(info: TargetFile, state: str) -> TargetFile:
    """The target's entry in another state."""
    custom = {**(info.custom or {}), "state": state}
    return TargetFile(info.length, info.hashes, info.path, {**info.unrecognized_fields, "custom": custom})
