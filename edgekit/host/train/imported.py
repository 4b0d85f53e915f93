"""An ONNX model as a network that recipes compress and train; the trained weights back in its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, values
from edgekit.host.passes._grid import Product, products
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.train.distil import before_activation
from edgekit.host.train.from_onnx import from_onnx, write_back
from edgekit.host.train.outputs import Outputs
from edgekit.host.train.quantizers.base import WeightQuantizer


class Seen(nn.Module):
    """A weight of the graph with its quantizer: what quantized layers are in networks of ours.

    weight: the graph's own; moved: a view of it with the output channels first, as quantizers want it.
    """

    def __init__(self, name: str, weight: nn.Parameter, axis: int, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.name, self._axis, self.quantizer = name, axis, quantizer
        self.weight = weight

    @property
    def moved(self) -> Tensor:
        """[out, in, ...]."""
        return self.weight.movedim(self._axis, 0)

    def back(self, moved: Tensor) -> Tensor:
        """What was moved, as the graph has it."""
        return moved.movedim(0, self._axis)

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
        self.seen = nn.ModuleList()
        outputs = values(self.graph.model)
        self._input = self.graph.inputs[0].tensor.name
        self._logits = tuple(
            before_activation(outputs[entry.output], self.graph.opset)[0].name or entry.output
            for entry in self.graph.exits
        )

    def forward(self, value: Tensor) -> Outputs:
        found = {each.name: each() for each in self.seen}
        self.network.seen_as = found.get
        made = self.network({self._input: value.contiguous()[:, None]}, self._logits)
        return Outputs(tuple(each.flatten(1) for each in made))

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
                made.quantizer.settle(made.moved)

    def trained_graph(self) -> Graph:
        """The graph with the weights as they are now, all of them floats."""
        return write_back(self.graph, self.network)


def _each_weight_once(found: Sequence[Product], weights: Mapping[str, nn.Parameter]) -> list[Product]:
    seen: dict[str, Product] = {}
    for product in found:
        name = product.value.name or ""
        if name in weights and product.axis is not None:
            seen.setdefault(name, product)
    return list(seen.values())
