"""Bias correction: take back what quantization adds to each channel's mean.

Rounding shifts the expected output of a product, E[y] != E[y_quantized]; the shift is measured on calibration inputs
against the float network, layer after layer, and goes into the bias (Nagel et al. 2019, arXiv 1906.04721, section 4.2,
with data). A correction that does not bring the network's answers nearer to the float ones is taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import expose
from edgekit.host.graph import Graph, static_shape, values
from edgekit.host.options import option
from edgekit.host.passes.base import Context, Pass
from edgekit.host.sqnr import answers_sqnr, spread
from edgekit.runtime.data import Data

Floats = NDArray[np.float64]
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_HELD = 2**27  # bytes of answers kept
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Options:
    """samples: of the calibration data at most. least: share of a layer's output power that its shift must make up."""

    samples: int = option(64, min=1)
    least: float = option(1e-6, min=0.0, max=1.0)


def apply(graph: Graph, options: Options, context: Context) -> Graph:
    """The graph with corrected biases; the same graph where no correction helps.

    Raises BadInput without calibration data or without the float network to correct against.
    """
    data, plain = context.samples("bias_correction"), context.reference
    if plain is None:
        raise BadInput("bias_correction needs the float network that errors are measured against, got none")
    working = replace(graph, model=graph.copy())
    biases = list(_biases(working, plain))
    watched = _Watched.over(plain, [bias.node for bias in biases], data, options.samples)
    with context.watch("bias correction", len(biases)) as tick:
        seen = watched.measure(working)
        for bias in biases:
            shift = watched.means[bias.name] - seen.means[bias.name]
            share = float(np.mean(shift**2)) / max(watched.powers[bias.name], 1e-300)
            if share > options.least and bias.add(shift):
                tried = watched.measure(working)
                if tried.error < seen.error:
                    seen, bias.kept = tried, True
                else:
                    bias.take_back()
            tick(1)
    for bias in biases:
        if bias.fresh and not bias.kept:
            bias.node.resize_inputs(2)
    if not any(bias.kept for bias in biases):
        return graph
    RemoveUnusedNodesPass()(working.model)
    made = graph.with_model(working.model)
    before, after = (answers_sqnr(plain, each, data, options.samples) for each in (graph, made))
    return made if after > before else graph


# --- biases -----------------------------------------------------------------------------------------------------------


@dataclass
class _Bias:
    """What a product adds to its channels. scale: of its integers, None where it is float. beta: what it is times.

    fresh: the product had none. kept: it was moved for good.
    """

    node: ir.Node
    value: ir.Value
    scale: Floats | None
    beta: float
    fresh: bool = False
    kept: bool = False
    _before: Any = None

    @property
    def name(self) -> str:
        return self.node.name or ""

    def add(self, shift: Floats) -> bool:
        """Move the bias; whether that changes anything."""
        assert self.value.const_value is not None  # noqa: S101  (_biases made sure)
        self._before = self.value.const_value
        was = self._before.numpy()
        shift = shift.reshape(was.shape) / self.beta
        if self.scale is None:
            now = (was + shift).astype(np.float32)
        else:
            now = np.clip(was + np.rint(shift / self.scale), -_INT32, _INT32).astype(np.int32)
        self.value.const_value = ir.tensor(now, name=self.value.name)
        return not np.array_equal(now, was)

    def take_back(self) -> None:
        """What it was before the last move."""
        self.value.const_value = self._before


def _biases(graph: Graph, plain: Graph) -> Iterator[_Bias]:
    """The biases of the products that both graphs have, in the graph's order, each a vector that nobody else reads."""
    there = {node.name: node for node in plain.model.graph if node.name}
    for node in list(graph.model.graph):
        other = there.get(node.name or "")
        if node.op_type not in _PRODUCTS or other is None or other.op_type != node.op_type:
            continue
        shape, wanted = static_shape(node.outputs[0]), static_shape(other.outputs[0])
        if shape is None or shape != wanted or len(shape) < 2:
            continue
        bias = (
            _added_after(graph, node, shape[-1]) if node.op_type == "MatMul" else _bias(graph, node, shape[1])
        )
        if bias is not None:
            yield bias


def _bias(graph: Graph, node: ir.Node, width: int) -> _Bias | None:
    attribute = node.attributes.get("beta")
    beta = 1.0 if attribute is None else attribute.as_float()
    if beta == 0.0:
        return None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return _new_bias(graph, node, width, beta)
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        codes, scale = maker.inputs[0], maker.inputs[1]
        if codes is None or codes.dtype != ir.DataType.INT32 or codes.const_value is None:
            return None
        if scale is None or scale.const_value is None or codes.const_value.size != width:
            return None
        if len(maker.outputs[0].uses()) > 1:
            return None
        own = _own(graph, maker, 0, codes.const_value.numpy())
        return _Bias(node, own, scale.const_value.numpy().astype(np.float64), beta)
    if (
        value.const_value is None
        or value.dtype != ir.DataType.FLOAT
        or value.const_value.size not in (1, width)
    ):
        return None
    array = np.broadcast_to(value.const_value.numpy().reshape(-1), (width,))
    return _Bias(node, _own(graph, node, 2, array), None, beta)


def _new_bias(graph: Graph, node: ir.Node, width: int, beta: float) -> _Bias | None:
    """A bias of zeros where a product has none: in 32 bits between integers, as their kernels want it."""
    entering, weight = (_step(node.inputs[index]) for index in (0, 1))
    name = f"{node.name}/bias"
    node.resize_inputs(3)
    if entering is None or weight is None or entering.size != 1 or weight.size not in (1, width):
        value = _constant(graph, name, np.zeros(width, np.float32))
        node.replace_input_with(2, value)
        return _Bias(node, value, None, beta, fresh=True)
    scale = np.broadcast_to(entering.reshape(-1) * weight.reshape(-1), (width,)).astype(np.float32)
    codes = _constant(graph, f"{name}/codes", np.zeros(width, np.int32))
    zero = _constant(graph, f"{name}/zero", np.zeros(width, np.int32))
    inputs = [codes, _constant(graph, f"{name}/scale", scale), zero]
    made = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}/DequantizeLinear")
    made.outputs[0].name = name
    made.outputs[0].dtype, made.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([width])
    graph.model.graph.insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])
    return _Bias(node, codes, scale.astype(np.float64), beta, fresh=True)


def _step(value: ir.Value | None) -> NDArray[Any] | None:
    """The scale of a tensor that comes out of DequantizeLinear with 8-bit codes."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    tensor = node.inputs[1].const_value
    is_byte = node.inputs[0].dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    return tensor.numpy() if tensor is not None and is_byte else None


def _added_after(graph: Graph, node: ir.Node, width: int) -> _Bias | None:
    """The constant that an Add right behind a MatMul adds to each channel."""
    if len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    reader = node.outputs[0].consumers()[0]
    if reader.op_type != "Add":
        return None
    index = 1 if reader.inputs[0] is node.outputs[0] else 0
    value = reader.inputs[index]
    tensor = None if value is None else value.const_value
    if value is None or tensor is None or value.dtype != ir.DataType.FLOAT or tensor.size != width:
        return None
    shape = tuple(tensor.shape.numpy())
    if shape[-1:] != (width,):
        return None
    return _Bias(node, _own(graph, reader, index, tensor.numpy()), None, 1.0)


def _own(graph: Graph, node: ir.Node, index: int, array: NDArray[Any]) -> ir.Value:
    """The node's input as an initializer that nobody else reads, holding this array."""
    value = node.inputs[index]
    assert value is not None  # noqa: S101  (the callers looked)
    tensor = value.const_value
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    if alone and tensor is not None and tuple(tensor.shape.numpy()) == array.shape:
        return value
    made = _constant(graph, f"{node.name}/bias", np.ascontiguousarray(array))
    node.replace_input_with(index, made)
    return made


def _constant(graph: Graph, name: str, array: NDArray[Any]) -> ir.Value:
    taken = values(graph.model)
    while name in taken:
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.model.graph.register_initializer(value)
    return value


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """Of a graph: each product's mean per channel; error: of the answers, noise over signal, the mean over them."""

    means: Mapping[str, Floats]
    error: float


@dataclass(frozen=True)
class _Watched:
    """The float network's answers, means and powers on some samples, and how to see the same of another graph."""

    data: Data
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    answers: Sequence[list[NDArray[Any]]] = ()
    means: Mapping[str, Floats] = field(default_factory=dict)
    powers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def over(cls, plain: Graph, nodes: Sequence[ir.Node], data: Data, samples: int) -> _Watched:
        """Run the float network."""
        outputs = tuple(name for entry in plain.exits for name in entry.outputs)
        shapes = [static_shape(values(plain.model)[name]) or (1,) for name in outputs]
        most = max(1, _HELD // (4 * sum(int(np.prod(shape)) for shape in shapes)))
        chosen = data.subset(spread(data.count, min(samples, most)))
        watched = cls(chosen, tuple(node.name or "" for node in nodes), outputs)
        sums, powers = _Sums(), _Sums()
        answers = []
        for answer, made in watched.runs(plain):
            answers.append(answer)
            for name, array in made.items():
                sums.add(name, array)
                powers.add(name, np.square(array, dtype=np.float64))
        power = {name: float(mean.mean()) for name, mean in powers.means().items()}
        return replace(watched, answers=answers, means=sums.means(), powers=power)

    def measure(self, graph: Graph) -> _Seen:
        """Means and error of a graph against the float network."""
        sums, signal, noise = _Sums(), np.zeros(len(self.outputs)), np.zeros(len(self.outputs))
        for want, (got, made) in zip(self.answers, self.runs(graph), strict=True):
            signal += [float(np.square(array, dtype=np.float64).sum()) for array in want]
            noise += [
                float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(want, got, strict=True)
            ]
            for name, array in made.items():
                sums.add(name, array)
        return _Seen(sums.means(), float(np.mean(noise / np.maximum(signal, 1e-300))))

    def runs(self, graph: Graph) -> Iterator[tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]]:
        """Per sample the answers, and each product's output with its channels last."""
        found = {node.name: node for node in graph.model.graph}
        products = [found[name] for name in self.nodes]
        tensors = [node.outputs[0].name or "" for node in products]
        session = expose(graph, tensors)
        names = list(dict.fromkeys((*self.outputs, *tensors)))
        for index in range(self.data.count):
            made = dict(zip(names, session.run(names, self.data.inputs(index)), strict=True))
            last = {
                name: made[tensor] if node.op_type == "MatMul" else np.moveaxis(made[tensor], 1, -1)
                for name, node, tensor in zip(self.nodes, products, tensors, strict=True)
            }
            yield [made[name] for name in self.outputs], last


class _Sums:
    """Means per channel of arrays that come one after the other."""

    def __init__(self) -> None:
        self._sums: dict[str, Floats] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, array: NDArray[Any]) -> None:
        """array: channels last."""
        rows = array.reshape(-1, array.shape[-1])
        self._sums[name] = self._sums.get(name, 0.0) + rows.sum(axis=0, dtype=np.float64)
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def means(self) -> dict[str, Floats]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


PASS = Pass("bias_correction", apply, min_sqnr_db=20.0, options=Options)
