"""New constants and nodes in a model, under names that are not taken. Nodes go to the end: sort after it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


class Writer:
    """Makes constants and nodes whose names begin with `stem`."""

    def __init__(self, model: ir.Model, stem: str) -> None:
        self._graph = model.graph
        self._stem = stem
        self._taken = {value.name for value in model.graph.initializers.values()}
        self._taken |= {value.name for node in model.graph for value in node.outputs}
        self._taken |= {value.name for value in model.graph.inputs}

    def _fresh(self, key: str) -> str:
        name = f"{self._stem}/{key}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def constant(self, key: str, array: NDArray[Any]) -> ir.Value:
        """A new initializer."""
        name = self._fresh(key)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def node(self, op: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        """The output of a new node."""
        name = self._fresh(op)
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self._graph.append(node)
        return node.outputs[0]
