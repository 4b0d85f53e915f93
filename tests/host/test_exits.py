"""Where exits are put: cheap borders, heads that pay; what does not pay is dropped with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Builder, save, write_data
from random_networks import input_shape

from edgekit.core.bundle import open_bundle
from edgekit.core.errors import BadInput
from edgekit.core.profile import HOST
from edgekit.core.toml import tomllib
from edgekit.host.convert import Request, convert
from edgekit.host.effort import QUICK
from edgekit.host.exits.cuts import Cut, named_cuts, spread_cuts
from edgekit.host.exits.heads import LINEAR
from edgekit.host.exits.plan import Candidate, Wanted, mean_cost, parse_exits, plan_exits
from edgekit.host.graph import Graph
from edgekit.host.limits import Limits
from edgekit.host.load import load
from edgekit.host.pack import MEMBER
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.recipe import Recipe
from edgekit.runtime.data import Data, load_data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import check_golden
from edgekit.runtime.session import open_session

SIDE, CLASSES = 8, 3
CUT = Cut("n", "t", (1, 4), 0.3, 16)


def opened(model: onnx.ModelProto, folder: Path) -> Graph:
    graph = load(save(model, folder / "m.onnx")).graph
    return run_steps(graph, (step("opset"), step("confidence"), step("fold")), Context())


def data_for(graph: Graph, folder: Path, count: int = 600) -> Data:
    shape = graph.inputs[0].tensor.shape[1:]
    return load_data(write_data(folder / "d.npz", shape, count), graph.inputs)


def easy(depth: int = 8) -> onnx.ModelProto:
    """What it answers is plain from the first layer on: which channel is brightest. The rest is work for nothing."""
    b = Builder(1)
    one = np.zeros((CLASSES, CLASSES, 3, 3), np.float32)
    for channel in range(CLASSES):
        one[channel, channel, 1, 1] = 1
    x = "x"
    for number in range(depth):
        x = b.op("Conv", [x, b.constant(f"w{number}", one)], f"c{number}", kernel_shape=[3, 3], pads=[1] * 4)
    pooled = b.op("GlobalAveragePool", [x], "pool")
    flat = b.op("Flatten", [pooled], "flat")
    y = b.op("Gemm", [flat, b.constant("w", 20 * np.eye(CLASSES, dtype=np.float32))], "y")
    return b.model([(y, (1, CLASSES))], [("x", (1, CLASSES, SIDE, SIDE))])


def residual() -> onnx.ModelProto:
    """Three residual blocks; inside one, two tensors cross."""
    b = Builder(2)
    x = b.conv("x", "stem", (CLASSES, 8))
    for number in range(3):
        inner = b.conv(b.conv(x, f"a{number}", (8, 8)), f"b{number}", (8, 8), relu=False)
        x = b.op("Relu", [b.op("Add", [x, inner], f"sum{number}")], f"out{number}")
    return b.model([(b.head(x, "y", 8, CLASSES), (1, CLASSES))], [("x", (1, CLASSES, SIDE, SIDE))])


# --- cuts -------------------------------------------------------------------------------------------------------------


def test_a_residual_network_is_cut_where_one_tensor_crosses(tmp_path: Path) -> None:
    graph = opened(residual(), tmp_path)
    every = spread_cuts(graph, 40)
    inside = [cut for cut in every if cut.tensor.startswith("a")]
    between = [cut for cut in every if cut.tensor.startswith("out")]
    assert {cut.handed_bytes for cut in between} == {8 * SIDE * SIDE * 4}
    assert {cut.handed_bytes for cut in inside} == {2 * 8 * SIDE * SIDE * 4}
    assert [cut.tensor for cut in spread_cuts(graph, 3)] == ["stem", "out0", "out1"]


def test_cuts_come_cheapest_first_and_leave_something_to_save(tmp_path: Path) -> None:
    shares = [cut.cost_share for cut in spread_cuts(opened(residual(), tmp_path), 8)]
    assert shares == sorted(shares)
    assert all(0 < share < 0.9 for share in shares)


def test_an_activation_stands_before_the_border(tmp_path: Path) -> None:
    tensors = [cut.tensor for cut in spread_cuts(opened(residual(), tmp_path), 8)]
    assert not any(name.endswith("_y") or name.startswith("sum") for name in tensors)


def test_a_place_can_be_named_by_node_or_tensor(tmp_path: Path) -> None:
    graph = opened(residual(), tmp_path)
    by_tensor, by_node = named_cuts(graph, ["out1", "out0"]), named_cuts(graph, ["n_out1", "n_out0"])
    assert by_tensor == by_node
    assert [cut.tensor for cut in by_tensor] == ["out0", "out1"]


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_auto_a_number_and_names_are_told_apart() -> None:
    assert parse_exits("auto") == Wanted()
    assert parse_exits("3") == Wanted(3)
    assert parse_exits("a, b") == Wanted(None, ("a", "b"))


@pytest.mark.parametrize("text", ["", "0", "99", "a,,b", ","])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--exits"):
        parse_exits(text)


# --- choosing ---------------------------------------------------------------------------------------------------------


def candidate(at: float, own: float, confidence: list[float], right: list[bool]) -> Candidate:
    return Candidate(CUT, LINEAR, at, own, np.array(confidence, np.float32), np.array(right))


def test_the_mean_cost_of_a_perfect_exit_is_its_own() -> None:
    perfect = candidate(0.2, 0.01, [0.9] * 50, [True] * 50)
    assert mean_cost([perfect]) == pytest.approx(0.21)


def test_an_exit_that_is_never_right_costs_what_it_adds() -> None:
    useless = candidate(0.2, 0.01, [0.9] * 50, [False] * 50)
    assert mean_cost([useless]) == pytest.approx(1.01)


def test_confident_samples_leave_and_others_go_on() -> None:
    half = candidate(0.2, 0.0, [0.9] * 50 + [0.5] * 50, [True] * 50 + [False] * 50)
    assert mean_cost([half]) == pytest.approx(0.6, abs=0.02)  # one wrong answer in a hundred is allowed
    assert mean_cost([half], agreement=0.5) == pytest.approx(0.2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_the_mean_cost_lies_between_the_first_exit_and_the_full_network(seed: int, exits: int) -> None:
    random = np.random.default_rng(seed)
    chosen = [
        Candidate(
            CUT, LINEAR, at, 0.01, random.random(200).astype(np.float32), random.random(200) < random.random()
        )
        for at in sorted(random.uniform(0.1, 0.9, exits).tolist())
    ]
    found = mean_cost(chosen)
    assert chosen[0].at <= found <= 1 + 0.01 * exits + 1e-9
    assert mean_cost(chosen, 1.0) >= found - 1e-9 or exits > 1  # greedy: only one exit is exact


def test_work_for_nothing_is_cut_off(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)
    planned = plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path)), lambda g: None, None)
    assert planned.step is not None
    assert len(planned.step.options.cuts) == 1  # nothing is left that a second could save
    assert planned.step.options.heads == (LINEAR,)
    assert planned.dropped
    assert all("of the full cost" in entry.why for entry in planned.dropped)


def test_heads_are_judged_on_data_of_its_own_where_there_is_some(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)
    context = Context(data_for(graph, tmp_path))
    dark = np.zeros((200, CLASSES, SIDE, SIDE), np.float32)
    dark[:, 1] = -1e-3 * np.random.default_rng(0).random(
        (200, 1, 1)
    )  # so faint that the first head cannot tell
    np.savez(tmp_path / "dark.npz", x=dark)
    faint = load_data(tmp_path / "dark.npz", graph.inputs)
    here = plan_exits(graph, Wanted(), context, lambda g: None, None)
    there = plan_exits(graph, Wanted(), context, lambda g: None, None, faint)
    assert here.notes != there.notes


def test_heads_that_cost_more_than_they_save_are_dropped_and_said(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)

    def times(g: Graph) -> Mapping[str, float]:
        return {node.name or "": 0.001 for node in g.model.graph}

    dear_border = 1.0  # a stage more takes a hundred times the network
    planned = plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path)), times, dear_border)
    assert planned.step is None
    assert planned.dropped
    assert any("no exit pays" in note for note in planned.notes)


def test_named_places_are_kept_and_it_is_said_when_one_does_not_pay(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)
    wanted = Wanted(None, ("c1", "c5"))
    planned = plan_exits(graph, wanted, Context(data_for(graph, tmp_path)), lambda g: None, None)
    assert planned.step is not None
    assert planned.step.options.cuts == ("c1", "c5")
    assert any("behind n_c5 does not pay" in note for note in planned.notes)


def test_fewer_than_asked_for_is_said(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)
    planned = plan_exits(graph, Wanted(3), Context(data_for(graph, tmp_path)), lambda g: None, None)
    assert any("only 1 pay" in note for note in planned.notes)


def test_too_little_data_is_said(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)
    with pytest.raises(BadInput, match="at least 128 calibration inputs, got 20"):
        plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path, 20)), lambda g: None, None)


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    model = easy()
    calib = write_data(tmp_path / "calib.npz", input_shape(model)[1:], 500, 1)
    test = write_data(tmp_path / "test.npz", input_shape(model)[1:], 200, 2)
    return Request(
        save(model, tmp_path / "easy.onnx"),
        find_profile("raspberrypi4b"),
        calib,
        evaluation=test,
        limits=Limits(max_drop=5.0),
        effort=QUICK,
        exits=Wanted(),
    )


def test_convert_gives_a_finished_network_exits(request_: Request, tmp_path: Path) -> None:
    made = convert(request_)
    manifest = made.finished.manifest
    assert [entry.name for entry in manifest.exits] == ["exit1", "final"]
    early, last = made.report.exits
    assert early.agreement is not None
    assert early.agreement > 0.95
    assert early.cost_share < 0.5
    assert last.agreement == 1.0
    assert any(entry.step.startswith("exit (") for entry in made.report.dropped)
    budget = next(policy for policy in made.report.policies if policy.policy.startswith("budget"))
    assert budget.exit_counts["exit1"] > 100
    path = tmp_path / "easy.edge"
    path.write_bytes(made.content)
    bundle = open_bundle(path)
    session = open_session(bundle.manifest, bundle.read)
    assert check_golden(session, bundle.manifest, bundle.read) == ()


def test_the_recipe_makes_the_same_bundle_again(request_: Request) -> None:
    first = convert(request_)
    text = first.finished.files[MEMBER].decode()
    recipe = Recipe.parse(tomllib.loads(text), "recipe")
    assert [entry.name for entry in recipe.steps][:4] == ["opset", "confidence", "fold", "exits"]
    again = convert(replace(request_, exits=None, recipe=recipe))
    assert again.finished.content_id == first.finished.content_id


def test_without_the_wish_nothing_is_added(request_: Request) -> None:
    made = convert(replace(request_, exits=None))
    assert len(made.finished.manifest.exits) == 1


def test_the_latency_before_is_the_network_without_exits(request_: Request) -> None:
    made = convert(replace(request_, profile=find_profile(HOST)))
    assert made.report.latency_before.p50 is not None
