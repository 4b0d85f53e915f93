"""One round's candidates in one file: a stored zip of bundles in the canonical byte form. Runs none of them."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from edgekit.core.bench import MAX_CANDIDATES
from edgekit.core.bundle import Bundle, check_form, open_bundle, open_stored_zip, stored_zip
from edgekit.core.checks import canonical_json
from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.core.target import Target

_CHUNK = 1 << 20


def pack_candidates(bundles: Sequence[bytes]) -> bytes:
    """The file of a round: `000.edge`, `001.edge`, … in their order. Raises BadInput for none, or too many."""
    if not 1 <= len(bundles) <= MAX_CANDIDATES:
        raise BadInput(f"a round must have 1 to {MAX_CANDIDATES} candidates, got {len(bundles)}")
    return stored_zip({_member(index): data for index, data in enumerate(bundles)})


def unpack_candidates(path: Path, folder: Path, max_bytes: int = 2**31) -> tuple[Bundle, ...]:
    """Write the bundles of a round into `folder` (empty, there) and open each, fully verified.

    Raises BadBundle for anything but what `pack_candidates` writes of good bundles, WorldFailed where the disk fails.
    """
    try:
        with path.open("rb") as file:
            archive, size = open_stored_zip(path, file, max_bytes)
            infos = archive.infolist()
            if not 1 <= len(infos) <= MAX_CANDIDATES:
                raise BadBundle(f"{path}: must hold 1 to {MAX_CANDIDATES} candidates, has {len(infos)}")
            check_form(path, file, infos, size)
            for index, info in enumerate(infos):
                if info.filename != _member(index):
                    raise BadBundle(f"{path}: member {index} must be {_member(index)}, is {info.filename!r}")
                with archive.open(info) as member, (folder / _member(index)).open("xb") as out:
                    shutil.copyfileobj(member, out, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError) as err:
        raise BadBundle(f"{path}: damaged: {err}") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be unpacked: {err.strerror or err}") from err
    return tuple(open_bundle(folder / _member(index)) for index in range(len(infos)))


def target_of_candidates(board: str, version: int, bundles: Sequence[Bundle]) -> Target:
    """The target that has one board measure these bundles: called as the board, for the profiles all of them are for.

    Raises BadInput where they have no profile in common.
    """
    common = [
        name for name in bundles[0].manifest.profiles if all(name in b.manifest.profiles for b in bundles)
    ]
    if not common:
        raise BadInput("candidates of one round must have a profile in common")
    return Target(
        name=board,
        version=version,
        profiles=tuple(common),
        use="measure",
        state="current",
        content_id=hashlib.sha256(canonical_json([bundle.content_id for bundle in bundles])).hexdigest(),
        executes_code=any(bundle.manifest.executes_code for bundle in bundles),
    )


def _member(index: int) -> str:
    return f"{index:03}.edge"
