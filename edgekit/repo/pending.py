"""Roots that wait for signatures, in DIR/pending, and how one comes into force. Draws no key.

Make before break: a root comes into force by one rename, and not before all metadata in force verifies under it as
well as under the root before it. Where it does not, targets or snapshot and timestamp are first signed anew with the
keys of both. So a client, whichever of the two roots it has seen, refreshes at every moment, and after a kill between
any two writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata, MetaFile, Root, Targets

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import sync_folder, write_atomic
from edgekit.repo.add import TARGETS_LIFE, Conflict
from edgekit.repo.keyring import Keyring, forget_next, name_of, settle
from edgekit.repo.keys import signer
from edgekit.repo.metadata import (
    ROOT_FILE,
    Current,
    is_verified,
    metadata_folder,
    read_current,
    read_root,
    root_files,
)
from edgekit.repo.root import add_signatures, wanted
from edgekit.repo.write import locked, make_folders, write_online_roles, write_role

PENDING = "pending"


class _Missing(Exception):
    """A private key that is not at hand is needed before the next root can come into force."""


@dataclass(frozen=True)
class Outcome:
    """What came of signing. current: in force now. enforced: versions of root that came into force. signed: by whom.

    waiting: why the next root is not in force, one line each; empty where none waits.
    """

    current: Current
    enforced: tuple[int, ...] = ()
    signed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


def pending_file(folder: Path, version: int) -> Path:
    """Where a root waits."""
    return folder / PENDING / f"{version}.root.json"


def pending_roots(folder: Path, current: Metadata[Root]) -> list[Metadata[Root]]:
    """The roots that wait to follow the one in force, in order. Raises BadInput, WorldFailed."""
    found = []
    version = current.signed.version + 1
    while pending_file(folder, version).is_file():
        path = pending_file(folder, version)
        root = read_root(path)
        if root.signed.version != version:
            raise BadInput(f"{path}: must be version {version}, is {root.signed.version}")
        found.append(root)
        version += 1
    return found


def propose(folder: Path, roots: Sequence[Root]) -> None:
    """Let these roots wait, the first one last: without it the others are not looked at. Raises WorldFailed."""
    make_folders(folder, PENDING)
    _clear(folder, roots[0].version)
    for root in reversed(roots):
        write_atomic(pending_file(folder, root.version), Metadata(root).to_bytes())


def sign(folder: Path, keys: Keyring, now: datetime, files: Sequence[Path] = ()) -> Outcome:
    """Sign what waits with every key at hand, and put in force what has enough signatures.

    files: copies that were signed elsewhere; their signatures are added, or where nothing waits in their place, they
    wait themselves. Raises Conflict (a copy of another root), BadInput, WorldFailed.
    """
    with locked(folder):
        return sign_locked(folder, keys, now, files)


def sign_locked(folder: Path, keys: Keyring, now: datetime, files: Sequence[Path] = ()) -> Outcome:
    """The same for who holds the lock."""
    current = read_current(folder)
    _take_in(folder, current.root, files)
    signed: list[str] = []
    previous = current.root.signed
    for root in pending_roots(folder, current.root):
        names = add_signatures(previous, root, keys)
        if names:
            write_atomic(pending_file(folder, root.signed.version), root.to_bytes())
        signed += [name for name in names if name not in signed]
        previous = root.signed
    return replace(_enforce(folder, current, keys, now), signed=tuple(signed))


def sign_file(path: Path, keys: Keyring) -> tuple[Metadata[Root], tuple[str, ...]]:
    """Sign a copy that was carried here with every key given, in place; the root, and who signed it.

    What counts is decided where it is carried back to. Raises BadInput, WorldFailed.
    """
    root = read_root(path)
    for held in keys.values():
        root.sign(signer(held.key), append=True)
    write_atomic(path, root.to_bytes())
    names = (name_of(root.signed.keys[keyid]) if keyid in root.signed.keys else keyid[:8] for keyid in keys)
    return root, tuple(names)


def cancel(folder: Path) -> tuple[int, ...]:
    """Throw away the roots that wait and the keys drawn for them; their versions. Raises BadInput, WorldFailed."""
    with locked(folder):
        versions = tuple(root.signed.version for root in pending_roots(folder, read_current(folder).root))
        _clear(folder)
        forget_next(folder)
        return versions


def waiting(
    current: Current, roots: Sequence[Metadata[Root]], folder: Path, previous: Root | None = None
) -> list[str]:
    """One line per root that waits for signatures. previous: what the first follows; None: the one in force."""
    lines = []
    before = previous or current.root.signed
    for root in roots:
        missing = "; ".join(str(row) for row in wanted(before, root))
        if missing:
            lines.append(
                f"root {root.signed.version} ({pending_file(folder, root.signed.version)}) wants {missing}"
            )
        before = root.signed
    return lines


def _take_in(folder: Path, in_force: Metadata[Root], files: Sequence[Path]) -> None:
    for path, root in sorted(
        ((path, read_root(path)) for path in files), key=lambda row: row[1].signed.version
    ):
        known = {known.signed.version: known for known in pending_roots(folder, in_force)}
        version, last = root.signed.version, max(known, default=in_force.signed.version)
        if version in known:
            if root.signed_bytes != known[version].signed_bytes:
                raise Conflict(f"{path}: is another root {version} than the one that waits here")
            merged = known[version]
            merged.signatures.update(root.signatures)
        elif version == last + 1 and _may_follow(known.get(last, in_force).signed, root):
            make_folders(folder, PENDING)
            _clear(folder, version)
            merged = root
        else:
            raise Conflict(
                f"{path}: root {version} does not wait here, and is not the next one with all its signatures "
                f"(root {last} is the last one here)"
            )
        write_atomic(pending_file(folder, version), merged.to_bytes())


def _may_follow(previous: Root, root: Metadata[Root]) -> bool:
    """Whether a root that was not made here, such as one that a backup did not hold, needs no signature of ours."""
    return not wanted(previous, root)


def _enforce(folder: Path, current: Current, keys: Keyring, now: datetime) -> Outcome:
    enforced: list[int] = []
    lines = waiting(current, pending_roots(folder, current.root), folder)
    for root in pending_roots(folder, current.root):
        version = root.signed.version
        if wanted(current.root.signed, root):
            break
        if root.signed.is_expired(now):
            lines = [f"root {version} has expired while it waited: edgekit repo sign {folder} --cancel"]
            break
        try:
            current = _carried(folder, current, root.signed, keys, now)
        except _Missing as err:
            lines = [f"root {version} has its signatures, and waits: {err}"]
            break
        write_atomic(metadata_folder(folder) / f"{version}.root.json", root.to_bytes())
        current = replace(current, root=root)
        enforced.append(version)
    _clear(folder, 0, current.root.signed.version)
    settle_keys(folder, current)
    return Outcome(current, tuple(enforced), waiting=tuple(lines))


def settle_keys(folder: Path, current: Current) -> None:
    """Put key files where the metadata in force says. Raises BadInput, WorldFailed."""
    delegations = current.targets.signed.delegations
    named = {keyid for role in current.root.signed.roles.values() for keyid in role.keyids}
    named |= set(delegations.keys) if delegations is not None else set()
    formerly = {keyid for path in root_files(folder).values() for keyid in read_root(path).signed.keys}
    settle(folder, named, formerly)


def _carried(folder: Path, current: Current, new: Root, keys: Keyring, now: datetime) -> Current:
    """What is in force, signed anew where it would not verify under `new`. Raises _Missing."""
    old = current.root.signed
    targets_due = not is_verified(new, current.targets)
    online_due = not (is_verified(new, current.snapshot) and is_verified(new, current.timestamp))
    if not (targets_due or online_due):
        return current
    online = _both(old, new, "timestamp", keys, "online")
    changed: dict[str, MetaFile] = {}
    targets = current.targets
    if targets_due:
        signed = deepcopy(targets.signed)
        signed.version += 1
        signed.expires = (now + TARGETS_LIFE).replace(microsecond=0)
        targets = sign_with(Metadata(signed), _both(old, new, "targets", keys, "targets"))
        changed["targets.json"] = write_role(folder, "targets", signed.version, targets.to_bytes())
    return replace(write_online_roles(folder, current, changed, now, online), targets=targets)


def sign_with(metadata: Metadata[Targets], keys: Sequence[Ed25519PrivateKey]) -> Metadata[Targets]:
    """The metadata with the signatures of exactly these keys."""
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(signer(key), append=True)
    return metadata


def _both(old: Root, new: Root, role: str, keys: Keyring, duty: str) -> tuple[Ed25519PrivateKey, ...]:
    """Keys at hand that satisfy both roots for a role. Raises _Missing that names the others."""
    for root in (old, new):
        there = [keyid for keyid in root.roles[role].keyids if keyid in keys]
        if len(there) < root.roles[role].threshold:
            names = ", ".join(
                name_of(root.keys[keyid]) for keyid in root.roles[role].keyids if keyid not in keys
            )
            raise _Missing(f"the {duty} key {names} is not at hand; give it with --key")
    ids: Mapping[str, None] = dict.fromkeys([*old.roles[role].keyids, *new.roles[role].keyids])
    return tuple(keys[keyid].key for keyid in ids if keyid in keys)


def _clear(folder: Path, first: int = 0, last: int | None = None) -> None:
    """Remove the roots that wait, of these versions: in force by now, thrown away, or what a kill left over.

    Raises WorldFailed.
    """
    try:
        for path in sorted((folder / PENDING).glob("*.root.json")):
            match = ROOT_FILE.fullmatch(path.name)
            if match and first <= int(match[1]) <= (int(match[1]) if last is None else last):
                path.unlink()
        with contextlib.suppress(FileNotFoundError):
            sync_folder(folder / PENDING)
    except OSError as err:
        raise WorldFailed(f"{folder / PENDING}: could not be emptied: {err.strerror or err}") from err
