"""Find stages that repeat an earlier one: the same computation with the same weights, whatever its tensors are called.

A network that applies its layers several times, with an exit after each round, becomes such stages. They can be of one
file, opened once: their weights are held once, on disk and in memory. Changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from edgekit.core.manifest import Tensor
from edgekit.host.graph import inner_graphs
from edgekit.host.split import Stage
from edgekit.host.work import layers

# dtype, shape, whether a lowering may lay it out as it likes: codes and images that only stages see
Border = tuple[str, tuple[int, ...], bool]
_FLAT = 2


@dataclass(frozen=True)
class Computation:
    """What a stage computes, so that two can be compared."""

    stage: Stage
    _known: dict[ir.Value, str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def takes(self) -> tuple[Border, ...]:
        """Its inputs, by place."""
        return tuple(self._border(tensor) for tensor in self.stage.inputs)

    @cached_property
    def gives(self) -> Mapping[str, tuple[str, Border]]:
        """Output -> how it comes about from the inputs' places and the weights' content; empty where that is not told.

        The hash of a value is that of its operator, the attributes, and the hashes of what it reads.
        """
        model = self.stage.model
        if any(True for node in model.graph for _ in inner_graphs(node)):
            return {}
        opsets = sorted(model.opset_imports.items())
        self._known.update(
            (value, _digest("input", place, opsets)) for place, value in enumerate(model.graph.inputs)
        )
        for node in model.graph:
            read = [None if value is None else self._told(value) for value in node.inputs]
            attributes = sorted((name, _attribute(attribute)) for name, attribute in node.attributes.items())
            marks = sorted(node.metadata_props.items())
            made = _digest(node.domain, node.op_type, node.overload, attributes, marks, read)
            self._known.update((value, _digest(made, place)) for place, value in enumerate(node.outputs))
        tensors = {tensor.name: self._border(tensor) for tensor in self.stage.outputs}
        return {
            value.name or "": (self._told(value), tensors[value.name or ""]) for value in model.graph.outputs
        }

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(layer.macs for layer in layers(self.stage.model))

    def _told(self, value: ir.Value) -> str:
        if value not in self._known:
            assert value.const_value is not None  # noqa: S101  (a value is an input, made by a node, or a weight)
            self._known[value] = _digest("weight", _content(value.const_value))
        return self._known[value]

    def _border(self, tensor: Tensor) -> Border:
        laid_out = tensor.dtype != "float32" or len(tensor.shape) > _FLAT
        return tensor.dtype, tensor.shape, laid_out and tensor.name in self.stage.handed


def names_when_run_by(one: Computation, other: Computation) -> Mapping[str, str] | None:
    """Border tensor of stage `other` -> of stage `one`, where `one` computes all that `other` does and no product more.

    None where it does not.
    """
    if one.takes != other.takes or one.macs != other.macs or not one.gives or not other.gives:
        return None
    places = {how: name for name, how in one.gives.items()}
    if not set(other.gives.values()) <= set(places):
        return None
    inputs = zip(other.stage.inputs, one.stage.inputs, strict=True)
    names = {mine.name: theirs.name for mine, theirs in inputs}
    names |= {name: places[how] for name, how in other.gives.items()}
    return names if len(set(names.values())) == len(names) else None


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _content(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return _content(attribute.as_tensor())
    return f"{attribute.type} {attribute.value!r}"
