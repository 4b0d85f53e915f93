"""Which private keys are at hand, found by key id whatever their files are called. Signs nothing.

    DIR/keys/root.pem, or root-1.pem ... root-N.pem     the keys that the metadata in force names
    DIR/keys/{targets,measure,online}.pem
    DIR/keys/next/                                      drawn for a root that waits for signatures
    DIR/keys/retired/                                   named no more; nothing here ever deletes one that was in force

A kill between two moves leaves a key in `next` that is in force already: it is found there, and the next command moves
it. All folders are their owner's alone, all files have mode 0600.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import SSlibKey

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import sync_folder
from edgekit.repo.keys import read_key, read_or_make_key, signer

KEYS, NEXT, RETIRED = "keys", "keys/next", "keys/retired"
ROLES = ("root", "targets", "measure", "online")  # what key files are called after
_NAME = "x-edgekit-name"  # what people call a key, beside it in the metadata
_FILE = re.compile(rf"({'|'.join(ROLES)})(-[0-9]+)?\.pem")
_SHOWN = 8


@dataclass(frozen=True)
class Held:
    """A private key and where it lies."""

    path: Path
    key: Ed25519PrivateKey = field(repr=False)


Keyring = Mapping[str, Held]
"""Key id -> the key."""


def key_id(key: Ed25519PrivateKey) -> str:
    """TUF's name of the key: a hash of its public half."""
    return str(signer(key).public_key.keyid)


def public(key: Ed25519PrivateKey, name: str) -> SSlibKey:
    """The public half as metadata holds it, with the name that people call it."""
    found = signer(key).public_key
    found.unrecognized_fields[_NAME] = name
    return found


def name_of(key: object) -> str:
    """What people call a key of the metadata: `root-2 (1a2b3c4d)`; its id alone where it has no name."""
    fields, keyid = getattr(key, "unrecognized_fields", {}), str(getattr(key, "keyid", "?"))[:_SHOWN]
    name = fields.get(_NAME)
    return f"{name} ({keyid})" if isinstance(name, str) and name.isprintable() else keyid


def bare_name(key: object) -> str | None:
    """The name alone, None where it has none."""
    name = getattr(key, "unrecognized_fields", {}).get(_NAME)
    return name if isinstance(name, str) and name.isprintable() else None


def key_files(folder: Path, role: str | None = None, where: Iterable[str] = (KEYS, NEXT)) -> Iterator[Path]:
    """The key files of a repository that are called after a role (None: any)."""
    for below in where:
        try:
            found = sorted((folder / below).iterdir())
        except FileNotFoundError:
            continue
        except OSError as err:
            raise WorldFailed(f"{folder / below}: could not be read: {err.strerror or err}") from err
        for path in found:
            match = _FILE.fullmatch(path.name)
            if match and role in (None, match[1]):
                yield path


def keyring(folder: Path, role: str | None = None, more: Iterable[Path] = ()) -> dict[str, Held]:
    """The keys in DIR/keys and DIR/keys/next that are called after `role`, and the files in `more`.

    Raises BadInput (a file that is no private key, or that others may read), WorldFailed.
    """
    paths = [*key_files(folder, role), *more]
    held: dict[str, Held] = {}
    for path in paths:
        key = read_key(path)
        held.setdefault(key_id(key), Held(path, key))
    return held


def online_keys(folder: Path, names: AbstractSet[str], threshold: int) -> tuple[Ed25519PrivateKey, ...]:
    """The keys that sign snapshot and timestamp, of those whose ids `names` holds.

    Raises BadInput where there are fewer than the threshold, WorldFailed.
    """
    held = keyring(folder, "online")
    found = tuple(entry.key for keyid, entry in held.items() if keyid in names)
    if len(found) < max(threshold, 1):
        wanted = ", ".join(sorted(keyid[:_SHOWN] for keyid in names))
        there = ", ".join(sorted(keyid[:_SHOWN] for keyid in held)) or "none"
        raise BadInput(
            f"{folder / KEYS}: must hold the online key that the root names ({wanted}), holds: {there}; bring it back, "
            f"or replace it: edgekit repo rotate {folder} online"
        )
    return found


def draw(folder: Path, name: str) -> Ed25519PrivateKey:
    """A new key in DIR/keys/next, or the one that an attempt cut short left there. Raises BadInput, WorldFailed."""
    below = folder / NEXT
    try:
        below.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(below.parent)
    except OSError as err:
        raise WorldFailed(f"{below}: could not be made: {err.strerror or err}") from err
    return read_or_make_key(below / f"{name}.pem")


def settle(folder: Path, named: AbstractSet[str], formerly: AbstractSet[str]) -> None:
    """Move key files to where they belong: `named` are the ids in force, `formerly` those of older roots.

    Raises WorldFailed. A file that is no key stays where it is.
    """
    for path in list(key_files(folder, where=(NEXT,))):
        if _id(path) in named:
            place = folder / KEYS / path.name
            if place.exists():
                _retire(folder, place)
            _move(path, place)
    for path in list(key_files(folder, where=(KEYS,))):
        if _id(path) in formerly - named:
            _retire(folder, path)


def forget_next(folder: Path) -> None:
    """Remove the keys that were drawn for roots which never came into force. Raises WorldFailed."""
    try:
        for path in list(key_files(folder, where=(NEXT,))):
            path.unlink()
    except OSError as err:
        raise WorldFailed(f"{folder / NEXT}: could not be emptied: {err.strerror or err}") from err


def _id(path: Path) -> str | None:
    with contextlib.suppress(BadInput):
        return key_id(read_key(path))
    return None


def _retire(folder: Path, path: Path) -> None:
    keyid = _id(path) or "unknown"
    _move(path, folder / RETIRED / f"{path.stem}-{keyid[:_SHOWN]}.pem")


def _move(source: Path, destination: Path) -> None:
    try:
        destination.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source.replace(destination)
        sync_folder(destination.parent)
        sync_folder(source.parent)
    except OSError as err:
        raise WorldFailed(f"{destination}: could not be written: {err.strerror or err}") from err
