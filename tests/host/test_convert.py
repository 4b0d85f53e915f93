"""The whole conversion: fits, does no harm, repeats itself, and says what it did on which data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CLASSES, SIDE, Builder, image_out, save, three_exits, write_data

from edgekit.core.bundle import open_bundle
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.profile import Profile
from edgekit.core.report import Report
from edgekit.core.toml import tomllib
from edgekit.host.convert import Conversion, Request, convert
from edgekit.host.datasets import NOT_SEPARATE
from edgekit.host.effort import QUICK
from edgekit.host.judge import POLICIES
from edgekit.host.limits import Limits
from edgekit.host.ort import open_model
from edgekit.host.pack import MEMBER
from edgekit.runtime.data import load_data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import check_golden, exit_table, measure_policy
from edgekit.runtime.session import open_session

PI = find_profile("raspberrypi5")
BOARD = replace(PI, cost=replace(PI.cost, call_overhead_us=Figure(0.0, "us", "estimated", None, "a test")))
RELAXED = Limits(max_drop=100.0)  # random networks have no accuracy worth keeping
Files = tuple[Path, Path, Path]


def request(files: Files, profile: Profile = BOARD, **changes: object) -> Request:
    model, calib, test = files
    base = Request(model, profile, calib, evaluation=test, name="three", limits=RELAXED)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_the_bundle_is_whole_and_passes_its_golden_cases(files: Files, tmp_path: Path) -> None:
    made = convert(request(files))
    path = tmp_path / "m.edge"
    path.write_bytes(made.content)
    bundle = open_bundle(path)
    assert bundle.content_id == made.finished.content_id
    assert len(bundle.manifest.stages) == 3
    assert bundle.manifest.profiles == ("raspberrypi5",)
    assert bundle.manifest.golden.count >= 16
    assert Report.parse(bundle.report) == made.report
    session = open_session(bundle.manifest, bundle.read)
    assert check_golden(session, bundle.manifest, bundle.read) == ()


def test_the_boards_activation_format_is_used(files: Files) -> None:
    assert int8_of(convert(request(files)))["activation"] == "int8"
    x86 = replace(BOARD, backends=tuple(replace(b, int8_activation="uint8") for b in BOARD.backends))
    int8 = int8_of(convert(request(files, x86)))
    assert int8["activation"] == "uint8"
    assert int8["reduce_range"] is True  # no VNNI among the features


def int8_of(made: Conversion) -> dict[str, object]:
    steps: list[dict[str, object]] = read_toml(made)["step"]  # type: ignore[assignment]
    return next(step for step in steps if step["pass"] == "quantize_static")


def read_toml(made: Conversion) -> dict[str, object]:
    return tomllib.loads(made.finished.files[MEMBER].decode())


def test_a_boards_latency_is_never_this_machines(files: Files) -> None:
    report = convert(request(files)).report
    assert report.latency_provenance == "estimated"
    assert report.latency_on == "profile raspberrypi5"
    assert report.latency_after.mean is not None
    assert report.latency_after.p95 is None
    assert all(policy.latency.mean is None for policy in report.policies)


def test_a_board_nobody_has_figures_for_has_no_latency(files: Files) -> None:
    blank = replace(BOARD, cost=replace(BOARD.cost, macs_per_second={}))
    report = convert(request(files, blank)).report
    assert report.latency_provenance is None
    assert report.latency_after.mean is None
    assert all(entry.latency_mean_ms is None for entry in report.exits)


def test_here_latency_is_measured(files: Files) -> None:
    report = convert(request(files, find_profile("host"))).report
    assert report.latency_provenance == "measured"
    assert report.latency_before.p95 is not None
    assert report.latency_after.p95 is not None
    assert all(policy.latency.mean for policy in report.policies)
    latencies = [entry.latency_mean_ms for entry in report.exits]
    assert latencies == sorted(latencies, key=lambda value: value or 0.0)


def test_policies_replayed_for_a_board_are_those_the_session_runs(files: Files) -> None:
    made = convert(request(files))
    session = made.finished.open()
    data = load_data(files[2], session.manifest.inputs)
    for spec, replayed in zip(POLICIES, made.report.policies, strict=True):
        ran = measure_policy(session, data, spec)
        assert (ran.exit_counts, ran.accuracy, ran.requests) == (
            replayed.exit_counts,
            replayed.accuracy,
            replayed.requests,
        )


SCRIPT = """
import sys
from pathlib import Path
from edgekit.host.convert import Request, convert
from edgekit.host.limits import Limits
from edgekit.runtime.detect import find_profile
model, calib, test = map(Path, sys.argv[1:4])
made = convert(Request(model, find_profile("raspberrypi5"), calib, evaluation=test, limits=Limits(100.0)))
print(made.finished.content_id)
"""


def test_two_processes_make_the_same_content(files: Files) -> None:
    found = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, *map(str, files)]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        found.append(done.stdout.strip())
    assert found[0] == found[1]
    assert len(found[0]) == 64


def test_a_quantized_model_is_kept_as_it_is(files: Files, tmp_path: Path, make: Callable) -> None:
    quantized = make(three_exits()).quantized.proto()
    names = ("exit1", "exit2", "exit3")
    exits = ", ".join(f'{{"name": "{name}", "output": "{name}"}}' for name in names)
    quantized.metadata_props.add(key="edgekit.exits", value=f"[{exits}]")
    report = convert(request((save(quantized, tmp_path / "q.onnx"), *files[1:]))).report
    assert "the model that came in is quantized already" in {entry.why for entry in report.dropped}
    assert "int8" in {layer.format for layer in report.layers}


# --- data -------------------------------------------------------------------------------------------------------------


def test_without_evaluation_data_the_report_says_what_judged(files: Files) -> None:
    report = convert(request(files, evaluation=None)).report
    assert [use.role for use in report.data] == ["calibration", "validation", NOT_SEPARATE]
    assert [use.count for use in report.data] == [48, 12, 12]


def test_without_labels_agreement_is_measured(files: Files, tmp_path: Path) -> None:
    calib = write_data(tmp_path / "u.npz", (3, SIDE, SIDE), 60, 1)
    report = convert(
        request((files[0], calib, write_data(tmp_path / "t.npz", (3, SIDE, SIDE), 30, 2)))
    ).report
    assert report.metric == "agreement"
    assert report.accuracy.before == 1.0
    assert report.accuracy.after is not None
    assert report.accuracy.after > 0.7
    assert report.operating_points[-1].quality == 1.0


def test_thresholds_never_see_the_evaluation_data(files: Files, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other.npz", (3, SIDE, SIDE), 17, 99, CLASSES)
    one, two = convert(request(files)), convert(request((files[0], files[1], other)))
    assert one.finished.content_id == two.finished.content_id
    assert one.report.accuracy != two.report.accuracy


def test_a_network_without_classes_has_no_accuracy(tmp_path: Path) -> None:
    model = save(image_out(), tmp_path / "m.onnx")
    data = write_data(tmp_path / "d.npz", (3, SIDE, SIDE), 20)
    report = convert(Request(model, BOARD, data, limits=RELAXED)).report
    assert report.accuracy.before is None
    assert report.operating_points[-1].cost_share == 1.0


def test_calibration_data_of_the_wrong_shape_is_refused(files: Files, tmp_path: Path) -> None:
    wrong = write_data(tmp_path / "w.npz", (3, SIDE, SIDE + 1), 10)
    with pytest.raises(
        BadInput, match=r"w\.npz: x must be float32 \(N, 3, 12, 12\), got float32 \(10, 3, 12, 13\)"
    ):
        convert(request((files[0], wrong, files[2])))


def test_an_output_that_is_no_exit_is_listed_as_dropped(files: Files, tmp_path: Path) -> None:
    model = three_exits()
    del model.metadata_props[:]
    entry = '[{"name": "one", "output": "exit1"}, {"name": "three", "output": "exit3"}]'
    model.metadata_props.add(key="edgekit.exits", value=entry)
    report = convert(request((save(model, tmp_path / "m.onnx"), *files[1:]))).report
    assert (report.dropped[0].layer, report.dropped[0].step) == ("exit2", "output")
    assert [exit_.name for exit_ in report.exits] == ["one", "three"]


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_the_demo_network_in_int8_keeps_its_accuracy_under_a_budget(
    demo_model: Path, fashion: Callable[[str, slice], Path]
) -> None:
    """2,000 of the test images; the whole set is for `tools/demo`."""
    made = convert(
        Request(
            demo_model,
            BOARD,
            fashion("train", slice(0, 300)),
            val=fashion("train", slice(55_000, 57_000)),
            evaluation=fashion("t10k", slice(0, 2000)),
        )
    )
    report = made.report
    assert report.metric == "top1"
    assert report.dropped == ()
    assert report.accuracy.before is not None
    budget = next(entry for entry in report.policies if entry.policy.startswith("budget"))
    assert budget.accuracy is not None
    assert report.accuracy.before - budget.accuracy <= 0.005
    shares = {leaving.name: leaving.cost_share for leaving in made.finished.manifest.exits}
    cost = sum(shares[name] * count for name, count in budget.exit_counts.items()) / budget.requests
    assert cost <= 0.4
    assert report.size_bytes.after is not None
    assert report.size_bytes.before is not None
    assert report.size_bytes.after < 0.35 * report.size_bytes.before


def test_the_sessions_answers_are_those_of_the_float_model_mostly(
    demo_model: Path, fashion: Callable[[str, slice], Path]
) -> None:
    calib = fashion("train", slice(0, 300))
    made = convert(Request(demo_model, BOARD, calib))
    model = onnx.load(demo_model)
    assert [output.name for output in model.graph.output] == ["exit1", "exit2", "exit3"]
    data = load_data(fashion("t10k", slice(0, 500)), made.finished.manifest.inputs)
    floats = open_model(demo_model.read_bytes())
    wanted = np.array([floats.run(["exit3"], data.inputs(i))[0].argmax() for i in range(data.count)])
    found = exit_table(made.finished.open(), data).predicted[:, -1]
    assert (wanted == found).mean() >= 0.97


def test_a_class_that_the_network_gives_as_a_number_counts_as_its_answer(tmp_path: Path) -> None:
    b = Builder()
    b.op("ArgMax", [b.head(b.conv("x", "c", (3, 8)), "scores", 8)], "y", axis=1, keepdims=0)
    model = b.model([("y", (1,))])
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    data = write_data(tmp_path / "d.npz", (3, SIDE, SIDE), 40, classes=CLASSES)
    report = convert(Request(save(model, tmp_path / "m.onnx"), BOARD, data, limits=RELAXED)).report
    assert report.metric == "top1"
    assert report.accuracy.before is not None


def test_a_shape_that_only_folding_tells_is_no_reason_to_refuse_litert(tmp_path: Path) -> None:
    """Exporters compute Reshape's target from the input's own shape: known once constants are folded."""
    pytest.importorskip("ai_edge_litert")
    b = Builder()
    pooled = b.op("GlobalAveragePool", [b.conv("x", "c", (3, 8))], "pooled")
    size = b.op(
        "Gather", [b.op("Shape", [pooled], "shape"), b.constant("at", np.array([0, 1]))], "size", axis=0
    )
    real = b.op("Cast", [size], "real", to=1)
    again = b.op("Sqrt", [b.op("Mul", [real, real], "square")], "again")
    flat = b.op("Reshape", [pooled, b.op("Cast", [again], "whole", to=7)], "flat")
    b.op("Gemm", [flat, b.weight("w", 8, CLASSES), b.weight("v", CLASSES)], "y")
    model = save(b.model([("y", (1, CLASSES))]), tmp_path / "m.onnx")
    data = write_data(tmp_path / "d.npz", (3, SIDE, SIDE), 20)
    made = convert(Request(model, BOARD, data, limits=RELAXED, effort=QUICK, backend="litert"))
    assert {part.backend for stage in made.finished.manifest.stages for part in stage.parts} == {"litert"}
