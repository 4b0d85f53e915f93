"""What a wheel's file name says: which Pythons and machines it is for. Opens no wheel.

Sources: the binary distribution format of packaging.python.org; platform tags of PEP 425 and 600.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgekit.core.errors import BadInput

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""What an environment can be for, the oldest first."""

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[A-Za-z0-9._+!]+)(?:-\d[A-Za-z0-9._]*)?"
    r"-(?P<python>[a-z0-9._]+)-(?P<abi>[a-z0-9._]+)-(?P<platform>[A-Za-z0-9._]+)\.whl",
    re.ASCII,
)
_PLATFORM = re.compile(
    r"(?:(?P<old>manylinux(?:1|2010|2014))|manylinux_(?P<glibc>2_\d+)|linux)_(?P<machine>\w+)"
)
_OLD_GLIBC = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17"}
_PYTHON = re.compile(r"(?P<kind>py|cp)3(?P<minor>\d*)")


@dataclass(frozen=True)
class Wheel:
    """pythons: of PYTHONS, those it runs on. machines: machine -> the oldest glibc it runs with, None: any of them.

    machines None: it runs everywhere.
    """

    name: str  # as PEP 503 writes it: lower case, single hyphens
    version: str
    pythons: tuple[str, ...]
    machines: dict[str, str | None] | None


def parse_wheel(file: str) -> Wheel:
    """The wheel of that file name. Raises BadInput for a name that is none, or one that is not for Linux."""
    match = _NAME.fullmatch(file)
    if match is None:
        raise BadInput(f"{file}: must be called as a wheel: NAME-VERSION-PYTHON-ABI-PLATFORM.whl")
    pythons = _pythons(match["python"].split("."), match["abi"].split("."))
    if not pythons:
        raise BadInput(f"{file}: runs on no Python that edgekit runs on ({', '.join(PYTHONS)})")
    return Wheel(
        normalized(match["name"]), match["version"], pythons, _machines(file, match["platform"].split("."))
    )


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def older(version: str, than: str) -> bool:
    """Whether one version of glibc or Python is below another; both are numbers with dots between."""
    return _numbers(version) < _numbers(than)


def newest(versions: Iterable[str | None]) -> str | None:
    """The highest of them, None where there is none."""
    return max((version for version in versions if version is not None), key=_numbers, default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _pythons(tags: list[str], abis: list[str]) -> tuple[str, ...]:
    found: set[str] = set()
    for tag in tags:
        match = _PYTHON.fullmatch(tag)
        if match is None:
            continue
        minor = int(match["minor"] or 0)
        exact = match["kind"] == "cp" and "abi3" not in abis
        found.update(p for p in PYTHONS if (int(p[2:]) == minor if exact else int(p[2:]) >= minor))
    return tuple(python for python in PYTHONS if python in found)


def _machines(file: str, tags: list[str]) -> dict[str, str | None] | None:
    if "any" in tags:
        return None
    found: dict[str, str | None] = {}
    for tag in tags:
        match = _PLATFORM.fullmatch(tag)
        if match is None:
            continue
        glibc = _OLD_GLIBC[match["old"]] if match["old"] else (match["glibc"] or "").replace("_", ".") or None
        machine, known = match["machine"], found.get(match["machine"], "")
        if known == "" or known is None or (glibc is not None and older(glibc, known)):
            found[machine] = glibc
    if not found:
        raise BadInput(f"{file}: must be for Linux with glibc, is for {', '.join(tags)}")
    return found
