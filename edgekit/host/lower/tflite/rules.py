"""The table of all operators, and a whole model written by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.host.lower.tflite import movement, pointwise, products, reductions
from edgekit.host.lower.tflite.translate import Translation
from edgekit.host.lower.tflite.values import Order, Rule, Unsupported, first, last, shape_of
from edgekit.host.lower.tflite.writer import TfliteFile

RULES: Mapping[str, Rule] = {**products.RULES, **movement.RULES, **pointwise.RULES, **reductions.RULES}
_MOVERS = frozenset(movement.RULES) - {"MaxPool", "Resize", "Upsample"}


@dataclass(frozen=True)
class Written:
    """A model as a TFLite file in the making. problems: a line per node that could not be written."""

    problems: tuple[str, ...]
    file: TfliteFile
    tensors: Mapping[str, int]  # at the border, by name
    orders: Mapping[str, Order]  # of those tensors' axes

    def border(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor at the border."""
        tensor = self.tensors[name]
        return self.file.dtype(tensor), self.file.shape(tensor)

    def to_bytes(self, inputs: Sequence[str], outputs: Sequence[str], name: str) -> bytes:
        """The file."""
        return self.file.to_bytes(
            [self.tensors[entry] for entry in inputs], [self.tensors[entry] for entry in outputs], name
        )


def translate(model: ir.Model, handed: Collection[str], outputs: Sequence[str]) -> Written:
    """Write a model. handed: names of tensors that only neighbouring stages see: those stay channels last.

    outputs: names of the tensors to give; () where only the problems are wanted.
    """
    clone = model.clone()
    clone.graph.sort()
    t = Translation(clone.graph, clone.opset_imports.get("", 0), movers=_MOVERS)
    t.constants()
    tensors: dict[str, int] = {}
    orders: dict[str, Order] = {}
    for value in clone.graph.inputs:
        name = value.name or ""
        try:
            orders[name] = _order(name, len(shape_of(value)), handed)
            tensors[name] = (t.handed if name in handed else t.border)(value, orders[name])
        except Unsupported as err:
            t.problems.append(f"input {name!r}: {err}")
    t.run(RULES)
    if not t.problems:
        for name in outputs:
            orders[name] = _order(name, t.values.rank(name), handed)
            tensors[name] = _output(t, name, tensors, orders[name])
    return Written(tuple(t.problems), t.values.file, tensors, orders)


def _order(name: str, rank: int, handed: Collection[str]) -> Order:
    """Channels last between stages, ONNX's order where others look."""
    return last(rank) if name in handed else first(rank)


def _output(t: Translation, name: str, taken: Mapping[str, int], order: Order) -> int:
    """The tensor of an output, under its own name."""
    tensor = t.values.at(name, order)
    if tensor in taken.values() or t.values.file.maker(tensor) is None:
        return t.values.copied(tensor, name)
    t.values.file.rename(tensor, name)
    return tensor
