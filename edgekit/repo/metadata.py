"""A repository folder: where things lie in it, and its metadata read and verified. Writes nothing.

    DIR/metadata/N.root.json N.targets.json N.measure.json N.snapshot.json timestamp.json
    DIR/targets/run/NAME/VERSION.edge       DIR/targets/measure/BOARD/VERSION.edge
    DIR/pending/N.root.json                 roots that wait for signatures; never served
    DIR/keys/                               never served; all but online belong elsewhere (repo/keyring.py)

Snapshots are consistent (metadata files carry their version), so timestamp.json alone says what is in force: until it
is replaced, nothing else that was written counts. Target files carry no hash in their name: a published version never
changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.target import Target
from edgekit.repo.keys import signer

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)
TargetsMetadata = Metadata[Targets]  # for those who handle metadata without the library
MEASURE = "measure"  # the delegated role, and the use and first folder of what it signs
ROOT_FILE = re.compile(r"([1-9]\d{0,9})\.root\.json")


@dataclass(frozen=True)
class Entry:
    """A target as the signed metadata describes it: edgekit's fields, and the file's length and hash."""

    target: Target
    length: int
    sha256: str


@dataclass(frozen=True)
class Current:
    """The metadata in force, each verified by the one above it. measure: None where nothing delegates to it."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    measure: Metadata[Targets] | None = None


def metadata_folder(folder: Path) -> Path:
    """Where metadata lies."""
    return folder / "metadata"


def target_file(folder: Path, path: str) -> Path:
    """Where the file of a target path lies."""
    return folder / "targets" / path


def key_file(folder: Path, role: str) -> Path:
    """Where `init` puts a role's private key."""
    return folder / "keys" / f"{role}.pem"


def parse(data: bytes, kind: type[T], where: str) -> Metadata[T]:
    """Read one metadata file's bytes as a role. Raises BadInput; no signature is checked here."""
    try:
        found = Metadata[T].from_bytes(data)
    except (DeserializationError, RecursionError) as err:
        raise BadInput(f"{where}: must be TUF metadata: {one_line(err)}") from err
    if not isinstance(found.signed, kind):
        raise BadInput(f"{where}: must be {kind.type} metadata, got {found.signed.type}")
    return found


def parse_targets(data: bytes, where: str) -> Metadata[Targets]:
    """Read targets metadata. Raises BadInput; no signature is checked here."""
    return parse(data, Targets, where)


def entry_of(path: str, info: TargetFile, where: str = "targets") -> Entry:
    """One target of the metadata. Raises BadInput where its fields or its path are not edgekit's."""
    target = Target.parse(info.custom, f"{where}: {path}: custom")
    if target.path != path:
        raise BadInput(f"{where}: {path}: must lie at {target.path}")
    sha256 = info.hashes.get("sha256")
    if sha256 is None:
        raise BadInput(f"{where}: {path}: must have a sha256")
    return Entry(target, info.length, sha256)


def entries(targets: Targets, where: str = "targets") -> Mapping[str, Entry]:
    """Target path -> entry. Raises BadInput."""
    return {path: entry_of(path, info, where) for path, info in sorted(targets.targets.items())}


def is_signed_by(targets: Metadata[Targets], key: Ed25519PrivateKey) -> bool:
    """Whether this very key signed the metadata: what its holder may build on, whoever handed it over."""
    public = signer(key).public_key
    signature = targets.signatures.get(public.keyid)
    if signature is None:
        return False
    try:
        public.verify_signature(signature, targets.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def signed_by_or_refused(targets: Metadata[Targets], key: Ed25519PrivateKey, where: str) -> None:
    """Raises BadInput unless this very key signed the metadata that a server handed out."""
    if not is_signed_by(targets, key):
        raise BadInput(f"{where}: is not the key that signs this server's targets")


def verify(root: Root, metadata: Metadata[T], where: str) -> None:
    """Check that enough of the keys that `root` names for the role signed it. Raises BadInput."""
    try:
        root.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as err:
        raise BadInput(f"{where}: {one_line(err)}") from err


def is_verified(root: Root, metadata: Metadata[T]) -> bool:
    """Whether enough of the keys that `root` names for the role signed it."""
    result = root.get_verification_result(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    return bool(result.verified)


def verify_measure(targets: Targets, metadata: Metadata[Targets], where: str) -> None:
    """Check that the key which `targets` delegates measuring to signed it. Raises BadInput."""
    try:
        targets.verify_delegate(MEASURE, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as err:
        raise BadInput(f"{where}: {one_line(err)}") from err


def delegates(targets: Targets) -> bool:
    """Whether the targets metadata names a key for measuring."""
    return targets.delegations is not None and MEASURE in (targets.delegations.roles or {})


def root_file(folder: Path) -> Path:
    """The newest root metadata file. Raises BadInput where the folder is no repository."""
    found = root_files(folder)
    if not found:
        raise BadInput(f"{folder}: is no repository; make one with: edgekit repo init {folder}")
    return found[max(found)]


def root_files(folder: Path) -> Mapping[int, Path]:
    """Every version of the root metadata. Raises WorldFailed."""
    try:
        found = {
            int(m[1]): p for p in metadata_folder(folder).iterdir() if (m := ROOT_FILE.fullmatch(p.name))
        }
    except FileNotFoundError:
        found = {}
    except OSError as err:
        raise WorldFailed(f"{folder}: could not be read: {err.strerror or err}") from err
    return found


def read_root(path: Path) -> Metadata[Root]:
    """A root metadata file; no signature is checked here. Raises BadInput, WorldFailed."""
    return _read(path, Root)


def read_current(folder: Path) -> Current:
    """Everything in force, verified from the newest root down. Raises BadInput, WorldFailed."""
    base = metadata_folder(folder)
    root = _read(root_file(folder), Root)
    verify(root.signed, root, str(root_file(folder)))
    timestamp = _verified(base / "timestamp.json", Timestamp, root.signed)
    version = timestamp.signed.snapshot_meta.version
    snapshot = _verified(base / f"{version}.snapshot.json", Snapshot, root.signed)
    version = snapshot.signed.meta["targets.json"].version
    targets = _verified(base / f"{version}.targets.json", Targets, root.signed)
    return Current(root, timestamp, snapshot, targets, _measure(base, snapshot.signed, targets.signed))


def _measure(base: Path, snapshot: Snapshot, targets: Targets) -> Metadata[Targets] | None:
    named = snapshot.meta.get(f"{MEASURE}.json")
    if named is None or not delegates(targets):
        return None
    path = base / f"{named.version}.{MEASURE}.json"
    found = _read(path, Targets)
    verify_measure(targets, found, str(path))
    return found


def targets_bytes(folder: Path) -> bytes:
    """The targets metadata in force, byte for byte. Raises BadInput, WorldFailed."""
    version = read_current(folder).targets.signed.version
    return _bytes(metadata_folder(folder) / f"{version}.targets.json")


def measure_bytes(folder: Path) -> bytes:
    """The measure metadata in force, byte for byte. Raises BadInput (also where there is none), WorldFailed."""
    version = measure_of(read_current(folder), folder).signed.version
    return _bytes(metadata_folder(folder) / f"{version}.{MEASURE}.json")


def measure_of(current: Current, folder: Path) -> Metadata[Targets]:
    """The measure metadata. Raises BadInput, with the remedy, where there is none."""
    if current.measure is None:
        raise BadInput(
            f"{folder}: no key may sign for measuring here; give one: edgekit repo measure {folder}"
        )
    return current.measure


def _read(path: Path, kind: type[T]) -> Metadata[T]:
    return parse(_bytes(path), kind, str(path))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as err:
        raise BadInput(f"{path}: is missing: the repository is not complete") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err


def _verified(path: Path, kind: type[T], root: Root) -> Metadata[T]:
    found = _read(path, kind)
    verify(root, found, str(path))
    return found
