"""tools/bench/convert_peers.py: how networks are judged and compared, on made-up answers."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "convert_peers.py"


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["convert_peers"] = module
    spec.loader.exec_module(module)
    return module


bench = imported()


def row(name: str, runtime: str, score, ratio: float, size: int):
    runner = bench.Runner(name, runtime, size, run=None)
    return bench.Row(runner, np.asarray(score, np.float64), (ratio, ratio, ratio), 1.0)


def test_labels_are_right_or_wrong():
    assert bench.score("labels", [np.array([1, 2, 3])], [np.zeros(3)], np.array([1, 0, 3])).tolist() == [
        1,
        0,
        1,
    ]


def test_a_sequence_is_scored_by_its_share_of_equal_positions():
    given, reference = np.array([[1, 2, 3, 4], [1, 1, 1, 1]]), np.array([[1, 2, 0, 0], [1, 1, 1, 1]])
    assert bench.score("sequence", [given], [reference], None).tolist() == [0.5, 1.0]


def test_maps_are_scored_by_the_cells_on_in_both_of_those_on_in_either_over_all_outputs():
    first = np.array([[True, True], [False, False]])
    second = np.array([[True, False], [False, False]])
    assert bench.score("maps", [first, first], [second, first], None).tolist() == [3 / 4, 1.0]


def test_decisions_keep_what_each_kind_is_judged_by():
    class Two:
        count = 2

        def inputs(self, index):
            return {"x": np.full((1, 2, 3), index)}

    made = np.array([[[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]])
    runner = bench.Runner("r", "onnxruntime", 1, lambda inputs: [made])
    assert bench.decisions(runner, Two(), "sequence")[0].tolist() == [[1, 0], [1, 0]]
    assert bench.decisions(runner, Two(), "top1")[0].tolist() == [1, 1]
    assert bench.decisions(runner, Two(), "maps")[0][0].tolist() == [
        [False, True, False],
        [True, False, False],
    ]


def test_an_interval_of_equal_scores_is_nothing_and_a_clear_difference_keeps_off_zero():
    assert bench.interval(np.zeros(50)) == (0, 0, 0)
    mean, low, high = bench.interval(np.r_[np.ones(60), np.zeros(40)])
    assert (mean, low > 0.45, high < 0.75) == (0.6, True, True)


def test_ours_is_held_against_the_most_accurate_peer_and_the_smallest_good_one():
    ok, bad = np.ones(400), np.r_[np.zeros(100), np.ones(300)]
    rows = [
        row("float32", "onnxruntime", ok, 1.0, 400),
        row("ours", "onnxruntime", ok, 1.01, 104),
        row("accurate", "onnxruntime", ok, 0.9, 100),
        row("small", "onnxruntime", bad, 0.5, 50),
        row("slow", "onnxruntime", ok, 1.5, 60),
        row("other", "litert", ok, 0.5, 10),
    ]
    accuracy, latency, size = bench.against_peers(rows, "onnxruntime", "ours", "float32")
    assert (accuracy["value"], accuracy["met"]) == (0, True)
    assert (latency["value"], latency["met"]) == (1.01, True)
    assert "accurate" in size["name"]
    assert (size["value"], size["met"]) == (1.04, True)


def test_ours_misses_what_it_misses():
    ok, bad = np.ones(400), np.r_[np.zeros(100), np.ones(300)]
    rows = [
        row("float32", "onnxruntime", ok, 1.0, 400),
        row("ours", "onnxruntime", bad, 1.1, 200),
        row("peer", "onnxruntime", ok, 0.9, 100),
    ]
    assert [each["met"] for each in bench.against_peers(rows, "onnxruntime", "ours", "float32")] == [
        False
    ] * 3


def test_without_a_good_peer_the_size_has_nothing_to_be_held_against():
    rows = [
        row("float32", "onnxruntime", np.ones(9), 1.0, 400),
        row("ours", "onnxruntime", np.ones(9), 1.0, 390),
        row("peer", "onnxruntime", np.ones(9), 1.5, 100),
    ]
    size = bench.against_peers(rows, "onnxruntime", "ours", "float32")[-1]
    assert (size["value"], size["met"]) == (None, True)


def model(op: str, read: str, give: str) -> bytes:
    node = helper.make_node(op, [read], [give])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in (read, give)]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def test_a_chain_of_files_hands_on_what_the_next_reads():
    runner = bench.ort_runner("two", [model("Neg", "x", "a"), model("Relu", "a", "b")], ["b", "a"])
    made = runner.run({"x": np.array([[-1, 2]], np.float32)})
    assert [each.tolist() for each in made] == [[[1, 0]], [[1, -2]]]


def test_times_have_a_row_for_each_round_and_a_column_for_each_network():
    runners = [bench.Runner(name, "onnxruntime", 1, lambda inputs: [inputs["x"]]) for name in "ab"]
    times = bench.latencies(runners, [{"x": np.zeros(1)}], 3, 0.0005)
    assert times.shape == (3, 2)
    assert (times >= 0).all()


def test_symbolic_sizes_are_written_in(tmp_path):
    graph = onnx.load_from_string(model("Relu", "x", "y"))
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    path = tmp_path / "m.onnx"
    onnx.save(graph, path)

    class Entry:
        class tensor:  # noqa: N801
            name, shape = "x", (1, 2)

    class Graph:
        inputs = (Entry,)

    fixed = bench.fixed_shapes(path, Graph)
    for value in (fixed.graph.input[0], fixed.graph.output[0]):
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [1, 2]


@pytest.mark.parametrize(("met", "said"), [(True, "| yes |"), (False, "| **no** |")])
def test_the_page_shows_every_row_target_and_failure(met, said):
    result = {
        "network": "net",
        "inputs": 7,
        "judged_by": "accuracy",
        "rounds": 15,
        "machine": "a machine",
        "date": "2026-01-02",
        "versions": {"onnx": "1"},
        "rows": [row("ours", "onnxruntime", [1], 0.5, 1000).to_json()],
        "targets": [bench.target("net: size", 0.5, None, None, "x", "<= 1", met=met)],
        "failures": {"nncf": "it broke"},
    }
    page = bench.page([result])
    assert "| ours | onnxruntime | 100.00 | 1.000 | 0.50 | 1.0 |  |" in page
    assert "| size | 0.5 x |  | <= 1 " + said in page
    assert "nncf failed: it broke" in page
