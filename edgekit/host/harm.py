"""What each layer's own quantization costs: its error alone, with exact inputs, and what that does to the answers.

Unlike sqnr.layer_sqnr, which sees all errors so far add up, this tells layers apart: a search leaves those in float
that cost most. One graph holds the float network and beside each layer its quantized twin, reading the same tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.calibrate import in_parts
from edgekit.host.graph import Graph, dtype_name, model_bytes, values
from edgekit.host.ort import open_model
from edgekit.host.sqnr import SAMPLES, decibel, spread
from edgekit.host.work import layers
from edgekit.runtime.data import Data

OUTPUT_SAMPLES = 4
_FEWEST = 8  # samples for the local figures, however large the network
_MOST_MACS = 4 * 10**11  # what the figures of the answers may take: a minute or two on one core
_CODES = ("QuantizeLinear", "DequantizeLinear")
_PREFIX = "harm"


@dataclass(frozen=True)
class LayerHarm:
    """What one layer costs, in dB of signal over noise: more is better, 200 is exact.

    local_sqnr_db: its output when its weights and inputs are rounded and nothing else is. output_sqnr_db: the answers
    in that case, by the mean over outputs of noise over signal; None where it was not asked for. Rounding a tensor
    counts at each layer that reads it.
    """

    name: str
    op: str
    local_sqnr_db: float
    output_sqnr_db: float | None


def layer_harm(
    plain: Graph,
    quantized: Graph,
    data: Data,
    samples: int = SAMPLES,
    output_samples: int = OUTPUT_SAMPLES,
    names: Collection[str] | None = None,
) -> Mapping[str, LayerHarm]:
    """Node name -> harm, for every node of `quantized` that reads rounded numbers and is in `plain` by the same name.

    samples: for the local figures, run once each; output_samples: for the answers, run once per layer each (exact, no
    linear estimate), fewer for a large network; 0 leaves those None. names: only these nodes. Both graphs must have
    the same opset.

    Raises BadInput where onnxruntime refuses the two graphs in one.
    """
    model = plain.copy()
    twins = [twin for twin in _twins(model, quantized) if names is None or twin.name in names]
    if not twins:
        return {}
    local = _local(model, twins, data, samples)
    macs = len(twins) * sum(layer.macs for layer in layers(plain.model))
    output_samples = min(output_samples, max(1, _MOST_MACS // max(1, macs))) if output_samples else 0
    answers: list[float | None] = [None] * len(twins)
    if output_samples:
        outputs = [name for entry in plain.exits for name in entry.outputs]
        answers = [*_answers(model, twins, outputs, data, output_samples)]
    return {
        twin.name: LayerHarm(twin.name, twin.op, mine, answer)
        for twin, mine, answer in zip(twins, local, answers, strict=True)
    }


@dataclass(frozen=True)
class _Twin:
    """A layer's output in float, and what the quantized layer makes of the same inputs."""

    name: str
    op: str
    output: ir.Value
    rounded: ir.Value


def _twins(model: ir.Model, quantized: Graph) -> Iterator[_Twin]:
    """Put a quantized copy beside each node that the quantized graph computes from rounded numbers."""
    for domain, version in quantized.model.opset_imports.items():
        model.opset_imports[domain] = max(version, model.opset_imports.get(domain, version))
    here = {node.name: node for node in model.graph if node.name}
    copies = _Copies(model, quantized.model)
    for node in quantized.model.graph:
        original = here.get(node.name or "")
        if node.op_type in _CODES or original is None or original.op_type != node.op_type:
            continue
        rounded = any(copies.is_rounded(value) for value in node.inputs if value is not None)
        alike = (
            len(node.outputs) == len(original.outputs) == 1 and dtype_name(original.outputs[0]) == "float32"
        )
        if rounded and alike and not any(_holds_graph(attribute) for attribute in node.attributes.values()):
            made = copies.node(node)
            if made is not None:
                yield _Twin(node.name or "", node.op_type, original.outputs[0], made.outputs[0])


def _holds_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class _Copies:
    """Copies of what a quantized graph computes from codes and constants, reading the float network's tensors."""

    def __init__(self, model: ir.Model, source: ir.Model) -> None:
        self._graph = model.graph
        self._there = values(model)
        self._by_node = {node.name: node for node in model.graph if node.name}
        self._constant = _constant_values(source)
        self._made: dict[ir.Value, ir.Value | None] = {}

    def is_rounded(self, value: ir.Value) -> bool:
        """Whether a value comes out of codes, perhaps through steps that only constants go through."""
        node = value.producer()
        while node is not None and node.op_type not in _CODES and value in self._constant:
            first = node.inputs[0] if node.inputs else None
            node = None if first is None else first.producer()
        return node is not None and node.op_type in _CODES

    def node(self, node: ir.Node) -> ir.Node | None:
        """A copy of a node; None where an input has no counterpart."""
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            found = None if value is None else self._value(value)
            if value is not None and found is None:
                return None
            inputs.append(found)
        name = f"{_PREFIX}/{node.name or node.outputs[0].name}"
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=name,
        )
        for mine, its in zip(made.outputs, node.outputs, strict=True):
            mine.name = f"{_PREFIX}/{its.name}"
            _describe(mine, its)
        self._graph.append(made)
        return made

    def _value(self, value: ir.Value) -> ir.Value | None:
        if value not in self._made:
            self._made[value] = self._find(value)
        return self._made[value]

    def _find(self, value: ir.Value) -> ir.Value | None:
        node = value.producer()
        if node is None and value.const_value is not None:
            made = ir.Value(name=f"{_PREFIX}/{value.name}", const_value=value.const_value)
            _describe(made, value)
            self._graph.register_initializer(made)
            return made
        if node is not None and (node.op_type in _CODES or value in self._constant):
            copy = self.node(node)
            return None if copy is None else copy.outputs[value.index() or 0]
        if value.name in self._there:
            return self._there[value.name]
        other = self._by_node.get(node.name or "") if node is not None else None
        return None if other is None or node is None or other.op_type != node.op_type else other.outputs[0]


def _describe(value: ir.Value, like: ir.Value) -> None:
    """Give a value another one's type and shape."""
    value.type, value.shape = like.type, like.shape


def _constant_values(model: ir.Model) -> set[ir.Value]:
    """The values that nodes make of constants alone."""
    found: set[ir.Value] = set()
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        if all(value.const_value is not None or value in found for value in given):
            found.update(node.outputs)
    return found


def _local(model: ir.Model, twins: list[_Twin], data: Data, samples: int) -> list[float]:
    named = {twin.output.name or "": twin for twin in twins}
    parts = in_parts(Graph(model, (), ()), named)
    before = list(model.graph.outputs)
    found: dict[str, float] = {}
    for part in parts:
        outputs = [value for name in part for value in (named[name].output, named[name].rounded)]
        model.graph.outputs[:] = list(dict.fromkeys(outputs))
        session = open_model(model_bytes(model))
        model.graph.outputs[:] = before
        names = [value.name or "" for value in outputs]
        signal, noise = np.zeros(len(part)), np.zeros(len(part))
        for index in spread(data.count, max(_FEWEST, samples // len(parts))):
            made = session.run(names, data.inputs(index))
            for place, (want, got) in enumerate(zip(made[::2], made[1::2], strict=True)):
                signal[place] += float(np.square(want, dtype=np.float64).sum())
                noise[place] += float(np.square(want.astype(np.float64) - got).sum())
        found.update((name, decibel(s, n)) for name, s, n in zip(part, signal, noise, strict=True))
    return [found[twin.output.name or ""] for twin in twins]


def _answers(
    model: ir.Model, twins: list[_Twin], outputs: list[str], data: Data, samples: int
) -> Iterator[float]:
    """The answers' SQNR with one layer after the other replaced by its twin."""
    seen_as = {name: name for name in outputs}
    flags: list[str] = []
    for number, twin in enumerate(twins):
        entry = ir.Value(
            name=f"{_PREFIX}/flag{number}", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
        )
        model.graph.inputs.append(entry)
        chosen = ir.node("Where", [entry, twin.rounded, twin.output], name=f"{_PREFIX}/where{number}")
        name = twin.output.name or ""
        chosen.outputs[0].name = f"{_PREFIX}/chosen/{name}"
        _describe(chosen.outputs[0], twin.output)
        twin.output.replace_all_uses_with(chosen.outputs[0], replace_graph_outputs=True)
        chosen.replace_input_with(2, twin.output)
        model.graph.append(chosen)
        if name in seen_as:
            seen_as[name] = chosen.outputs[0].name or ""
        flags.append(entry.name or "")
    model.graph.sort()
    session = open_model(model_bytes(model))
    names = [seen_as[name] for name in outputs]
    off = {flag: np.array(False) for flag in flags}
    chosen_samples = spread(data.count, samples)
    wanted = [session.run(names, {**data.inputs(index), **off}) for index in chosen_samples]
    signal = _power(wanted)
    for flag in flags:
        noise = np.zeros(len(names))
        for index, want in zip(chosen_samples, wanted, strict=True):
            got = session.run(names, {**data.inputs(index), **off, flag: np.array(True)})
            noise += _power([[a.astype(np.float64) - b for a, b in zip(want, got, strict=True)]])
        yield decibel(1.0, float(np.mean(noise / np.maximum(signal, 1e-300))))


def _power(answers: list[list[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Sum of squares per output."""
    powers = [[float(np.square(a, dtype=np.float64).sum()) for a in each] for each in answers]
    return np.asarray(np.sum(powers, axis=0), np.float64)
