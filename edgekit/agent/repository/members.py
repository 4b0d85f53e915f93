"""Which members of a bundle this board holds already, in slots or in begun downloads. Fetches nothing.

Nothing here is trusted: a manifest that has only just come is read within bounds, what a slot should hold is hashed
before it is taken, and the signed hash of the whole file has the last word.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.agent.repository.base import CHUNK
from edgekit.core import checks
from edgekit.core.errors import BadBundle, BadInput, one_line
from edgekit.core.layout import HEADER_BYTES, Piece, pieces, read_header
from edgekit.core.manifest import MANIFEST, Member

log = logging.getLogger(__name__)
FIRST = HEADER_BYTES + len(MANIFEST)  # bytes before the manifest's own
MAX_MANIFEST_BYTES = 1 << 20  # one larger than this is not read before the file it came in is believed
_MAX_MEMBERS = 10_000
_ANY_LENGTH = 1 << 62

Key = tuple[str, int]
"""sha256 and size of a member."""


@dataclass(frozen=True)
class Source:
    """Where a member's bytes lie on this board, and their checksum as it stands in a zip."""

    path: Path
    at: int
    size: int
    crc: int

    def holds(self, sha256: str, check: Callable[[], None]) -> bool:
        """Whether the bytes are there and have that hash."""
        digest, left = hashlib.sha256(), self.size
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                while left and (chunk := file.read(min(CHUNK, left))):
                    check()
                    digest.update(chunk)
                    left -= len(chunk)
        except OSError as err:
            log.warning("%s: could not be read: %s", self.path, err.strerror or err)
            return False
        return digest.hexdigest() == sha256


def manifest_size(first: bytes) -> int:
    """Bytes of the manifest, from the file's first FIRST bytes. Raises BadBundle: too large, or no such file."""
    _, size = read_header(first, MANIFEST)
    if size > MAX_MANIFEST_BYTES:
        raise BadBundle(f"{MANIFEST} is {size} bytes, more than {MAX_MANIFEST_BYTES}")
    return size


def listed(manifest: bytes, where: str) -> tuple[Member, ...]:
    """The members a manifest lists; nothing else of it is looked at. Raises BadInput."""
    files = checks.table(checks.parse_json(manifest, where), where).get("files")
    if isinstance(files, list) and len(files) > _MAX_MEMBERS:
        raise checks.wrong(f"{where}: files", f"at most {_MAX_MEMBERS}", len(files))
    return checks.rows(files, f"{where}: files", Member.parse)


def members_held(paths: Iterable[Path]) -> Mapping[Key, Source]:
    """Every whole member of the bundles at `paths`, which may be cut short; the first one found counts."""
    found: dict[Key, Source] = {}
    for path in paths:
        try:
            for key, source in _members_of(path):
                found.setdefault(key, source)
        except (OSError, BadInput) as err:
            log.info("%s: nothing of it is taken: %s", path, one_line(err))
    return found


def _members_of(path: Path) -> Iterable[tuple[Key, Source]]:
    with path.open("rb") as file:
        size = manifest_size(file.read(FIRST))
        members = listed(file.read(size), str(path))
        length = file.seek(0, 2)
        for piece in pieces(size, members, _ANY_LENGTH)[1:-1]:
            if piece.end > length or piece.sha256 is None:
                return
            file.seek(piece.at)
            crc, _ = read_header(file.read(piece.content - piece.at), piece.name)
            yield (piece.sha256, piece.size), Source(path, piece.content, piece.size, crc)


def usual_head(paths: Sequence[Path]) -> int:
    """Bytes up to the end of the manifest in the first bundle that has one: the next one's will be about as long."""
    for path in paths:
        try:
            with path.open("rb") as file:
                return FIRST + manifest_size(file.read(FIRST))
        except (OSError, BadInput):
            continue
    return FIRST


def missing_until(plan: Sequence[Piece], held: Mapping[Key, Source], gap: int) -> int:
    """Where one request for what is missing from plan[0] on should end: held pieces of at most `gap` bytes go along."""
    end = plan[0].end
    for piece in plan[1:]:
        if piece.sha256 is None or (piece.sha256, piece.size) not in held:
            end = piece.end
        elif piece.end - end > gap:
            break
    return end
