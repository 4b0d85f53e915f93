"""tools/build_wheels.sh: one package for three machines, the same bytes wherever it is built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from arm_boards import ROOT
from c_programs import require

from edgekit import __version__
from edgekit.native import door

pytestmark = [pytest.mark.arm, pytest.mark.timeout(300)]
MACHINES = ("x86_64", "aarch64", "armv7l")
SOURCES = (
    *("edgekit", "device_profiles", "firmware_stubs", "models", "tools"),
    *("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", ".gitignore"),
)
LIBRARY = "edgekit/native/libedgekit_native.so"
DATE = "1700000000"


def build(root: Path, dist: Path, *machines: str) -> dict[str, Path]:
    """The wheels by machine."""
    require("x86_64-linux-gnu-gcc", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc")
    environment = os.environ | {"DIST": str(dist), "SOURCE_DATE_EPOCH": DATE}
    command = [root / "tools/build_wheels.sh", *machines]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {machine: path for machine in machines for path in dist.glob(f"*_{machine}.whl")}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"), *MACHINES)


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_names_say_which_systems_they_run_on(wheels: dict[str, Path]) -> None:
    tags = {machine: path.stem.split("-") for machine, path in wheels.items()}
    start = ["edgekit", __version__, "py3", "none"]
    assert tags == {
        "x86_64": [*start, "manylinux_2_17_x86_64.manylinux2014_x86_64"],
        "aarch64": [*start, "manylinux_2_17_aarch64.manylinux2014_aarch64"],
        "armv7l": [*start, "manylinux_2_17_armv7l.manylinux2014_armv7l.linux_armv7l"],
    }


def test_they_differ_in_nothing_but_the_library_and_the_tags(wheels: dict[str, Path]) -> None:
    first, *others = (members(wheels[machine]) for machine in MACHINES)
    information = f"edgekit-{__version__}.dist-info"
    assert f"Version: {__version__}\n".encode() in first[f"{information}/METADATA"]
    for other in others:
        differing = {name for name in first.keys() | other.keys() if first.get(name) != other.get(name)}
        assert differing == {LIBRARY, f"{information}/WHEEL", f"{information}/RECORD"}


def test_another_folder_and_another_umask_give_the_same_bytes(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "another"
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    for name in (".venv", ".venv-wheels"):
        (copy / name).symlink_to(ROOT / name)
    for path in copy.rglob("*"):
        if path.is_file() and not path.is_symlink() and copy in path.resolve().parents:
            path.chmod(path.stat().st_mode & 0o700)
            os.utime(path, (0, 1_500_000_000))
    (again,) = build(copy, tmp_path / "dist", "aarch64").values()
    assert again.read_bytes() == wheels["aarch64"].read_bytes()


def test_the_x86_librarys_kernels_are_those_of_this_installation(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(members(wheels["x86_64"])[LIBRARY])
    code = "from edgekit.native import door; import json; print(json.dumps(door.kernels()))"
    environment = os.environ | {"EDGEKIT_NATIVE_LIBRARY": str(library)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(door.kernels()))
