"""Install an environment in a child process: a virtual environment, wheels unpacked into it. Needs no pip, no network.

`python -m edgekit.agent.wheels FILE FOLDER` is the child: it prints one JSON line. `install` is the parent's side. A
wheel whose hash is signed is unpacked as the binary distribution format says (packaging.python.org): no script is made
and nothing in it is run, so the only program that the new environment has is its Python.
"""

from __future__ import annotations

import base64
import compileall
import csv
import ctypes
import errno
import hashlib
import io
import json
import os
import sys
import venv
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edgekit.agent.child import ChildLimits, child_parser, confine, run_child
from edgekit.agent.slots import check_room
from edgekit.core.checks import canonical_json, parse_json
from edgekit.core.environment import MANIFEST, EnvironmentFile, open_environment
from edgekit.core.errors import BadBundle, BadInput, EdgekitError, WorldFailed, one_line

_CHUNK = 1 << 18
_MOST_UNPACKED = 8  # times what the file may have
_UNSIGNED = ("RECORD", "RECORD.jws", "RECORD.p7s")  # no RECORD lists these with a hash
_INTO_SITE = ("purelib", "platlib")


def install(file: Path, folder: Path, max_bytes: int, limits: ChildLimits, check: Callable[[], None]) -> None:
    """Verify the file and make `folder` (not there yet) of it, on disk when this returns.

    Raises BadBundle for what is no environment, WorldFailed where disk, time or memory ran out; what `check` raises.
    """
    arguments = [str(file.absolute()), str(folder.absolute()), "--max-bytes", str(max_bytes)]
    ended = run_child("edgekit.agent.wheels", arguments, limits, check)
    lines = ended.out.strip().splitlines()
    try:
        verdict = parse_json(lines[-1].encode(), "verdict") if lines and ended.code == 0 else {}
    except BadInput:
        verdict = {}
    if verdict.get("ok") is True:
        return
    if verdict.get("bad"):
        raise BadBundle(str(verdict["bad"]))
    raise WorldFailed(f"installing it {ended.how}" if not verdict else str(verdict.get("failed")))


def build(opened: EnvironmentFile, folder: Path, most: int) -> None:
    """Make a virtual environment of this very Python in `folder`. Raises BadBundle, WorldFailed (no room), OSError."""
    environment = opened.environment
    venv.EnvBuilder(symlinks=True, system_site_packages=environment.system_packages).create(folder)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    left = most
    with opened.path.open("rb") as file, zipfile.ZipFile(file) as archive:
        wheels = [
            (info.filename, zipfile.ZipFile(_Window(file, _begin(info), info.file_size)))
            for info in archive.infolist()[1:]
        ]
        check_room(folder, sum(_needs(wheel) for _, wheel in wheels))
        for name, wheel in wheels:
            left = _unpack(name, wheel, site, folder, left)
    compileall.compile_dir(site, quiet=2, legacy=False)
    (folder / MANIFEST).write_bytes(canonical_json(environment.to_json()))
    _sync_disk(folder)


def _begin(info: zipfile.ZipInfo) -> int:
    """Where a stored member's content begins."""
    return info.header_offset + len(info.FileHeader(zip64=False))


def _needs(wheel: zipfile.ZipFile) -> int:
    """Bytes on disk that a wheel's files come to; Python's own as often again, compiled."""
    return sum(info.file_size * (1 + info.filename.endswith(".py")) for info in wheel.infolist())


class _Window(io.RawIOBase):
    """A stored member as a file of its own, without a copy."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._begin + self._at)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data


def _unpack(name: str, wheel: zipfile.ZipFile, site: Path, folder: Path, left: int) -> int:
    """Every file to its place, each with the hash that RECORD gives; the bytes that may still be unpacked."""
    infos = [info for info in wheel.infolist() if not info.is_dir()]
    left -= sum(info.file_size for info in infos)
    if left < 0:
        raise BadBundle(f"{name}: unpacks to more than this board takes")
    record = _record(name, wheel)
    for info in infos:
        place = _place(name, info.filename, site, folder)
        if place is None:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with wheel.open(info) as member, place.open("wb") as out:
            while chunk := member.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
        if info.filename.rpartition("/")[2] not in _UNSIGNED and record.get(info.filename) != digest.digest():
            raise BadBundle(f"{name}: {info.filename}: is not what the wheel's RECORD says")
        if info.external_attr >> 16 & 0o111:
            place.chmod(0o755)
    return left


def _record(name: str, wheel: zipfile.ZipFile) -> Mapping[str, bytes]:
    found = [info for info in wheel.namelist() if info.count("/") == 1 and info.endswith(".dist-info/RECORD")]
    if len(found) != 1:
        raise BadBundle(f"{name}: a wheel must have one RECORD, this has {len(found)}")
    rows = csv.reader(io.StringIO(wheel.read(found[0]).decode("utf-8", "replace")))
    hashes = {row[0]: row[1].partition("=") for row in rows if len(row) >= 2}
    return {
        path: base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        for path, (kind, _, value) in hashes.items()
        if kind == "sha256"
    }


def _place(name: str, member: str, site: Path, folder: Path) -> Path | None:
    """Where a wheel's file goes; None for scripts and headers. Raises BadBundle for one that would go elsewhere."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or not path.parts:
        raise BadBundle(f"{name}: {member!r} does not stay inside")
    first, *rest = path.parts
    if not first.endswith(".data") or len(rest) < 2:
        return site / path
    if rest[0] in _INTO_SITE:
        return site.joinpath(*rest[1:])
    return folder.joinpath(*rest[1:]) if rest[0] == "data" else None


def _sync_disk(folder: Path) -> None:
    """Thousands of files at once: the whole file system of `folder`, as syncfs(2)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def _child(arguments: list[str]) -> int:
    parser = child_parser("edgekit.agent.wheels", "Install an environment.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    confine(options)
    verdict: dict[str, object] = {"v": 1, "ok": False}
    try:
        build(
            open_environment(options.path, options.max_bytes),
            options.folder,
            _MOST_UNPACKED * options.max_bytes,
        )
        verdict["ok"] = True
    except OSError as err:
        full = " (its limit, or the disk is full)" if err.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        verdict["failed"] = f"{options.folder.parent}: could not be installed: {err.strerror or err}{full}"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as err:
        verdict["bad"] = f"a wheel is damaged: {one_line(err)}"
    except WorldFailed as err:
        verdict["failed"] = one_line(err)
    except EdgekitError as err:
        verdict["bad"] = one_line(err)
    sys.stdout.write(json.dumps(verdict) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
