"""The boards of tools/arm_lab.sh, and bundles for them, for the tests under emulation."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT / "tests/arm/answers.py"


class Cpu(NamedTuple):
    """name: qemu's. machine: what Python says. profile: of the board that has it. features, kernels: the library's."""

    name: str
    machine: str
    profile: str
    features: tuple[str, ...]
    kernels: tuple[str, ...]


CPUS = (
    Cpu("cortex-a53", "aarch64", "raspberrypi3b", ("neon",), ("reference", "portable", "neon")),
    Cpu("cortex-a72", "aarch64", "raspberrypi4b", ("neon",), ("reference", "portable", "neon")),
    Cpu(
        "cortex-a76",
        "aarch64",
        "raspberrypi5",
        ("neon", "dotprod", "fp16"),
        ("reference", "portable", "neon"),
    ),
    Cpu("cortex-a9", "armv7l", "pynq-z1", ("neon",), ("reference", "portable", "neon")),
)
BOARDS = CPUS[:3]  # with onnxruntime and LiteRT


def say(*command: str | Path) -> str:
    """What the command printed; fails the test where it fails. Run elsewhere than in the repository and its edgekit."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(lab: Path, cpu: Cpu) -> Path:
    return lab / cpu.name / "bin/python"


def answers(interpreter: str | Path, bundle: Path, out: Path) -> dict[str, NDArray[Any]]:
    """What tests/arm/answers.py computes there."""
    say(interpreter, ANSWERS, bundle, out)
    with np.load(out) as arrays:
        return dict(arrays)


def convert(model: str, profile: str, backend: str, name: str, version: int, data: Path, out: Path) -> Path:
    """A bundle of one of models/, by the real command."""
    code = "from edgekit.cli.main import main; main()"
    arguments = ["--profile", profile, "--backend", backend, "--name", name, "--version", str(version)]
    arguments += ["--calib", str(data / "calib.npz"), "--val", str(data / "val.npz"), "--effort", "quick"]
    arguments += ["--no-cache", "-o", str(out), "--report", str(out.with_suffix(".html")), "--json"]
    say(sys.executable, "-c", code, "convert", ROOT / "models" / model, *arguments)
    return out


def everywhere(call: Any, *columns: Any) -> list[Any]:
    """call(...) for each row, two at a time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(call, *columns))
