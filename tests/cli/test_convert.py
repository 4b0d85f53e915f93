"""`edgekit convert`, `inspect` and `report` as people and scripts call them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import CLASSES, SIDE, Builder, save, three_exits, write_data

from edgekit.cli.main import run
from edgekit.core.bundle import open_bundle
from edgekit.core.schemas import OUTPUTS

CODE = "import sys; from edgekit.cli.main import run; sys.exit(run(sys.argv[1:]))"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(three_exits(), tmp_path / "three.onnx")
    write_data(tmp_path / "calib.npz", (3, SIDE, SIDE), 60, 1, CLASSES)
    write_data(tmp_path / "test.npz", (3, SIDE, SIDE), 30, 2, CLASSES)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command line in the folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def one(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return one


def convert_line(
    *more: str, profile: str = "raspberrypi5", calib: str = "calib.npz", model: str = "three.onnx"
) -> list[str]:
    line = ["convert", model, "--profile", profile, "--calib", calib, "--max-drop", "100", "-o", "out/m.edge"]
    return [*line, *more]


def check(name: str, value: object) -> None:
    pytest.importorskip("jsonschema").validate(value, OUTPUTS[name])


def test_convert_writes_a_bundle_and_a_page_and_prints_its_object(call: Call, folder: Path) -> None:
    code, out, err = call(*convert_line("--eval", "test.npz", "--report", "out/m.html", "--json"))
    assert code == 0, err
    assert err == ""
    data = json.loads(out)
    check("convert", data)
    bundle = open_bundle(folder / "out/m.edge")
    assert data["content_id"] == bundle.content_id
    assert bundle.label == "three/1"
    assert data["latency_ms"]["provenance"] == "estimated"
    assert "<svg" in (folder / "out/m.html").read_text()
    assert sorted(entry.name for entry in (folder / "out").iterdir()) == ["m.edge", "m.html"]


def test_name_and_version_are_the_users(call: Call, folder: Path) -> None:
    assert call(*convert_line("--name", "shop-door", "--version", "7"))[0] == 0
    assert open_bundle(folder / "out/m.edge").label == "shop-door/7"


def test_without_evaluation_data_people_are_told_what_judged(call: Call) -> None:
    code, out, _ = call(*convert_line())
    assert code == 0
    assert "judged on the validation data: no --eval was given" in out


def test_a_missed_limit_is_exit_code_1_and_named_and_the_bundle_is_there(call: Call, folder: Path) -> None:
    code, out, _ = call(*convert_line("--json", "--max-size-kb", "1", "--max-energy-mj", "5"))
    assert code == 1
    limits = json.loads(out)["limits"]
    assert limits["met"] is False
    assert [line.split(":")[0] for line in limits["missed"]] == ["max-energy-mj", "max-size-kb"]
    assert "got unknown" in limits["missed"][0]
    open_bundle(folder / "out/m.edge")


def test_a_bundles_recipe_makes_it_again(call: Call, folder: Path) -> None:
    first = json.loads(call(*convert_line("--json"))[1])
    bundle = open_bundle(folder / "out/m.edge")
    (folder / "r.toml").write_bytes(bundle.read(bundle.manifest.recipe))
    again = json.loads(call(*convert_line("--json", "--recipe", "r.toml"))[1])
    assert again["content_id"] == first["content_id"]
    code, _, err = call(*convert_line("--recipe", "r.toml", profile="raspberrypi4b"))
    assert code == 2
    assert "--recipe is for the profile raspberrypi5" in err


BAD = [
    (convert_line(model="notes.onnx"), "notes.onnx: must be an ONNX model, got a text file that begins with"),
    (convert_line(model="nothing.onnx"), "nothing.onnx: no such file"),
    (convert_line(profile="raspberrypi9"), "unknown profile 'raspberrypi9'; known: jetson-nano"),
    (
        convert_line(profile="pynq-z1"),
        "profile pynq-z1 runs binary networks only: the network cannot run on bits and small integers: ",
    ),
    (convert_line(calib="wrong.npz"), "wrong.npz: x must be float32 (N, 3, 12, 12)"),
    (convert_line(calib="three.onnx"), "three.onnx: "),
    (convert_line("--eval", "nowhere"), "nowhere: no such file or folder"),
    (convert_line("--shape", "1,3,0,0"), "--shape must be"),
    (convert_line("--shape", "1,3,9,9"), "must have the shape"),
    (convert_line("--input-spec", "notes.onnx"), "must be a TOML file"),
    (convert_line("--recipe", "nowhere.toml"), "must be an existing TOML file"),
    (convert_line("--name", "a b"), "--name must be letters"),
    (convert_line("-o", "nowhere/m.edge"), "must be a file in an existing folder"),
    (["inspect", "notes.onnx"], "must be an ONNX model"),
    (["inspect", "three.onnx", "--profile", "x"], "unknown profile 'x'"),
    (["inspect", "broken.edge"], "not an edgekit bundle"),
    (["report", "three.onnx", "-o", "out/r.html"], "not an edgekit bundle"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(
    call: Call, folder: Path, line: list[str], said: str
) -> None:
    (folder / "notes.onnx").write_text("these are notes, not a network\n")
    (folder / "broken.edge").write_bytes(b"PK\x03\x04 and then nothing")
    write_data(folder / "wrong.npz", (3, SIDE, SIDE + 1), 10)
    code, out, err = call(*line)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.startswith("edgekit: ")
    assert err.count("\n") == 1
    assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize(
    "more",
    [
        ("-o", "three.onnx"),
        ("-o", "calib.npz"),
        ("--eval", "test.npz", "-o", "test.npz"),
        ("--report", "out/m.edge"),
        ("--report", "nowhere/m.html"),
        ("-o", "/dev/null"),
    ],
)
def test_nothing_that_must_stay_is_overwritten(call: Call, folder: Path, more: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = call(*convert_line(*more))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_input_spec_with_other_keys_is_refused(call: Call, folder: Path) -> None:
    (folder / "spec.toml").write_text('title = "a board"\n')
    code, _, err = call(*convert_line("--input-spec", "spec.toml"))
    assert code == 2
    assert "must be an input spec (exits, input, labels), got title" in err


def test_a_custom_operator_is_named_before_any_work(call: Call, folder: Path) -> None:
    b = Builder()
    b.op("Warp", ["x"], "y", domain="acme")
    model = b.model([("y", (1, 3, SIDE, SIDE))])
    entry = model.opset_import.add()
    entry.domain, entry.version = "acme", 1
    save(model, folder / "acme.onnx")
    for line in (convert_line(model="acme.onnx"), ["inspect", "acme.onnx", "--profile", "raspberrypi5"]):
        code, _, err = call(*line)
        assert code == 2
        assert "node 'n_y' uses the operator acme.Warp" in err


def limited(size: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("size", [2000, 40_000])  # the temporary files of folding; the bundle itself
def test_a_full_disk_is_exit_code_3_and_leaves_nothing(folder: Path, size: int) -> None:
    command = [sys.executable, "-c", CODE, *convert_line("--report", "out/m.html")]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=limited(size)
    )
    assert done.returncode == 3, done.stderr
    assert "could not be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((folder / "out").iterdir()) == []


def test_an_older_bundle_survives_a_full_disk(folder: Path) -> None:
    (folder / "out/m.edge").write_bytes(b"the old one")
    command = [sys.executable, "-c", CODE, *convert_line()]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, preexec_fn=limited(40_000))
    assert done.returncode == 3
    assert (folder / "out/m.edge").read_bytes() == b"the old one"


def test_an_interrupt_leaves_nothing(folder: Path) -> None:
    write_data(folder / "calib.npz", (3, SIDE, SIDE), 60_000, 1, CLASSES)
    marker = folder / "started"
    code = (
        "import sys, pathlib\nfrom edgekit.host.passes import base as c\nold = c.calibrate\n"
        f"def calibrate(*a):\n    pathlib.Path({str(marker)!r}).touch()\n    return old(*a)\n"
        "c.calibrate = calibrate\nfrom edgekit.cli.main import run\nsys.exit(run(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *convert_line()], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not marker.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "edgekit: interrupted"
    assert list((folder / "out").iterdir()) == []


def test_inspect_shows_layers_and_what_the_board_runs(call: Call) -> None:
    code, out, _ = call("inspect", "three.onnx", "--profile", "raspberrypi4b", "--json")
    assert code == 0
    data = json.loads(out)
    check("inspect", data)
    assert data["macs"] == sum(layer["macs"] for layer in data["layers"])
    assert [entry["name"] for entry in data["exits"]] == ["exit1", "exit2", "exit3"]
    assert data["profile"]["can_run"] is True
    assert data["profile"]["estimated_ms"] > 0
    assert {layer["format"] for layer in data["layers"] if layer["op"] == "Conv"} == {"int8"}
    code, out, _ = call("inspect", "three.onnx")
    assert code == 0
    assert "million MACs" in out


def test_inspect_says_what_a_board_cannot_run(call: Call) -> None:
    code, out, _ = call("inspect", "three.onnx", "--profile", "pynq-z1", "--json")
    assert code == 0
    board = json.loads(out)["profile"]
    assert board["can_run"] is False
    assert "runs binary networks only" in board["problems"][0]
    assert board["estimated_ms"] is None


def test_inspect_and_report_read_a_bundle(call: Call, folder: Path) -> None:
    assert call(*convert_line())[0] == 0
    code, out, _ = call("inspect", "out/m.edge", "--json")
    assert code == 0
    data = json.loads(out)
    check("inspect bundle", data)
    assert len(data["stages"]) == 3
    assert data["golden_cases"] >= 16
    assert call("inspect", "out/m.edge")[0] == 0
    code, out, _ = call("report", "out/m.edge", "-o", "out/r.html", "--json")
    assert code == 0
    check("report", json.loads(out))
    assert (folder / "out/r.html").read_text().startswith("<!DOCTYPE html>")


def test_help_of_convert_names_its_options() -> None:
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, "convert", "--help"], capture_output=True, text=True, check=True, env=env
    )
    for option in (
        "--profile",
        "--calib",
        "--eval",
        "--val",
        "--recipe",
        "--max-drop",
        "--report",
        "Example:",
    ):
        assert option in done.stdout
