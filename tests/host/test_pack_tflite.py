"""A .tflite file as a bundle: packed as it is, its codes kept, and refused by name where it cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from networks import CLASSES, SIDE, three_exits, write_data

pytest.importorskip("ai_edge_litert")

from edgekit.cli.inspect import command as inspect_command
from edgekit.core.bench import BenchReport
from edgekit.core.bundle import open_bundle
from edgekit.core.errors import BadInput
from edgekit.core.manifest import BoardLimits, Preprocess, Tensor
from edgekit.core.policy import PolicySpec
from edgekit.core.profile import Backend, profile
from edgekit.core.report import Latency
from edgekit.host.convert import Conversion, Request, convert, whole_stage
from edgekit.host.limits import Limits
from edgekit.host.load import InputSpec
from edgekit.host.lower.litert import lower
from edgekit.host.lower.tflite.writer import Quant, TfliteFile, options
from edgekit.host.pack_tflite import in_codes
from edgekit.host.recipe import read_recipe
from edgekit.host.tflite_model import BorderTensor, read_tflite
from edgekit.runtime.data import load_data
from edgekit.runtime.measure import check_golden
from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import open_session

PIXELS = Quant((1 / 255,), (-128,))  # of images between 0 and 1


def image_classifier(path: Path, dtype: str = "int8", zero: int = -128) -> Path:
    """One int8 convolution and a mean over (1, 4, 4, 1) images, codes in and codes out."""
    random = np.random.default_rng(3)
    file = TfliteFile()
    pixels = Quant((float(np.float32(1 / 255)),), (zero,))
    x = file.tensor("image", (1, 4, 4, 1), dtype, pixels)
    inner = x
    if dtype == "uint8":
        inner = file.tensor("", (1, 4, 4, 1), "int8", Quant(pixels.scale, (zero - 128,)))
        file.operator("QUANTIZE", 2, [x], [inner], options("QuantizeOptions"))
    scales = (0.5, 0.25, 0.125)
    weight = file.constant(random.integers(-127, 128, (3, 3, 3, 1)).astype(np.int8), Quant(scales, (0,) * 3))
    sums = tuple(float(np.float32(s) * np.float32(1 / 255)) for s in scales)
    bias = file.constant(np.zeros(3, np.int32), Quant(sums, (0,) * 3))
    middle = file.tensor("conv", (1, 2, 2, 3), "int8", Quant((2.0,), (0,)))
    settings = options("Conv2DOptions", padding=1, strideH=1, strideW=1)
    file.operator("CONV_2D", 3, [inner, weight, bias], [middle], settings)
    y = file.tensor("scores", (1, 3), "int8", Quant((1.0,), (5,)))
    axes = file.constant(np.array([1, 2], np.int32))
    file.operator("MEAN", 2, [middle, axes], [y], options("ReducerOptions", keepDims=False))
    path.write_bytes(file.to_bytes([x], [y], "main"))
    return path


def images(path: Path, count: int = 40) -> Path:
    random = np.random.default_rng(5)
    np.savez(path, x=random.integers(0, 256, (count, 4, 4), np.uint8), y=random.integers(0, 3, count))
    return path


def pixels_spec(scale: float = 1 / 255) -> InputSpec:
    return InputSpec(
        {"image": {"layout": "NHWC", "preprocess": {"channels": "L", "scale": scale}}}, None, ("a", "b", "c")
    )


def packed(model: Path, data: Path, spec: InputSpec | None = None, **more: object) -> Conversion:
    return convert(Request(model, profile("raspberrypi5"), data, input_spec=spec or InputSpec(), **more))


def float_model(make: Callable, path: Path) -> Path:
    graph = make(three_exits()).plain
    model = graph.copy()
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name == "exit3"]
    only = replace(graph.with_model(model), exits=graph.exits[-1:])
    path.write_bytes(lower(whole_stage(only), Backend("litert"))[0].content)
    return path


def test_the_file_is_the_bundles_only_part_unchanged_and_golden_cases_hold(
    make: Callable, tmp_path: Path
) -> None:
    model = float_model(make, tmp_path / "m.tflite")
    made = packed(model, write_data(tmp_path / "c.npz", (3, SIDE, SIDE), 30, 1, CLASSES))
    path = tmp_path / "m.edge"
    path.write_bytes(made.content)
    bundle = open_bundle(path)
    (stage,) = bundle.manifest.stages
    (part,) = stage.parts
    assert part.backend == "litert"
    assert bundle.read(part.file) == model.read_bytes()
    session = open_session(bundle.manifest, bundle.read)
    assert check_golden(session, bundle.manifest, bundle.read) == ()
    assert stage.macs == sum(row.work.macs for row in read_tflite(model).operators) > 0
    assert made.report.accuracy.before == made.report.accuracy.after is not None
    assert made.report.size_bytes.before == made.report.size_bytes.after == len(model.read_bytes())


def test_the_same_file_gives_the_same_content_and_its_recipe_makes_it_again(
    make: Callable, tmp_path: Path
) -> None:
    model = float_model(make, tmp_path / "m.tflite")
    data = write_data(tmp_path / "c.npz", (3, SIDE, SIDE), 30, 1, CLASSES)
    made = packed(model, data)
    assert packed(model, data).finished.content_id == made.finished.content_id
    (tmp_path / "recipe.toml").write_bytes(made.finished.files[made.finished.manifest.recipe])
    again = packed(model, data, recipe=read_recipe(tmp_path / "recipe.toml"))
    assert again.finished.content_id == made.finished.content_id


def test_on_a_board_that_was_asked_for_the_file_is_timed_there(make: Callable, tmp_path: Path) -> None:
    model = float_model(make, tmp_path / "m.tflite")
    data = write_data(tmp_path / "c.npz", (3, SIDE, SIDE), 30, 1, CLASSES)
    said = BenchReport(
        "0" * 64,
        (Latency(7.0, 7.0, 8.0, 9.0),),
        energy_mj=3.0,
        provenance="simulated",
        on="a Pi",
        device="b1",
    )

    def bench(candidates: Sequence[object], data: object) -> tuple[BenchReport, ...]:
        return (said,) * len(candidates)

    limits = Limits(max_latency_ms=6.0, max_energy_mj=4.0)
    made = packed(model, data, bench=bench, limits=limits)
    report = made.report
    assert made.finished.manifest.limits == BoardLimits(latency_ms=6.0, energy_mj=4.0), "the board's trial"
    assert report.latency_after == said.latency
    assert (report.latency_provenance, report.latency_on) == ("simulated", "b1, a Pi")
    assert [line.partition(":")[0] for line in report.limits_missed] == ["max-latency-ms"]
    said = replace(said, problems=("LiteRT refuses it",))
    with pytest.raises(BadInput, match="cannot be used on b1: LiteRT refuses it"):
        packed(model, data, bench=bench)


@pytest.mark.parametrize(("dtype", "zero"), [("int8", -128), ("uint8", 0)])
def test_an_input_of_codes_keeps_its_type_and_images_become_codes(
    tmp_path: Path, dtype: str, zero: int
) -> None:
    model = image_classifier(tmp_path / "m.tflite", dtype, zero)
    made = packed(model, images(tmp_path / "c.npz"), pixels_spec())
    (entry,) = made.finished.manifest.inputs
    assert (entry.tensor.dtype, made.finished.manifest.labels) == (dtype, ("a", "b", "c"))
    data = load_data(tmp_path / "c.npz", (entry,))
    stored = np.load(tmp_path / "c.npz")["x"][7]
    codes = data.inputs(7)["image"]
    assert codes.dtype == dtype
    np.testing.assert_array_equal(codes[0, :, :, 0].astype(int), stored.astype(int) + zero)
    session = made.finished.open()
    answer = session.run(data.inputs(7), make_policy(PolicySpec("full"), made.finished.manifest, None))
    assert answer.outputs["scores"].dtype == np.int8
    assert answer.label == int(answer.outputs["scores"].argmax())


def test_real_numbers_for_an_input_of_codes_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    model = image_classifier(tmp_path / "m.tflite")
    data = tmp_path / "c.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32))
    with pytest.raises(
        BadInput, match="must be int8 codes, as the input takes them, got float32 with fractions"
    ):
        packed(model, data)


def test_preprocessing_in_real_numbers_becomes_the_rule_for_codes() -> None:
    entry = BorderTensor(Tensor("image", "int8", (1, 4, 4, 3)), 0.02, 10)
    how = Preprocess(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2,))
    made = in_codes(how, entry, "input")
    pixels = np.arange(256)[:, None]
    real = (pixels / 255 - np.array(how.mean)) / 0.2
    np.testing.assert_allclose(
        (pixels * made.scale - np.array(made.mean)) / np.array(made.std), real / 0.02 + 10, atol=1e-9
    )


def test_a_uint8_input_that_wants_other_numbers_than_pixels_is_refused(tmp_path: Path) -> None:
    model = image_classifier(tmp_path / "m.tflite", "uint8", 0)
    with pytest.raises(BadInput, match="pixels go in as they are"):
        packed(model, images(tmp_path / "c.npz"), pixels_spec(scale=2 / 255))


def test_a_custom_operator_is_named_with_its_node(tmp_path: Path) -> None:
    import flatbuffers

    from edgekit.host.lower.tflite.writer import schema

    path = image_classifier(tmp_path / "m.tflite")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.MEAN:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = "TheirSecretOp"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(BadInput, match="'scores' is the custom operator 'TheirSecretOp'"):
        packed(path, images(tmp_path / "c.npz"), pixels_spec())


def test_an_operator_that_the_runtime_does_not_know_is_named(tmp_path: Path) -> None:
    file = TfliteFile()
    x, y = file.tensor("x", (1, 4), "float32"), file.tensor("y", (1, 4), "float32")
    file.operator("RELU", 99, [x], [y])
    path = tmp_path / "m.tflite"
    path.write_bytes(file.to_bytes([x], [y], "main"))
    with pytest.raises(BadInput, match=r"m.tflite: LiteRT refuses it: .*RELU"):
        packed(path, write_data(tmp_path / "c.npz", (4,), 8))


def test_a_file_on_which_the_runtime_aborts_is_refused_and_the_converter_lives(tmp_path: Path) -> None:
    file = TfliteFile()
    x, y = file.tensor("x", (1, 4), "int8"), file.tensor("y", (1, 4), "int8")  # codes without a scale
    file.operator("ADD", 2, [x, x], [y], options("AddOptions"))
    path = tmp_path / "m.tflite"
    path.write_bytes(file.to_bytes([x], [y], "main"))
    with pytest.raises(BadInput, match=r"m.tflite: LiteRT (crashes on|refuses) it"):
        packed(path, write_data(tmp_path / "c.npz", (4,), 8))


def test_damaged_files_are_refused_in_one_line_and_crash_nothing(tmp_path: Path) -> None:
    whole = image_classifier(tmp_path / "m.tflite").read_bytes()
    path = tmp_path / "bad.tflite"
    random = np.random.default_rng(0)
    damaged = [b"", b"garbage", whole[:-7], whole[: len(whole) // 2], whole[:8] + b"\xff" * 300]
    for _ in range(20):
        place = int(random.integers(8, len(whole) - 8))
        damaged.append(whole[:place] + random.bytes(8) + whole[place + 8 :])
    refused = []
    for content in damaged:
        path.write_bytes(content)
        try:
            read_tflite(path)
        except BadInput as err:
            refused.append(str(err))
    assert not [line for line in refused if "\n" in line]
    assert len(refused) >= 5


def test_passes_shapes_and_boards_without_a_runtime_for_it_are_refused(
    make: Callable, tmp_path: Path
) -> None:
    from edgekit.host.exits.plan import Wanted
    from edgekit.host.passes import step

    model = image_classifier(tmp_path / "m.tflite")
    data = images(tmp_path / "c.npz")
    with pytest.raises(BadInput, match="packed as it is: no passes"):
        packed(model, data, pixels_spec(), base=(step("equalize"),))
    with pytest.raises(BadInput, match="cannot get --exits"):
        packed(model, data, pixels_spec(), exits=Wanted())
    with pytest.raises(BadInput, match="--shape cannot change"):
        packed(model, data, pixels_spec(), shapes={"": (1, 8, 8, 1)})
    with pytest.raises(BadInput, match=r"jetson-nano: a .tflite file needs one of the backends litert"):
        convert(Request(model, profile("jetson-nano"), data, input_spec=pixels_spec()))
    with pytest.raises(BadInput, match="no input is called 'picture'; the inputs are image"):
        packed(model, data, InputSpec({"picture": {}}))
    with pytest.raises(BadInput, match="2 labels do not fit an output of 3 values"):
        packed(model, data, replace(pixels_spec(), labels=("a", "b")))


def test_inspect_lists_operators_with_their_codes_and_what_the_board_runs(tmp_path: Path) -> None:
    path = image_classifier(tmp_path / "m.tflite")
    done = CliRunner().invoke(inspect_command, [str(path), "--profile", "raspberrypi5", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [row["op"] for row in said["layers"]] == ["CONV_2D", "MEAN"]
    assert [row["format"] for row in said["layers"]] == ["int8", "int8"]
    assert said["macs"] == 2 * 2 * 3 * 9
    assert said["inputs"][0]["zero_point"] == -128
    assert said["profile"]["backend"] == "litert"
    shown = CliRunner().invoke(inspect_command, [str(path)])
    assert "CONV_2D" in shown.output
    assert "x (code - -128)" in shown.output


def test_several_outputs_nobody_named_are_one_answer(make: Callable, tmp_path: Path) -> None:
    graph = make(three_exits()).plain
    model = graph.copy()
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in ("exit1", "exit3")]
    both = replace(graph.exits[0], output="exit1", confidence=None, also=("exit3",))
    whole = whole_stage(replace(graph.with_model(model), exits=(both,)))
    (tmp_path / "m.tflite").write_bytes(lower(whole, Backend("litert"))[0].content)
    made = packed(tmp_path / "m.tflite", write_data(tmp_path / "c.npz", (3, SIDE, SIDE), 10))
    (leaving,) = made.finished.manifest.exits
    assert sorted(leaving.outputs) == ["exit1", "exit3"]
