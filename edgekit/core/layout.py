"""Where a bundle's members lie: its one byte form, told by names, sizes and checksums alone. Reads no file.

Stored zip (PKWARE's APPNOTE 6.3, 4.3): members one after the other, each behind its header, then the directory.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit.core.errors import BadBundle
from edgekit.core.manifest import MANIFEST, REPORT, Member

HEADER_BYTES, ENTRY_BYTES, END_BYTES = 30, 46, 22  # without the names
_CRC_AT, _SIZE_AT = 14, 22
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o100644 << 16


@dataclass(frozen=True)
class Piece:
    """A member in the file: `at` is where its header begins. sha256 None: of manifest and report nobody lists it."""

    name: str
    at: int
    size: int
    sha256: str | None = None

    @property
    def content(self) -> int:
        """Where its bytes begin."""
        return self.at + HEADER_BYTES + len(self.name)

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.content + self.size


def entry(name: str) -> zipfile.ZipInfo:
    """What the zip says of a member, but for its size and checksum."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_STORED
    info.create_system = 3
    info.external_attr = _FILE_MODE
    return info


def header(name: str, crc: int, size: int) -> bytes:
    """What stands before a member's bytes. Raises BadBundle for a size that this form cannot say."""
    if size > zipfile.ZIP64_LIMIT:
        raise BadBundle(f"member {name!r} is {size} bytes, too large for a bundle")
    info = entry(name)
    info.CRC, info.file_size, info.compress_size = crc, size, size
    return info.FileHeader(zip64=False)


def read_header(data: bytes, name: str) -> tuple[int, int]:
    """Checksum and size in the header of the member that must be called `name`. Raises BadBundle."""
    if len(data) >= HEADER_BYTES:
        crc, size = (int.from_bytes(data[at : at + 4], "little") for at in (_CRC_AT, _SIZE_AT))
        if data == header(name, crc, size):
            return crc, size
    raise BadBundle(f"member {name!r} is not stored in the canonical form")


def directory(members: Iterable[tuple[str, int, int]]) -> bytes:
    """The end of the file: the directory over all members (name, checksum, size) in their order, and its own end."""
    at, found, count = 0, bytearray(), 0
    for name, crc, size in members:
        found += _directory_entry(name, crc, size, at)
        at += HEADER_BYTES + len(name) + size
        count += 1
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(found), at, 0)
    return bytes(found) + end


def _directory_entry(name: str, crc: int, size: int, at: int) -> bytes:
    """APPNOTE 4.3.12."""
    version, date = 20, 1 << 5 | 1  # 1980-01-01
    fixed = struct.pack(
        "<4s4B4H3L5H2L",
        b"PK\1\2",
        *(version, 3, version, 0),
        *(0, zipfile.ZIP_STORED, 0, date),
        *(crc, size, size),
        *(len(name), 0, 0, 0, 0),
        *(_FILE_MODE, at),
    )
    return fixed + name.encode("ascii")


def pieces(manifest_bytes: int, files: Sequence[Member], length: int) -> tuple[Piece, ...]:
    """Every member of a bundle of `length` bytes whose manifest, of `manifest_bytes`, lists `files`.

    The report takes what is left. Raises BadBundle where that is less than nothing.
    """
    found = [Piece(MANIFEST, 0, manifest_bytes)]
    for member in sorted(files, key=lambda member: member.name):
        found.append(Piece(member.name, found[-1].end, member.size, member.sha256))
    names = [piece.name for piece in found] + [REPORT]
    if len(set(names)) != len(names):
        raise BadBundle("two members have the same name")
    report = Piece(REPORT, found[-1].end, 0)
    size = length - report.content - sum(ENTRY_BYTES + len(name) for name in names) - END_BYTES
    if size < 0:
        raise BadBundle(f"the members that are listed do not fit into {length} bytes")
    return (*found, Piece(REPORT, report.at, size))
