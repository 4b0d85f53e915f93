"""Sign anew what is due: snapshot and timestamp with the online key, targets and root where their keys are at hand.

Everything is due once a third of its life has gone, the timestamp after a day. After a restore from an older backup,
`past` lifts versions above those that boards have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Metadata, MetaFile, Root, Targets

from edgekit.core.errors import BadInput
from edgekit.core.trust import LIVES_S
from edgekit.repo.add import TARGETS_LIFE
from edgekit.repo.delegate import no_candidates
from edgekit.repo.keyring import Held, Keyring, keyring, name_of
from edgekit.repo.metadata import MEASURE, Current, delegates, read_current
from edgekit.repo.pending import pending_roots, propose, settle_keys, sign_locked, sign_with
from edgekit.repo.publish import keys_of, renew_online
from edgekit.repo.root import renewed
from edgekit.repo.write import locked, write_online_roles, write_role

ROLES = ("root", "targets", "snapshot", "timestamp")
MAX_VERSION = 2**31
_ALL = (*ROLES[1:], MEASURE)


@dataclass(frozen=True)
class Refreshed:
    """renewed: role -> its new version. waiting: what could not be renewed, and which key it needs, one line each.

    alarming: some of that has less than a third of its life left.
    """

    current: Current
    renewed: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()
    alarming: bool = False


def versions(current: Current) -> dict[str, int]:
    """Each role's version in force; measure's as the snapshot names it, where it does."""
    found: dict[str, int] = {role: getattr(current, role).signed.version for role in ROLES}
    named = current.snapshot.signed.meta.get(f"{MEASURE}.json")
    return found | ({} if named is None else {MEASURE: named.version})


def left(current: Current, role: str, now: datetime) -> float:
    """The share of a role's life that is left: below 0 it has expired."""
    expires: datetime = getattr(current, role).signed.expires
    return (expires - now).total_seconds() / LIVES_S[role]


def is_due(current: Current, role: str, now: datetime) -> bool:
    """Whether a third of the life has gone."""
    return left(current, role, now) < 2 / 3


def refresh(folder: Path, now: datetime, more: Sequence[Path] = ()) -> Refreshed:
    """Renew what is due. more: key files beside those in DIR/keys.

    A root that is due and lacks signatures is made to wait for them once some of them are there, or once less than a
    third of its life is left. Raises BadInput (a damaged repository or key file), WorldFailed.
    """
    with locked(folder):
        before = read_current(folder)
        settle_keys(folder, before)
        keys = keyring(folder, more=more)
        lines: list[str] = []
        current = _root(folder, before, keys, now, lines)
        for renew in (_targets, _online):
            try:
                current = renew(folder, current, keys, now)
            except BadInput as err:
                if str(err) not in lines:
                    lines.append(str(err))
        was = versions(before)
        anew = {role: version for role, version in versions(current).items() if version != was.get(role)}
        alarming = any(left(current, role, now) < 1 / 3 for role in ROLES)
        return Refreshed(current, anew, tuple(lines), alarming)


def advance(folder: Path, past: Mapping[str, int], now: datetime, more: Sequence[Path] = ()) -> Current:
    """Sign anew with versions above those given by role (targets, measure, snapshot, timestamp).

    What is behind already stays as it is; the snapshot and the timestamp go one up with whatever is below them.
    Raises BadInput (a key that is not at hand, a version out of range), WorldFailed.
    """
    for role, version in past.items():
        if role not in _ALL or not 0 < version < MAX_VERSION:
            raise BadInput(
                f"{role}={version}: must be one of {', '.join(_ALL)} and a version below {MAX_VERSION}"
            )
    with locked(folder):
        current = read_current(folder)
        online = keys_of(folder, current)
        keys = keyring(folder, more=more)
        changed: dict[str, MetaFile] = {}
        targets, measure = current.targets, current.measure
        if past.get("targets", 0) >= targets.signed.version:
            targets = _resigned(current, keys, now, past["targets"] + 1)
            changed["targets.json"] = write_role(
                folder, "targets", targets.signed.version, targets.to_bytes()
            )
        if measure is not None and past.get(MEASURE, 0) >= measure.signed.version:
            measure = _empty_measure(targets.signed, keys, past[MEASURE] + 1, now)
            data = measure.to_bytes()
            changed[f"{MEASURE}.json"] = write_role(folder, MEASURE, measure.signed.version, data)
        behind = any(
            past.get(role, 0) >= getattr(current, role).signed.version for role in ("snapshot", "timestamp")
        )
        if not (changed or behind):
            return current
        current = write_online_roles(folder, current, changed, now, online, past)
        return replace(current, targets=targets, measure=measure)


def _root(folder: Path, current: Current, keys: Keyring, now: datetime, lines: list[str]) -> Current:
    """Sign what waits; where nothing does and the root is due, let its renewal wait, signed with what is there."""
    held = [keyid for keyid in current.root.signed.roles["root"].keyids if keyid in keys]
    if is_due(current, "root", now) and not pending_roots(folder, current.root):
        if held or left(current, "root", now) < 1 / 3:
            propose(folder, [renewed(current.root.signed, now)])
        else:
            lines.append(f"root wants {_keys_of(current.root.signed, 'root')} {_until(current, 'root')}")
    outcome = sign_locked(folder, keys, now)
    lines += outcome.waiting
    return outcome.current


def _targets(folder: Path, current: Current, keys: Keyring, now: datetime) -> Current:
    if not is_due(current, "targets", now):
        return current
    targets = _resigned(current, keys, now, current.targets.signed.version + 1)
    online = keys_of(folder, current)
    named = {"targets.json": write_role(folder, "targets", targets.signed.version, targets.to_bytes())}
    return replace(write_online_roles(folder, current, named, now, online), targets=targets)


def _online(folder: Path, current: Current, _keys: Keyring, now: datetime) -> Current:
    return renew_online(folder, current, now) or current


def _resigned(current: Current, keys: Keyring, now: datetime, version: int) -> Metadata[Targets]:
    """The same targets for another year. Raises BadInput where too few of their keys are at hand."""
    root = current.root.signed
    role = root.roles["targets"]
    held = [keys[keyid].key for keyid in role.keyids if keyid in keys]
    if len(held) < role.threshold:
        raise BadInput(f"targets wants {_keys_of(root, 'targets')} {_until(current, 'targets')}")
    new = deepcopy(current.targets.signed)
    new.version = version
    new.expires = (now + TARGETS_LIFE).replace(microsecond=0)
    return sign_with(Metadata(new), held)


def _empty_measure(targets: Targets, keys: Keyring, version: int, now: datetime) -> Metadata[Targets]:
    if not delegates(targets) or targets.delegations is None:
        raise BadInput("no key may sign for measuring here")
    held: list[Held] = [keys[keyid] for keyid in targets.delegations.keys if keyid in keys]
    if not held:
        names = ", ".join(name_of(key) for key in targets.delegations.keys.values())
        raise BadInput(f"measure wants its key {names}: give it with --key")
    return sign_with(no_candidates(version, now), [entry.key for entry in held])


def _keys_of(root: Root, role: str) -> str:
    """`2 of the keys root-1 (1a2b3c4d), root-2 (...)`."""
    found = root.roles[role]
    names = ", ".join(name_of(root.keys[keyid]) for keyid in found.keyids)
    return f"{found.threshold} of the keys {names}" if len(found.keyids) > 1 else f"the key {names}"


def _until(current: Current, role: str) -> str:
    expires: datetime = getattr(current, role).signed.expires
    alarm = expires - timedelta(seconds=LIVES_S[role] / 3)
    return f"(expires on {expires:%Y-%m-%d}; an alarm is raised from {alarm:%Y-%m-%d})"
