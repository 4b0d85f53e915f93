"""`edgekit repo`, called as a person would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import write_null_bundle

from edgekit.cli.main import run


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run one command line; what it printed and what it complained."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    return out, err


@pytest.fixture
def repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    call(capsys, "repo", "init", tmp_path / "repo")
    return tmp_path / "repo"


def test_a_bundle_is_added_and_shown(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_null_bundle(tmp_path / "a.edge", version=1)
    write_null_bundle(tmp_path / "b.edge", version=2)
    out, _ = call(capsys, "repo", "add", repository, tmp_path / "a.edge", "--json")
    first = json.loads(out)
    assert (first["v"], first["target"], first["added"], first["targets_version"]) == (1, "toy/1", True, 2)
    again = json.loads(call(capsys, "repo", "add", repository, tmp_path / "a.edge", "--json")[0])
    assert (again["added"], again["targets_version"]) == (False, 2)
    call(capsys, "repo", "add", repository, tmp_path / "b.edge", "--key", repository / "keys/targets.pem")
    found = json.loads(call(capsys, "repo", "status", repository, "--json")[0])
    assert {t["label"]: t["state"] for t in found["targets"]} == {"toy/1": "allowed", "toy/2": "current"}
    table = call(capsys, "repo", "status", repository)[0]
    assert "toy/2" in table
    assert "current" in table


def test_a_damaged_file_is_a_problem_and_ends_with_1(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_null_bundle(tmp_path / "a.edge")
    call(capsys, "repo", "add", repository, tmp_path / "a.edge")
    stored = repository / "targets/run/toy/1.edge"
    stored.write_bytes(stored.read_bytes()[:-1])
    found = json.loads(call(capsys, "repo", "status", repository, "--json", code=1)[0])
    assert found["problems"] == [f"toy/1: {stored} is not the file that was signed"]


def test_what_is_wrong_is_one_line_and_nothing_is_half_written(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_null_bundle(tmp_path / "a.edge").path
    (tmp_path / "text.edge").write_text("hello")
    (tmp_path / "key.pem").write_text("hello")
    (tmp_path / "key.pem").chmod(0o600)
    before = sorted(path.name for path in repository.rglob("*"))
    for arguments, says in (
        (("init", repository), "is a repository already"),
        (("add", tmp_path / "none", good), "is no repository; make one with: edgekit repo init"),
        (("add", repository, tmp_path / "none.edge"), "no such file"),
        (("add", repository, tmp_path / "text.edge"), "not an edgekit bundle"),
        (("add", repository, good, "--key", tmp_path / "key.pem"), "must be a private key"),
        (("add", repository, good, "--key", tmp_path / "none.pem"), "there is none"),
        (("add", repository, good, "--key", repository / "keys/online.pem"), "signed by 0/1 keys"),
        (("status", tmp_path / "none"), "is no repository"),
    ):
        out, err = call(capsys, "repo", *arguments, code=2)
        assert out == ""
        assert says in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in repository.rglob("*") if path.name != ".lock") == [
        n for n in before if n != ".lock"
    ]
