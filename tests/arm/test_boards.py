"""A board's Python under emulation: it is that board's, its native kernels are, and a binary network has x86's bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from arm_boards import BOARDS, CPUS, Cpu, answers, convert, python, say
from numpy.testing import assert_array_equal

pytestmark = [pytest.mark.arm, pytest.mark.timeout(300)]
on_every_cpu = pytest.mark.parametrize("cpu", CPUS, ids=[cpu.name for cpu in CPUS])
on_every_board = pytest.mark.parametrize("cpu", BOARDS, ids=[cpu.name for cpu in BOARDS])

SELF = """
import json, platform, subprocess, sys
import edgekit, numpy
child = "import platform, sys; print(platform.machine(), sys.executable)"
child = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
print(json.dumps({"machine": platform.machine(), "executable": sys.executable, "child": child.stdout.split(),
    "edgekit": edgekit.__file__, "numpy": numpy.__file__, "path": sys.path}))
"""


@on_every_cpu
def test_its_python_is_the_boards_and_so_are_its_children(lab: Path, cpu: Cpu) -> None:
    said = json.loads(say(python(lab, cpu), "-c", SELF))
    assert said["machine"] == cpu.machine
    assert said["executable"] == str(python(lab, cpu))
    assert said["child"] == [cpu.machine, said["executable"]]
    assert said["edgekit"].startswith(str(lab))
    assert all(path.startswith(str(lab.parent)) for path in (*said["path"][1:], said["numpy"]))


# Words of /proc/cpuinfo that runtimes choose kernels by: their bits of AT_HWCAP (Linux arch/arm64 uapi/asm/hwcap.h).
HWCAPS = {"asimd": 1, "aes": 3, "crc32": 7, "atomics": 8, "fphp": 9, "asimdhp": 10, "asimddp": 20, "sve": 22}
CAPABILITIES = """
import ctypes, json
getauxval = ctypes.CDLL(None).getauxval
getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
print(json.dumps({"hwcap": getauxval(16), "cpuinfo": open("/proc/cpuinfo").read()}))
"""


@on_every_board
def test_what_cpuinfo_says_the_cpu_can_do(lab: Path, cpu: Cpu) -> None:
    said = json.loads(say(python(lab, cpu), "-c", CAPABILITIES))
    words = next(line for line in said["cpuinfo"].splitlines() if line.startswith("Features")).split()
    assert "asimd" in words
    assert [word for word in words if word in HWCAPS and not said["hwcap"] >> HWCAPS[word] & 1] == []
    assert ("asimddp" in words) == ("dotprod" in cpu.features)


@on_every_cpu
def test_the_wheels_library_holds_this_cpus_kernels_and_chooses_the_fastest(lab: Path, cpu: Cpu) -> None:
    code = "from edgekit.native import door; import json; print(json.dumps([door.cpu_features(), door.kernels()]))"
    features, rows = json.loads(say(python(lab, cpu), "-c", code))
    assert set(features) == set(cpu.features)
    for family in ("xnor", "dot8"):
        own = [(name, chosen) for kin, name, built, runs, chosen in rows if kin == family and built and runs]
        assert own == [(name, name == cpu.kernels[-1]) for name in cpu.kernels]


@pytest.fixture(scope="module")
def binary(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("binary") / "lfc.edge"
    return convert("fashion_mnist_lfc_w1a1.onnx", "pynq-z1", "native", "lfc", 1, data, out)


@on_every_cpu
def test_a_binary_network_has_the_bits_of_x86(lab: Path, binary: Path, cpu: Cpu, tmp_path: Path) -> None:
    wanted = answers(sys.executable, binary, tmp_path / "here.npz")
    got = answers(python(lab, cpu), binary, tmp_path / "there.npz")
    for kernels in cpu.kernels:
        assert_array_equal(got.pop(f"{kernels}/0"), wanted["reference/0"], f"kernels {kernels}")
    tensors = {name for name in wanted if "/" not in name}
    assert set(got) == tensors
    assert len({case.tobytes() for case in got[next(iter(tensors))]}) > 1
    for name in tensors:
        assert_array_equal(got[name], wanted[name], name)


def test_32_bits_run_a_binary_network_by_the_command(
    lab: Path, binary: Path, data: Path, tmp_path: Path
) -> None:
    (cpu,) = (cpu for cpu in CPUS if cpu.machine == "armv7l")
    with np.load(data / "val.npz") as some:
        np.savez(tmp_path / "some.npz", x=some["x"][:20], y=some["y"][:20])
    options = ("bench", binary, "--data", tmp_path / "some.npz", "--json")
    there = json.loads(say(lab / cpu.name / "bin/edgekit", *options))
    here = json.loads(say(sys.executable, "-c", "from edgekit.cli.main import main; main()", *options))
    assert there["accuracy"] == here["accuracy"]
    assert 0.5 < there["accuracy"] <= 1
