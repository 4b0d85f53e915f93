"""The table of all operators, and a whole model written by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.host.lower.tflite import movement, pointwise, products
from edgekit.host.lower.tflite.translate import Translation
from edgekit.host.lower.tflite.values import Rule, Unsupported, first, last, shape_of
from edgekit.host.lower.tflite.writer import TfliteFile

RULES: Mapping[str, Rule] = {**products.RULES, **movement.RULES, **pointwise.RULES}


@dataclass(frozen=True)
class Written:
    """A model as a TFLite file in the making. problems: a line per node that could not be written."""

    problems: tuple[str, ...]
    file: TfliteFile
    tensors: Mapping[str, int]  # at the border, by name

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
    t = Translation(clone.graph, clone.opset_imports.get("", 0))
    t.constants()
    tensors: dict[str, int] = {}
    for value in clone.graph.inputs:
        name = value.name or ""
        try:
            rank = len(shape_of(value))
            tensors[name] = t.handed(value, last(rank)) if name in handed else t.border(value, first(rank))
        except Unsupported as err:
            t.problems.append(f"input {name!r}: {err}")
    t.run(RULES)
    if not t.problems:
        for name in outputs:
            tensors[name] = _output(t, name, tensors, channels_last=name in handed)
    return Written(tuple(t.problems), t.values.file, tensors)


def _output(t: Translation, name: str, taken: Mapping[str, int], *, channels_last: bool) -> int:
    """The tensor of an output, under its own name."""
    rank = t.values.rank(name)
    tensor = t.values.at(name, last(rank) if channels_last else first(rank))
    if tensor in taken.values() or t.values.file.maker(tensor) is None:
        return t.values.copied(tensor, name)
    t.values.file.rename(tensor, name)
    return tensor
