"""`edgekit train` as people and scripts call it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli.main import run
from edgekit.core.schemas import OUTPUTS
from edgekit.host.train.recipe import recipe_names

pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.load import load
from edgekit.host.stored import stored_weights
from edgekit.host.train import by_recipe

SIDE, CLASSES = 12, 3
CODE = "import sys; from edgekit.cli.main import run; sys.exit(run(sys.argv[1:]))"
Call = Callable[..., tuple[int, str, str]]


def write_stripes(path: Path, count: int, seed: int) -> None:
    """Grey images of noise with a bright row, whose place is the class."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    x = random.integers(0, 140, (count, SIDE, SIDE)).astype(np.uint8)
    x[np.arange(count), 2 + 4 * y] += 100
    np.savez(path, x=x, y=y)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_stripes(tmp_path / "train.npz", 360, 1)
    write_stripes(tmp_path / "test.npz", 120, 2)
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


def line(recipe: str, *more: str, output: str = "m.onnx") -> list[str]:
    data = ["--data", "train.npz", "--eval", "test.npz", "--epochs", "4"]
    return ["train", recipe, *data, "-o", output, *more]


def check(name: str, value: object) -> None:
    pytest.importorskip("jsonschema").validate(value, OUTPUTS[name])


def formats(path: Path) -> list[str | None]:
    nodes = load(path).graph.model.graph
    return [stored_weights(node) for node in nodes if node.op_type in ("Conv", "Gemm")]


def test_train_writes_a_model_that_holds_codes_and_a_page_and_prints_its_object(
    call: Call, folder: Path
) -> None:
    code, out, err = call(*line("twn", "--report", "m.html", "--json"))
    assert code == 0, err
    told = json.loads(out)
    check("train", told)
    assert told["accuracy"][0] > 0.9
    assert [each["epoch"] for each in told["curve"]] == [1, 2, 3, 4]
    assert told["samples"] == {"train": 360, "held_out": 120}
    assert formats(folder / "m.onnx") == [None, "ternary", "ternary", "ternary", None]
    ternary = 9 * (32 * 64 + 64 * 64 + 64 * 128)
    assert told["weight_bytes"] == ternary // 4 + 3 * 4 + 4 * (9 * 32 + 128 * 4 * CLASSES)
    page = (folder / "m.html").read_text(encoding="utf-8")
    assert "Ternary weight network" in page
    assert "<polyline" in page
    assert "threshold = 0.7" in page, "the recipe itself"
    assert not (folder / "m.onnx.checkpoint").exists()


def test_the_same_seed_gives_the_same_file_and_another_one_does_not(call: Call) -> None:
    digests = []
    for output, seed in (("a.onnx", "3"), ("b.onnx", "3"), ("c.onnx", "4")):
        code, out, err = call(*line("bwn", "--seed", seed, "--epochs", "1", "--json", output=output))
        assert code == 0, err
        digests.append(json.loads(out)["sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_any_onnx_model_is_trained_and_says_what_it_was_before(call: Call, folder: Path) -> None:
    assert call(*line("float32"))[0] == 0
    code, out, err = call(
        *line("qat-int8", "--model", "m.onnx", "--lr", "0.0002", "--epochs", "1", "--json", output="q.onnx")
    )
    assert code == 0, err
    told = json.loads(out)
    check("train", told)
    assert told["model"] == "m.onnx"
    assert told["accuracy_before"][0] > 0.9
    assert told["accuracy"][0] > 0.9
    ops = [node.op_type for node in load(folder / "q.onnx").graph.model.graph]
    assert ops.count("QuantizeLinear") == 4
    assert set(formats(folder / "q.onnx")) == {"int8"}


def test_convert_takes_what_train_wrote_and_keeps_its_bits(call: Call, folder: Path) -> None:
    assert call(*line("ttq", "--epochs", "2"))[0] == 0
    code, out, err = call(
        *("convert", "m.onnx", "--profile", "raspberrypi4b", "--calib", "train.npz", "--eval", "test.npz"),
        *("--effort", "quick", "--no-cache", "--json", "-o", "m.edge"),
    )
    assert code in (0, 1), err
    told = json.loads(out)
    assert told["accuracy"]["after"] == pytest.approx(told["accuracy"]["before"], abs=0.01)
    assert told["size_bytes"]["after"] < 0.5 * told["size_bytes"]["before"]


def test_a_student_learns_from_a_teacher(call: Call) -> None:
    assert call(*line("float32"))[0] == 0
    code, out, err = call(*line("apprentice-b-twn", "--teacher", "m.onnx", "--json", output="s.onnx"))
    assert code == 0, err
    told = json.loads(out)
    assert set(told["curve"][0]["losses"]) == {"cross entropy", "distillation"}
    assert told["accuracy"][0] > 0.9
    code, _, err = call(*line("apprentice-b-twn", output="n.onnx"))
    assert code == 2
    assert "distillation wants a trained teacher" in err
    code, _, err = call(*line("twn", "--teacher", "m.onnx", output="n.onnx"))
    assert code == 2
    assert "recipe twn has no teacher" in err


def test_both_networks_of_scheme_a_learn(call: Call) -> None:
    code, out, err = call(*line("apprentice-a-twn", "--epochs", "2", "--json"))
    assert code == 0, err
    losses = [each["losses"] for each in json.loads(out)["curve"]]
    assert set(losses[0]) == {"cross entropy", "teacher", "distillation"}
    assert losses[1]["teacher"] < losses[0]["teacher"]


def test_pruned_weights_are_zero_in_the_file(call: Call, folder: Path) -> None:
    assert call(*line("prune-80", "--epochs", "2"))[0] == 0
    weights = [
        value.const_value.numpy()
        for value in load(folder / "m.onnx").graph.model.graph.initializers.values()
        if value.const_value is not None and len(value.const_value.shape) == 4
    ]
    zeros = [float((weight == 0).mean()) for weight in weights]
    assert zeros[0] < 0.01, "the first layer is not pruned"
    assert all(share == pytest.approx(0.8, abs=0.001) for share in zeros[1:])


def test_tickets_come_with_their_controls_and_a_killed_run_keeps_finished_rounds(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(*line("lottery", "--json", "--report", "m.html", output="whole.onnx"))
    assert code == 0, err
    told = json.loads(out)
    check("train", told)
    assert [round(each["density"], 2) for each in told["rounds"]] == [1.0, 0.5, 0.25, 0.13]
    assert told["rounds"][-1]["ticket"][-1] == told["accuracy"][0]
    assert "drawn anew" in (folder / "m.html").read_text(encoding="utf-8")

    calls = []
    trained = by_recipe.train_by

    def killed(method: Any, module: Any, *rest: Any, **more: Any) -> Any:
        calls.append(more["what"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return trained(method, module, *rest, **more)

    monkeypatch.setattr(by_recipe, "train_by", killed)
    assert call(*line("lottery", output="again.onnx"))[0] == 130
    kept = sorted(path.name for path in folder.glob("again.onnx.checkpoint*"))
    assert len(kept) == 3
    code, out, _ = call(*line("lottery", "--json", output="again.onnx"))
    assert calls[4:] == [*calls[3:4], "round 2", "round 2, drawn anew", "round 3", "round 3, drawn anew"]
    again = json.loads(out)
    assert (again["sha256"], again["rounds"]) == (told["sha256"], told["rounds"])
    assert not list(folder.glob("again.onnx.checkpoint*"))


def test_single_weights_get_widths_and_the_loss_stays_within_its_bound(call: Call) -> None:
    code, out, err = call(*line("adaptive", "--json", "--report", "m.html"))
    assert code == 0, err
    told = json.loads(out)
    check("train", told)
    adapted = told["adapted"]
    assert adapted["loss_after"] <= adapted["loss_before"]
    assert adapted["accepted"] == sorted(adapted["accepted"], reverse=True)
    assert told["weight_bytes"] == -(-adapted["payload_bits"] // 8) - (-adapted["table_bits"] // 8)
    assert told["curve"] == []


def test_groups_learn_what_they_read_and_the_file_has_plain_convolutions(call: Call, folder: Path) -> None:
    code, out, err = call(*line("condensenet", "--json"))
    assert code == 0, err
    assert json.loads(out)["accuracy"][0] > 0.6
    nodes = list(load(folder / "m.onnx").graph.model.graph)
    groups = [node.attributes.get_int("group", 1) for node in nodes if node.op_type == "Conv"]
    assert groups == [1, *[4] * 18]
    assert call(*line("twn", "--model", "condensenet"))[0] == 2
    assert call(*line("twn", "--model", "m.onnx", "--lr", "0.0005", "--epochs", "1", output="t.onnx"))[0] == 0
    assert "ternary" in formats(folder / "t.onnx")


@pytest.mark.parametrize("recipe", ["bnn", "binaryconnect", "dorefa-w8a8g8"])
def test_networks_with_other_losses_inputs_and_gradients_come_out_as_they_were_trained(
    call: Call, recipe: str
) -> None:
    code, out, err = call(*line(recipe, "--json"))  # the export compares
    assert code == 0, err
    assert json.loads(out)["accuracy"][0] > 0.6


@pytest.mark.parametrize("recipe", ["he-scale", "xnor", "wage", "bnn", "ttq", "qat-int8"])
def test_a_bundle_is_as_accurate_as_the_training_said(call: Call, recipe: str) -> None:
    code, out, err = call(*line(recipe, "--json"))
    assert code == 0, err
    trained = json.loads(out)["accuracy"][0]
    data = ("--calib", "train.npz", "--eval", "test.npz", "--max-drop", "0")
    code, _, err = call(
        "convert", "m.onnx", "--profile", "host", *data, "--effort", "quick", "--no-cache", "-o", "m.edge"
    )
    assert code in (0, 1), err
    code, out, err = call("bench", "m.edge", "--data", "test.npz", "--json")
    assert code == 0, err
    right = json.loads(out)["accuracy"]
    # signs of sums of floats, in xnor, may hang on the last bit: one of the 120 samples
    assert (right if isinstance(right, float) else right["value"]) == pytest.approx(
        trained, abs=0.009 if recipe == "xnor" else 1e-6
    )


def test_list_and_show_tell_what_there_is(call: Call) -> None:
    code, out, _ = call("train", "--list")
    assert code == 0
    assert all(name in out for name in recipe_names())
    code, out, _ = call("train", "--list", "--json")
    told = json.loads(out)
    check("train list", told)
    assert [each["name"] for each in told["recipes"]] == list(recipe_names())
    code, out, _ = call("train", "twn", "--show")
    assert code == 0
    assert "threshold = 0.7 # of mean |W|" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "wants a RECIPE; `edgekit train --list` shows them"),
        (["train", "nothing"], "recipe must be one of adaptive"),
        (["train", "twn"], "wants --data and -o"),
        (line("twn", "--model", "resnet"), "--model must be an ONNX file or one of small, .*got 'resnet'"),
        (["train", "twn", "--data", "none.npz", "-o", "m.onnx"], "none.npz"),
        (["train", "twn", "--data", "bare.npz", "-o", "m.onnx"], "training needs labels, and there are none"),
        (["train", "twn", "--data", "floats.npz", "-o", "m.onnx"], "wants uint8 images"),
        (line("twn", "--model", "broken.onnx"), "broken.onnx"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    call: Call, folder: Path, arguments: list[str], said: str
) -> None:
    np.savez(folder / "bare.npz", x=np.zeros((8, SIDE, SIDE), np.uint8))
    np.savez(folder / "floats.npz", x=np.zeros((8, 1, SIDE, SIDE), np.float32), y=np.zeros(8, np.int64))
    (folder / "broken.onnx").write_bytes(b"no model")
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert pytest.importorskip("re").search(said, err)


def test_a_killed_training_goes_on_and_ends_in_the_same_file(folder: Path) -> None:
    more = ["--data", "train.npz", "--eval", "test.npz", "--epochs", "90", "--json"]
    whole = _started(folder, "train", "twn", *more, "-o", "whole.onnx")
    killed = _started(folder, "train", "twn", *more, "-o", "killed.onnx")
    checkpoint = folder / "killed.onnx.checkpoint"
    give_up = time.monotonic() + 120
    while not checkpoint.exists() and killed.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    assert checkpoint.exists(), "killed before its end, after its first checkpoint"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = _started(folder, "train", "twn", *more, "-o", "killed.onnx")
    told = [json.loads(each.communicate(timeout=240)[0]) for each in (whole, again)]
    assert told[0]["sha256"] == told[1]["sha256"]
    assert told[0]["curve"] == told[1]["curve"]
    assert told[0]["seconds"] is not None
    assert told[1]["seconds"] is None, "a resumed run does not know all of its time"
    assert not checkpoint.exists()


def _started(folder: Path, *arguments: str) -> subprocess.Popen[Any]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
