"""Damaged plans under AddressSanitizer: refused or run, never read or written past."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from random_plans import random_plan

from edgekit.native import plan as p

HERE = Path(__file__).parent
NATIVE = HERE.parent.parent / "edgekit" / "native"
KERNELS = ("cpu", "kernels", "portable", "reference")
EXECUTOR = (
    *("plan_check", "check_operators", "execute", "layout", "linear"),
    *("buffers", "pool", "elementwise", "softmax", "copy"),
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PLANS, LARGEST = 40, 40_000  # bytes


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, and beside it the plans that it damages."""
    if shutil.which("gcc") is None:
        pytest.skip("not installed: gcc")
    folder = tmp_path_factory.mktemp("fuzz")
    sources = [NATIVE / f"{name}.c" for name in (*KERNELS, *EXECUTOR)]
    command = ["gcc", "-std=c11", "-O1", "-g", *SANITIZERS, "-I", NATIVE, HERE / "fuzz_plan.c", *sources]
    built = subprocess.run([*command, "-o", folder / "fuzz"], capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("not installed: gcc's sanitizers")
    assert built.returncode == 0, built.stderr
    seed = written = 0
    while written < PLANS:
        content = p.encode(random_plan(seed, steps=6))
        seed += 1
        if len(content) <= LARGEST:
            (folder / f"{written:02}.plan").write_bytes(content)
            written += 1
    return folder / "fuzz"


def damaged(fuzzer: Path, rounds: int, seed: int) -> dict[str, int]:
    plans = sorted(fuzzer.parent.glob("*.plan"))
    done = subprocess.run(
        [fuzzer, str(rounds), str(seed), *plans], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    return {word: int(number) for word, number in zip(words[::2], words[1::2], strict=True)}


def test_thousands_of_damaged_plans_are_refused_or_run(fuzzer: Path) -> None:
    count = damaged(fuzzer, 5_000, seed=1)
    assert count["refused"] > 3_000
    assert count["ran"] > 300  # damage that leaves a plan one: other weights, thresholds, names
    assert sum(count.values()) == 5_000


@pytest.mark.slow
def test_a_hundred_thousand_damaged_plans_are_refused_or_run(fuzzer: Path) -> None:
    for seed in range(2, 12):
        assert sum(damaged(fuzzer, 10_000, seed).values()) == 10_000
