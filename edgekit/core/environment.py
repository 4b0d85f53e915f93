"""The agent's environment as one file: wheels for a Python, in a bundle's canonical byte form. Installs nothing.

environment.json   what it is and for which Pythons and machines; then the wheels by name
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.core import checks
from edgekit.core.bundle import check_form, open_stored_zip, stored_zip
from edgekit.core.checks import canonical_json
from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.core.manifest import Member, member_name
from edgekit.core.target import Target, glibc_version
from edgekit.core.wheel import PYTHONS, Wheel, newest, parse_wheel

MANIFEST = "environment.json"
FORMAT = 1
AGENT = "agent"  # the use of its target
_ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MAX_WHEELS = 500
_MAX_MANIFEST = 2**20
_CHUNK = 1 << 20
_LOCAL_HEADER = 30  # bytes before the first member's name (APPNOTE 6.3, 4.3.7)


@dataclass(frozen=True)
class Environment:
    """name/version of an environment, and where it runs. entry: the module that `python -m` starts as `edgekit`.

    machines: as `uname -m` says; none: all. glibc: the oldest it runs with. system_packages: it sees what the board's
    own Python has installed, for boards that no wheels of numpy are made for.
    """

    name: str
    version: int
    profiles: tuple[str, ...]
    pythons: tuple[str, ...]
    machines: tuple[str, ...]
    glibc: str | None
    system_packages: bool
    entry: str
    wheels: tuple[Member, ...]

    @property
    def label(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"

    @property
    def content_id(self) -> str:
        """sha256 over the canonical manifest, which holds the hash of every wheel."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    @classmethod
    def parse(cls, value: object, where: str = MANIFEST) -> Environment:
        """Read from JSON. Raises BadInput."""
        data = checks.table(value, where)
        major = checks.integer(data.get("format"), f"{where}: format", 1)
        if major > FORMAT:
            raise BadInput(f"{where}: environment format {major} is newer than this edgekit reads ({FORMAT})")
        entry = checks.text(data.get("entry"), f"{where}: entry")
        if not _ENTRY.fullmatch(entry):
            raise checks.wrong(f"{where}: entry", "the name of a module", entry)
        wheels = checks.rows(data.get("wheels"), f"{where}: wheels", Member.parse)
        if not 1 <= len(wheels) <= _MAX_WHEELS or len({wheel.name for wheel in wheels}) != len(wheels):
            raise BadInput(f"{where}: wheels must be 1 to {_MAX_WHEELS} different ones, got {len(wheels)}")
        return cls(
            name=checks.name(data.get("name"), f"{where}: name"),
            version=checks.integer(data.get("version"), f"{where}: version", 1, 2**31),
            profiles=checks.rows(data.get("profiles"), f"{where}: profiles", checks.name),
            pythons=checks.rows(data.get("pythons"), f"{where}: pythons", python_version),
            machines=checks.rows(data.get("machines"), f"{where}: machines", checks.name),
            glibc=checks.optional(data.get("glibc"), f"{where}: glibc", glibc_version),
            system_packages=checks.flag(data.get("system_packages"), f"{where}: system_packages"),
            entry=entry,
            wheels=wheels,
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "profiles": list(self.profiles),
            "pythons": list(self.pythons),
            "machines": list(self.machines),
            "glibc": self.glibc,
            "system_packages": self.system_packages,
            "entry": self.entry,
            "wheels": [wheel.to_json() for wheel in self.wheels],
        }


@dataclass(frozen=True)
class EnvironmentFile:
    """A verified file: every wheel's name, size and sha256 agreed with the manifest when it was opened."""

    path: Path
    environment: Environment
    size: int

    @property
    def label(self) -> str:
        """`name/version`."""
        return self.environment.label

    @property
    def content_id(self) -> str:
        """See Environment."""
        return self.environment.content_id


def python_version(value: object, where: str) -> str:
    """`3.11`. Raises BadInput."""
    if not isinstance(value, str) or not re.fullmatch(r"3\.\d{1,3}", value):
        raise checks.wrong(where, "a version of Python such as 3.11", value)
    return value


def member_of(wheel: str) -> str:
    """What a wheel's file is called inside: `+` of a local version is no plain file name."""
    return member_name(wheel.replace("+", "_"), wheel)


def runs_on(
    wheels: Mapping[str, Wheel], wanted: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """The Pythons (of `wanted`, else of all) and machines that every wheel runs on, and the oldest glibc.

    Raises BadInput naming the wheel that leaves none.
    """
    pythons = tuple(wanted) or PYTHONS
    machines: set[str] | None = None
    for file, wheel in sorted(wheels.items()):
        left = pythons if wanted else tuple(python for python in pythons if python in wheel.pythons)
        if not set(left) <= set(wheel.pythons) or not left:
            raise BadInput(f"{file}: does not run on Python {', '.join(pythons)} as the others would")
        pythons = left
        if wheel.machines is not None:
            here = set(wheel.machines)
            machines = here if machines is None else machines & here
            if not machines:
                raise BadInput(f"{file}: is for {', '.join(sorted(here))}, the wheels before it are not")
    glibc = newest(
        version
        for wheel in wheels.values()
        for machine, version in (wheel.machines or {}).items()
        if machine in (machines or ())
    )
    return pythons, tuple(sorted(machines or ())), glibc


def pack_environment(environment: Environment, wheels: Mapping[str, bytes]) -> bytes:
    """The file's bytes: the manifest, then the wheels by name. The same arguments give the same bytes."""
    Environment.parse(environment.to_json())
    return stored_zip({MANIFEST: canonical_json(environment.to_json()), **dict(sorted(wheels.items()))})


def is_environment(path: Path) -> bool:
    """Whether a file begins as an environment does; nothing is verified. Raises BadInput, WorldFailed."""
    try:
        with path.open("rb") as file:
            file.seek(_LOCAL_HEADER)
            return file.read(len(MANIFEST)) == MANIFEST.encode()
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err


def open_environment(path: Path, max_bytes: int = 2**31) -> EnvironmentFile:
    """Open and verify. Raises BadBundle for anything but what `pack_environment` writes, BadInput, WorldFailed."""
    try:
        with path.open("rb") as file:
            return _verify(path, file, max_bytes)
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err


def target_of_environment(environment: Environment) -> Target:
    """The target that publishes it."""
    return Target(
        name=environment.name,
        version=environment.version,
        profiles=environment.profiles,
        use=AGENT,
        state="current",
        content_id=environment.content_id,
        pythons=environment.pythons,
        machines=environment.machines,
        glibc=environment.glibc,
    )


def _verify(path: Path, file: IO[bytes], max_bytes: int) -> EnvironmentFile:
    archive, size = open_stored_zip(path, file, max_bytes)
    infos = archive.infolist()
    if not infos or infos[0].filename != MANIFEST or len(infos) > _MAX_WHEELS + 1:
        raise BadBundle(f"{path}: not an environment of edgekit's: {MANIFEST} must come first")
    if infos[0].file_size > _MAX_MANIFEST:
        raise BadBundle(f"{path}: {MANIFEST} is {infos[0].file_size} bytes, more than {_MAX_MANIFEST}")
    check_form(path, file, infos, size)
    try:
        where = f"{path}: {MANIFEST}"
        environment = Environment.parse(checks.parse_json(archive.read(infos[0]), where), where)
        listed = {wheel.name: wheel for wheel in environment.wheels}
        if [info.filename for info in infos[1:]] != sorted(listed):
            raise BadBundle(f"{path}: members are not the wheels that {MANIFEST} lists")
        for info in infos[1:]:
            _check_wheel(path, archive, info, listed[info.filename])
    except BadBundle:
        raise
    except BadInput as err:
        raise BadBundle(str(err)) from err
    except (zipfile.BadZipFile, zlib.error, EOFError) as err:
        raise BadBundle(f"{path}: damaged: {err}") from err
    return EnvironmentFile(path, environment, size)


def _check_wheel(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, listed: Member) -> None:
    parse_wheel(listed.name)
    digest = hashlib.sha256()
    with archive.open(info) as member:
        while chunk := member.read(_CHUNK):
            digest.update(chunk)
    if (info.file_size, digest.hexdigest()) != (listed.size, listed.sha256):
        raise BadBundle(f"{path}: {listed.name!r} does not have the size and sha256 that {MANIFEST} gives")
