"""Say what a repository holds and what is wrong with it, as data. Changes nothing."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Targets

from edgekit.repo.add import TARGETS_LIFE, measure
from edgekit.repo.init import ROOT_LIFE
from edgekit.repo.metadata import Current, entries, read_current, target_file
from edgekit.repo.publish import SNAPSHOT_LIFE, TIMESTAMP_LIFE

LIVES = {"root": ROOT_LIFE, "targets": TARGETS_LIFE, "snapshot": SNAPSHOT_LIFE, "timestamp": TIMESTAMP_LIFE}


def status(folder: Path, now: datetime) -> dict[str, Any]:
    """Roles with version and expiry, targets, and one line per problem; every target's file is hashed.

    Raises BadInput where the metadata cannot be read or does not verify, WorldFailed.
    """
    current = read_current(folder)
    return {
        **describe(current, now),
        "problems": [*expiry_problems(current, now), *_file_problems(folder, current)],
    }


def describe(current: Current, now: datetime) -> dict[str, Any]:
    """The part of `status` that reads no target file."""
    roles = {role: getattr(current, role).signed for role in LIVES}
    return {
        "roles": {
            role: {
                "version": signed.version,
                "expires": signed.expires.isoformat(),
                "days_left": round((signed.expires - now).total_seconds() / 86400, 1),
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
    for role, life in LIVES.items():
        expires = getattr(current, role).signed.expires
        if expires <= now:
            found.append(f"{role} has expired on {expires:%Y-%m-%d}: boards take no update")
        elif expires - now < life / 3:
            found.append(f"{role} expires on {expires:%Y-%m-%d}: less than a third of its life is left")
    return found


def _file_problems(folder: Path, current: Current) -> list[str]:
    found = []
    for path, entry in entries(current.targets.signed).items():
        file = target_file(folder, path)
        if not file.is_file():
            found.append(f"{entry.target.label}: {file} is missing")
        elif measure(file) != (entry.length, entry.sha256):
            found.append(f"{entry.target.label}: {file} is not the file that was signed")
    return found
