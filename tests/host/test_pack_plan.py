"""Binary networks as bundles: plans per exit, the same answers, real sizes, policies, and an overlay beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from binary_networks import CLASSES, binary_inputs, binary_network
from click.testing import CliRunner
from networks import SIDE, three_exits, write_data

from edgekit.cli.convert import command as convert_command
from edgekit.cli.inspect import command as inspect_command
from edgekit.core.bundle import open_bundle
from edgekit.core.errors import BadInput, Refused
from edgekit.core.policy import Budget, PolicySpec
from edgekit.core.profile import profile
from edgekit.host.convert import Request, convert
from edgekit.host.effort import QUICK
from edgekit.host.graph import model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.pack_plan import as_plan_source
from edgekit.host.recipe import read_recipe
from edgekit.native import plan
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import check_golden
from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import open_session

MODELS = Path(__file__).parents[2] / "models"


def written(proto: onnx.ModelProto, folder: Path, count: int = 300) -> tuple[Path, Path]:
    """The model's file and labelled data for it."""
    path, data = folder / "bnn.onnx", folder / "data.npz"
    path.write_bytes(proto.SerializeToString())
    x = np.concatenate(binary_inputs(proto, count))
    np.savez(data, x=x, y=np.arange(count) % CLASSES)
    return path, data


@pytest.fixture
def exits(tmp_path: Path) -> Request:
    """Three exits of binary layers, images."""
    proto = binary_network(11, kind="image", weights=["w1"], acts=["a1"], blocks=["conv"], exits=3, length=1)
    model, data = written(proto, tmp_path)
    return Request(model, find_profile("host"), data, effort=QUICK)


def test_a_binary_network_becomes_plans_that_answer_as_it_does(exits: Request) -> None:
    made = convert(exits)
    stages = made.finished.manifest.stages
    assert [part.backend for stage in stages for part in stage.parts] == ["native"] * 3
    graph = as_plan_source(load(exits.model).graph)
    reference = open_model(model_bytes(graph.model), optimize=False)
    session = made.finished.open()
    data = np.load(exits.calib)
    name = graph.inputs[0].tensor.name
    for row in data["x"][:20]:
        answer = session.run_all({name: row[None]})
        for exit_ in graph.exits:
            (want,) = reference.run([exit_.output], {name: row[None]})
            np.testing.assert_allclose(answer[exit_.output], want, atol=1e-5)
    assert made.report.accuracy.before == made.report.accuracy.after


def test_the_same_network_and_data_give_the_same_bundle(exits: Request) -> None:
    first, second = convert(exits), convert(exits)
    assert first.finished.content_id == second.finished.content_id


def test_the_bundles_recipe_makes_it_again(exits: Request, tmp_path: Path) -> None:
    first = convert(exits)
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(first.finished.files["recipe.toml"])
    again = convert(replace(exits, recipe=read_recipe(recipe)))
    assert again.finished.content_id == first.finished.content_id


def test_policies_decide_over_binary_stages_as_over_others(exits: Request) -> None:
    made = convert(exits)
    manifest = made.finished.manifest
    session = made.finished.open()
    assert check_golden(session, manifest, made.finished.files.__getitem__) == ()
    name = manifest.inputs[0].tensor.name
    rows = [row[None] for row in np.load(exits.calib)["x"]]
    cheapest = manifest.operating_points[0]
    assert cheapest.cost_share < 1.0
    full = make_policy(PolicySpec("full"), manifest, None)
    assert {session.run({name: row}, full).exit_index for row in rows[:20]} == {2}
    budget = make_policy(PolicySpec("budget", Budget(100 * cheapest.cost_share + 1, "%")), manifest, None)
    leaving = [session.run({name: row}, budget).exit_index for row in rows]
    shares = np.array([leaving_.cost_share for leaving_ in manifest.exits])
    assert shares[leaving].mean() < (cheapest.cost_share + 1.0) / 2
    assert min(leaving) < 2


def test_what_crosses_between_stages_is_golden_to_the_bit(exits: Request) -> None:
    manifest = convert(exits).finished.manifest
    handed = [golden for golden in manifest.golden.outputs if golden.tensor.startswith("stage")]
    assert handed
    assert all(golden.tolerance < 1 for golden in handed)


# --- real networks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """Some images of noise and of one shade each: sizes and bits do not depend on what they show."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (80, 1, 28, 28), np.uint8)
    x[::2] = random.integers(0, 256, (40, 1, 1, 1), np.uint8)
    path = tmp_path / "pixels.npz"
    np.savez(path, x=x)
    return path


@pytest.mark.parametrize("name", ["lfc", "cnv"])
def test_one_bit_weights_take_an_eighth_of_a_byte(name: str, pixels: Path) -> None:
    request = Request(
        MODELS / f"fashion_mnist_{name}_w1a1.onnx", profile("raspberrypi4b"), pixels, effort=QUICK
    )
    made = convert(request)
    (stage,) = made.finished.manifest.stages
    content = made.finished.files[stage.parts[0].file]
    layers = [step.of for step in plan.decode(content).operators if isinstance(step.of, plan.Linear)]
    assert all(layer.coding == plan.BIPOLAR for layer in layers)
    weights = sum(layer.weights.size for layer in layers)
    thresholds = sum(2 * layer.thresholds.size for layer in layers if layer.thresholds is not None)
    tables = 4_000  # tensors, operators, the last layer's scales
    padding = sum(4 * len(layer.weights) for layer in layers)  # each row ends at a word
    assert weights / 8 + thresholds < len(content) < weights / 8 + thresholds + padding + tables
    if name == "lfc":
        assert len(made.content) <= 400_000
    assert made.report.latency_provenance == "estimated"


# --- boards with an FPGA ----------------------------------------------------------------------------------------------


def test_a_board_with_an_fpga_gets_the_overlays_project_beside_the_bundle(
    pixels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lfc.edge"
    model = str(MODELS / "fashion_mnist_lfc_w1a1.onnx")
    done = CliRunner().invoke(
        convert_command,
        [
            model,
            "--profile",
            "pynq-z1",
            "--calib",
            str(pixels),
            "-o",
            str(out),
            "--json",
            "--throughput",
            "20000",
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    overlay = json.loads(done.stdout)["overlay"]
    assert overlay["images_per_second"] >= 20_000
    assert overlay["luts"] <= 0.7 * 53_200
    assert overlay["provenance"] == "estimated, post-synthesis"
    assert {row["name"] for row in overlay["layers"]} >= {"L0", "L1", "L2", "L3"}
    assert (tmp_path / "lfc.overlay" / "build.tcl").is_file()
    assert open_bundle(out).manifest.stages[0].parts[0].backend == "native"


def test_the_simulations_bundle_has_sums_from_the_overlay_and_floats_from_the_cpu(pixels: Path) -> None:
    model = MODELS / "fashion_mnist_lfc_w1a1.onnx"
    request = Request(model, profile("pynq-z1"), pixels, effort=QUICK, backend="overlay-sim")
    made = convert(request)
    (stage,) = made.finished.manifest.stages
    assert [part.backend for part in stage.parts] == ["overlay-sim", "native"]
    assert made.overlay is not None
    assert stage.parts[0].design_id == made.overlay.design_id
    assert stage.parts[0].outputs[0].dtype == "int32"
    assert "cycle model" in (made.report.latency_on or "")
    plain = convert(replace(request, backend="native")).finished
    name = made.finished.manifest.inputs[0].tensor.name
    for row in np.load(pixels)["x"][:5]:
        both = [finished.open().run_all({name: row[None]})["final"] for finished in (made.finished, plain)]
        np.testing.assert_array_equal(*both)


def test_what_does_not_fit_is_refused_with_the_numbers(pixels: Path) -> None:
    model = MODELS / "fashion_mnist_cnv_w1a1.onnx"
    request = Request(model, profile("pynq-z1"), pixels, effort=QUICK, images_s=1e6)
    with pytest.raises(BadInput, match=r"LUT|images/s"):
        convert(request)


def test_early_exits_on_an_fpga_board_run_on_the_cpu_and_the_report_says_why(exits: Request) -> None:
    made = convert(replace(exits, profile=profile("pynq-z1")))
    assert made.overlay is None
    assert [(entry.step, "one exit" in entry.why) for entry in made.report.dropped] == [("overlay", True)]
    with pytest.raises(BadInput, match="--backend native"):
        convert(replace(exits, profile=profile("pynq-z1"), backend="overlay-sim"))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_float_network_asked_for_on_bits_is_refused_layer_by_layer(tmp_path: Path) -> None:
    model, data = tmp_path / "float.onnx", tmp_path / "data.npz"
    model.write_bytes(three_exits().SerializeToString())
    write_data(data, (1, SIDE, SIDE))
    with pytest.raises(BadInput, match=r"cannot run on bits and small integers: .*lie on no grid of 8 bits"):
        convert(Request(model, find_profile("host"), data, effort=QUICK, backend="native"))
    with pytest.raises(BadInput, match="cannot run on bits"):
        convert(Request(model, profile("pynq-z1"), data, effort=QUICK))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"exits": object()}, "--exits"), ({"base": (object(),)}, "--prune")],
)
def test_what_only_float_networks_can_get_is_refused(
    change: dict[str, Any], said: str, exits: Request
) -> None:
    with pytest.raises(BadInput, match=said):
        convert(replace(exits, **change))


def test_inspect_shows_every_layers_bits_and_names_what_is_not_binary(tmp_path: Path) -> None:
    model = str(MODELS / "fashion_mnist_cnv_w1a1.onnx")
    done = CliRunner().invoke(inspect_command, [model, "--json"], catch_exceptions=False)
    formats = [row["format"] for row in json.loads(done.stdout)["layers"]]
    assert formats[0] == "w1a8"
    assert set(formats[1:]) == {"w1a1"}
    float_model = tmp_path / "float.onnx"
    proto = binary_network(
        4, kind="image", weights=["w1"], acts=["a1"], blocks=["conv"], exits=1, heads=["dense"]
    )
    (last,) = [node for node in proto.graph.node if "exit1" in node.output]
    weight = onnx.numpy_helper.from_array(
        np.random.default_rng(0).normal(size=(CLASSES, CLASSES)).astype(np.float32), "w"
    )
    proto.graph.initializer.append(weight)
    last.output[0] = "before"
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["before", "w"], ["exit1"], "n_float"))
    float_model.write_bytes(proto.SerializeToString())
    done = CliRunner().invoke(inspect_command, [str(float_model), "--json"], catch_exceptions=False)
    rows = {row["name"]: row["not_binary"] for row in json.loads(done.stdout)["layers"]}
    assert "8 bits" in rows["n_float"]
    shown = CliRunner().invoke(inspect_command, [str(float_model)], catch_exceptions=False)
    assert "not binary" in " ".join(shown.stdout.split())


# --- bitstreams -------------------------------------------------------------------------------------------------------


def bit_file(user_id: str) -> bytes:
    """The beginning of a .bit file."""
    content = bytes.fromhex("00090ff00ff00ff00ff0000001")
    texts = (f"overlay_wrapper;UserID=0X{user_id};Version=2022.1", "7z020clg400", "2026/01/02", "03:04:05")
    for letter, text in zip(b"abcd", texts, strict=True):
        content += bytes([letter]) + (len(text) + 1).to_bytes(2, "big") + text.encode() + b"\0"
    return content + b"e" + bytes(4)


def test_the_owners_bitstream_is_packed_for_its_own_design_only(pixels: Path, tmp_path: Path) -> None:
    model = MODELS / "fashion_mnist_lfc_w1a1.onnx"
    request = Request(model, profile("pynq-z1"), pixels, effort=QUICK, backend="overlay")
    design = convert(request).overlay
    assert design is not None
    bit, hwh = tmp_path / "edgekit_overlay.bit", tmp_path / "edgekit_overlay.hwh"
    bit.write_bytes(bit_file(design.design_id[:8].upper()))
    hwh.write_text("<EDKSYSTEM/>")
    finished = convert(replace(request, bitstream=(bit, hwh))).finished
    assert finished.files[f"overlay/{design.design_id}.bit"] == bit.read_bytes()
    assert finished.files[f"overlay/{design.design_id}.hwh"] == hwh.read_bytes()
    part = finished.manifest.stages[0].parts[0]
    assert (part.backend, part.executes_code, part.design_id) == ("overlay", True, design.design_id)
    with pytest.raises(Refused):
        open_session(finished.manifest, finished.files.__getitem__)  # the board's config must accept code
    bit.write_bytes(bit_file("FFFFFFFF"))
    with pytest.raises(BadInput, match="its UserID is 0xffffffff"):
        convert(replace(request, bitstream=(bit, hwh)))
    with pytest.raises(BadInput, match="--backend overlay"):
        convert(replace(request, backend="native", bitstream=(bit, hwh)))


@pytest.mark.parametrize("options", [["--profile", "host", "--backend", "native"], ["--profile", "pynq-z1"]])
def test_inspect_shows_what_goes_to_plans_as_plans_whatever_its_bits(options: list[str]) -> None:
    model = str(Path(__file__).parent / "data" / "qonnx" / "residual_w4a4.onnx")
    done = CliRunner().invoke(inspect_command, [model, *options, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    formats = {row["name"]: row["format"] for row in json.loads(done.stdout)["layers"]}
    assert formats["/conv2/Conv"] == "w8a8"


def test_inspect_says_of_a_float_network_what_convert_would_say(tmp_path: Path) -> None:
    model, data = tmp_path / "float.onnx", tmp_path / "data.npz"
    model.write_bytes(three_exits().SerializeToString())
    write_data(data, (1, SIDE, SIDE))
    done = CliRunner().invoke(inspect_command, [str(model), "--profile", "pynq-z1", "--json"])
    there = json.loads(done.stdout)["profile"]
    assert not there["can_run"]
    (problem,) = there["problems"]
    with pytest.raises(BadInput) as refused:
        convert(Request(model, profile("pynq-z1"), data, effort=QUICK))
    assert problem == str(refused.value)


# --- float inputs -----------------------------------------------------------------------------------------------------

QONNX = Path(__file__).parent / "data" / "qonnx"


@pytest.mark.parametrize("name", ["lfc_w1a1", "cnv_w1a1"])
def test_a_float_input_becomes_codes_on_the_cpu_before_the_overlay(name: str, tmp_path: Path) -> None:
    """As Brevitas exports networks: a sign, or an int8 quantizer, stands behind the input."""
    model, data = QONNX / f"{name}.onnx", tmp_path / "data.npz"
    (entry,) = load(model).graph.inputs
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (40, *entry.tensor.shape[1:])).astype(np.float32)
    np.savez(data, x=x)
    request = Request(model, profile("pynq-z1"), data, effort=QUICK, backend="overlay-sim")
    made, plain = convert(request).finished, convert(replace(request, backend="native")).finished
    (stage,) = made.manifest.stages
    assert [part.backend for part in stage.parts] == ["native", "overlay-sim", "native"]
    assert stage.parts[1].inputs[0].dtype == "uint8"
    sessions = [finished.open() for finished in (made, plain)]
    leaving = made.manifest.exits[0].output
    for row in x[:20]:
        first, second = (session.run_all({entry.tensor.name: row[None]})[leaving] for session in sessions)
        np.testing.assert_array_equal(first, second)


def test_a_recipe_holds_the_throughput_an_overlay_was_folded_for(pixels: Path, tmp_path: Path) -> None:
    model = MODELS / "fashion_mnist_lfc_w1a1.onnx"
    request = Request(model, profile("pynq-z1"), pixels, effort=QUICK, backend="overlay-sim", images_s=1000.0)
    first = convert(request)
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(first.finished.files["recipe.toml"])
    again = convert(replace(request, recipe=read_recipe(recipe), backend=None, images_s=None))
    assert again.finished.content_id == first.finished.content_id
    assert first.overlay is not None
    assert f"overlay {first.overlay.design_id}" in first.report.notes[0]
    with pytest.raises(BadInput, match="--throughput cannot be given"):
        convert(replace(request, recipe=read_recipe(recipe), backend=None))
    with pytest.raises(BadInput, match="no programmable logic"):
        convert(replace(request, profile=profile("raspberrypi4b"), backend="native"))


def test_an_overlay_without_its_bitstream_says_so(pixels: Path) -> None:
    model = MODELS / "fashion_mnist_lfc_w1a1.onnx"
    made = convert(Request(model, profile("pynq-z1"), pixels, effort=QUICK, backend="overlay"))
    assert any("no bitstream is in the bundle" in note for note in made.report.notes)
