"""An ONNX model as a network that recipes compress and train; the trained weights back in its graph."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, model_bytes, values
from edgekit.host.load import EXITS, INPUT, LABELS
from edgekit.host.ort import open_model
from edgekit.host.passes._grid import Product, products
from edgekit.host.passes._writer import Writer
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.train.distil import before_activation
from edgekit.host.train.from_onnx import from_onnx, write_back
from edgekit.host.train.outputs import Outputs
from edgekit.host.train.quantizers.base import WeightQuantizer, adopt, coded
from edgekit.host.train.quantizers.dorefa import ClippedActivation
from edgekit.host.train.quantizers.uniform import UniformActivations
from edgekit.host.train.to_onnx import compare

_ACTIVATIONS = ("Relu", "Clip")
_CODES = 255  # steps of 8 bits: QuantizeLinear itself ends there


class Seen(nn.Module):
    """A weight of the graph with its quantizer: what quantized layers are in networks of ours.

    weight: the graph's own; moved: a view of it with the output channels first, as quantizers want it.
    """

    def __init__(self, name: str, weight: nn.Parameter, axis: int, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.name, self.axis, self.quantizer = name, axis, quantizer
        self.weight = weight

    @property
    def moved(self) -> Tensor:
        """[out, in, ...]."""
        return self.weight.movedim(self.axis, 0)

    def back(self, moved: Tensor) -> Tensor:
        """What was moved, as the graph has it."""
        return moved.movedim(0, self.axis)

    def forward(self) -> Tensor:
        """The weight as it is multiplied."""
        return self.back(self.quantizer(self.moved))


class Imported(nn.Module):
    """[N, *shape of one sample] -> logits per exit, before a softmax at the end. Batch norms are folded first.

    Raises BadInput where a node cannot be trained through, naming it.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = fold(graph, NoOptions(), Context())
        self.network = from_onnx(self.graph)
        self.seen, self.activations = nn.ModuleList(), nn.ModuleList()
        outputs = values(self.graph.model)
        self._input = self.graph.inputs[0].tensor.name
        self._logits = tuple(
            before_activation(outputs[entry.output], self.graph.opset)[0].name or entry.output
            for entry in self.graph.exits
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Imported:
        """A copy with the same graph, which nobody changes: its nodes hang together, too deep a chain to be copied."""
        memo[id(self.graph)] = self.graph
        made = Imported.__new__(Imported)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def forward(self, value: Tensor) -> Outputs:
        self._see()
        made = self.network({self._input: value.contiguous()[:, None]}, self._logits)
        return Outputs(tuple(each.flatten(1) for each in made))

    def _see(self) -> None:
        """Compute the quantized weights once for a pass."""
        found = {each.name: each() for each in self.seen}
        self.network.seen_as = found.get

    def prunable(self) -> dict[str, nn.Parameter]:
        """The products' weights by name, in the graph's order."""
        found = _each_weight_once(products(self.graph), self.network.weights)
        return {each.value.name or "": self.network.weights[each.value.name or ""] for each in found}

    def quantize(self, make: Callable[[], WeightQuantizer], *, first: bool, last: bool) -> None:
        """Weights of products are seen through quantizers from now on. Raises BadInput where none is left."""
        found = _each_weight_once(products(self.graph), self.network.weights)
        chosen = found[0 if first else 1 : len(found) if last else len(found) - 1]
        if not chosen:
            raise BadInput(
                f"the model has {len(found)} layers with weights, "
                "and none is left to quantize beside the first and the last"
            )
        for product in chosen:
            name, axis = product.value.name or "", product.axis or 0
            made = Seen(name, self.network.weights[name], axis, make())
            self.seen.append(made)
            with torch.no_grad():
                adopt(made.quantizer, made.moved)

    def quantize_activations(self, make: Callable[[], nn.Module], *, last: bool) -> None:
        """What ReLU (and Clip from 0) makes goes through modules from now on. Raises BadInput where there is none."""
        nodes = [node for node in self.graph.model.graph if node.op_type in _ACTIVATIONS]
        chosen = [node.outputs[0].name or "" for node in (nodes if last else nodes[:-1])]
        if not chosen:
            raise BadInput("the model has no ReLU in whose place quantized activations go")
        modules = [make() for _ in chosen]
        self.activations.extend(modules)
        self.network.value_as = dict(zip(chosen, modules, strict=True))

    def quantized_weights(self) -> Iterator[tuple[nn.Parameter, Tensor, WeightQuantizer]]:
        """As quantized.HasQuantizedWeights wants them."""
        for each in self.seen:
            assert isinstance(each, Seen)  # noqa: S101
            yield each.weight, each.moved, each.quantizer

    def observe(self, value: Tensor) -> None:
        """Show samples [N, *shape] to activations whose range starts from what they see; it is not moved later."""
        watched = {
            name: module
            for name, module in self.network.value_as.items()
            if isinstance(module, UniformActivations)
        }
        for module in watched.values():
            module.follows = False
        self._see()
        given, self.network.value_as = self.network.value_as, {}
        with torch.no_grad():
            made = self.network({self._input: value.contiguous()[:, None]}, tuple(watched))
        self.network.value_as = given
        for module, seen in zip(watched.values(), made, strict=True):
            module.observe(seen)

    def content(self, samples: NDArray[Any], tolerance: float, labels: Sequence[str] | None = None) -> bytes:
        """The file: what load() read, with the trained weights, as codes where they are quantized.

        Raises BadInput where it gives other answers to samples [N, *shape] than the module, as to_onnx does.
        """
        graph = write_back(self.graph, self.network)
        model = graph.copy()
        by_name = values(model)
        for each in self.seen:
            assert isinstance(each, Seen)  # noqa: S101
            _put_codes(model, by_name[each.name], each)
        for name, module in self.network.value_as.items():
            _put_levels(model, by_name[name], module)
        model.graph.sort()
        content = _told(graph.with_model(model), labels or graph.labels)
        self._check(content, samples, tolerance)
        return content

    def _check(self, content: bytes, samples: NDArray[Any], tolerance: float) -> None:
        names = [entry.output for entry in self.graph.exits]
        inputs = [one[None] for one in samples]
        with torch.no_grad():
            self._see()
            made = [self.network({self._input: torch.from_numpy(one)[None]}, names) for one in inputs]
        wanted = [dict(zip(names, (each[0] for each in one), strict=True)) for one in made]
        compare(open_model(content), self._input, inputs, wanted, tolerance)


def _each_weight_once(found: Sequence[Product], weights: Mapping[str, nn.Parameter]) -> list[Product]:
    seen: dict[str, Product] = {}
    for product in found:
        name = product.value.name or ""
        if name in weights and product.axis is not None:
            seen.setdefault(name, product)
    return list(seen.values())


def _put_codes(model: ir.Model, value: ir.Value, seen: Seen) -> None:
    """DequantizeLinear on int8 codes in the place of a weight; the quantized floats where files hold no such codes."""
    held = coded(seen.quantizer, seen.moved)
    if held is None:
        value.const_value = ir.tensor(seen().detach().contiguous().numpy(), name=seen.name)
        return
    codes, scale = held
    made = Writer(model, seen.name)
    current = made.node(
        "DequantizeLinear",
        made.constant("codes", seen.back(codes).contiguous().numpy()),
        made.constant("scale", scale.numpy()),
        axis=seen.axis,
    )
    value.replace_all_uses_with(current)
    del model.graph.initializers[seen.name]
    current.dtype, current.shape = ir.DataType.FLOAT, value.shape


def _put_levels(model: ir.Model, value: ir.Value, module: nn.Module) -> None:
    """What the module makes of activations, between a node and all that read it."""
    if not isinstance(module, (ClippedActivation, UniformActivations)):
        raise BadInput(
            f"activations of an imported model cannot be {type(module).__name__}: take dorefa's or uniform"
        )
    scale, low, high = module.scale, 0.0, module.scale * module.steps
    made = Writer(model, value.name or "")
    numbers = {"low": low, "high": high, "step": scale} if module.steps < _CODES else {"step": scale}
    known = {key: made.constant(key, np.array(number, np.float32)) for key, number in numbers.items()}
    zero = made.constant("zero", np.array(0, np.uint8))
    readers = list(value.uses())
    current = value if module.steps == _CODES else made.node("Clip", value, known["low"], known["high"])
    current = made.node("QuantizeLinear", current, known["step"], zero)
    current = made.node("DequantizeLinear", current, known["step"], zero)
    current.dtype, current.shape = ir.DataType.FLOAT, value.shape
    for node, place in readers:
        node.replace_input_with(place, current)


def _told(graph: Graph, labels: Sequence[str] | None) -> bytes:
    """The model's bytes with what edgekit knows of it in its metadata."""
    exits = [
        {"name": entry.name, "output": entry.output}
        | ({} if entry.confidence is None else {"confidence": entry.confidence})
        for entry in graph.exits
    ]
    told: dict[str, Any] = {EXITS: exits, INPUT: [entry.to_json() for entry in graph.inputs]}
    for entry, held in zip(graph.inputs, told[INPUT], strict=True):
        if entry.preprocess is None:
            held.pop("preprocess", None)
    if labels:
        told[LABELS] = list(labels)
    proto = onnx.ModelProto.FromString(model_bytes(graph.model))
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in told.items()})
    return bytes(proto.SerializeToString(deterministic=True))
