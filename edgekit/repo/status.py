"""Say what a repository holds and what is wrong with it, as data. Changes nothing."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import Targets

from edgekit.core.errors import BadInput
from edgekit.core.trust import near_expiry
from edgekit.repo.add import measure
from edgekit.repo.keyring import KEYS, bare_name, key_files, key_id
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import Current, entries, read_current, target_file
from edgekit.repo.pending import pending_file, pending_roots, waiting
from edgekit.repo.root import wanted

ROLES = ("root", "targets", "snapshot", "timestamp")


def status(folder: Path, now: datetime) -> dict[str, Any]:
    """Roles, keys and where they lie, roots that wait, targets, and one line per problem; every target is hashed.

    Raises BadInput where the metadata cannot be read or does not verify, WorldFailed.
    """
    current = read_current(folder)
    return {
        **describe(current, now),
        "keys": _keys(folder, current),
        "pending": _pending(folder, current),
        "problems": [
            *expiry_problems(current, now),
            *_online_problems(folder, current),
            *_file_problems(folder, current),
        ],
    }


def describe(current: Current, now: datetime) -> dict[str, Any]:
    """The part of `status` that reads no target file and no key."""
    root = current.root.signed
    roles = {role: getattr(current, role).signed for role in ROLES}
    return {
        "roles": {
            role: {
                "version": signed.version,
                "expires": signed.expires.isoformat(),
                "days_left": round((signed.expires - now).total_seconds() / 86400, 1),
                "threshold": root.roles[role].threshold,
                "keys": len(root.roles[role].keyids),
            }
            for role, signed in roles.items()
        },
        "targets": [
            {
                **entry.target.to_custom(),
                "label": entry.target.label,
                "path": path,
                "size": entry.length,
                "sha256": entry.sha256,
            }
            for path, entry in entries(current.targets.signed).items()
        ],
        "measure": current.measure and _measure(current.measure.signed),
    }


def _measure(signed: Targets) -> dict[str, Any]:
    """The delegated role: it names a round per board that measures, and has mostly expired, which harms nobody."""
    labels = [entry.target.label for entry in entries(signed).values()]
    return {"version": signed.version, "expires": signed.expires.isoformat(), "targets": labels}


def expiry_problems(current: Current, now: datetime) -> list[str]:
    """One line per role that has expired, or has less than a third of its life left."""
    found = []
    for role in ROLES:
        expires = getattr(current, role).signed.expires
        if expires <= now:
            found.append(f"{role} has expired on {expires:%Y-%m-%d}: boards take no update")
        elif near_expiry(role, expires.timestamp(), now.timestamp()):
            found.append(f"{role} expires on {expires:%Y-%m-%d}: less than a third of its life is left")
    return found


def _keys(folder: Path, current: Current) -> list[dict[str, Any]]:
    """Every key that is in force: who it is, what it signs, and where its private half lies, if here."""
    files = _files(folder)
    rows: dict[str, dict[str, Any]] = {}
    for key, role in _named(current):
        row = rows.setdefault(
            key.keyid, {"id": key.keyid, "name": bare_name(key), "roles": [], "file": files.get(key.keyid)}
        )
        row["roles"].append(role)
    return list(rows.values())


def _named(current: Current) -> list[tuple[Key, str]]:
    root, delegations = current.root.signed, current.targets.signed.delegations
    found = [(root.keys[keyid], role) for role in ROLES for keyid in root.roles[role].keyids]
    for name, role in ((delegations.roles or {}) if delegations is not None else {}).items():
        found += [(delegations.keys[keyid], name) for keyid in role.keyids] if delegations is not None else []
    return found


def _files(folder: Path) -> dict[str, str]:
    """Key id -> file, of the private keys here; what cannot be read is not here."""
    found: dict[str, str] = {}
    for path in key_files(folder):
        try:
            found.setdefault(key_id(read_key(path)), str(path))
        except BadInput:
            continue
    return found


def _pending(folder: Path, current: Current) -> list[dict[str, Any]]:
    rows = []
    previous = current.root.signed
    for root in pending_roots(folder, current.root):
        missing = [
            {"whose": row.whose or "old and new", "missing": row.missing, "of": list(row.of)}
            for row in wanted(previous, root)
        ]
        version = root.signed.version
        line = next(
            iter(waiting(current, [root], folder, previous)),
            f"root {version} waits: edgekit repo sign {folder}",
        )
        rows.append(
            {"version": version, "file": str(pending_file(folder, version)), "wants": missing, "line": line}
        )
        previous = root.signed
    return rows


def _online_problems(folder: Path, current: Current) -> list[str]:
    files = _files(folder)
    role = current.root.signed.roles["timestamp"]
    if any(keyid in files for keyid in role.keyids):
        return []
    remedy = f"bring it back, or replace it: edgekit repo rotate {folder} online"
    return [f"the online key is not in {folder / KEYS}: nothing can be published or renewed here; {remedy}"]


def _file_problems(folder: Path, current: Current) -> list[str]:
    found = []
    for path, entry in entries(current.targets.signed).items():
        file = target_file(folder, path)
        if not file.is_file():
            found.append(f"{entry.target.label}: {file} is missing")
        elif measure(file) != (entry.length, entry.sha256):
            found.append(f"{entry.target.label}: {file} is not the file that was signed")
    return found
