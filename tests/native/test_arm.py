"""The same C files, cross-compiled for ARM and run under emulation against their own reference."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# compiler prefix, emulator, processor as CMake calls it
TARGETS = {
    "aarch64": ("aarch64-linux-gnu", "qemu-aarch64-static"),
    "armv7": ("arm-linux-gnueabihf", "qemu-arm-static"),
}
CPUS = [
    ("aarch64", "cortex-a53", {"neon"}),
    ("aarch64", "cortex-a72", {"neon"}),
    ("aarch64", "cortex-a76", {"neon", "dotprod", "fp16"}),
    ("armv7", "cortex-a7", {"neon"}),
    ("armv7", "cortex-a9", {"neon"}),
]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix, emulator = TARGETS[request.param]
    missing = [tool for tool in ("cmake", f"{prefix}-gcc", emulator) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    build = tmp_path_factory.mktemp(request.param)
    run(
        *("cmake", "-S", ROOT, "-B", build, "-DCMAKE_SYSTEM_NAME=Linux"),
        *(f"-DCMAKE_SYSTEM_PROCESSOR={request.param}", f"-DCMAKE_C_COMPILER={prefix}-gcc"),
    )
    run("cmake", "--build", build)
    run(
        *(f"{prefix}-gcc", "-std=c11", "-O2", "-I", ROOT / "edgekit" / "native", HERE / "check_kernels.c"),
        *(build / "libedgekit_native.so", "-Wl,-rpath,$ORIGIN", "-o", build / "check_kernels"),
    )
    return build / "check_kernels"


@pytest.mark.parametrize(
    ("program", "cpu", "features"), CPUS, indirect=["program"], ids=[cpu for _, cpu, _ in CPUS]
)
def test_neon_is_chosen_on_arm_and_agrees_with_the_reference(
    program: Path, cpu: str, features: set[str], request: pytest.FixtureRequest
) -> None:
    prefix, emulator = TARGETS[request.node.callspec.params["program"]]
    said = run(emulator, "-L", f"/usr/{prefix}", "-cpu", cpu, program).splitlines()
    assert said == [
        "reference",
        "portable",
        "neon chosen",
        *(line for line in said if line.startswith("cpu ")),
    ]
    assert {line.removeprefix("cpu ") for line in said if line.startswith("cpu ")} == features
