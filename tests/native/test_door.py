"""The native library as Python finds it: version, CPU features, the kernel table, the C header."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.core.errors import MissingExtra
from edgekit.native import door

NATIVE = Path(__file__).parent.parent.parent / "edgekit" / "native"
CPUINFO = Path("/proc/cpuinfo")

# What /proc/cpuinfo calls the features that we name differently.
KERNEL_NAMES = {
    "avxvnni": "avx_vnni",
    "avx512vnni": "avx512_vnni",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "neon": "asimd",
    "dotprod": "asimddp",
    "fp16": "asimdhp",
}
KNOWN = {
    "x86_64": {
        *("popcnt", "avx2", "fma", "avx512f", "avx512bw", "avx512vl"),
        *("avx512vnni", "avx512vpopcntdq", "avxvnni"),
    },
    "aarch64": {"neon", "dotprod", "fp16"},
}


def test_header_and_door_name_the_same_abi_version() -> None:
    header = (NATIVE / "edgekit_native.h").read_text("utf-8")
    assert re.search(r"#define EK_ABI_VERSION (\d+)", header)[1] == str(door.ABI_VERSION)  # type: ignore[index]


def test_header_and_door_name_the_same_functions() -> None:
    header = (NATIVE / "edgekit_native.h").read_text("utf-8")
    assert set(re.findall(r"EK_API [^;(]*?(ek_\w+)\(", header)) == set(door._SIGNATURES)


@pytest.mark.skipif(
    platform.machine() not in KNOWN, reason="the feature names of this architecture are not known here"
)
def test_cpu_features_are_those_that_the_operating_system_reports() -> None:
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", CPUINFO.read_text("utf-8"), re.MULTILINE)
    assert line is not None
    reported = set(line[1].split())
    wanted = {name for name in KNOWN[platform.machine()] if KERNEL_NAMES.get(name, name) in reported}
    assert set(door.cpu_features()) == wanted


FAMILIES = ("xnor", "dot8")


def rows_of(family: str) -> list[door.Kernel]:
    return [row for row in door.kernels() if row.family == family]


def test_the_table_lists_every_instruction_set_built_or_not() -> None:
    assert {row.family for row in door.kernels()} == set(FAMILIES)
    for family in FAMILIES:
        names = [row.name for row in rows_of(family)]
        assert names == ["reference", "portable", "neon", "avx2", "avx512"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_and_the_portable_kernel_run_everywhere(family: str) -> None:
    supported = {row.name for row in rows_of(family) if row.supported}
    assert {"reference", "portable"} <= supported


@pytest.mark.parametrize("family", FAMILIES)
def test_one_kernel_is_chosen_and_it_is_the_fastest_that_can_run(family: str) -> None:
    rows = rows_of(family)
    assert [row.chosen for row in rows].count(True) == 1
    assert next(row for row in rows if row.chosen) == [row for row in rows if row.supported][-1]


def test_what_is_not_built_is_not_supported() -> None:
    assert all(row.built for row in door.kernels() if row.supported)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these kernels are built for x86-64 only")
def test_x86_kernels_run_exactly_where_the_cpu_has_their_instructions() -> None:
    features = set(door.cpu_features())
    for family in FAMILIES:
        rows = {row.name: row for row in rows_of(family)}
        more = {"avx512vnni"} if family == "dot8" else set()
        assert rows["avx2"].supported == ({"popcnt", "avx2"} <= features)
        assert rows["avx512"].supported == ({"popcnt", "avx512f", "avx512vpopcntdq", *more} <= features)


@pytest.fixture
def reopened() -> Iterator[None]:
    door._library.cache_clear()
    yield
    door._library.cache_clear()


@pytest.mark.usefixtures("reopened")
def test_a_library_that_is_not_built_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_NATIVE_LIBRARY", raising=False)
    monkeypatch.setattr(door, "LIBRARY", "libmissing.so")
    with pytest.raises(MissingExtra, match=r"libmissing\.so is not built; run tools/setup"):
        door.kernels()


@pytest.mark.usefixtures("reopened")
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = door.ABI_VERSION
    monkeypatch.setattr(door, "ABI_VERSION", 999)
    with pytest.raises(MissingExtra, match=f"has ABI version {found}, wanted 999"):
        door.kernels()
