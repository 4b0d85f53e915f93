"""tools/fetch_data.py: the folder it prints holds the files of record, or it prints none."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "fetch_data.py"
FILES = {
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
}


def fetch_data(cache: Path, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"EDGEKIT_CACHE": str(cache)}
    if path is not None:
        env["PATH"] = path
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def good() -> Path:
    """The real files, wherever this machine has them."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


@pytest.fixture
def fake_apt(tmp_path: Path):
    """A PATH whose apt-get runs the given shell lines."""

    def make(lines: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        apt = folder / "apt-get"
        apt.write_text(f"#!/bin/sh\n{lines}\n")
        apt.chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return make


def package(folder: Path, files: dict[str, bytes]) -> Path:
    """A .deb that brings these files where the real package has them."""
    data = folder / "deb/usr/share/datasets/fashion-mnist"
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name).write_bytes(content)
    control = folder / "deb/DEBIAN/control"
    control.parent.mkdir()
    control.write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: d\n"
    )
    made = folder / "made.deb"
    subprocess.run(
        ["dpkg-deb", "-Znone", "-b", str(folder / "deb"), str(made)], check=True, capture_output=True
    )
    return made


def test_the_folder_printed_holds_the_four_files(good: Path):
    assert {each.name for each in good.iterdir()} >= FILES


def test_without_the_installed_package_the_files_come_from_apt_once(good: Path, tmp_path: Path, fake_apt):
    made = package(tmp_path, {name: (good / name).read_bytes() for name in FILES})
    path = fake_apt(f'echo called >> {tmp_path}/calls\ncp {made} "$2_1_all.deb"')

    for _ in range(2):
        done = fetch_data(tmp_path / "cache", "--ignore-installed", path=path)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path}/cache/fashion-mnist\n")
    assert (tmp_path / "calls").read_text() == "called\n"
    assert {each.name for each in (tmp_path / "cache").iterdir()} == {"fashion-mnist"}


def test_a_changed_file_in_the_cache_is_fetched_anew(good: Path, tmp_path: Path, fake_apt):
    made = package(tmp_path, {name: (good / name).read_bytes() for name in FILES})
    cached = tmp_path / "cache/fashion-mnist"
    cached.mkdir(parents=True)
    for name in FILES:
        (cached / name).write_bytes(b"something else")

    done = fetch_data(tmp_path / "cache", "--ignore-installed", path=fake_apt(f'cp {made} "$2_1_all.deb"'))
    assert done.returncode == 0
    for name in FILES:
        assert (
            hashlib.sha256((cached / name).read_bytes()).digest()
            == hashlib.sha256((good / name).read_bytes()).digest()
        )


def test_a_package_with_other_content_is_refused_and_leaves_nothing(tmp_path: Path, fake_apt):
    made = package(tmp_path, dict.fromkeys(FILES, b"other"))
    done = fetch_data(tmp_path / "cache", "--ignore-installed", path=fake_apt(f'cp {made} "$2_1_all.deb"'))
    assert (done.returncode, done.stdout) == (3, "")
    assert "wanted sha256" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_when_apt_fails_one_line_says_why(tmp_path: Path, fake_apt):
    path = fake_apt('echo "E: Unable to locate package $2" >&2\nexit 100')
    done = fetch_data(tmp_path / "cache", "--ignore-installed", path=path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "E: Unable to locate package dataset-fashion-mnist" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
