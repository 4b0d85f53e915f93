"""Loading: what comes in is one kind of graph, or one sentence about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CLASSES, SIDE, Builder, save, three_exits
from onnx import helper, numpy_helper

from edgekit.core.errors import BadInput
from edgekit.host.load import load, parse_shapes, read_input_spec


def complaint(path: Path, **options: object) -> str:
    with pytest.raises(BadInput) as caught:
        load(path, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_model_tells_its_exits_labels_and_inputs(tmp_path: Path) -> None:
    model = three_exits()
    labels = ["a", "b", "c", "d", "e"]
    entry = {"name": "x", "layout": "NCHW", "preprocess": {"channels": "RGB", "scale": 0.5}}
    helper.set_model_props(
        model,
        {
            "edgekit.exits": json.dumps([{"name": n, "output": n} for n in ("exit1", "exit2", "exit3")]),
            "edgekit.labels": json.dumps(labels),
            "edgekit.input": json.dumps(entry),
        },
    )
    graph = load(save(model, tmp_path / "m.onnx")).graph
    assert [entry.output for entry in graph.exits] == ["exit1", "exit2", "exit3"]
    assert graph.labels == tuple(labels)
    assert graph.inputs[0].tensor.shape == (1, 3, SIDE, SIDE)
    assert graph.inputs[0].preprocess is not None
    assert graph.inputs[0].preprocess.scale == 0.5


def test_a_model_without_exits_has_one(tmp_path: Path) -> None:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "y", 4)
    loaded = load(save(b.model([("y", (1, CLASSES))]), tmp_path / "m.onnx"))
    assert [(e.name, e.output) for e in loaded.graph.exits] == [("final", "y")]
    assert loaded.left_out == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"import torch\nmodel = torch.load('x')\n", "a text file that begins with"),
        (b"PK\x03\x04" + bytes(range(256)), "a file of another format"),
        (bytes(1000), "a file of another format"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    text = complaint(path)
    assert text.startswith(f"{path}: must be an ONNX model, got ")
    assert said in text


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    assert "no such file" in complaint(tmp_path / "nothing.onnx")
    assert "got a folder" in complaint(tmp_path)
    (tmp_path / "a.tflite").write_bytes(b"x")
    assert "must be an ONNX model here" in complaint(tmp_path / "a.tflite")


def test_a_model_above_2_gb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    assert "at most 2 GB" in complaint(path)


def test_a_custom_operator_is_named_with_its_node(tmp_path: Path) -> None:
    b = Builder()
    b.op("Deformed", ["x"], "y", domain="my.ops")
    model = b.model([("y", (1, 3, SIDE, SIDE))])
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    text = complaint(save(model, tmp_path / "m.onnx"))
    assert "node 'n_y' uses the operator my.ops.Deformed" in text


def test_an_operator_newer_than_the_opset_is_named(tmp_path: Path) -> None:
    b = Builder(opset=12)
    b.op("HardSwish", ["x"], "y")
    assert "operator HardSwish, which ONNX's opset 12" in complaint(
        save(b.model([("y", (1, 3, SIDE, SIDE))]), tmp_path / "m.onnx")
    )


def external(tmp_path: Path, location: str) -> Path:
    model = three_exits()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    if location != "w.bin":
        stored = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        for tensor in stored.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (tmp_path / "m.onnx").write_bytes(stored.SerializeToString())
    return tmp_path / "m.onnx"


def test_external_weights_are_taken_in(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    loaded = load(path)
    assert loaded.size_bytes == path.stat().st_size + (tmp_path / "w.bin").stat().st_size
    (tmp_path / "w.bin").unlink()
    weights = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in loaded.graph.proto().graph.initializer
    }
    for tensor in three_exits().graph.initializer:
        np.testing.assert_array_equal(weights[tensor.name], numpy_helper.to_array(tensor))


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    (tmp_path / "w.bin").unlink()
    assert '"w.bin", which does not exist' in complaint(path)


def test_external_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = external(tmp_path / "inside", "../w.bin")
    assert "must lie in the model's folder" in complaint(path)


def test_truncated_external_weights_are_one_sentence(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"1234")
    assert "could not be read" in complaint(path)


def symbolic(tmp_path: Path, *shape: int | str) -> Path:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "y", 4)
    return save(b.model([("y", ("n", CLASSES))], [("x", shape)]), tmp_path / "m.onnx")


def test_a_symbolic_batch_becomes_one(tmp_path: Path) -> None:
    graph = load(symbolic(tmp_path, "n", 3, 8, 8)).graph
    assert graph.inputs[0].tensor.shape == (1, 3, 8, 8)
    assert tuple(graph.model.graph.outputs[0].shape or ()) == (1, CLASSES)


def test_symbolic_sizes_need_a_shape(tmp_path: Path) -> None:
    path = symbolic(tmp_path, 1, 3, "height", "width")
    text = complaint(path)
    assert "1,3,height,width" in text
    assert "--shape" in text
    assert load(path, {"": (1, 3, 16, 20)}).graph.inputs[0].tensor.shape == (1, 3, 16, 20)
    assert load(path, {"x": (1, 3, 16, 20)}).graph.inputs[0].tensor.shape == (1, 3, 16, 20)


def test_minus_one_counts_as_symbolic(tmp_path: Path) -> None:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "y", 4)
    path = save(b.model([("y", (-1, CLASSES))], [("x", (-1, 3, 8, 8))]), tmp_path / "m.onnx")
    graph = load(path).graph
    assert graph.inputs[0].tensor.shape == (1, 3, 8, 8)
    assert tuple(graph.model.graph.outputs[0].shape or ()) == (1, CLASSES)


def test_a_shape_that_contradicts_the_model_is_refused(tmp_path: Path) -> None:
    path = symbolic(tmp_path, 1, 3, "height", "width")
    assert "must have the shape" in complaint(path, shapes={"": (1, 1, 16, 16)})
    assert "must have the shape" in complaint(path, shapes={"": (1, 3, 16)})
    assert "no input is called 'z'; the inputs are x" in complaint(path, shapes={"z": (1,)})


def test_shape_options_are_read_or_explained() -> None:
    assert parse_shapes(["1,3,8,8"]) == {"": (1, 3, 8, 8)}
    assert parse_shapes(["a=1,2", "b=3"]) == {"a": (1, 2), "b": (3,)}
    for bad in (["1,x"], ["1,0"], ["a="], ["1", "2"]):
        with pytest.raises(BadInput, match="--shape must be 1,3,224,224"):
            parse_shapes(bad)


def two_outputs(tmp_path: Path) -> Path:
    b = Builder()
    x = b.conv("x", "c", (3, 4))
    b.head(x, "small", 4)
    b.head(b.conv(x, "d", (4, 4)), "large", 4)
    return save(b.model([("small", (1, CLASSES)), ("large", (1, CLASSES))]), tmp_path / "m.onnx")


def test_several_outputs_nobody_named_are_one_answer(tmp_path: Path) -> None:
    (exit_,) = load(two_outputs(tmp_path)).graph.exits
    assert exit_.outputs == ("small", "large")


def test_an_input_spec_names_exits_labels_and_preprocessing(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'labels = ["a", "b", "c", "d", "e"]\n'
        '[[input]]\nname = "x"\nlayout = "NCHW"\n[input.preprocess]\nchannels = "BGR"\nscale = 0.1\n'
        '[[exits]]\nname = "early"\noutput = "small"\n[[exits]]\nname = "late"\noutput = "large"\n'
    )
    graph = load(two_outputs(tmp_path), spec=read_input_spec(spec)).graph
    assert [entry.name for entry in graph.exits] == ["early", "late"]
    assert graph.labels == ("a", "b", "c", "d", "e")
    assert graph.inputs[0].preprocess is not None
    assert graph.inputs[0].preprocess.channels == "BGR"


def test_an_output_that_is_no_exit_is_left_out_and_said(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text('[[exits]]\nname = "only"\noutput = "small"\n')
    loaded = load(two_outputs(tmp_path), spec=read_input_spec(spec))
    assert loaded.left_out == ("large",)
    assert [node.name for node in loaded.graph.model.graph if node.op_type == "Conv"] == ["n_c_y"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("exits", "[", "metadata edgekit.exits must be JSON"),
        ("exits", "[]", "must be a list of exits"),
        ("exits", '[{"name": "a", "output": "nowhere"}]', "wants the output 'nowhere'"),
        ("exits", '[{"name": "a b", "output": "exit1"}]', "must be a name"),
        ("exits", '[{"name": "a", "output": "exit1"}, {"name": "b", "output": "exit1"}]', "the same output"),
        (
            "exits",
            '[{"name": "a", "output": "exit1", "confidence": "sure"}]',
            "wants the output 'sure'",
        ),
        (
            "exits",
            '[{"name": "a", "output": "exit1", "confidence": "exit2"}]',
            "the confidence of exit 'a' must be one float32",
        ),
        ("exits", '[{"name": "a", "output": "exit1", "confidence": 0.5}]', "confidence must be"),
        ("labels", '["a", "b"]', "does not fit 2 labels"),
        ("input", '{"name": "x", "layout": "CHWN"}', "layout must be one of NCHW"),
        ("input", '{"name": "y", "layout": "NCHW"}', "no input is called 'y'"),
    ],
)
def test_wrong_metadata_is_one_sentence(tmp_path: Path, key: str, value: str, said: str) -> None:
    model = three_exits()
    helper.set_model_props(
        model, {f"edgekit.{key}": value, **({} if key == "exits" else {"edgekit.exits": EXITS})}
    )
    assert said in complaint(save(model, tmp_path / "m.onnx"))


def test_an_exit_may_bring_its_own_confidence(tmp_path: Path) -> None:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "y", 4)
    b.op("ReduceMax", ["y"], "sure", axes=[1], keepdims=0)
    model = b.model([("y", (1, CLASSES)), ("sure", (1,))])
    rows = [{"name": "only", "output": "y", "confidence": "sure"}]
    helper.set_model_props(model, {"edgekit.exits": json.dumps(rows)})
    loaded = load(save(model, tmp_path / "m.onnx"))
    assert [(entry.output, entry.confidence) for entry in loaded.graph.exits] == [("y", "sure")]
    assert [value.name for value in loaded.graph.model.graph.outputs] == ["y", "sure"]
    assert loaded.left_out == ()


EXITS = json.dumps([{"name": name, "output": name} for name in ("exit1", "exit2", "exit3")])


def test_weights_in_constant_nodes_and_in_inputs_become_weights(tmp_path: Path) -> None:
    value = np.ones((1, 3, SIDE, SIDE), np.float32)
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(value)),
        helper.make_node("Mul", ["x", "k"], ["a"]),
        helper.make_node("Add", ["a", "old"], ["y"]),
    ]
    old = numpy_helper.from_array(value, "old")
    shape = [1, 3, SIDE, SIDE]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "old", "y")]
    graph = helper.make_graph(nodes, "g", infos[:2], infos[2:], [old])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    loaded = load(save(model, tmp_path / "m.onnx")).graph
    assert [entry.tensor.name for entry in loaded.inputs] == ["x"]
    assert [node.op_type for node in loaded.model.graph] == ["Mul", "Add"]
    assert all(node.name for node in loaded.model.graph)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("local", "Block", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    shape = [1, 4]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Block", ["x"], ["y"], domain="local")], "g", infos[:1], infos[1:]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    loaded = load(save(model, tmp_path / "m.onnx")).graph
    assert [node.op_type for node in loaded.model.graph] == ["Relu", "Neg"]


def test_a_damaged_model_is_one_sentence(tmp_path: Path) -> None:
    content = bytearray(three_exits().SerializeToString())
    rng = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(4):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            load(path)
        except BadInput as err:
            assert "\n" not in str(err)  # noqa: PT017


def test_an_example_of_a_shape_has_the_inputs_rank(tmp_path: Path) -> None:
    b = Builder()
    b.op("Relu", ["x"], "y")
    path = save(b.model([("y", ("n", 40, "time"))], [("x", ("n", 40, "time"))]), tmp_path / "m.onnx")
    assert complaint(path).endswith("such as --shape 1,40,64")


def test_an_output_as_large_as_the_data_says_is_refused_with_its_node(tmp_path: Path) -> None:
    b = Builder()
    b.op("Cast", [b.op("NonZero", ["x"], "where")], "y", to=1)
    path = save(b.model([("y", (2, "found"))], [("x", (1, 8))]), tmp_path / "m.onnx")
    text = complaint(path)
    assert "the size of the output 'y' depends on the data: node 'n_where' (NonZero)" in text


def test_an_output_whose_size_is_computed_from_the_data_is_refused(tmp_path: Path) -> None:
    b = Builder()
    size = b.op("Cast", [b.op("ReduceSum", ["x"], "sum", keepdims=0)], "size", to=7)
    one = b.constant("one", np.array([1], np.int64))
    b.op("ConstantOfShape", [b.op("Add", [b.op("Reshape", [size, one], "row"), one], "more")], "y")
    path = save(b.model([("y", ("found",))], [("x", (1, 8))]), tmp_path / "m.onnx")
    assert "depends on the data: [1] for zeros, [9] for ones" in complaint(path)


def test_a_size_decided_by_data_inside_the_network_is_no_problem(tmp_path: Path) -> None:
    b = Builder()
    found = b.op("Cast", [b.op("NonZero", ["x"], "where")], "found", to=1)
    b.op("ReduceSum", [found], "y", keepdims=1)
    path = save(b.model([("y", (1, 1))], [("x", (1, 8))]), tmp_path / "m.onnx")
    assert load(path).graph.exits[0].output == "y"


def test_a_network_without_inputs_is_refused(tmp_path: Path) -> None:
    b = Builder()
    b.op("Relu", [b.weight("w", 1, 4)], "y")
    assert "has no inputs" in complaint(save(b.model([("y", (1, 4))], []), tmp_path / "m.onnx"))


def test_an_empty_output_is_refused(tmp_path: Path) -> None:
    b = Builder()
    limits = [b.constant(name, np.array([4], np.int64)) for name in ("from", "to")]
    b.op("Slice", ["x", *limits], "y")
    path = save(b.model([("y", (0, 4))], [("x", (1, 4))]), tmp_path / "m.onnx")
    assert "output 'y' is empty" in complaint(path)


def test_sequences_are_no_inputs_and_no_outputs(tmp_path: Path) -> None:
    pieces = helper.make_tensor_sequence_value_info("pieces", onnx.TensorProto.FLOAT, None)
    tensor = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 4))
    for inputs, outputs, node in (
        ([pieces], [tensor], helper.make_node("ConcatFromSequence", ["pieces"], ["x"], axis=0)),
        ([tensor], [pieces], helper.make_node("SplitToSequence", ["x"], ["pieces"])),
    ):
        model = helper.make_model(
            helper.make_graph([node], "g", inputs, outputs),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        assert "'pieces' must be a tensor, got Sequence" in complaint(save(model, tmp_path / "m.onnx"))


def test_an_input_spec_may_hold_comments_alone(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text("# nothing to say\n")
    assert read_input_spec(spec).inputs == {}


def test_an_input_that_is_an_output_as_well_is_left_out(tmp_path: Path) -> None:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "y", 4)
    outputs = [("x", (1, 3, SIDE, SIDE)), ("y", (1, CLASSES))]
    loaded = load(save(b.model(outputs), tmp_path / "m.onnx"))
    assert loaded.graph.exits[0].outputs == ("y",)
    assert loaded.left_out == ("x",)
    path = save(b.model(outputs, exits=["x", "y"]), tmp_path / "m.onnx")
    assert "wants the output 'x'; the outputs are y" in complaint(path)
    assert "outputs are its inputs" in complaint(save(b.model(outputs[:1]), tmp_path / "m.onnx"))
