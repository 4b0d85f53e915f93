"""What the commands print with --json is what core/schemas.py says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundles import SHAPE, write_null_bundle

from edgekit.cli.main import run
from edgekit.core.schemas import OUTPUTS

jsonschema = pytest.importorskip("jsonschema")


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(OUTPUTS[name])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run", ["run", "toy.edge", "x.npz"]),
        ("run", ["run", "toy.edge", "x.npz", "--budget", "50%"]),
        ("bench", ["bench", "toy.edge"]),
        ("bench", ["bench", "toy.edge", "--memory"]),
        ("bench", ["bench", "toy.edge", "--data", "x.npz", "--deadline-ms", "5"]),
        ("bench", ["bench", "toy.edge", "--data", "x.npz", "--curves"]),
        ("profile list", ["profile", "list"]),
        ("profile show", ["profile", "show", "pynq-z2"]),
        ("profile check", ["profile", "check", "board.toml"]),
        (
            "profile measure",
            ["profile", "measure", "-o", "here.toml", "--family", "Add", "--rounds", "1"],
        ),
        ("native", ["native"]),
        ("inspect bundle", ["inspect", "toy.edge"]),
        ("repo init", ["repo", "init", "other"]),
        ("repo add", ["repo", "add", "repository", "toy.edge"]),
        ("repo status", ["repo", "status", "repository"]),
        ("repo rotate", ["repo", "rotate", "repository", "online"]),
        ("repo sign", ["repo", "sign", "repository"]),
        ("repo sign", ["repo", "sign", "repository", "--cancel"]),
        ("repo sign", ["repo", "sign", "1.root.json", "--key", "repository/keys/root-1.pem"]),
        ("repo refresh", ["repo", "refresh", "repository", "--past", "timestamp=7"]),
        ("repo revoke", ["repo", "revoke", "published", "toy/1"]),
    ],
)
def test_a_command_prints_its_object_and_nothing_else(
    name: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_null_bundle(tmp_path / "toy.edge")
    np.savez(tmp_path / "x.npz", x=np.ones((4, *SHAPE[1:]), np.float32), y=np.zeros(4, np.int64))
    profile = Path(__file__).parents[2] / "device_profiles/raspberrypi5.toml"
    (tmp_path / "board.toml").write_text(profile.read_text())
    for folder in ("repository", "published"):
        assert run(["repo", "init", folder, "--json"]) == 0
    assert run(["repo", "add", "published", "toy.edge"]) == 0
    shutil.copy("repository/metadata/1.root.json", ".")
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    jsonschema.validate(printed, OUTPUTS[name])
    shapes = OUTPUTS[name].get("anyOf", [OUTPUTS[name]])
    known = [set(shape["properties"]) for shape in shapes]
    assert any(set(printed) <= keys for keys in known), "a key that the schema does not tell"
    assert out.count("\n") == 1
    assert err == ""
