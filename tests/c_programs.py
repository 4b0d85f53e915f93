"""Build the test programs in C for this machine or for ARM, and run them, on ARM under emulation."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.native import door
from edgekit.native.plan import Plan, encode
from edgekit.native.plan_door import outside_dtype, outside_shape

ROOT = Path(__file__).parent.parent
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
PROGRAMS = ("check_kernels", "check_xnor", "run_plan")


class Target(NamedTuple):
    """A kind of machine: the prefix of its compiler and what emulates it; None: the machine itself."""

    prefix: str | None
    emulator: str | None


HOST = Target(None, None)
TARGETS = {
    "aarch64": Target("aarch64-linux-gnu", "qemu-aarch64-static"),
    "armv7": Target("arm-linux-gnueabihf", "qemu-arm-static"),
}


def run(*command: str | Path) -> str:
    """What the command printed; fails the test where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def require(*tools: str) -> None:
    """Skip the test where one of these is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@cache
def built(name: str | None = None) -> Path:
    """The folder of PROGRAMS for this machine or for one of TARGETS; built once, gone when Python ends."""
    prefix, emulator = HOST if name is None else TARGETS[name]
    require("cmake", *((f"{prefix}-gcc", emulator) if prefix and emulator else ("cc",)))
    folder = tempfile.TemporaryDirectory(prefix="edgekit-programs-")
    _FOLDERS.append(folder)
    cross = (
        *("-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={name}"),
        f"-DCMAKE_C_COMPILER={prefix}-gcc",
    )
    run("cmake", "-S", ROOT, "-B", folder.name, *(cross if prefix else ()))
    run("cmake", "--build", folder.name, "--target", *PROGRAMS)
    return Path(folder.name)


def on(name: str, cpu: str) -> tuple[str, ...]:
    """What to put before a program of a target's so that it runs as on that CPU."""
    prefix, emulator = TARGETS[name]
    assert emulator is not None
    return (emulator, "-L", f"/usr/{prefix}", "-cpu", cpu)


def sums_of(plan: Plan, inputs: Sequence[Sequence[NDArray[Any]]], kernels: str | None) -> list[str]:
    """The lines that run_plan prints for these inputs, from the library that Python has open."""
    content = encode(plan)
    kept = door.open_plan(content, kernels=kernels, keep=True)
    shared = door.open_plan(content, kernels=kernels)
    outputs = [np.zeros(outside_shape(tensor), outside_dtype(tensor)) for tensor in kept.outputs]
    lines = []
    for given in inputs:
        kept.run(given, outputs)
        codes = [zlib.crc32(kept.codes(index).astype("<i4").tobytes()) for index in range(len(plan.tensors))]
        shared.run(given, outputs)
        made = zlib.crc32(b"".join(output.tobytes() for output in outputs))
        lines.append(" ".join(f"{number:08x}" for number in (*codes, made)))
    return lines


def sums_by(
    command: Sequence[str | Path],
    plan: Plan,
    inputs: Sequence[Sequence[NDArray[Any]]],
    kernels: str,
    folder: Path,
) -> list[str]:
    """The same by a run_plan: `command` and what is to stand before it."""
    (folder / "plan").write_bytes(encode(plan))
    (folder / "inputs").write_bytes(b"".join(array.tobytes() for given in inputs for array in given))
    return run(*command, folder / "plan", folder / "inputs", kernels).splitlines()
