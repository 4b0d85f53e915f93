"""`edgekit repo environment` and what `repo add` makes of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from supervised import wheel

from edgekit.cli.main import run
from edgekit.core.environment import open_environment

AGENT = wheel("edgekit", {"edgekit/__main__.py": ""})
ARM = "edgekit-1-py3-none-manylinux_2_28_aarch64.whl"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / ARM).write_bytes(AGENT)
    (folder / "numpy-2.2-cp311-cp311-manylinux_2_17_aarch64.whl").write_bytes(
        wheel("numpy", {"numpy.py": ""})
    )
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    return out, err


def test_wheels_become_an_environment_that_says_where_it_runs(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent-3.env"
    out, _ = call(capsys, "repo", "environment", wheels, "-o", file, "--version", 3, "--json")
    made = open_environment(file).environment
    assert (made.label, made.pythons, made.machines, made.glibc) == (
        "agent/3",
        ("3.11",),
        ("aarch64",),
        "2.28",
    )
    assert made.entry == "edgekit"
    assert "raspberrypi5" in made.profiles
    assert "host" in made.profiles
    assert not {"pynq-z1", "jetson-orin-nano"} & set(made.profiles), "other processors, other Pythons"
    assert json.loads(out)["content_id"] == made.content_id
    again = tmp_path / "again.env"
    call(capsys, "repo", "environment", *sorted(wheels.iterdir()), "-o", again, "--version", 3)
    assert again.read_bytes() == file.read_bytes()


def test_it_is_added_like_a_bundle_and_lies_at_a_path_of_its_own(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repo"
    call(capsys, "repo", "init", repository)
    for version in (1, 2):
        call(capsys, "repo", "environment", wheels, "-o", tmp_path / "a.env", "--version", version)
        out, _ = call(capsys, "repo", "add", repository, tmp_path / "a.env", "--json")
        assert json.loads(out)["added"] is True
    assert (repository / "targets/agent/agent/2.env").read_bytes() == (tmp_path / "a.env").read_bytes()
    found = json.loads(call(capsys, "repo", "status", repository, "--json")[0])
    assert {t["label"]: t["state"] for t in found["targets"]} == {"agent/1": "allowed", "agent/2": "current"}
    assert found["problems"] == []


def test_what_would_only_fail_on_the_board_is_said_before(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("-o", tmp_path / "a.env", "--version", 1)

    def complaint(*arguments: object) -> str:
        said = call(capsys, "repo", "environment", *arguments, *out, code=2)[1]
        assert said.count("\n") == 1
        return said

    (tmp_path / "empty").mkdir()
    assert "there are none" in complaint(tmp_path / "empty")
    assert "does not run on Python 3.12" in complaint(wheels, "--python", "3.12")
    assert "--profile must be one of" in complaint(wheels, "--profile", "toaster")
    numpy = next(wheels.glob("numpy*"))
    assert "there must be a wheel of edgekit" in complaint(numpy)
    (wheels / "numpy-2.3-cp311-cp311-manylinux_2_17_aarch64.whl").write_bytes(numpy.read_bytes())
    assert "of the same package" in complaint(wheels)
    (wheels / "numpy-2.3-cp311-cp311-manylinux_2_17_aarch64.whl").unlink()
    needy = wheel(
        "needy", {"edgekit-1.dist-info/METADATA": "Requires-Dist: tuf>=6\nRequires-Dist: x; extra == 'y'\n"}
    )
    (wheels / ARM).write_bytes(needy)
    assert "needs tuf, whose wheel is not among them" in complaint(wheels)
    (wheels / ARM).write_bytes(b"no zip")
    assert "must be a wheel" in complaint(wheels)
    assert not (tmp_path / "a.env").exists()
