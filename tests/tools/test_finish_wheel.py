"""tools/finish_wheel.py: no wheel goes out whose library would not load on the boards that its tag names."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from c_programs import require, run
from fashion_data import script

from edgekit.native import door

GOOD = "AArch64"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    require("readelf")
    return script("finish_wheel")


@pytest.fixture(scope="module")
def good(tool: ModuleType) -> Any:
    """What stands in a library for aarch64 that is fit to go out."""
    symbols = {(2, 17): "memcpy"}
    return tool.Elf(GOOD, "0x0", frozenset({"libc.so.6"}), False, symbols, tool.c_interface())


def test_the_library_of_this_installation_exports_the_c_interface_and_nothing_else(tool: ModuleType) -> None:
    elf = tool.read_elf(Path(str(files("edgekit.native") / door.LIBRARY)))
    assert elf.exported == tool.c_interface() >= {"ek_abi_version", "ek_plan_open", "ek_plan_run"}
    assert elf.needed <= {"libc.so.6", "libm.so.6"}
    assert "memcpy" in elf.glibc.values()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"machine": "ARM"}, "wanted a library for AArch64, got one for ARM"),
        ({"needed": frozenset({"libc.so.6", "libgomp.so.1"})}, "libgomp.so.1"),
        ({"run_path": True}, "wanted only the C library"),
        ({"glibc": {(2, 17): "memcpy", (2, 34): "dlopen"}}, "dlopen needs 2.34"),
        ({"exported": frozenset({"ek_abi_version"})}, "ek_plan_open"),
    ],
)
def test_what_is_not_fit_is_refused_with_the_reason(
    tool: ModuleType, good: Any, changes: dict[str, Any], refusal: str
) -> None:
    assert tool.check(good, "aarch64") == (2, 17)
    with pytest.raises(tool.Refused, match=refusal):
        tool.check(replace(good, **changes), "aarch64")


def test_32_bit_arm_without_hard_floats_is_refused(tool: ModuleType, good: Any) -> None:
    with pytest.raises(tool.Refused, match="hard-float"):
        tool.check(replace(good, machine="ARM", flags="0x5000200, Version5 EABI, soft-float ABI"), "armv7l")


def test_the_newest_symbol_decides_the_tag(tool: ModuleType, good: Any) -> None:
    newer = replace(good, glibc={(2, 4): "memcpy", (2, 27): "expf"})
    assert tool.platforms("aarch64", tool.check(newer, "aarch64")) == ["manylinux_2_27_aarch64"]
    older = replace(good, glibc={(2, 4): "memcpy"})
    assert tool.platforms("aarch64", tool.check(older, "aarch64")) == [
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ]


def test_an_extra_function_is_seen_in_a_real_library(tool: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "extra.c"
    source.write_text("#include <math.h>\nfloat ek_extra(float x) { return expf(x); }\n")
    run("cc", "-shared", "-fPIC", "-o", tmp_path / "extra.so", source, "-lm", "-Wl,-rpath,/opt")
    elf = tool.read_elf(tmp_path / "extra.so")
    assert elf.exported == {"ek_extra"}
    assert elf.run_path
    assert elf.glibc[2, 27] == "expf"


def test_what_is_no_library_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_text("no library")
    with pytest.raises(tool.Refused, match="wanted an ELF file"):
        tool.read_elf(tmp_path / "x.so")
