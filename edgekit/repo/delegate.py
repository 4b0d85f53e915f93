"""The delegation `measure`: a key of its own for what boards only time. It can sign nothing that a board would run.

Its metadata lives for a day and holds at most one round per board; the targets key alone gives and takes the
delegation away.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile, Targets

from edgekit.core.bundle import Bundle
from edgekit.core.candidates import target_of_candidates
from edgekit.core.errors import BadInput
from edgekit.core.target import Target
from edgekit.repo.add import Conflict, measure
from edgekit.repo.keyring import public
from edgekit.repo.metadata import MEASURE, Entry, entries

PATHS = (f"{MEASURE}/*/*.edge",)
MEASURE_LIFE = timedelta(days=1)
MEASURE_LONGEST = timedelta(days=2)  # what a publisher lets through, as its clock goes


def delegation(key: Ed25519PrivateKey) -> Delegations:
    """What the targets metadata says about measuring: who signs it, and where it ends."""
    half = public(key, MEASURE)
    role = DelegatedRole(MEASURE, [half.keyid], 1, terminating=True, paths=list(PATHS))
    return Delegations({half.keyid: half}, {MEASURE: role})


def no_candidates(version: int, now: datetime) -> Metadata[Targets]:
    """Measure metadata that names nothing, unsigned."""
    return Metadata(Targets(version=version, expires=_expires(now)))


def with_candidates(
    metadata: Metadata[Targets], board: str, file: Path, bundles: Sequence[Bundle], now: datetime
) -> tuple[Metadata[Targets], Target]:
    """The next measure metadata, unsigned, and in it the round in `file` (of `bundles`) for one board.

    An earlier round for the same board goes; the target's version is the metadata's own, so it always grows.
    Raises BadInput where the bundles are not for one kind of board.
    """
    new = without_candidates(metadata, board, now)
    target = target_of_candidates(board, new.signed.version, bundles)
    length, sha256 = measure(file)
    custom = {"custom": target.to_custom()}
    new.signed.targets[target.path] = TargetFile(length, {"sha256": sha256}, target.path, custom)
    return new, target


def without_candidates(metadata: Metadata[Targets], board: str, now: datetime) -> Metadata[Targets]:
    """The next measure metadata, unsigned, without anything for that board."""
    new = deepcopy(metadata.signed)
    new.version += 1
    new.expires = _expires(now)
    for path, entry in entries(new).items():
        if entry.target.name == board:
            del new.targets[path]
    return Metadata(new)


def check_measure(old: Targets, new: Targets, now: datetime) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """What `new` adds to `old`, and the paths that it drops: what a publisher accepts whoever signed it.

    Raises Conflict where it is not the next version or changes a published entry, BadInput where it names anything but
    rounds to measure, lives too long, or delegates further.
    """
    if new.version != old.version + 1:
        raise Conflict(
            f"measure metadata must be version {old.version + 1}, got {new.version}: somebody else published "
            "meanwhile; fetch the metadata and sign again"
        )
    if new.is_expired(now):
        raise BadInput(f"measure metadata has expired on {new.expires:%Y-%m-%d %H:%M}")
    if new.expires - now > MEASURE_LONGEST:
        raise BadInput(
            f"measure metadata must expire within {MEASURE_LONGEST.days} days, got {new.expires:%Y-%m-%d}"
        )
    if new.delegations is not None and new.delegations.roles:
        raise BadInput("measure metadata must not delegate further")
    before, after = entries(old), entries(new)
    for path, entry in after.items():
        if entry.target.use != MEASURE:
            raise BadInput(f"measure metadata may name only what is to be measured, got {path}")
        if path in before and before[path] != entry:
            raise Conflict(f"measure metadata must keep {entry.target.label} as it was published")
    added = {path: entry for path, entry in after.items() if path not in before}
    return added, tuple(path for path in before if path not in after)


def _expires(now: datetime) -> datetime:
    return (now + MEASURE_LIFE).replace(microsecond=0)
