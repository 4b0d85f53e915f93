"""What a network answers when some channels contribute nothing: the oracle of pruning. Knows no groups and no slices.

Runs node by node. Beside each tensor goes a mark per number: whether it belongs to a removed channel. A product reads
marked numbers as 0 and marks its own removed channels; through any other node marks travel by experiment: it runs with
large, then with small numbers in all marked places, and where the results differ they are marked. An answer that is
marked means that the channels cannot be removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgekit.host.ort import open_model

Array = np.ndarray[Any, Any]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Masked:
    """A model whose products lose channels: node name -> the output channels that are removed."""

    def __init__(self, model: onnx.ModelProto, removed: Mapping[str, Sequence[int]]) -> None:
        self.model = model
        self.removed = removed
        self.weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
        self.sessions: dict[str, Any] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name. Fails where a removed channel reaches one."""
        known: dict[str, Array] = {**self.weights, **inputs}
        marks: dict[str, Array] = {name: np.zeros(array.shape, bool) for name, array in known.items()}
        for node in self.model.graph.node:
            names = [name for name in node.input if name]
            if self._is_product(node):
                clean = {
                    name: np.where(marks[name], 0, known[name]).astype(known[name].dtype) for name in names
                }
                made = self._run(node, clean)
                mark = [np.zeros(array.shape, bool) for array in made]
                channels = list(self.removed.get(node.name, ()))
                axis = 1 if node.op_type != "MatMul" else made[0].ndim - 1
                np.moveaxis(mark[0], axis, 0)[channels] = True
            else:
                made, mark = self._experiment(node, {name: (known[name], marks[name]) for name in names})
            known.update(zip(node.output, made, strict=True))
            marks.update(zip(node.output, mark, strict=True))
        for output in self.model.graph.output:
            assert not marks[output.name].any(), f"a removed channel reaches {output.name}"
        return {output.name: known[output.name] for output in self.model.graph.output}

    def _is_product(self, node: onnx.NodeProto) -> bool:
        """Depthwise convolutions are none here: marks pass through them channel by channel."""
        if node.op_type not in PRODUCTS:
            return False
        if not any(name in self.weights for name in node.input[:2]):
            return False  # two activations multiplied
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        weight = next(self.weights[name] for name in node.input[1::-1] if name in self.weights)
        if node.op_type == "ConvTranspose":
            return not (group > 1 and weight.shape[:2] == (group, 1))
        return not (group > 1 and weight.shape[1] == 1)

    def _experiment(
        self, node: onnx.NodeProto, inputs: Mapping[str, tuple[Array, Array]]
    ) -> tuple[list[Array], list[Array]]:
        if not any(mark.any() for _, mark in inputs.values()):
            made = self._run(node, {name: array for name, (array, _) in inputs.items()})
            return made, [np.zeros(array.shape, bool) for array in made]
        random = np.random.default_rng(
            len(inputs)
        )  # no two numbers alike, lest a difference or a mean hide them
        high, low = (
            self._run(
                node,
                {
                    name: np.where(
                        mark, random.uniform(*sorted((start, 2 * start)), array.shape), array
                    ).astype(array.dtype)
                    for name, (array, mark) in inputs.items()
                },
            )
            for start in (5, -3)
        )
        return high, [one != other for one, other in zip(high, low, strict=True)]

    def _run(self, node: onnx.NodeProto, inputs: Mapping[str, Array]) -> list[Array]:
        key = node.output[0]
        if key not in self.sessions:
            self.sessions[key] = open_model(self._alone(node, inputs).SerializeToString())
        fed = {name: array for name, array in inputs.items() if name not in self.weights}
        return list(self.sessions[key].run(list(node.output), fed))

    def _alone(self, node: onnx.NodeProto, inputs: Mapping[str, Array]) -> onnx.ModelProto:
        """A model of this node only; weights stay weights, since many operators want them so."""
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in inputs.items()
                if name not in self.weights
            ],
            [helper.make_empty_tensor_value_info(name) for name in node.output],
            [
                onnx.numpy_helper.from_array(self.weights[name], name)
                for name in inputs
                if name in self.weights
            ],
        )
        return helper.make_model(
            graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
        )
