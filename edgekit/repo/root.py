"""Root metadata: who may sign what, its next version, and whose signatures are missing. Reads and writes no file.

A new root counts once enough keys of the root before it, and enough of its own, have signed it (TUF specification 1.0,
section 5.3). Every version is kept for ever: a board walks from the one it was enrolled with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root

from edgekit.core.errors import BadInput
from edgekit.core.trust import LIVES_S
from edgekit.repo.keyring import Keyring, name_of
from edgekit.repo.keys import signer

ROOT_LIFE = timedelta(seconds=LIVES_S["root"])
# What a key is for -> the roles that the root names it for.
DUTIES = {"root": ("root",), "targets": ("targets",), "online": ("snapshot", "timestamp")}


@dataclass(frozen=True)
class Wanted:
    """Signatures that one root role still wants: `missing` of the keys in `of`. whose: before or after the change."""

    whose: str
    missing: int
    of: tuple[str, ...]

    def __str__(self) -> str:
        whose = f"{self.whose} root keys" if self.whose else "root keys"
        return f"{self.missing} more of the {whose} {', '.join(self.of)}"


def first_root(keys: Mapping[str, Sequence[Key]], threshold: int, now: datetime) -> Root:
    """Version 1. keys: what each of DUTIES is signed with; threshold: how many root keys must sign."""
    root = Root(expires=expiry(now), consistent_snapshot=True)
    for duty, roles in DUTIES.items():
        for role in roles:
            for key in keys[duty]:
                root.add_key(key, role)
    root.roles["root"].threshold = threshold
    return root


def renewed(root: Root, now: datetime) -> Root:
    """The next version, with a year to live."""
    new = deepcopy(root)
    new.version += 1
    new.expires = expiry(now)
    return new


def with_keys(
    root: Root, duty: str, keys: Sequence[Key], now: datetime, *, instead_of: Sequence[str] | None = None
) -> Root:
    """The next version, in which `keys` do a duty. instead_of: ids of the keys that go; None: all that did it."""
    new = renewed(root, now)
    for role in DUTIES[duty]:
        gone = list(new.roles[role].keyids) if instead_of is None else instead_of
        for keyid in gone:
            new.revoke_key(keyid, role)
        for key in keys:
            new.add_key(key, role)
    return new


def expiry(now: datetime) -> datetime:
    """When a root that is made now ends."""
    return (now + ROOT_LIFE).replace(microsecond=0)


def check_threshold(keys: int, threshold: int) -> None:
    """Raises BadInput where so many keys cannot have that threshold."""
    if not 1 <= threshold <= keys:
        raise BadInput(f"the threshold of {keys} root keys must be from 1 to {keys}, got {threshold}")


def add_signatures(previous: Root, metadata: Metadata[Root], keys: Keyring) -> tuple[str, ...]:
    """Sign with every key at hand whose signature counts and is missing; the names of those that signed."""
    result = metadata.signed.get_root_verification_result(
        previous, metadata.signed_bytes, metadata.signatures
    )
    done = []
    for keyid, key in result.unsigned.items():
        if keyid in keys:
            metadata.sign(signer(keys[keyid].key), append=True)
            done.append(name_of(key))
    return tuple(done)


def wanted(previous: Root, metadata: Metadata[Root]) -> tuple[Wanted, ...]:
    """What is missing until `metadata` may follow `previous`: nothing once both thresholds hold."""
    new = metadata.signed
    rows = []
    for whose, judge in (("old", previous), ("new", new)):
        result = judge.get_verification_result("root", metadata.signed_bytes, metadata.signatures)
        if not result.verified:
            names = tuple(sorted(name_of(key) for key in result.unsigned.values()))
            rows.append(Wanted(whose, result.threshold - len(result.signed), names))
    if len(rows) == 2 and rows[0].of == rows[1].of and rows[0].missing == rows[1].missing:
        return (Wanted("", rows[0].missing, rows[0].of),)
    return tuple(rows)


def said(root: Root) -> tuple[str, ...]:
    """What a root says, for who is to sign it: one line per duty."""
    lines = [f"root {root.version} expires on {root.expires:%Y-%m-%d}"]
    for duty, roles in DUTIES.items():
        role = root.roles[roles[0]]
        names = ", ".join(name_of(root.keys[keyid]) for keyid in role.keyids)
        lines.append(f"{duty}: {role.threshold} of {names}" if len(role.keyids) > 1 else f"{duty}: {names}")
    return tuple(lines)
