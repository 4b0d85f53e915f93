"""A bundle's byte form from names, sizes and checksums, against what the packer writes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import null_bundle, write_null_bundle

from edgekit.core.bundle import open_bundle
from edgekit.core.errors import BadBundle
from edgekit.core.layout import HEADER_BYTES, directory, header, pieces, read_header
from edgekit.core.manifest import MANIFEST, REPORT


def test_the_manifest_says_where_every_byte_of_a_bundle_lies(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge", padding=1000)
    data = bundle.path.read_bytes()
    _, size = read_header(data[: HEADER_BYTES + len(MANIFEST)], MANIFEST)
    found = pieces(size, bundle.manifest.files, len(data))
    contents = [(piece.name, data[piece.content : piece.end]) for piece in found]
    rebuilt = b"".join(header(name, zlib.crc32(body), len(body)) + body for name, body in contents)
    rebuilt += directory((name, zlib.crc32(body), len(body)) for name, body in contents)
    assert rebuilt == data
    assert (found[0].name, found[-1].name) == (MANIFEST, REPORT)
    assert contents[-1][1] == b'{"v":1}'


def test_members_that_do_not_fit_into_the_file_are_refused(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge")
    files = bundle.manifest.files
    with pytest.raises(BadBundle, match="do not fit"):
        pieces(10**6, files, bundle.size)
    with pytest.raises(BadBundle, match="do not fit"):
        pieces(10, [replace(files[0], size=2**60)], bundle.size)


@pytest.mark.parametrize("name", ["stages/0.json", MANIFEST, REPORT])
def test_two_members_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    files = write_null_bundle(tmp_path / "a.edge").manifest.files
    with pytest.raises(BadBundle, match="same name"):
        pieces(10, [*files, replace(files[0], name=name)], 10**6)


def test_a_header_in_another_form_is_refused() -> None:
    good = header("a", 7, 9)
    assert read_header(good, "a") == (7, 9)
    for bad in (good[:-1], good.replace(b"a", b"b"), b"\0" * len(good), good[:8] + b"\x08" + good[9:]):
        with pytest.raises(BadBundle, match="canonical"):
            read_header(bad, "a")


def test_a_size_beyond_what_the_form_can_say_is_refused_in_one_line(tmp_path: Path) -> None:
    data = bytearray(null_bundle())
    at = data.index(b"PK\1\2")
    data[at + 20 : at + 28] = struct.pack("<2L", 0xFFFFFFF0, 0xFFFFFFF0)
    (tmp_path / "a.edge").write_bytes(data)
    with pytest.raises(BadBundle, match="too large for a bundle"):
        open_bundle(tmp_path / "a.edge")
