#!/usr/bin/env python3
"""Check a wheel's native library, and give the wheel the tag it deserves and bytes that only its content decides.

    tools/finish_wheel.py MACHINE WHEEL FOLDER     (tools/build_wheels.sh does)

The library's headers and symbols are read with binutils' readelf, which reads every machine's. What is checked: the
machine, the float ABI of 32-bit ARM, that it needs the C library alone and no folder of its own, the versions of
glibc's symbols (the tag, PEP 600), and that it exports exactly the C interface of edgekit_native.h. The wheel is
written again with entries in order, one date ($SOURCE_DATE_EPOCH) and plain modes: a clone's umask does not show.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LIBRARY = "edgekit/native/libedgekit_native.so"
HEADER = Path(__file__).parents[1] / "edgekit/native/edgekit_native.h"
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64", "armv7l": "ARM"}
MAY_NEED = {"libc.so.6", "libm.so.6"}
OLDEST, NEWEST = (
    (2, 17),
    (2, 28),
)  # glibc: every Python >= 3.10 has the first; all boards' systems have the second
EPOCH = 315532800  # 1980-01-01: the first date that a zip file can hold


class Refused(Exception):
    """A wheel that must not be shipped, in one line."""


@dataclass(frozen=True)
class Elf:
    """What readelf says of a shared library. glibc: the symbol of each version that it needs."""

    machine: str
    flags: str
    needed: frozenset[str]
    run_path: bool
    glibc: Mapping[tuple[int, int], str]
    exported: frozenset[str]


def read_elf(path: Path) -> Elf:
    """Read it. Raises Refused where it is no ELF file."""
    command = ["readelf", "-W", "--file-header", "--dynamic", "--dyn-syms", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
    )
    machine = re.search(r"^ *Machine: +(.+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or machine is None:
        raise Refused(f"{path.name}: wanted an ELF file, readelf says {done.stderr.strip() or 'nothing'}")
    flags = re.search(r"^ *Flags: +(.+)$", done.stdout, re.MULTILINE)
    glibc: dict[tuple[int, int], str] = {}
    exported = set()
    # Num: Value Size Type Bind Vis Ndx Name[@VERSION (index)]
    for fields in (line.split() for line in done.stdout.splitlines() if re.match(r" *\d+: ", line)):
        name = fields[7] if len(fields) > 7 else ""
        if fields[6] == "UND" and (version := re.search(r"@GLIBC_(\d+)\.(\d+)", name)):
            glibc[int(version[1]), int(version[2])] = name.split("@")[0]
        elif fields[6] != "UND" and fields[4] == "GLOBAL" and fields[5] == "DEFAULT":
            exported.add(name.split("@")[0])
    return Elf(
        machine=machine[1].strip(),
        flags=flags[1] if flags else "",
        needed=frozenset(re.findall(r"\(NEEDED\) +Shared library: \[(.+)\]", done.stdout)),
        run_path=re.search(r"\((RPATH|RUNPATH)\)", done.stdout) is not None,
        glibc=glibc,
        exported=frozenset(exported),
    )


def c_interface(header: Path = HEADER) -> frozenset[str]:
    """The functions that the header declares."""
    return frozenset(re.findall(r"^EK_API [^;()]*?\b(ek_\w+)\(", header.read_text(), re.MULTILINE))


def check(elf: Elf, machine: str) -> tuple[int, int]:
    """The glibc that this library needs. Raises Refused where it is not fit for that machine's boards."""
    if elf.machine != MACHINES[machine]:
        raise Refused(f"wanted a library for {MACHINES[machine]}, got one for {elf.machine}")
    if machine == "armv7l" and "hard-float ABI" not in elf.flags:
        raise Refused(f"wanted the hard-float ABI, the library's flags are {elf.flags}")
    if elf.needed - MAY_NEED or elf.run_path:
        raise Refused(f"wanted only the C library, it needs {', '.join(sorted(elf.needed))}")
    if elf.exported != c_interface():
        odd = ", ".join(sorted(elf.exported ^ c_interface()))
        raise Refused(f"wanted the functions of {HEADER.name} exported and no other: {odd} differ")
    needs = max(elf.glibc, default=OLDEST)
    if needs > NEWEST:
        raise Refused(
            f"wanted glibc {NEWEST[0]}.{NEWEST[1]} or older, {elf.glibc[needs]} needs {needs[0]}.{needs[1]}; "
            "build where the C library is older"
        )
    return max(needs, OLDEST)


def platforms(machine: str, glibc: tuple[int, int]) -> list[str]:
    """Platform tags (PEP 600). 32-bit ARM's plain one as well: that is what pip has called those boards for longest."""
    tags = [f"manylinux_{glibc[0]}_{glibc[1]}_{machine}"]
    tags += [f"manylinux2014_{machine}"] if glibc <= (2, 17) else []
    return tags + ([f"linux_{machine}"] if machine == "armv7l" else [])


def finish(wheel: Path, machine: str, folder: Path) -> tuple[Path, Elf]:
    """Check and write the wheel into `folder`; the new file and what its library is. Raises Refused."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    libraries = [name for name in files if PurePosixPath(name).suffix == ".so"]
    if libraries != [LIBRARY]:
        raise Refused(f"{wheel.name}: wanted {LIBRARY} and no other library, got {libraries or 'none'}")
    with tempfile.TemporaryDirectory() as unpacked:
        path = Path(unpacked) / PurePosixPath(LIBRARY).name
        path.write_bytes(files[LIBRARY])
        elf = read_elf(path)
    tags = platforms(machine, check(elf, machine))
    name, version, python, abi, _ = wheel.stem.split("-")
    information = f"{name}-{version}.dist-info"
    old = files[f"{information}/WHEEL"].decode()
    lines = [line for line in old.splitlines() if line and not line.startswith("Tag:")]
    lines += [f"Tag: {python}-{abi}-{tag}" for tag in tags]
    files[f"{information}/WHEEL"] = ("\n".join(lines) + "\n").encode()
    files[f"{information}/RECORD"] = _record(files, f"{information}/RECORD")
    made = folder / f"{name}-{version}-{python}-{abi}-{'.'.join(tags)}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    _write(made, files)
    return made, elf


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    lines = []
    for name in sorted(files):
        if name == own:
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(files[name])}")
    return ("\n".join([*lines, f"{own},,"]) + "\n").encode()


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    date = time.gmtime(max(EPOCH, int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))))[:6]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda name: (".dist-info/" in name, name)):
            entry = zipfile.ZipInfo(name, date)
            mode = 0o755 if name.endswith(".so") or files[name].startswith(b"#!") else 0o644
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])


def main() -> int:
    machine, wheel, folder = sys.argv[1:]
    try:
        made, elf = finish(Path(wheel), machine, Path(folder))
    except Refused as err:
        sys.stderr.write(f"finish_wheel: {err}\n")
        return 3
    newest = max(elf.glibc, default=OLDEST)
    print(
        f"{made.name}: {elf.machine}, {len(elf.exported)} functions, needs {', '.join(sorted(elf.needed))} "
        f"with symbols of glibc {newest[0]}.{newest[1]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
