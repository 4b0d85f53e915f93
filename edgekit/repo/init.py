"""Make a repository: four keys, a root of trust, and empty metadata that clients can refresh from."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.repo.add import TARGETS_LIFE, sign_targets
from edgekit.repo.delegate import delegation, no_candidates
from edgekit.repo.keys import read_or_make_key, signer
from edgekit.repo.metadata import Current, key_file, metadata_folder, read_current
from edgekit.repo.publish import SNAPSHOT_LIFE, TIMESTAMP_LIFE, locked, make_folders, meta_file, write_online

ROOT_LIFE = timedelta(days=365)
KEYS = ("root", "targets", "measure", "online")
ROLE_KEYS = {"root": "root", "targets": "targets", "snapshot": "online", "timestamp": "online"}


def init(folder: Path, now: datetime) -> Current:
    """Fill `folder` (made if there is none); keys that lie in its `keys` already are used.

    timestamp.json comes last: without it an earlier attempt was cut short and is made anew. Raises BadInput where a
    repository is there already, WorldFailed.
    """
    for below in ("metadata", "targets", "keys"):
        make_folders(folder.parent, f"{folder.name}/{below}")
    key_file(folder, "root").parent.chmod(0o700)
    base, now = metadata_folder(folder), now.replace(microsecond=0)
    with locked(folder):
        if (base / "timestamp.json").exists():
            raise BadInput(f"{folder}: is a repository already (edgekit repo status {folder})")
        keys = {name: read_or_make_key(key_file(folder, name)) for name in KEYS}
        root = Root(expires=now + ROOT_LIFE, consistent_snapshot=True)
        for role, name in ROLE_KEYS.items():
            root.add_key(signer(keys[name]).public_key, role)
        signed_root = Metadata(root)
        signed_root.sign(signer(keys["root"]))
        write_atomic(base / "1.root.json", signed_root.to_bytes())
        targets = Targets(expires=now + TARGETS_LIFE, delegations=delegation(keys["measure"]))
        contents = {
            "measure.json": sign_targets(no_candidates(1, now), keys["measure"]),
            "targets.json": sign_targets(Metadata(targets), keys["targets"]),
        }
        for name, data in contents.items():
            write_atomic(base / f"1.{name}", data)
        files = {name: meta_file(1, data) for name, data in contents.items()}
        snapshot = Metadata(Snapshot(expires=now + SNAPSHOT_LIFE, meta=files))
        named: MetaFile = write_online(folder, "1.snapshot.json", snapshot, keys["online"])
        timestamp = Metadata(Timestamp(expires=now + TIMESTAMP_LIFE, snapshot_meta=named))
        write_online(folder, "timestamp.json", timestamp, keys["online"])
    return read_current(folder)
