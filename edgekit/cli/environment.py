"""Pack wheels as an environment of boards' agents, checked for what would only show on the board. Fetches nothing."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from io import BytesIO
from pathlib import Path

from edgekit.core.bundle import members_of
from edgekit.core.environment import Environment, member_of, pack_environment, python_version, runs_on
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.profile import HOST, Profile, known_profiles, profile
from edgekit.core.wheel import Wheel, normalized, parse_wheel

ENTRY = "edgekit"
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True)
class Packed:
    """An environment and its file's bytes."""

    environment: Environment
    data: bytes


def pack(
    paths: Sequence[Path],
    name: str,
    version: int,
    pythons: Sequence[str],
    profiles: Sequence[str],
    *,
    system_packages: bool,
) -> Packed:
    """Read wheels (files, or folders of them) and make one file. Raises BadInput, WorldFailed."""
    files = _read(paths)
    wheels = {file: parse_wheel(file) for file in files}
    _complete(files, wheels, system_packages=system_packages)
    wanted = tuple(python_version(python, "--python") for python in pythons)
    runs, machines, glibc = runs_on(wheels, wanted)
    members = {member_of(file): data for file, data in files.items()}
    known = known_profiles()
    for one in profiles:
        if one not in known:
            raise BadInput(f"--profile must be one of {', '.join(known)}, got {one!r}")
    environment = Environment(
        name=name,
        version=version,
        profiles=tuple(profiles) or _profiles(runs, machines),
        pythons=runs,
        machines=machines,
        glibc=glibc,
        system_packages=system_packages,
        entry=ENTRY,
        wheels=members_of(members),
    )
    return Packed(environment, pack_environment(environment, members))


def _read(paths: Sequence[Path]) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        for path in paths:
            for file in sorted(path.glob("*.whl")) if path.is_dir() else (path,):
                found[file.name] = file.read_bytes()
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror}") from err
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: must hold wheels (*.whl), there are none")
    return found


def _complete(files: Mapping[str, bytes], wheels: Mapping[str, Wheel], *, system_packages: bool) -> None:
    """No package twice, the agent itself among them, and all that it always needs."""
    by_name: dict[str, str] = {}
    for file, wheel in wheels.items():
        if wheel.name in by_name:
            raise BadInput(f"{file}: {by_name[wheel.name]} is of the same package: leave one of them out")
        by_name[wheel.name] = file
    if ENTRY not in by_name:
        raise BadInput(f"there must be a wheel of {ENTRY} among them: it is what the boards run")
    for file in files:
        for need in () if system_packages else _needs(file, files[file]):
            if need not in by_name:
                raise BadInput(
                    f"{file} needs {need}, whose wheel is not among them: pip download fetches it, too"
                )


def _needs(file: str, data: bytes) -> Sequence[str]:
    """The packages a wheel always needs; what depends on a marker is left to the trial on the board."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            home = next(
                n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA")
            )
            text = archive.read(home)
    except (zipfile.BadZipFile, StopIteration, OSError) as err:
        raise BadInput(f"{file}: must be a wheel: {str(err) or 'it has no METADATA'}") from err
    lines = BytesParser().parsebytes(text, headersonly=True).get_all("Requires-Dist") or []
    plain = [line for line in lines if ";" not in line]
    return [normalized(match[1]) for line in plain if (match := _REQUIREMENT.match(line)) is not None]


def _profiles(pythons: Sequence[str], machines: Sequence[str]) -> tuple[str, ...]:
    """The shipped profiles with such a Python and processor; `host` stands for any board."""
    found = [profile(name) for name in known_profiles() if name != HOST]
    return (*(one.name for one in found if _suits(one, pythons, machines)), HOST)


def _suits(one: Profile, pythons: Sequence[str], machines: Sequence[str]) -> bool:
    isa = one.cpu.isa
    machine = "aarch64" if isa.startswith("armv8") else "armv7l" if isa.startswith("armv7") else "x86_64"
    return (not machines or machine in machines) and (not one.python or bool(set(one.python) & set(pythons)))
