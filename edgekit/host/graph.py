"""The Graph noun: an ONNX model in memory and what we know of it. A value: passes return new ones, none is changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgekit.core.errors import BadInput
from edgekit.core.manifest import DTYPES, Input, Tensor

logging.getLogger("onnx_ir").addHandler(
    logging.NullHandler()
)  # what it warns of, we check and say in one line
_VIEWS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")  # give the numbers they get


@dataclass(frozen=True)
class GraphExit:
    """A place where an answer can be given. confidence: the scalar that decides, None until a pass has put it in.

    also: further outputs of the same answer (a detector's boxes beside its scores).
    """

    name: str
    output: str
    confidence: str | None = None
    also: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All tensors of the answer, the one that decides first."""
        return (self.output, *self.also)

    @property
    def tensors(self) -> tuple[str, ...]:
        """What the exit gives: its outputs, and its confidence where it has one."""
        return self.outputs if self.confidence is None else (*self.outputs, self.confidence)


@dataclass(frozen=True)
class Graph:
    """An onnx-ir model, its exits from the first to the last, its inputs as a bundle describes them, class names.

    Whoever wants to change the model works on `copy()`: the tensors are shared, the structure is not.
    """

    model: ir.Model
    exits: tuple[GraphExit, ...]
    inputs: tuple[Input, ...]
    labels: tuple[str, ...] | None = None

    def copy(self) -> ir.Model:
        """A model of the same structure that may be changed; weights are shared and must be replaced, not written."""
        return self.model.clone()

    def with_model(self, model: ir.Model) -> Graph:
        """The same knowledge about another model, whose shapes are inferred anew."""
        return replace(self, model=infer_shapes(model))

    def proto(self) -> onnx.ModelProto:
        """A protobuf of its own, for the doors of onnx and onnxruntime."""
        return ir.to_proto(self.model)

    @property
    def opset(self) -> int:
        """The version of ONNX's operators."""
        return self.model.opset_imports.get("", 0)

    @property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(int(value.const_value.size) for value in initializers(self.model) if value.const_value)

    def fingerprint(self) -> str:
        """sha256 of the model's bytes: conformance compares it before and after a pass."""
        return hashlib.sha256(model_bytes(self.model)).hexdigest()


def initializers(model: ir.Model) -> tuple[ir.Value, ...]:
    """The weights, in the order of the model."""
    return tuple(model.graph.initializers.values())


def model_bytes(model: ir.Model) -> bytes:
    """The model in protobuf's deterministic form, weights sorted by name: the same model gives the same bytes."""
    proto = ir.to_proto(model)
    weights = sorted(proto.graph.initializer, key=lambda tensor: tensor.name)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(weights)
    infos = sorted(proto.graph.value_info, key=lambda info: info.name)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(infos)
    return proto.SerializeToString(deterministic=True)


def infer_shapes(model: ir.Model) -> ir.Model:
    """Fill in shapes and types as far as onnx can tell them. Changes the model it is given, and returns it."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return model


def values(model: ir.Model) -> dict[str, ir.Value]:
    """Every value of the main graph by name: inputs, weights, and what nodes make."""
    found = {value.name: value for value in (*model.graph.inputs, *initializers(model)) if value.name}
    found.update((value.name, value) for node in model.graph for value in node.outputs if value.name)
    return found


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The sub-graphs of a node's attributes: branches of If, bodies of Loop and Scan."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The value's shape where every dimension is a known number, else None. Some exporters write -1 for unknown."""
    sizes = (
        ()
        if value.shape is None
        else tuple(size for size in value.shape if isinstance(size, int) and size >= 0)
    )
    return sizes if value.shape is not None and len(sizes) == len(value.shape) else None


def dtype_name(value: ir.Value) -> str | None:
    """The value's type as manifests write it ("float32"), None where it is unknown or none of theirs."""
    if value.dtype is None:
        return None
    try:
        name = str(value.dtype.numpy())
    except TypeError:  # strings and other things that are no numbers
        return None
    return name if name in DTYPES else None


def tensor_of(value: ir.Value) -> Tensor:
    """The value as it crosses a border. Raises BadInput where its shape or type is not known."""
    shape, dtype = static_shape(value), dtype_name(value)
    if shape is None:
        raise BadInput(f"tensor {value.name!r} must have a known shape, got {value.shape}: give --shape")
    if dtype is None:
        raise BadInput(f"tensor {value.name!r} must be one of {', '.join(DTYPES)}, got {value.dtype}")
    return Tensor(value.name or "", dtype, shape)


def made_by(value: ir.Value) -> ir.Node | None:
    """The node that makes the numbers, whatever reshapes them afterwards; None for an input or a constant."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def is_class_vector(value: ir.Value) -> bool:
    """Whether the value holds one number per class: one dimension above 1, all others 1."""
    shape = static_shape(value)
    return shape is not None and sum(size > 1 for size in shape) == 1
