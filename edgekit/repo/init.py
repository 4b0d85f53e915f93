"""Make a repository: its keys, a root of trust, and empty metadata that clients can refresh from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.repo.add import TARGETS_LIFE, sign_targets
from edgekit.repo.delegate import delegation, no_candidates
from edgekit.repo.keyring import public
from edgekit.repo.keys import read_or_make_key, signer
from edgekit.repo.metadata import Current, key_file, metadata_folder, read_current
from edgekit.repo.root import check_threshold, first_root
from edgekit.repo.write import SNAPSHOT_LIFE, TIMESTAMP_LIFE, locked, make_folders, meta_file, write_online

# Any two of three: one lost key locks nobody out, one stolen key signs nothing.
ROOT_KEYS, ROOT_THRESHOLD = 3, 2
OTHER_KEYS = ("targets", "measure", "online")


def root_names(count: int) -> tuple[str, ...]:
    """What root keys are called, and their files."""
    return ("root",) if count == 1 else tuple(f"root-{number}" for number in range(1, count + 1))


def init(
    folder: Path, now: datetime, root_keys: int = ROOT_KEYS, root_threshold: int | None = None
) -> Current:
    """Fill `folder` (made if there is none); keys that lie in its `keys` already are used.

    root_threshold: how many of the root keys must sign a change of keys; None: more than half of them.
    timestamp.json comes last: without it an earlier attempt was cut short and is made anew. Raises BadInput where a
    repository is there already, WorldFailed.
    """
    threshold = root_keys // 2 + 1 if root_threshold is None else root_threshold
    check_threshold(root_keys, threshold)
    for below in ("metadata", "targets", "keys"):
        make_folders(folder.parent, f"{folder.name}/{below}")
    key_file(folder, "root").parent.chmod(0o700)
    base, now = metadata_folder(folder), now.replace(microsecond=0)
    with locked(folder):
        if (base / "timestamp.json").exists():
            raise BadInput(f"{folder}: is a repository already (edgekit repo status {folder})")
        names = root_names(root_keys)
        keys = {name: read_or_make_key(key_file(folder, name)) for name in (*names, *OTHER_KEYS)}
        write_atomic(base / "1.root.json", _root(keys, names, threshold, now))
        targets = Targets(expires=now + TARGETS_LIFE, delegations=delegation(keys["measure"]))
        contents = {
            "measure.json": sign_targets(no_candidates(1, now), keys["measure"]),
            "targets.json": sign_targets(Metadata(targets), keys["targets"]),
        }
        for name, data in contents.items():
            write_atomic(base / f"1.{name}", data)
        files = {name: meta_file(1, data) for name, data in contents.items()}
        snapshot = Metadata(Snapshot(expires=now + SNAPSHOT_LIFE, meta=files))
        named: MetaFile = write_online(folder, "1.snapshot.json", snapshot, (keys["online"],))
        timestamp = Metadata(Timestamp(expires=now + TIMESTAMP_LIFE, snapshot_meta=named))
        write_online(folder, "timestamp.json", timestamp, (keys["online"],))
    return read_current(folder)


def _root(keys: dict[str, Ed25519PrivateKey], names: tuple[str, ...], threshold: int, now: datetime) -> bytes:
    named = {name: public(key, name) for name, key in keys.items()}
    duties = {"root": [named[name] for name in names]}
    duties |= {name: [named[name]] for name in ("targets", "online")}
    root = Metadata(first_root(duties, threshold, now))
    for name in names:
        root.sign(signer(keys[name]), append=True)
    return root.to_bytes()
