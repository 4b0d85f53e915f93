"""The `.edge` file: a stored zip in one canonical byte form. Reads nothing before names, sizes and hashes hold."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.core.checks import canonical_json, parse_json
from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.core.layout import directory, entry, header
from edgekit.core.manifest import MANIFEST, REPORT, Manifest, Member, member_name

_MAX_MEMBERS = 10_000
_MAX_JSON_BYTES = 16 * 2**20
_CHUNK = 1 << 20


def content_id(manifest: Manifest) -> str:
    """sha256 over the canonical manifest, which holds the hash of every file but the report.

    The same inputs and recipe on the same versions give the same content_id, whatever was measured.
    """
    return hashlib.sha256(canonical_json(manifest.to_json())).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk: every member's name, size and sha256 agreed with the manifest when it was opened."""

    path: Path
    manifest: Manifest
    report: Mapping[str, Any]
    content_id: str
    size: int

    @property
    def label(self) -> str:
        """`name/version`, as people and messages call it."""
        return f"{self.manifest.name}/{self.manifest.version}"

    def read(self, name: str) -> bytes:
        """One member's bytes, checked against its hash again. Raises BadBundle, WorldFailed."""
        wanted = {member.name: member for member in self.manifest.files}[name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = archive.read(name)
        except OSError as err:
            raise WorldFailed(f"{self.path}: could not be read: {err.strerror or err}") from err
        except (zipfile.BadZipFile, KeyError, zlib.error) as err:
            raise BadBundle(f"{self.path}: member {name!r} is damaged: {err}") from err
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise BadBundle(f"{self.path}: member {name!r} changed since the bundle was opened")
        return data


def members_of(files: Mapping[str, bytes]) -> tuple[Member, ...]:
    """The manifest's `files` for these contents, in the order they are packed."""
    return tuple(
        Member(name, len(files[name]), hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)
    )


def pack(manifest: Manifest, files: Mapping[str, bytes], report: Mapping[str, Any]) -> bytes:
    """The bundle's bytes: manifest first, files by name, report last. The same arguments give the same bytes.

    Raises BadBundle when `files` is not what the manifest lists.
    """
    if members_of(files) != tuple(sorted(manifest.files, key=lambda member: member.name)):
        raise BadBundle(f"{MANIFEST}: files must list exactly what is packed, with its sizes and hashes")
    Manifest.parse(manifest.to_json())
    contents = {MANIFEST: canonical_json(manifest.to_json())}
    contents.update((name, files[name]) for name in sorted(files))
    contents[REPORT] = canonical_json(dict(report))
    return stored_zip(contents)


def stored_zip(contents: Mapping[str, bytes]) -> bytes:
    """A zip in the canonical byte form: stored, in this order, one time for all members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            archive.writestr(entry(name), data)
    return buffer.getvalue()


def open_bundle(path: Path, max_bytes: int = 2**31) -> Bundle:
    """Open and verify a bundle. Memory stays bounded by the two JSON members.

    Raises BadBundle for a file that is not one, is not in canonical form, has unsafe names or other content than its
    manifest says, or is of a newer major format; WorldFailed when the disk does not give it.
    """
    try:
        with path.open("rb") as file:
            return _verify(path, file, max_bytes)
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err


def _verify(path: Path, file: IO[bytes], max_bytes: int) -> Bundle:
    archive, size = open_stored_zip(path, file, max_bytes)
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if not 2 <= len(names) <= _MAX_MEMBERS or names[0] != MANIFEST or names[-1] != REPORT:
        raise BadBundle(f"{path}: not an edgekit bundle: {MANIFEST} must come first and {REPORT} last")
    check_form(path, file, infos, size)
    try:
        manifest_data = _read_json(path, archive, infos[0])
        manifest = Manifest.parse(manifest_data, f"{path}: {MANIFEST}")
        listed = {member.name: member for member in manifest.files}
        if [info.filename for info in infos[1:-1]] != sorted(listed):
            raise BadBundle(f"{path}: members are not those that {MANIFEST} lists")
        for info in infos[1:-1]:
            _check_member(path, archive, info, listed[info.filename])
        report = _read_json(path, archive, infos[-1])
    except (zipfile.BadZipFile, zlib.error, EOFError) as err:
        raise BadBundle(f"{path}: damaged: {err}") from err
    if not isinstance(report, dict):
        raise BadBundle(f"{path}: {REPORT} must be a JSON object")
    return Bundle(path, manifest, report, content_id(manifest), size)


def open_stored_zip(path: Path, file: IO[bytes], max_bytes: int) -> tuple[zipfile.ZipFile, int]:
    """The zip in an open file, and the file's size; its form is not checked yet. Raises BadBundle."""
    size = file.seek(0, io.SEEK_END)
    if size > max_bytes:
        raise BadBundle(f"{path}: is {size} bytes, more than the {max_bytes} this board accepts")
    try:
        return zipfile.ZipFile(file), size
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as err:
        raise BadBundle(f"{path}: not an edgekit bundle: {err}") from err


def check_form(path: Path, file: IO[bytes], infos: list[zipfile.ZipInfo], size: int) -> None:
    """Accept only the byte form `stored_zip` writes: no gaps, no second names, no compression, nothing hidden."""
    names = [info.filename for info in infos]
    for name in names:
        try:
            member_name(name, f"{path}: a member's name")
        except BadInput as err:
            raise BadBundle(str(err)) from err
    if len(set(names)) != len(names):
        raise BadBundle(f"{path}: two members have the same name")
    at = 0
    for info in infos:
        wanted = header(info.filename, info.CRC, info.file_size)
        file.seek(at)
        if file.read(len(wanted)) != wanted:
            raise BadBundle(f"{path}: member {info.filename!r} is not stored in the canonical form")
        at += len(wanted) + info.file_size
    end = directory((info.filename, info.CRC, info.file_size) for info in infos)
    file.seek(at)
    if at + len(end) != size or file.read(len(end)) != end:
        raise BadBundle(f"{path}: is not in the canonical form, or holds bytes that belong to no member")


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as member:
        while chunk := member.read(_CHUNK):
            yield chunk


def _read_json(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > _MAX_JSON_BYTES:
        raise BadBundle(f"{path}: {info.filename} is {info.file_size} bytes, more than {_MAX_JSON_BYTES}")
    data = b"".join(_chunks(archive, info))
    try:
        value = parse_json(data, f"{path}: {info.filename}")
    except BadInput as err:
        raise BadBundle(str(err)) from err
    return value


def _check_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, member: Member) -> None:
    if info.file_size != member.size:
        raise BadBundle(f"{path}: {member.name!r} must be {member.size} bytes, got {info.file_size}")
    digest = hashlib.sha256()
    for chunk in _chunks(archive, info):
        digest.update(chunk)
    if digest.hexdigest() != member.sha256:
        raise BadBundle(f"{path}: {member.name!r} does not have the sha256 that {MANIFEST} gives")
