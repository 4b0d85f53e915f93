"""Run a program under tests/faults/shim.c: what it does to the files of one folder, recorded, broken off or failing."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "faults" / "shim.c"
BUILT = Path(__file__).parents[1] / "build" / "tests"
OPS = (
    "",
    "open",
    "write",
    "trunc",
    "rename",
    "link",
    "symlink",
    "unlink",
    "rmdir",
    "mkdir",
    "fsync",
    "fdatasync",
    "sync",
    "read",
    "mark",
    "unseen",
)
CREATED, TRUNCATED, FOLDER, FAILED = 1, 2, 4, 8
_HEAD = struct.Struct("<IHHiIIIQq")
_MAGIC = 0x6B676465


@dataclass(frozen=True)
class Op:
    """One operation, in order. offset: of a write; a trunc: the new size. other: the new name, or a link's text."""

    kind: str
    flags: int
    error: int
    path: str
    other: str
    data: bytes
    inode: int
    offset: int

    def __str__(self) -> str:
        more = f" -> {self.other}" if self.other else f" {self.offset}+{len(self.data)}" if self.data else ""
        return f"{self.kind} {self.path}{more}"


@cache
def library() -> Path:
    """The built shim; skips the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("not installed: cc")
    name = f"shim-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not (BUILT / name).exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        made = BUILT / f"{name}.{os.getpid()}"
        command = [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", str(made)]
        done = subprocess.run([*command, str(SOURCE), "-ldl"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made.replace(BUILT / name)
    return BUILT / name


def environment(root: Path, *, kinds: tuple[str, ...] = (), **settings: object) -> dict[str, str]:
    """The variables that put a program under the shim, to be added to its own.

    kinds: of OPS, what counts as a point. settings: log, arm, kill, fail, heal, swallow, as shim.c says.
    """
    made = {"LD_PRELOAD": str(library()), "EDGEKIT_SHIM_ROOT": str(root.resolve())}
    if kinds:
        made["EDGEKIT_SHIM_KINDS"] = hex(sum(1 << OPS.index(kind) for kind in kinds))
    return made | {f"EDGEKIT_SHIM_{name.upper()}": str(value) for name, value in settings.items()}


def under(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and these."""
    return {**os.environ, **variables}


def read_log(path: Path) -> list[Op]:
    """What was recorded so far, in order."""
    data, at, found = path.read_bytes() if path.exists() else b"", 0, []
    while at + _HEAD.size <= len(data):
        magic, op, flags, error, *lengths, inode, offset = _HEAD.unpack_from(data, at)
        assert magic == _MAGIC, f"{path} is torn at {at}"
        at += _HEAD.size
        texts = []
        for length in lengths:
            texts.append(data[at : at + length])
            at += length
        found.append(
            Op(OPS[op], flags, error, os.fsdecode(texts[0]), os.fsdecode(texts[1]), texts[2], inode, offset)
        )
    return found
