"""The portable C files compile for microcontrollers: nothing but the C library's strings, and no warning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from c_programs import require, run

NATIVE = Path(__file__).parent.parent.parent / "edgekit" / "native"
COMPILER = "arm-none-eabi-gcc"
FLAGS = ("-std=c11", "-Os", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-ffp-contract=off")
OTHER_SETS = re.compile(r"avx|neon")
SOURCES = sorted(path for path in NATIVE.glob("*.c") if not OTHER_SETS.match(path.name))
CORES = {
    "cortex-m0plus": ("-mcpu=cortex-m0plus", "-mthumb"),
    "cortex-m4": ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
}


@pytest.mark.parametrize("core", CORES)
def test_the_portable_files_compile_without_a_warning_and_call_no_allocator(
    core: str, tmp_path: Path
) -> None:
    require(COMPILER, "arm-none-eabi-nm")
    wanted = set()
    for source in SOURCES:
        run(COMPILER, *FLAGS, *CORES[core], "-c", source, "-o", tmp_path / f"{source.stem}.o")
        wanted |= set(re.findall(r" U (\w+)", run("arm-none-eabi-nm", tmp_path / f"{source.stem}.o")))
    assert {"kernels", "portable", "reference"} <= {source.stem for source in SOURCES}
    assert not wanted & {"malloc", "calloc", "realloc", "free", "printf", "__assert_func"}
    assert not {name for name in wanted if name.startswith("__atomic")}  # a library of its own
