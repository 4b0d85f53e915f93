"""A plan as a chain of layers that an overlay can hold. What it cannot hold is refused by name, in one line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.core.errors import BadInput
from edgekit.native import plan as pl
from edgekit.native.plan import Linear, Operator, Plan, PlanTensor, Threshold, Window

CONVOLUTION, DENSE, POOL = "convolution", "dense", "pool"
KINDS = (CONVOLUTION, DENSE, POOL)
_TYPES = {pl.BITS: "bits", pl.U8: "uint8", pl.I8: "int8", pl.I32: "int32", pl.F32: "float32"}
_CODINGS = {
    pl.UNSIGNED2: "2-bit unsigned",
    pl.SIGNED2: "2-bit signed",
    pl.TERNARY: "ternary",
    pl.INTEGER8: "8-bit",
}


@dataclass(frozen=True)
class Layer:
    """One layer of the chain, in geometry. A dense layer has in_h = in_w = 1: its input is one vector.

    name: "L0", "L1" … of layers with weights, "P0" … of pools. kernel, stride: height, width; pads: top, left, bottom,
    right. pad_one: padded bits are 1 (+1). input_bits: 8 for integers, 1 for bipolar bits. gives_sums: 32-bit sums
    instead of thresholded bits. operator: which of the plan's operators it executes.
    """

    name: str
    kind: str
    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_one: bool = False
    input_bits: int = 1
    gives_sums: bool = False
    operator: int = 0

    @property
    def terms(self) -> int:
        """Products in one sum: the columns of the weight matrix."""
        return self.kernel[0] * self.kernel[1] * self.in_c

    @property
    def positions(self) -> int:
        """Output pixels: vectors that a matrix-vector unit multiplies for one image."""
        return self.out_h * self.out_w

    @property
    def has_weights(self) -> bool:
        """Whether it is folded by PE and SIMD."""
        return self.kind != POOL

    @property
    def needs_windows(self) -> bool:
        """Whether a sliding-window unit stands before it."""
        return self.kind == CONVOLUTION and (self.kernel, self.stride, self.pads) != (
            (1, 1),
            (1, 1),
            (0, 0, 0, 0),
        )


@dataclass(frozen=True)
class Chain:
    """What an overlay executes, from one input tensor to one output tensor of the plan.

    input_values: h * w * c of the input; input_bytes: what one image takes outside, as plan.h says. binarize: the
    operator that turns uint8 into bits first, or None.
    """

    layers: tuple[Layer, ...]
    input: int
    output: int
    input_values: int
    input_bytes: int
    binarize: int | None = None


def chain_of(plan: Plan) -> Chain:
    """The layers of a plan that one overlay holds as a whole.

    Raises BadInput that names the operator and what the overlay lacks: residual adds, averages, float steps, more than
    one bit, padding with true zeros, several inputs or outputs (early exits).
    """
    inputs, outputs = plan.marked(outputs=False), plan.marked(outputs=True)
    if len(outputs) != 1:
        raise BadInput(
            f"the overlay gives one output, the plan has {len(outputs)} (early exits): use backend native"
        )
    if len(inputs) != 1:
        raise BadInput(f"the overlay takes one input, the plan has {len(inputs)}: use backend native")
    layers: list[Layer] = []
    tensor, binarize = inputs[0], None
    for index, operator in enumerate(plan.operators):
        if operator.inputs != (tensor,):
            raise _refused(index, operator, "the overlay is one chain without residual adds or branches")
        tensor = operator.output
        if operator.kind == pl.COPY:
            continue  # the same values in the same order: the same stream
        if operator.kind == pl.THRESHOLD and not layers and binarize is None:
            _check_binarize(plan, index)
            binarize = index
        else:
            layers.append(_layer(plan, index, layers))
    if tensor != outputs[0] or not any(layer.has_weights for layer in layers):
        raise BadInput("the overlay needs a chain of layers with weights from the plan's input to its output")
    if not layers[-1].gives_sums:
        raise BadInput(
            f"the overlay's last layer must give sums, {layers[-1].name} gives bits: use backend native"
        )
    source = plan.tensors[inputs[0]]
    return Chain(tuple(layers), inputs[0], tensor, source.count, _bytes(source), binarize)


def _bytes(source: PlanTensor) -> int:
    if source.type == pl.U8:
        return source.count
    if source.type != pl.BITS or source.coding != pl.BIPOLAR:
        raise BadInput(f"the overlay takes uint8 or bipolar bits, the plan's input is {_TYPES[source.type]}")
    if source.c % 8 and (source.h, source.w) != (1, 1):
        raise BadInput(
            f"the overlay takes bits in whole bytes a pixel, the plan's input has {source.c} channels"
        )
    return source.h * source.w * ((source.c + 7) // 8)


def _check_binarize(plan: Plan, index: int) -> None:
    operator = plan.operators[index]
    of, made = operator.of, plan.tensors[operator.output]
    source = plan.tensors[operator.inputs[0]]
    if (
        source.type != pl.U8
        or made.type != pl.BITS
        or made.coding != pl.BIPOLAR
        or not isinstance(of, Threshold)
    ):
        raise _refused(
            index, operator, "the overlay makes one bit of uint8 and nothing else before its first layer"
        )
    falling = of.falling is not None and bool(np.any(of.falling))
    if falling or len(np.unique(of.thresholds)) != 1:
        raise _refused(index, operator, "the overlay has one rising threshold for all input channels")


def _layer(plan: Plan, index: int, before: list[Layer]) -> Layer:
    operator = plan.operators[index]
    source, made = plan.tensors[operator.inputs[0]], plan.tensors[operator.output]
    if before and before[-1].gives_sums:
        raise _refused(
            index, operator, f"{before[-1].name} gives sums, and only bits go on inside the overlay"
        )
    if isinstance(operator.of, Linear):
        name = f"L{sum(layer.has_weights for layer in before)}"
        return _linear(index, operator, operator.of, source, made, name)
    if operator.kind == pl.POOL and isinstance(operator.of, Window):
        name = f"P{sum(not layer.has_weights for layer in before)}"
        return _pool(index, operator, operator.of, source, made, name)
    raise _refused(index, operator, "the overlay has convolutions, dense layers and pools")


def _linear(
    index: int, operator: Operator, of: Linear, source: PlanTensor, made: PlanTensor, name: str
) -> Layer:
    if source.type not in {pl.U8, pl.BITS}:
        raise _refused(
            index, operator, f"its input is {_TYPES[source.type]}, the overlay takes uint8 or bits"
        )
    if source.type == pl.BITS and source.coding != pl.BIPOLAR:
        raise _refused(
            index, operator, f"its inputs are {_CODINGS.get(source.coding)}, the overlay's are 1-bit"
        )
    if not _is_bipolar(of):
        raise _refused(index, operator, f"its weights are {_CODINGS.get(of.coding)}, the overlay's are 1-bit")
    if of.epilogue == pl.SCALED:
        raise _refused(index, operator, "it gives floats, the overlay gives bits or sums")
    if of.epilogue == pl.THRESHOLDS and made.coding != pl.BIPOLAR:
        raise _refused(
            index, operator, f"its outputs are {_CODINGS.get(made.coding)}, the overlay's are 1-bit"
        )
    if any(of.pads) and of.pad == pl.PAD_ZERO and source.type == pl.BITS:
        raise _refused(index, operator, "it pads bits with true zeros, the overlay pads with -1 or +1")
    bits, sums = 8 if source.type == pl.U8 else 1, of.epilogue == pl.SUMS
    if of.kernel == (source.h, source.w) and not any(of.pads):
        return Layer(
            name, DENSE, 1, 1, source.count, 1, 1, made.c, input_bits=bits, gives_sums=sums, operator=index
        )
    return Layer(
        *(name, CONVOLUTION, source.h, source.w, source.c, made.h, made.w, made.c),
        *(of.kernel, of.stride, of.pads, any(of.pads) and of.pad == pl.PAD_PLUS, bits, sums, index),
    )


def _pool(
    index: int, operator: Operator, of: Window, source: PlanTensor, made: PlanTensor, name: str
) -> Layer:
    if source.type != pl.BITS or source.coding != pl.BIPOLAR:
        raise _refused(index, operator, f"it pools {_TYPES[source.type]}, the overlay pools bipolar bits")
    if of.stride != of.kernel:
        raise _refused(
            index,
            operator,
            f"its windows {list(of.kernel)} overlap or leave gaps at stride {list(of.stride)}",
        )
    return Layer(
        *(name, POOL, source.h, source.w, source.c, made.h, made.w, made.c),
        *(of.kernel, of.stride),
        operator=index,
    )


def _is_bipolar(of: Linear) -> bool:
    if of.coding == pl.INTEGER8:
        return bool(np.all(np.abs(of.weights.astype(np.int32)) == 1))
    return of.coding == pl.BIPOLAR


def _refused(index: int, operator: Operator, why: str) -> BadInput:
    kind = pl.KIND_NAMES.get(operator.kind, str(operator.kind))
    return BadInput(f"operator {index} ({kind}): {why}: use backend native")
