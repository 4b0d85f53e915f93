"""New keys in place of old ones. Signs with what is at hand; what is signed elsewhere waits (repo/pending.py).

A key that is at hand is replaced by one new root. A key that is lost is replaced by two: the first names the old key
and the new one, so that what the old key signed still counts while it is signed anew, the second the new one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Root

from edgekit.core.errors import BadInput
from edgekit.repo.add import Conflict
from edgekit.repo.init import root_names
from edgekit.repo.keyring import Keyring, bare_name, draw, keyring, name_of, public
from edgekit.repo.metadata import delegates, read_current
from edgekit.repo.pending import Outcome, pending_roots, propose, settle_keys, sign_locked
from edgekit.repo.publish import delegate
from edgekit.repo.root import DUTIES, check_threshold, with_keys
from edgekit.repo.write import locked

MEASURE = "measure"
ROTATED = (*DUTIES, MEASURE)


def rotate(folder: Path, duty: str, now: datetime, more: Sequence[Path] = ()) -> Outcome:
    """A new key for targets, measure or online. more: key files beside those in DIR/keys.

    Raises BadInput (a key of the same duty waits already, no targets key for measure), WorldFailed.
    """
    if duty == MEASURE:
        return _rotate_measure(folder, now, keyring(folder, more=more))
    with locked(folder):
        base = _base(folder, duty)
        new = public(draw(folder, duty), duty)
        keys = keyring(folder, more=more)
        after = [with_keys(base, duty, [new], now)]
        if not _at_hand(base, duty, keys):
            both = with_keys(base, duty, [new], now, instead_of=())
            after = [both, with_keys(both, duty, [new], now)]
        propose(folder, after)
        return sign_locked(folder, keys, now)


def rotate_root(
    folder: Path,
    now: datetime,
    more: Sequence[Path] = (),
    *,
    which: str | None = None,
    count: int | None = None,
    threshold: int | None = None,
) -> Outcome:
    """New root keys: the one called `which`, by name or the first digits of its id, or all, as many as `count`.

    count, threshold: None: as many as before. Raises BadInput (no such key, a threshold that cannot be, root keys wait
    already), WorldFailed.
    """
    with locked(folder):
        base = _base(folder, "root")
        gone = [_find(base, which)] if which is not None else list(base.roles["root"].keyids)
        if which is not None and count is not None:
            raise BadInput("either one root key is replaced, or all are and get another number")
        names = _names(base, gone, count)
        wanted = base.roles["root"].threshold if threshold is None else threshold
        check_threshold(len(base.roles["root"].keyids) - len(gone) + len(names), wanted)
        new = [public(draw(folder, name), name) for name in names]
        root = with_keys(base, "root", new, now, instead_of=gone)
        root.roles["root"].threshold = wanted
        propose(folder, [root])
        return sign_locked(folder, keyring(folder, more=more), now)


def _base(folder: Path, duty: str) -> Root:
    """The root that the next one is made from: the last that waits, else the one in force.

    Raises Conflict where one that waits changes the keys of the same duty: two new keys would have one file.
    """
    current = read_current(folder)
    settle_keys(folder, current)
    base = current.root.signed
    for root in pending_roots(folder, current.root):
        if any(root.signed.roles[role] != base.roles[role] for role in DUTIES[duty]):
            raise Conflict(
                f"root {root.signed.version} waits already and changes the {duty} keys: sign it, or throw it away with "
                f"edgekit repo sign {folder} --cancel"
            )
        base = root.signed
    return base


def _at_hand(root: Root, duty: str, keys: Keyring) -> bool:
    roles = [root.roles[role] for role in DUTIES[duty]]
    return all(sum(keyid in keys for keyid in role.keyids) >= role.threshold for role in roles)


def _find(root: Root, which: str) -> str:
    """The id of the one root key that is meant. Raises BadInput."""
    ids = root.roles["root"].keyids
    found = [keyid for keyid in ids if which == bare_name(root.keys[keyid]) or keyid.startswith(which)]
    if len(found) != 1:
        known = ", ".join(name_of(root.keys[keyid]) for keyid in ids)
        raise BadInput(f"there is no one root key called {which!r}; there are: {known}")
    return found[0]


def _names(root: Root, gone: Sequence[str], count: int | None) -> tuple[str, ...]:
    """What the new root keys are called: as those they replace where that is known, else numbered."""
    everybody = root.roles["root"].keyids
    if len(gone) < len(everybody):
        own = bare_name(root.keys[gone[0]])
        taken = {bare_name(root.keys[keyid]) for keyid in everybody}
        free = (name for name in root_names(len(everybody) + 1) if name not in taken)
        return (own or next(free),)
    return root_names(len(everybody) if count is None else count)


def _rotate_measure(folder: Path, now: datetime, keys: Keyring) -> Outcome:
    current = read_current(folder)
    root = current.root.signed
    held = [keys[keyid].key for keyid in root.roles["targets"].keyids if keyid in keys]
    if not held:
        names = ", ".join(name_of(root.keys[keyid]) for keyid in root.roles["targets"].keyids)
        raise BadInput(
            f"the targets key {names} must be at hand to change the measuring key: give it with --key"
        )
    if not delegates(current.targets.signed):
        raise BadInput(
            f"{folder}: no key may sign for measuring here; give one: edgekit repo measure {folder}"
        )
    current = delegate(folder, held[0], draw(folder, MEASURE), now)
    with locked(folder):
        settle_keys(folder, current)
    return Outcome(current)
