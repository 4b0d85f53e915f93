"""Hostile bundle files, made as they are needed: zips written field by field, so that every field can lie."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bundles import null_bundle

FILE = 0o100644 << 16
LINK = 0o120777 << 16
DEVICE = 0o060666 << 16


@dataclass(frozen=True)
class Entry:
    """One member as it is written: in front of its data (`local`) and in the directory at the end (`central`).

    None: the truth. at: where the directory says it is.
    """

    name: bytes
    data: bytes
    central_name: bytes | None = None
    mode: int = FILE
    method: int = 0
    flags: int = 0
    size: int | None = None
    central_size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    central_crc: int | None = None
    at: int | None = None
    extra: bytes = b""
    comment: bytes = b""
    system: int = 3
    gap: bytes = b""


def entries(**options: Any) -> list[Entry]:
    """The members of a good bundle."""
    with zipfile.ZipFile(io.BytesIO(null_bundle(**options))) as archive:
        return [Entry(info.filename.encode(), archive.read(info)) for info in archive.infolist()]


def write(
    members: Sequence[Entry],
    *,
    prefix: bytes = b"",
    suffix: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    directory_at: int | None = None,
    directory_size: int | None = None,
    zip64: bool = False,
) -> bytes:
    """A zip of these members (APPNOTE 6.3, 4.3), each field as it is told."""
    out, directory = bytearray(prefix), bytearray()
    for entry in members:
        at = len(out) if entry.at is None else entry.at
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        data = entry.data
        if entry.method == zipfile.ZIP_DEFLATED:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            data = packer.compress(data) + packer.flush()
        size = len(entry.data) if entry.size is None else entry.size
        packed = len(data) if entry.packed_size is None else entry.packed_size
        out += struct.pack(
            "<4s5H3L2H",
            *(b"PK\3\4", 20, entry.flags, entry.method, 0, 33, crc, packed, size),
            *(len(entry.name), len(entry.extra)),
        )
        out += entry.name + entry.extra + data + entry.gap
        name = entry.name if entry.central_name is None else entry.central_name
        directory += struct.pack(
            "<4s4B4H3L5H2L",
            *(b"PK\1\2", 20, entry.system, 20, 0, entry.flags, entry.method, 0, 33),
            crc if entry.central_crc is None else entry.central_crc,
            packed,
            size if entry.central_size is None else entry.central_size,
            *(len(name), len(entry.extra), len(entry.comment), 0, 0, entry.mode, at),
        )
        directory += name + entry.extra + entry.comment
    start = len(out) if directory_at is None else directory_at
    length = len(directory) if directory_size is None else directory_size
    number = len(members) if count is None else count
    out += directory
    if zip64:
        end64 = len(out)
        out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, length, start)
        out += struct.pack("<4sLQL", b"PK\6\7", 0, end64, 1)
        number, length, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    out += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *(number & 0xFFFF,) * 2, length, start, len(comment))
    return bytes(out) + comment + suffix


NAMES = {
    "zip slip": b"../../etc/cron.d/evil",
    "zip slip inside": b"stages/../../evil",
    "dot": b"./recipe.toml",
    "absolute": b"/etc/passwd",
    "two slashes": b"//host/share",
    "backslash": b"..\\..\\evil",
    "backslash inside": b"stages\\0.json",
    "drive": b"C:/evil",
    "drive, relative": b"C:evil",
    "alternate stream": b"recipe.toml:evil",
    "device of DOS": b"stages/NUL:",
    "home": b"~/evil",
    "hidden": b".ssh/authorized_keys",
    "folder": b"stages/",
    "empty": b"",
    "empty segment": b"stages//0.json",
    "trailing dot": b"recipe.toml./x/..",
    "space": b" recipe.toml",
    "newline": b"a\nb",
    "carriage return": b"a\rb",
    "NUL": b"recipe.toml\0.png",
    "escape": b"a\x1b[2Jb",
    "DEL": b"a\x7fb",
    "long": b"a" * 201,
    "long segment": b"a" * 101,
    "longest": b"a" * 65_000,
    "deep": b"a/" * 3000 + b"a",
    "latin 1": b"n\xe9",
    "NFC": unicodedata.normalize("NFC", "modèle").encode(),
    "NFD": unicodedata.normalize("NFD", "modèle").encode(),
    "right to left": "recipe\u202egnp.toml".encode(),
    "homoglyph": "rеcipe.toml".encode(),
    "full width": "．．／evil".encode(),
    "zero width": "recipe\u200b.toml".encode(),
    "overlong slash": b"..\xc0\xafevil",
    "half a surrogate": b"a\xed\xa0\x80b",
    "byte order mark": b"\xef\xbb\xbfrecipe.toml",
    "percent": b"%2e%2e/evil",
    "dollar": b"$HOME/evil",
}


def _with(index: int, **changes: Any) -> list[Entry]:
    made = entries()
    made[index] = replace(made[index], **changes)
    return made


def _more(*more: Entry) -> list[Entry]:
    """Members in front of the report, which must be last."""
    made = entries()
    return [*made[:-1], *more, made[-1]]


def _manifest(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A bundle whose manifest was changed."""
    made = entries()
    data = json.loads(made[0].data)
    change(data)
    made[0] = replace(made[0], data=json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    return write(made)


def _nested() -> bytes:
    """Quines aside, the usual nest: a zip of a zip of zeros."""
    zeros = write([Entry(b"zeros", bytes(2**22), method=zipfile.ZIP_DEFLATED)])
    nest = write([Entry(b"0.zip", zeros, method=zipfile.ZIP_DEFLATED)])
    return write(_more(Entry(b"nest.zip", nest, method=zipfile.ZIP_DEFLATED)))


def _overlapping() -> bytes:
    """Many names for the same bytes: every entry points at the first one's place (Fifield's bomb)."""
    kernel = Entry(b"kernel", bytes(2**20), method=zipfile.ZIP_DEFLATED)
    made = entries()
    at = sum(30 + len(entry.name) + len(entry.data) for entry in made[:-1])
    copies = [Entry(f"copy{i}".encode(), b"", at=at, size=2**20, packed_size=0) for i in range(1000)]
    return write([*made[:-1], kernel, *copies, made[-1]])


def cases() -> Iterator[tuple[str, bytes]]:
    """Every hostile file with what it tries."""
    good = null_bundle()
    for what, name in NAMES.items():
        yield f"name: {what}", write(_more(Entry(name, b"x")))
        yield (
            f"name in the manifest: {what}",
            _manifest(lambda data, name=name: data.update(recipe=name.decode(errors="surrogateescape"))),
        )
        yield f"name in the directory only: {what}", write(_with(1, central_name=name))
        yield f"name in front only: {what}", write(_with(1, name=name, central_name=entries()[1].name))
    yield "link", write(_with(1, mode=LINK))
    yield "link out", write(_more(Entry(b"link", b"/etc/passwd", mode=LINK)))
    yield "device", write(_with(1, mode=DEVICE))
    yield "folder bit", write(_with(1, mode=0o040755 << 16 | 0x10))
    yield "set-uid", write(_with(1, mode=0o104755 << 16))
    yield "made on DOS", write(_with(1, system=0))
    yield "duplicate", write(_more(entries()[1]))
    yield "duplicate manifest", write(_more(entries()[0]))
    yield "case", write(_more(Entry(b"RECIPE.TOML", b"x")))
    yield "manifest in capitals", write(_with(0, name=b"MANIFEST.JSON"))
    yield "compressed", write(_with(1, method=zipfile.ZIP_DEFLATED))
    yield "compressed manifest", write(_with(0, method=zipfile.ZIP_DEFLATED))
    yield "bomb", write(_more(Entry(b"zeros", bytes(2**24), method=zipfile.ZIP_DEFLATED)))
    yield "manifest as a bomb", write(_with(0, data=b" " * 2**24 + b"{}", method=zipfile.ZIP_DEFLATED))
    yield "report as a bomb", write(_with(-1, data=b" " * 2**24 + b"{}", method=zipfile.ZIP_DEFLATED))
    yield "manifest of 17 MB", write(_with(0, data=b" " * (17 * 2**20) + b"{}"))
    yield "nest", _nested()
    yield "overlapping", _overlapping()
    for method in (1, 6, 9, 12, 14, 93, 95, 97, 99, 0xFFFF):
        yield f"method {method}", write(_with(1, method=method))
    for flag in (0, 1, 3, 5, 6, 11, 13, 15):
        yield f"flag {flag}", write(_with(1, flags=1 << flag))
    for size in (0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
        yield f"size {size}", write(_with(1, size=size))
        yield f"size {size}, manifest", write(_with(0, size=size))
        yield f"size {size} in the directory", write(_with(1, central_size=size))
        yield f"packed size {size}", write(_with(1, packed_size=size, size=size))
        yield f"at {size}", write(_with(1, at=size))
        yield f"directory at {size}", write(entries(), directory_at=size)
        yield f"directory of {size}", write(entries(), directory_size=size)
    yield "CRC", write(_with(1, crc=0))
    yield "CRC in the directory", write(_with(1, central_crc=0))
    yield "gap", write(_with(1, gap=b"hidden"))
    yield "gap that is a member", write(_with(1, gap=write([Entry(b"evil", b"x")])))
    yield "extra field", write(_with(1, extra=struct.pack("<2H", 0xCAFE, 0)))
    yield "extra field, torn", write(_with(1, extra=struct.pack("<2H", 1, 100)))
    yield (
        "extra field, zip64",
        write(_with(1, extra=struct.pack("<2H2Q", 1, 16, 2**40, 2**40), size=2**32 - 1)),
    )
    yield (
        "extra field, another name",
        write(_with(1, extra=struct.pack("<2HBL", 0x7075, 9, 1, 0) + b"evil")),
    )
    yield "member's comment", write(_with(1, comment=b"hello"))
    yield "comment", write(entries(), comment=b"hello")
    yield "comment that is an end", write(entries(), comment=good[-22:])
    yield "comment that is a zip", write(entries(), comment=write([Entry(b"evil", b"x")]))
    yield "prefix", write(entries(), prefix=b"#!/bin/sh\n")
    yield "prefix that is a zip", write([Entry(b"evil", b"x")]) + good
    yield "zip behind", good + write([Entry(b"evil", b"x")])
    yield "suffix", write(entries(), suffix=b"\0")
    yield "zip64", write(entries(), zip64=True)
    for count in (0, 1, 2, 0xFFFE, 0xFFFF):
        yield f"count {count}", write(entries(), count=count)
    yield "70,000 members", write(_more(*(Entry(b"m%d" % i, b"") for i in range(70_000))))
    yield "10,001 members", write(_more(*(Entry(b"m%d" % i, b"") for i in range(10_001))))
    yield "no members", write([])
    yield "nothing", b""
    yield "only an end", good[-22:]
    yield "a text", b"PK is not enough\n"
    yield "zeros", bytes(1000)
    yield "order", write(list(reversed(entries())))
    yield "report missing", write(entries()[:-1])
    yield "manifest missing", write(entries()[1:])
    for at in borders(good):
        yield f"cut at {at}", good[:at]
    for at in range(0, len(good), max(1, len(good) // 60)):
        yield f"flipped at {at}", good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :]


def borders(data: bytes) -> list[int]:
    """Before, in and behind every structure of a zip."""
    found = set()
    for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6"):
        at = data.find(mark)
        while at >= 0:
            found |= {at, at + 1, at + 4, at + 26, at + 30}
            at = data.find(mark, at + 1)
    return sorted(at for at in found | {len(data) - 1} if at < len(data))


# --- manifests -------------------------------------------------------------------------------------------------------

WORDS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**64,
    10**30,
    -(10**400),
    0.5,
    -0.0,
    1e308,
    1e-320,
    "",
    "x",
    "..",
    "/",
    "a\nb",
    "a\r\nb\u2028c\u2029d\x85e",
    "\0",
    "\ud800",
    "\u202e",
    "é",
    "e\u0301",
    "x" * 5000,
    "9" * 400,
    [],
    [[]],
    {},
    {"": ""},
    {"a\nb": "c\nd"},
    {"x" * 5000: 1},
    [None] * 50,
    [0] * 2000,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def mutated(value: Any, chance: random.Random) -> Any:
    """A deep copy in which one to four things are otherwise."""
    made = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        ways = list(places(made))
        if not ways:
            return made
        *way, last = chance.choice(ways)
        parent = made
        for key in way:
            parent = parent[key]
        _mutate(made, parent, last, ways, chance)
    return made


def _mutate(whole: Any, parent: Any, key: Any, ways: list[tuple[Any, ...]], chance: random.Random) -> None:
    kind = chance.randrange(9)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, json.loads(json.dumps(parent[key])))
    elif kind == 2 and isinstance(parent, dict):
        parent[chance.choice(("\n", "x" * 300, "__class__", "é", "", "a\x85b", *parent))] = json.loads(
            json.dumps(parent[key])
        )
    elif kind == 3:
        nest: Any = parent[key]
        for _ in range(chance.choice((1, 3, 200))):
            nest = [nest] if chance.random() < 0.5 else {"n": nest}
        parent[key] = nest
    elif kind == 4:
        other = whole
        for step in chance.choice(ways):
            try:
                other = other[step]
            except (KeyError, IndexError, TypeError):
                break
        parent[key] = json.loads(json.dumps(other))
    elif kind == 5 and isinstance(parent[key], str):
        text = parent[key]
        at = chance.randrange(len(text) + 1)
        parent[key] = text[:at] + chance.choice(("\n", "\0", "/", "..", "\ud800", "é", "A")) + text[at + 1 :]
    elif kind == 6 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * chance.choice((-1, 0, 2, 0.5, 1e6)) + chance.choice((0, 1, -1, 1e-9))
    else:
        parent[key] = copy.deepcopy(chance.choice(WORDS))


def fuzzed_text(value: Any, chance: random.Random) -> bytes:
    """The JSON of a mutated value; one in eight is hurt as a text, too: NaN, cut off, bytes exchanged, deep nests."""
    text = json.dumps(mutated(value, chance), sort_keys=True, separators=(",", ":")).encode()
    kind = chance.randrange(64)
    at = chance.randrange(len(text) + 1)
    if kind == 0:
        return text.replace(b"1", chance.choice((b"NaN", b"Infinity", b"1e999", b"0x1", b"01")), 1)
    if kind == 1:
        return text[:at]
    if kind == 2:
        return text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
    if kind == 3:
        return text[:at] + b"[" * 5000 + text[at:]
    if kind == 4:
        return b"\xef\xbb\xbf" + text
    if kind == 5:
        return text.decode().encode("utf-16")
    if kind == 6:
        return text[:at] + b"9" * 5000 + text[at:]
    if kind == 7:
        return text.replace(b'"version":', b'"version":2,"version":', 1)
    return text
