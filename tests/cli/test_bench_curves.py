"""`edgekit bench --curves`: printed, drawn and in the object; refused where there is nothing to compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundles import SHAPE, write_null_bundle

from edgekit.cli.main import run
from edgekit.core.bundle import open_bundle
from edgekit.core.curves import Curves


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_null_bundle(tmp_path / "toy.edge")
    x = np.random.default_rng(0).uniform(0, 3, (40, *SHAPE[1:])).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=x.reshape(40, -1)[:, :3].argmax(axis=1))
    return tmp_path


def test_curves_are_in_the_object_and_on_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "toy.edge", "--data", "x.npz", "--report", "curves.html", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    curves = Curves.parse(said["curves"], "curves")
    assert curves.count == 40
    assert sum(point.requests for point in curves.anytime) % 40 == 0
    assert curves.anytime_how == curves.provenance == "measured"
    assert [entry.name for entry in curves.static] == ["exit1", "exit2", "exit3"]
    text = (folder / "curves.html").read_text()
    assert text.count("<svg") == 3
    assert "toy/1" in text


def test_curves_are_tables_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "toy.edge", "--data", "x.npz", "--curves"]) == 0
    out = capsys.readouterr().out
    assert "budget curve" in out
    assert "anytime curve, measured" in out
    assert "nowhere significantly below" in out


def test_a_deadline_tells_how_many_answers_came_in_time(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "toy.edge", "--data", "x.npz", "--deadline-ms", "0.000001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deadline_missed"] == 40
    assert run(["bench", "toy.edge", "--data", "x.npz", "--deadline-ms", "1000000"]) == 0
    assert "in time" in capsys.readouterr().out


def test_what_the_exits_cost_is_told_whatever_was_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = [leaving.cost_share for leaving in open_bundle(folder / "toy.edge").manifest.exits]
    for asked, cost in (["--budget", "0.1%"], shares[0]), (["--policy", "full"], 1.0):
        assert run(["bench", "toy.edge", "--data", "x.npz", *asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cost_share"] == pytest.approx(cost, abs=0.05)


def test_without_asking_there_are_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "toy.edge", "--data", "x.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curves"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--curves"], "--curves wants --data"),
        (["--report", "a.html"], "--curves wants --data"),
        (["--data", "x.npz", "--report", "nowhere/a.html"], "--report must be a file"),
        (["--data", "x.npz", "--report", "toy.edge"], "would overwrite an input"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["bench", "toy.edge", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
