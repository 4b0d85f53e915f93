"""Exits put into a finished network leave its own answers as they are, and answer where they stand."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from networks import CLASSES, SIDE, Builder, save, three_exits, write_data
from random_networks import input_shape, random_network, seeds

from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.profile import HOST
from edgekit.host.exits import heads
from edgekit.host.exits.cuts import spread_cuts
from edgekit.host.exits.heads import Seen, fit_linear, place_of, probabilities, samples_seen, see
from edgekit.host.exits.plan import Wanted, plan_exits
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.lower import LOWERINGS
from edgekit.host.ort import open_model
from edgekit.host.pack import draft
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.passes.exits import Exits, apply, fit, with_heads
from edgekit.host.split import split
from edgekit.host.watch import Tick
from edgekit.runtime.backends import is_installed
from edgekit.runtime.data import Data, load_data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import exit_table

BACKEND = find_profile(HOST).backends[0]
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")


def chain(channels: int = 8, softmax: bool = False, rank4: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Convolutions with one exit; its answer in the shapes and kinds that exporters give it."""
    b = Builder(3, opset)
    x = b.conv("x", "a", (3, channels))
    x = b.conv(x, "b", (channels, channels), stride=2)
    x = b.conv(x, "c", (channels, channels))
    y = b.head(x, "logits", channels)
    shape: list[int] = [1, CLASSES]
    if softmax:
        y = b.op("Softmax", [y], "shares", axis=1)
    if rank4:
        b.constant("four", np.array([1, CLASSES, 1, 1], np.int64))
        y, shape = b.op("Reshape", [y, "four"], "answer"), [1, CLASSES, 1, 1]
    return b.model([(y, shape)])


def tokens(opset: int = 17) -> onnx.ModelProto:
    """Rows of 6 features, mixed row by row, then averaged."""
    b = Builder(4, opset)
    x = b.op("MatMul", ["x", b.weight("w1", 6, 10)], "m1")
    x = b.op("Relu", [x], "r1")
    x = b.op("MatMul", [x, b.weight("w2", 10, 12)], "m2")
    x = b.op("Relu", [x], "r2")
    if opset >= 18:
        x = b.op("ReduceMean", [x, b.constant("axes", np.array([1], np.int64))], "mean", keepdims=0)
    else:
        x = b.op("ReduceMean", [x], "mean", axes=[1], keepdims=0)
    y = b.op("Gemm", [x, b.weight("w3", 12, CLASSES), b.weight("b3", CLASSES)], "y")
    return b.model([(y, (1, CLASSES))], [("x", (1, 7, 6))])


def opened(model: onnx.ModelProto, folder: Path, count: int = 96) -> tuple[Graph, Data]:
    loaded = load(save(model, folder / "m.onnx")).graph
    graph = run_steps(loaded, (step("opset"), step("confidence"), step("fold")), Context())
    return graph, load_data(write_data(folder / "d.npz", input_shape(model)[1:], count), graph.inputs)


def answers(graph: Graph, data: Data, names: list[str]) -> list[np.ndarray]:
    session = open_model(model_bytes(graph.model))
    rows = [session.run(names, data.inputs(index)) for index in range(data.count)]
    return [np.stack(column) for column in zip(*rows, strict=True)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds())
def test_what_the_network_answers_stays_the_same_to_the_bit(tmp_path: Path, seed: int) -> None:
    graph, data = opened(random_network(seed, exits=1), tmp_path, 70)
    cuts = spread_cuts(graph, 3)
    made = apply(graph, Exits(tuple(cut.tensor for cut in cuts)), Context(data))
    assert [entry.output for entry in made.exits][-1] == graph.exits[-1].output
    assert len(made.exits) == len(cuts) + 1
    onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)
    last = graph.exits[-1].output
    [before], [after] = answers(graph, data, [last]), answers(made, data, [last])
    np.testing.assert_array_equal(before, after)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds())
def test_a_stage_per_exit_answers_as_the_whole_graph(tmp_path: Path, seed: int) -> None:
    graph, data = opened(random_network(seed, exits=1), tmp_path, 70)
    cuts = spread_cuts(graph, 2)
    made = apply(graph, Exits(tuple(cut.tensor for cut in cuts)), Context(data))
    session = draft(made, split(made), BACKEND, "m", 1, HOST).open()
    whole = open_model(model_bytes(made.model))
    names = [entry.output for entry in made.exits]
    for index in range(5):
        wanted = whole.run(names, data.inputs(index))
        for place, _ in session.stages(data.inputs(index)):
            np.testing.assert_allclose(session.output(place), wanted[place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("rank4", [False, True])
@pytest.mark.parametrize("opset", [13, 18])
def test_an_exit_answers_in_the_shape_and_kind_of_the_last(
    tmp_path: Path, softmax: bool, rank4: bool, opset: int
) -> None:
    graph, data = opened(chain(softmax=softmax, rank4=rank4, opset=opset), tmp_path)
    made = apply(graph, Exits((spread_cuts(graph, 2)[0].node,)), Context(data))
    early, last = answers(made, data, [entry.output for entry in made.exits])
    assert early.shape == last.shape
    sums = early.reshape(len(early), -1).sum(axis=1)
    assert np.allclose(sums, 1, atol=1e-4) == softmax


@pytest.mark.parametrize("opset", [13, 20])
def test_tokens_are_averaged_over_their_rows(tmp_path: Path, opset: int) -> None:
    graph, data = opened(tokens(opset), tmp_path)
    cuts = [cut for cut in spread_cuts(graph, 4) if len(cut.shape) == 3]
    assert cuts
    made = apply(graph, Exits((cuts[0].tensor,)), Context(data))
    early, last = answers(made, data, [entry.output for entry in made.exits])
    agree = (early.argmax(-1) == last.argmax(-1)).mean()
    assert agree > 0.5  # five classes: by chance a fifth


def test_a_linear_head_in_the_graph_answers_as_it_was_fitted(tmp_path: Path) -> None:
    graph, data = opened(chain(), tmp_path)
    place = place_of(graph, spread_cuts(graph, 2)[0].tensor)
    (seen,) = see(graph, [place], data, lambda done: None)
    head = fit("linear", place, seen, Exits(), Context(data))
    made = with_heads(graph, [place], [head])
    (logits,) = answers(made, data, [made.exits[0].output])
    np.testing.assert_allclose(probabilities(logits[:, 0]), head.answer(seen), atol=2e-3)  # float16 samples


@needs_torch
@pytest.mark.parametrize("side", [SIDE, 50])  # the larger map is averaged down before the convolution
def test_a_convolution_in_the_graph_answers_as_it_was_fitted(tmp_path: Path, side: int) -> None:
    b = Builder(5)
    x = b.conv("x", "a", (3, 8))
    x = b.conv(x, "b", (8, 8), stride=2)
    model = b.model([(b.head(x, "y", 8), (1, CLASSES))], [("x", (1, 3, side, side))])
    graph, data = opened(model, tmp_path)
    place = place_of(graph, "a")
    assert (max(place.pool) > 1) == (side == 50)
    (seen,) = see(graph, [place], data, lambda done: None)
    options = Exits(("a",), ("conv4",), epochs=2, threads=1)
    head = fit("conv4", place, seen, options, Context(data))
    again = fit("conv4", place, seen, options, Context(data))
    np.testing.assert_array_equal(head.kernel, again.kernel)
    made = with_heads(graph, [place], [head])
    (logits,) = answers(made, data, [made.exits[0].output])
    np.testing.assert_allclose(probabilities(logits[:, 0]), head.answer(seen), atol=3e-3)


@needs_torch
def test_a_convolution_head_learns_what_a_linear_one_cannot(tmp_path: Path) -> None:
    # the answer is which of two neighbours is larger: no average over positions tells
    b = Builder(6)
    edge = np.zeros((2, 1, 1, 3), np.float32)
    edge[0, 0, 0], edge[1, 0, 0] = (-1, 1, 0), (1, -1, 0)
    same = b.op(
        "Conv", ["x", b.constant("one", np.ones((1, 1, 1, 1), np.float32))], "same", kernel_shape=[1, 1]
    )
    maps = b.op("Conv", [same, b.constant("edge", edge)], "maps", kernel_shape=[1, 3], pads=[0, 1, 0, 1])
    maps = b.op("Relu", [maps], "up")
    pooled = b.op("GlobalMaxPool", [maps], "pooled")
    flat = b.op("Flatten", [pooled], "flat")
    y = b.op("Gemm", [flat, b.constant("w", 8 * np.eye(2, dtype=np.float32))], "y")
    graph, _ = opened(b.model([(y, (1, 2))], [("x", (1, 1, 1, 16))]), tmp_path)
    data = load_data(write_data(tmp_path / "more.npz", (1, 1, 16), 1200), graph.inputs)
    place = place_of(graph, "same")
    (seen,) = see(graph, [place], data, lambda done: None)
    wanted = seen.wanted.argmax(axis=1)
    context = Context(data)
    right = {
        kind: (
            fit(kind, place, seen, Exits(epochs=30, threads=1), context).answer(seen).argmax(1) == wanted
        ).mean()
        for kind in ("linear", "conv16")
    }
    assert right["linear"] < 0.65 < 0.75 < right["conv16"]


@needs_torch
@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_heads_run_on_litert_as_on_onnxruntime(tmp_path: Path) -> None:
    graph, data = opened(chain(softmax=True), tmp_path)
    cuts = spread_cuts(graph, 2)
    made = apply(
        graph, Exits(tuple(c.tensor for c in cuts), ("conv4", "linear"), epochs=1, threads=1), Context(data)
    )
    backends = {entry.name: entry for entry in find_profile("raspberrypi4b").backends}
    tables = []
    for name in ("onnxruntime", "litert"):
        assert name in LOWERINGS
        session = draft(made, split(made), backends[name], "m", 1, HOST).open()
        tables.append(exit_table(session, data))
    np.testing.assert_array_equal(tables[0].predicted, tables[1].predicted)
    np.testing.assert_allclose(tables[0].confidence, tables[1].confidence, atol=1e-4)


def turned() -> onnx.ModelProto:
    """Convolutions, with a dense layer on the channels-last form between them."""
    b = Builder(7)
    x = b.conv("x", "a", (3, 6))
    x = b.op("Transpose", [x], "there", perm=[0, 2, 3, 1])
    x = b.op("Relu", [b.op("MatMul", [x, b.weight("w", 6, 10)], "m")], "up")
    x = b.op("Transpose", [x], "back", perm=[0, 3, 1, 2])
    x = b.conv(x, "b", (10, 8))
    return b.model([(b.head(x, "y", 8), (1, CLASSES))])


@pytest.mark.parametrize("opset", [13, 18])
def test_channels_are_found_where_they_are(tmp_path: Path, opset: int) -> None:
    model = turned()
    model.opset_import[0].version = opset
    graph, data = opened(model, tmp_path)
    channels = {name: place_of(graph, name).channels for name in ("a", "there", "up", "back", "b")}
    assert channels == {"a": 6, "there": 6, "up": 10, "back": 10, "b": 8}
    place = place_of(graph, "up")
    (seen,) = see(graph, [place], data, lambda done: None)
    head = fit("linear", place, seen, Exits(), Context(data))
    made = with_heads(graph, [place], [head])
    (logits,) = answers(made, data, [made.exits[0].output])
    np.testing.assert_allclose(probabilities(logits[:, 0]), head.answer(seen), atol=1e-4)


def test_logarithms_of_probabilities_are_answered_by_the_same(tmp_path: Path) -> None:
    b = Builder(3)
    x = b.conv(b.conv("x", "a", (3, 8)), "b", (8, 8))
    model = b.model([(b.op("LogSoftmax", [b.head(x, "logits", 8)], "logs", axis=1), (1, CLASSES))])
    graph, data = opened(model, tmp_path)
    made = apply(graph, Exits(("a",)), Context(data))
    (early,) = answers(made, data, [made.exits[0].output])
    np.testing.assert_allclose(np.exp(early[:, 0]).sum(axis=1), 1, atol=1e-5)


@needs_torch
@pytest.mark.parametrize("size", [1e-7, 1e6])
def test_tensors_of_any_size_are_learnt_from(tmp_path: Path, size: float) -> None:
    b = Builder(5)
    x = b.op("Mul", [b.conv("x", "a", (3, 8)), b.constant("size", np.float32(size))], "sized")
    x = b.op("Mul", [x, b.constant("back", np.float32(1 / size))], "same")
    model = b.model([(b.head(b.conv(x, "b", (8, 8)), "y", 8), (1, CLASSES))])
    graph, data = opened(model, tmp_path)
    place = place_of(graph, "sized")
    (seen,) = see(graph, [place], data, lambda done: None)
    for kind in ("linear", "conv4"):
        head = fit(kind, place, seen, Exits(("sized",), (kind,), epochs=2, threads=1), Context(data))
        made = with_heads(graph, [place], [head])
        (logits,) = answers(made, data, [made.exits[0].output])
        np.testing.assert_allclose(probabilities(logits[:, 0]), head.answer(seen), atol=3e-3)
        assert np.ptp(head.answer(seen), axis=0).max() > 0.01  # it tells samples apart


def test_many_classes_end_a_fit_early(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    seen = Seen(
        random.normal(size=(400, 20)).astype(np.float32),
        probabilities(random.normal(0, 3, (400, 50)).astype(np.float32)),
    )
    totals = []

    @contextlib.contextmanager
    def watch(what: str, total: int) -> Iterator[Tick]:
        totals.append(total)
        yield lambda done: None

    fit_linear(seen, 1e-3, watch)
    monkeypatch.setattr(heads, "_WORK", 40 * 4.0 * 400 * 21 * 50)
    fit_linear(seen, 1e-3, watch)
    assert totals == [200, 40]


def test_single_precision_fits_as_double(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    seen = Seen(
        random.normal(5, 3, (600, 20)).astype(np.float32),
        probabilities(random.normal(0, 3, (600, 8)).astype(np.float32)),
    )
    double = fit_linear(seen, 1e-2).answer(seen)
    monkeypatch.setattr(heads, "_MOST_DOUBLES", 0.0)
    np.testing.assert_allclose(fit_linear(seen, 1e-2).answer(seen), double, atol=5e-3)


def test_maps_are_kept_only_as_many_as_memory_holds(tmp_path: Path) -> None:
    graph, _ = opened(chain(32), tmp_path, 1)
    data = load_data(write_data(tmp_path / "many.npz", (3, SIDE, SIDE), 9000), graph.inputs)
    place = place_of(graph, "a")
    assert samples_seen(data, [place], 8192, [False]) == 8192
    with_maps = samples_seen(data, [place] * 12, 8192, [True] * 12)
    assert 64 <= with_maps <= 2**30 // 12 // (2 * 32 * SIDE * SIDE) + 1


def test_names_that_are_taken_are_not_used_again(tmp_path: Path) -> None:
    b = Builder(3)
    x = b.conv(b.conv("x", "exit1/linear", (3, 8)), "b", (8, 8))
    graph, data = opened(b.model([(b.head(x, "y", 8), (1, CLASSES))]), tmp_path)
    made = apply(graph, Exits(("exit1/linear",)), Context(data))
    onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)
    assert made.exits[0].name == "exit1_"


def test_the_same_heads_whatever_the_hash_seed(tmp_path: Path) -> None:
    graph, _ = opened(chain(), tmp_path)
    Path(tmp_path / "graph.onnx").write_bytes(model_bytes(graph.model))
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from edgekit.host.exits.plan import Wanted, plan_exits
from edgekit.host.load import load
from edgekit.host.passes import Context, run_steps
from edgekit.runtime.data import load_data
graph = load(Path({str(tmp_path / "graph.onnx")!r})).graph
context = Context(load_data(Path({str(tmp_path / "many.npz")!r}), graph.inputs))
planned = plan_exits(graph, Wanted(None, ("a", "b")), context, lambda g: None, None)
print(planned.step, run_steps(graph, (planned.step,), context).fingerprint())
"""
    write_data(tmp_path / "many.npz", (3, SIDE, SIDE), 200)
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_without_pytorch_linear_heads_are_made_and_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    graph, data = opened(chain(), tmp_path, 200)
    planned = plan_exits(graph, Wanted(None, ("a",)), Context(data), lambda g: None, None)
    assert planned.step is not None
    assert planned.step.options.heads == ("linear",)
    assert any("want PyTorch" in note for note in planned.notes)
    with pytest.raises(MissingExtra, match=r"conv4 needs PyTorch: pip install 'edgekit\[train\]'"):
        apply(graph, Exits(("a",), ("conv4",)), Context(data))


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_network_with_exits_gets_no_more(tmp_path: Path) -> None:
    graph, data = opened(three_exits(), tmp_path)
    with pytest.raises(BadInput, match="has 3 exits"):
        apply(graph, Exits(("n_x",)), Context(data))


def test_an_answer_that_is_no_class_is_refused(tmp_path: Path) -> None:
    b = Builder(1)
    x = b.conv("x", "a", (3, 4))
    y = b.conv(x, "image", (4, 3), relu=False)
    graph, data = opened(b.model([(y, (1, 3, SIDE, SIDE))]), tmp_path)
    with pytest.raises(BadInput, match="one number per class"):
        apply(graph, Exits(("a",)), Context(data))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Exits(("nowhere",)), "no exit can stand behind 'nowhere'"),
        (Exits(("a", "b"), ("linear",)), "one per cut"),
        (Exits(("a",), ("cone",)), "linear or convN"),
        (Exits(("a", "a")), "twice"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: Exits, why: str) -> None:
    graph, data = opened(chain(), tmp_path)
    with pytest.raises(BadInput, match=why):
        apply(graph, options, Context(data))


def test_no_data_no_heads(tmp_path: Path) -> None:
    graph, _ = opened(chain(), tmp_path)
    with pytest.raises(BadInput, match="give --calib"):
        apply(graph, Exits(("a",)), Context())
