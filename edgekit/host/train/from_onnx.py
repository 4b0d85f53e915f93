"""A Graph as a trainable PyTorch module, and the trained weights back in the graph. Changes no graph's structure.

The module runs many samples at once whatever the graph's own batch is: each sample is one whole set of the graph's
inputs, and torch.vmap puts the samples side by side. So constants such as Reshape's shape stay true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput, one_line
from edgekit.host.graph import Graph, initializers
from edgekit.host.train.operators import OPERATORS, At, torch_dtype, why_not

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_TRAINED_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1),
    "BatchNormalization": (1, 2),  # the statistics stay
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Gather": (0,),
}
_AFFINE = ("Add", "Sub", "Mul")  # a bias or a factor per channel, as some exporters write them
_VIEWS = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class _Step:
    """One node: what it computes from which values."""

    name: str
    at: At
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class Network(nn.Module):
    """The graph, computed by PyTorch. weights: what is trained, by the names of the initializers.

    seen_as: how a weight is read in every pass, for quantizers: (name, weight) -> what the products use in its place.
    value_as: the same for what nodes make, by the value's name: what is read in its place, for one sample under vmap.
    """

    def __init__(
        self, steps: Sequence[_Step], weights: Mapping[str, nn.Parameter], constants: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self._steps = tuple(steps)
        self._held = nn.ParameterList(weights.values())  # names with dots are no attributes
        self._needed: dict[tuple[str, ...], tuple[_Step, ...]] = {}
        self._constants = dict(constants)
        self._names = tuple(weights)
        self.seen_as: Callable[[str, Tensor], Tensor] = lambda name, weight: weight
        self.value_as: Mapping[str, Callable[[Tensor], Tensor]] = {}

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by the names of the initializers."""
        return dict(zip(self._names, self._held, strict=True))

    def forward(self, inputs: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
        """The named tensors of the graph for N samples.

        inputs: for each of the graph's inputs [N, *its shape]; gives [N, *shape] each. Raises BadInput where a node
        cannot be computed: its sizes depend on the data, or do not fit.
        """
        wanted = tuple(names)
        steps = self._needed.setdefault(wanted, self._steps_to(wanted))
        known = dict(self._constants)
        known.update((name, self.seen_as(name, weight)) for name, weight in self.weights.items())

        def one(sample: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            values = {**known, **sample}
            for step in steps:
                _run(step, values)
                for name in step.outputs:
                    if name in self.value_as:
                        values[name] = self.value_as[name](values[name])
            return tuple(values[name] for name in wanted)

        return torch.func.vmap(one)(dict(inputs))

    def _steps_to(self, names: Iterable[str]) -> tuple[_Step, ...]:
        """The nodes on the way to these tensors."""
        wanted, found = set(names), []
        for step in reversed(self._steps):
            if wanted.intersection(step.outputs):
                found.append(step)
                wanted.update(name for name in step.inputs if name is not None)
        return tuple(reversed(found))


def _run(step: _Step, values: dict[str, Tensor]) -> None:
    try:
        made = OPERATORS[step.at.op](
            step.at, *(None if name is None else values[name] for name in step.inputs)
        )
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as err:
        raise BadInput(
            f"node {step.name!r} ({step.at.op}) cannot be computed in PyTorch: {one_line(err)[:200]}"
        ) from err
    results = (made,) if isinstance(made, Tensor) else made
    values.update((name, value) for name, value in zip(step.outputs, results, strict=False) if name)


def unsupported(graph: Graph) -> tuple[str, ...]:
    """One line per node that cannot be trained through, with node and operator; nothing is computed."""
    found = []
    for node in graph.model.graph:
        inside = [name for name, entry in node.attributes.items() if _is_subgraph(entry)]
        if node.domain not in ("", "ai.onnx"):
            reason: str | None = f"the operator {node.domain}.{node.op_type}"
        elif inside:
            reason = f"{node.op_type}, which holds a graph of its own"
        else:
            reason = why_not(_at(node, graph.opset), [value is not None for value in node.inputs])
        if reason is not None:
            found.append(f"node {node.name!r}: {reason}")
    return tuple(found)


def from_onnx(graph: Graph) -> Network:
    """A module that computes what the graph does. Weights start at the graph's; shared ones stay shared.

    Trained are the float weights of products, biases, factors and biases of norms, slopes and embeddings.
    Raises BadInput, naming nodes and operators, where something is out of scope; before any work.
    """
    refused = unsupported(graph)
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise BadInput(f"the model cannot be trained: {refused[0]}{more} is not supported in PyTorch")
    trained = trainable(graph)
    weights, constants = {}, {}
    for value in initializers(graph.model):
        tensor = _tensor(value)
        if value.name in trained:
            weights[value.name] = nn.Parameter(tensor)
        else:
            constants[value.name or ""] = tensor
    steps = [_step(node, graph.opset) for node in graph.model.graph if node.op_type != "Constant"]
    return Network(steps, weights, constants)


def write_back(graph: Graph, module: Network) -> Graph:
    """The graph with the module's weights. Gives `graph` itself where none has changed.

    Raises BadInput where the module's weights are not the graph's, or are no finite numbers.
    """
    present = {value.name: value for value in initializers(graph.model)}
    changed: dict[str, np.ndarray[Any, Any]] = {}
    for name, weight in module.weights.items():
        old = present.get(name)
        if old is None or old.const_value is None:
            raise BadInput(
                f"the module has a weight {name!r}, which the graph has not: it is another graph's"
            )
        before = old.const_value.numpy()
        after = (
            weight.detach().to(torch.float32).cpu().numpy()
            if before.dtype.itemsize < 4
            else weight.detach().cpu().numpy()
        )
        if after.shape != before.shape:
            raise BadInput(f"weight {name!r} must have the shape {before.shape}, got {after.shape}")
        if not np.isfinite(after).all():
            raise BadInput(f"weight {name!r} is not finite after training: take a smaller learning rate")
        after = after.astype(before.dtype)
        if after.tobytes() != before.tobytes():
            changed[name] = after.copy()
    if not changed:
        return graph
    model = graph.copy()
    for value in initializers(model):
        if value.name in changed:
            value.const_value = ir.tensor(changed[value.name], name=value.name)
    return graph.with_model(model)


# --- which weights are trained --------------------------------------------------------------------------------


def trainable(graph: Graph) -> frozenset[str]:
    """Names of the initializers that training may change."""
    found = set()
    behind = _behind_products(graph)
    for node in graph.model.graph:
        places: Iterable[int] = _TRAINED_INPUTS.get(node.op_type, ())
        for place in places:
            if place < len(node.inputs):
                found.update(_held_weight(node.inputs[place]))
        if node.op_type in _AFFINE and len(node.inputs) == 2:
            for mine, other in ((0, 1), (1, 0)):
                side = node.inputs[other]
                if side is not None and id(side) in behind:
                    found.update(
                        name for name in _held_weight(node.inputs[mine]) if _per_channel(graph, name)
                    )
    return frozenset(found)


def _held_weight(value: ir.Value | None) -> set[str]:
    """The float initializer behind a value, through views of it; empty where it comes from elsewhere."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _VIEWS:
        value = node.inputs[0]
    held = value is not None and value.is_initializer() and value.const_value is not None
    if not held or value is None or value.dtype not in _FLOATS:
        return set()
    return {value.name or ""}


def _per_channel(graph: Graph, name: str) -> bool:
    """One number per channel: a vector, or ones behind the only longer axis. Not a scalar, mask or grid."""
    shape = tuple(graph.model.graph.initializers[name].shape or ())
    longer = [place for place, size in enumerate(shape) if size != 1]
    return len(longer) == 1 and (len(shape) == 1 or longer[0] != len(shape) - 1)


def _behind_products(graph: Graph) -> set[int]:
    """Values that a product, or a norm written out, has a part in: a constant before all of them prepares the input."""
    found: set[int] = set()
    for node in graph.model.graph:
        if node.op_type in PRODUCTS or any(id(value) in found for value in node.inputs):
            found.update(id(value) for value in node.outputs)
    return found


# --- nodes ----------------------------------------------------------------------------------------------------


def _step(node: ir.Node, opset: int) -> _Step:
    return _Step(
        node.name or node.op_type,
        _at(node, opset),
        tuple(None if value is None else value.name for value in node.inputs),
        tuple(value.name or "" for value in node.outputs),
    )


def _at(node: ir.Node, opset: int) -> At:
    attributes = {name: entry.value for name, entry in node.attributes.items() if not _is_subgraph(entry)}
    used = [value for value in node.outputs if value.name and (value.consumers() or value.is_graph_output())]
    last = max((place for place, value in enumerate(node.outputs) if value in used), default=0)
    return At(node.op_type, opset, attributes, last + 1 if node.op_type != "Split" else len(node.outputs))


def _is_subgraph(entry: ir.Attr) -> bool:
    return entry.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _tensor(value: ir.Value) -> Tensor:
    """A weight in memory of its own. Raises BadInput for a type that PyTorch does not have."""
    stored = value.const_value
    if stored is None:
        raise BadInput(f"weight {value.name!r} must hold numbers, and holds none")
    try:
        dtype = torch_dtype(int(stored.dtype))
    except TypeError:
        raise BadInput(
            f"weight {value.name!r} must be of a type that PyTorch has, got {stored.dtype}"
        ) from None
    return torch.from_numpy(np.array(stored.numpy())).to(dtype)
