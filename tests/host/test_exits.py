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
from edgekit.host.exits import plan
from edgekit.host.exits.cuts import Cut, named_cuts, spread_cuts
from edgekit.host.exits.heads import LINEAR, MOST_SAMPLES
from edgekit.host.exits.plan import Candidate, Wanted, mean_cost, parse_exits, plan_exits, samples_for
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


def least_cost(chosen: list[Candidate], agreement: float) -> float:
    """The same as mean_cost by trying every way in which two exits can let samples go."""
    first, second = chosen
    count = len(first.right)
    ranks = [np.argsort(np.argsort(-entry.confidence, kind="stable")) for entry in chosen]
    costs = (first.at + first.own, second.at + first.own + second.own, 1 + first.own + second.own)
    found = []
    for here in range(count + 1):
        at_first = ranks[0] < here
        for there in range(count + 1):
            at_second = (ranks[1] < there) & ~at_first
            changed = (~first.right[at_first]).sum() + (~second.right[at_second]).sum()
            if changed <= int(count * (1 - agreement) + 1e-9):
                taken = np.where(at_first, 0, np.where(at_second, 1, 2))
                found.append(np.array(costs)[taken].mean())
    return float(min(found))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_two_exits_share_the_changed_answers_nearly_as_well_as_can_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(20, 60))
    hard = random.normal(0, 1, count)
    pair = [
        Candidate(
            CUT,
            LINEAR,
            at,
            0.01,
            (-hard - random.normal(0, 0.5, count)).astype(np.float32),
            random.normal(0, 0.7, count) + hard < 0.8 + at,
        )
        for at in sorted(random.uniform(0.1, 0.8, 2).tolist())
    ]
    assert least_cost(pair, 0.95) - 1e-9 <= mean_cost(pair, 0.95) <= least_cost(pair, 0.95) + 0.03


def test_heads_are_charged_what_their_nodes_take(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)

    def times(g: Graph) -> Mapping[str, float]:
        return {node.name or "": 20.0 if "/linear" in (node.name or "") else 1.0 for node in g.model.graph}

    planned = plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path)), times, 0.0)
    assert planned.step is None  # a head takes longer than the network
    cheap = plan_exits(
        graph, Wanted(), Context(data_for(graph, tmp_path)), lambda g: dict.fromkeys(times(g), 0.1), 0.0
    )
    assert cheap.step is not None


def test_it_is_said_when_too_few_samples_judge(tmp_path: Path) -> None:
    graph = opened(easy(), tmp_path)
    few = plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path, 200)), lambda g: None, None)
    assert any("judged on 50 samples, too few to tell 99% from 94.0%" in note for note in few.notes)
    many = plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path, 1300)), lambda g: None, None)
    assert not any("too few" in note for note in many.notes)


def test_large_networks_are_run_on_fewer_samples() -> None:
    assert samples_for(10**6) == samples_for(0) == MOST_SAMPLES
    assert samples_for(10**8) == 4000
    assert samples_for(10**12) == 1024


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
    with pytest.raises(BadInput, match="at least 128 calibration inputs beside those that validate, got 20"):
        plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path, 20)), lambda g: None, None)


@pytest.mark.parametrize("last", ["Sigmoid", "HardSigmoid"])
def test_scores_of_labels_that_may_hold_together_are_refused(tmp_path: Path, last: str) -> None:
    b = Builder(1)
    y = b.op(last, [b.head(b.conv("x", "a", (CLASSES, 4)), "logits", 4, CLASSES)], "scores")
    graph = opened(b.model([(y, (1, CLASSES))], [("x", (1, CLASSES, SIDE, SIDE))]), tmp_path)
    with pytest.raises(BadInput, match=f"chooses one class, got 'scores' from a {last}"):
        plan_exits(graph, Wanted(), Context(data_for(graph, tmp_path)), lambda g: None, None)


def test_an_answer_that_is_no_number_is_said_with_its_sample(tmp_path: Path) -> None:
    graph = opened(easy(2), tmp_path)
    x = np.ones((200, CLASSES, SIDE, SIDE), np.float32)
    x[7, 0, 0, 0] = np.inf
    np.savez(tmp_path / "d.npz", x=x)
    data = load_data(tmp_path / "d.npz", graph.inputs)
    with pytest.raises(BadInput, match=r"answer to d\.npz\[7\] is not finite"):
        plan_exits(graph, Wanted(), Context(data), lambda g: None, None)


def masked() -> onnx.ModelProto:
    """Rows that are mixed by masked attention: the masked scores are infinite, what follows is not."""
    b = Builder(3)
    mask = np.zeros((1, 7, 7), np.float32)
    mask[..., 5:] = -np.inf
    x = b.op("MatMul", ["x", b.weight("w0", 6, 8)], "x0")
    turned = b.op("Transpose", [x], "turned", perm=[0, 2, 1])
    scores = b.op("Add", [b.op("MatMul", [x, turned], "scores"), b.constant("mask", mask)], "masked")
    x = b.op("MatMul", [b.op("Softmax", [scores], "shares", axis=-1), x], "mixed")
    x = b.op("Relu", [b.op("MatMul", [x, b.weight("w1", 8, 8)], "x1")], "out")
    x = b.op("ReduceMean", [x], "mean", axes=[1], keepdims=0)
    y = b.op("Gemm", [x, b.weight("w2", 8, CLASSES)], "y")
    return b.model([(y, (1, CLASSES))], [("x", (1, 7, 6))])


def test_what_is_infinite_inside_is_no_place_for_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = opened(masked(), tmp_path)
    context = Context(data_for(graph, tmp_path, 200))
    monkeypatch.setattr(plan, "spread_cuts", lambda g, most: named_cuts(g, ["masked", "out"]))
    planned = plan_exits(graph, Wanted(), context, lambda g: None, None)
    assert [entry.layer for entry in planned.dropped if "not finite" in entry.why] == ["n_masked"]
    with pytest.raises(BadInput, match=r"behind 'n_masked': what it gives for .* is not finite"):
        plan_exits(graph, Wanted(None, ("masked",)), context, lambda g: None, None)


def test_no_head_reads_thousands_of_features(tmp_path: Path) -> None:
    b = Builder(1)
    x = b.conv("x", "a", (CLASSES, 96))
    flat = b.op("Flatten", [x], "flat")
    hidden = b.op("Gemm", [flat, b.weight("w1", 96 * SIDE * SIDE, 8)], "hidden")
    y = b.op("Gemm", [b.op("Relu", [hidden], "up"), b.weight("w2", 8, CLASSES)], "y")
    graph = opened(b.model([(y, (1, CLASSES))], [("x", (1, CLASSES, SIDE, SIDE))]), tmp_path)
    assert "flat" not in [cut.tensor for cut in spread_cuts(graph, 50)]
    with pytest.raises(BadInput, match="at most 4096 channels"):
        named_cuts(graph, ["flat"])


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


def test_a_budget_below_the_first_exit_is_said_to_be_out_of_reach(request_: Request) -> None:
    late = replace(request_, exits=Wanted(None, ("c5",)))
    assert any("exit1 alone costs" in note for note in convert(late).report.notes)
    assert not any("alone costs" in note for note in convert(request_).report.notes)
