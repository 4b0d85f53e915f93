"""Say each of QONNX's operators in ONNX's own, exactly as QONNX's executor (release 1.0) computes it in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.graph import infer_shapes

Array = NDArray[Any]

GENERAL = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
CHANNELS_LAST = ("qonnx.custom_op.channels_last",)  # ONNX's operators on N, sides, C
DOMAINS = (*GENERAL, *CHANNELS_LAST)
_ELEMENTWISE = ("BipolarQuant", "Quant", "IntQuant", "Trunc")
_LAYOUTS = {2: "NC", 3: "NWC", 4: "NCHW"}  # of a MultiThreshold that names none, by rank


def initializer(model: ir.Model, name: str, array: Array) -> ir.Value:
    """A constant of the graph."""
    made = ir.Value(
        name=name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    )
    made.dtype, made.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    model.graph.register_initializer(made)
    return made


# --- one node ---------------------------------------------------------------------------------------------------------


class Expansion:
    """One QONNX node on its way to standard operators: its attributes and inputs, and the nodes made so far.

    turned: what has its channels last -> the same with its channels first, of nodes that were expanded before.
    """

    def __init__(
        self,
        model: ir.Model,
        node: ir.Node,
        path: Path,
        names: set[str | None],
        turned: dict[ir.Value, ir.Value],
    ) -> None:
        self.model, self.node, self.turned, self._path, self._names = model, node, turned, path, names
        self._made: list[ir.Node] = []

    def run(self) -> list[ir.Node]:
        """Put what the node means in its place; the nodes that now stand there."""
        table = _WRAPPED if self.node.domain in CHANNELS_LAST else _EXPANSIONS
        make = table.get(self.node.op_type)
        if make is None:
            raise self.wrong(
                f"cannot be converted: of {self.node.domain} these can: {', '.join(sorted(table))}"
            )
        x = self.node.inputs[0] if self.node.inputs else None
        if x is None or x.dtype not in (None, ir.DataType.FLOAT) or len(self.node.outputs) != 1:
            raise self.wrong(
                f"must make one output from float32, got {'nothing' if x is None else x.dtype} "
                f"and {len(self.node.outputs)} outputs"
            )
        first = self.turned.get(x) if self._keeps_shape(x) and self.node.op_type in _ELEMENTWISE else None
        if first is not None:  # a quantizer between two layers: the Transposes around it are not needed
            self.node.replace_input_with(0, first)
        value, old = make(self), self.node.outputs[0]
        if first is not None:
            value = self.last(value, len(x.shape or ()))
        if value.producer() not in self._made:  # nothing is left to do: what comes in goes out
            value = self.op("Identity", value)
        if old.shape is None and self._keeps_shape(x):
            old.shape = x.shape
        value.dtype = ir.DataType.FLOAT
        ir.convenience.replace_nodes_and_values(
            self.model.graph, self.node, [self.node], self._made, [old], [value]
        )
        return self._made

    def _keeps_shape(self, x: ir.Value) -> bool:
        """Whether the result surely has the shape of x."""
        if self.node.op_type not in _ELEMENTWISE or x.shape is None:
            return self.node.op_type in ("MultiThreshold", "DebugMarker")
        rest = [value.const_value for value in self.node.inputs[1:] if value is not None]
        return all(one is not None and one.size == 1 and len(one.shape) <= len(x.shape) for one in rest)

    def wrong(self, what: str) -> BadInput:
        """The error: file, node and operator, then `what`."""
        return BadInput(f"{self._path}: node {self.node.name!r} ({self.node.op_type}) {what}")

    # making

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A standard operator's output."""
        name = self._fresh(kind)
        node = ir.node(kind, list(inputs), attributes, name=name)
        node.outputs[0].name = name
        self._made.append(node)
        return node.outputs[0]

    def first(self, value: ir.Value, rank: int) -> ir.Value:
        """What has its channels last with its channels first."""
        return self.turned.get(value) or self.op("Transpose", value, perm=[0, rank - 1, *range(1, rank - 1)])

    def last(self, value: ir.Value, rank: int) -> ir.Value:
        """What has its channels first with its channels last; who wants them first finds them."""
        made = self.op("Transpose", value, perm=[0, *range(2, rank), 1])
        self.turned[made] = value
        return made

    def constant(self, array: Any, name: str) -> ir.Value:
        """A float32 initializer."""
        return self.exactly(np.array(array, np.float32), name)

    def exactly(self, array: Array, name: str) -> ir.Value:
        """An initializer of the array's own type."""
        return initializer(self.model, self._fresh(name), array)

    def _fresh(self, what: str) -> str:
        name, count = f"{self.node.name}/{what}", 1
        while name in self._names:
            count += 1
            name = f"{self.node.name}/{what}_{count}"
        self._names.add(name)
        return name

    # reading

    def inputs(self, *names: str) -> tuple[ir.Value, ...]:
        """All inputs of the node, which are called so."""
        found = tuple(value for value in self.node.inputs if value is not None)
        if len(found) != len(names):
            raise self.wrong(f"must have {len(names)} inputs ({', '.join(names)}), got {len(found)}")
        return found

    def array(self, value: ir.Value, what: str) -> Array:
        """The constant in an input."""
        if value.const_value is None:
            raise self.wrong(
                f"must have a constant {what}, got {value.name!r}, which is computed from the input"
            )
        return np.asarray(value.const_value.numpy())

    def number(self, value: ir.Value, what: str) -> Array:
        """The one number in an input, without axes, in its own type."""
        array = self.array(value, what)
        if (
            array.size != 1
            or array.dtype.kind not in "fiu"
            or not np.isfinite(array.astype(np.float64)).all()
        ):
            raise self.wrong(f"must have one number as {what}, got shape {list(array.shape)}")
        return array.astype(np.int64 if array.dtype.kind in "iu" else array.dtype).reshape(())

    def attribute(self, *names: str, default: Any = None) -> Any:
        """An attribute's value under any of its names. Raises BadInput where it is missing and has no default."""
        for name in names:
            found = self.node.attributes.get(name)
            if found is not None:
                return found.value
        if default is None:
            raise self.wrong(f"must have the attribute {names[0]}")
        return default

    def flag(self, *names: str, default: int | None = None) -> bool:
        """An attribute that is 0 or 1."""
        value = self.attribute(*names, default=default)
        if value not in (0, 1):
            raise self.wrong(f"must have 0 or 1 as {names[0]}, got {value!r}")
        return bool(value)

    def real(self, name: str, default: float) -> Array:
        """An attribute that is a number, in float32 as QONNX computes with it."""
        value = self.attribute(name, default=default)
        if not isinstance(value, int | float):
            raise self.wrong(f"must have a number as {name}, got {value!r}")
        return np.array(value, np.float32)

    def rank(self, value: ir.Value) -> int | None:
        """How many axes a value has, None where even inference over all that stands before cannot tell."""
        if value.shape is None:
            infer_shapes(self.model)
        return None if value.shape is None else len(value.shape)

    def is_all(self, value: ir.Value, number: float, other: ir.Value) -> bool:
        """Whether a constant is this number and leaves the shape of `other` alone: then + 0 and * 1 need no node."""
        if value.const_value is None or value.const_value.size != 1:
            return False
        axes, others = len(value.const_value.shape), 0 if other.shape is None else len(other.shape)
        return axes <= others and bool((value.const_value.numpy() == number).all())


# --- quantizers -------------------------------------------------------------------------------------------------------


def _bipolar(e: Expansion) -> ir.Value:
    x, scale = e.inputs("x", "scale")
    return e.op("Where", e.op("GreaterOrEqual", x, e.constant(0, "zero")), scale, e.op("Neg", scale))


def _quant(e: Expansion) -> ir.Value:
    """clip, then round, (x / scale + zero point); one bit that is signed means -1 and 1."""
    x, scale, zero, bits = e.inputs("x", "scale", "zero point", "bit width")
    signed, narrow = e.flag("signed"), e.flag("narrow", "narrow_range")
    width = e.number(bits, "bit width")
    if width <= 0:
        raise e.wrong(f"must have a bit width above 0, got {width}")
    mode = e.attribute("rounding_mode", default="ROUND")
    y = _to_integers(e, x, scale, zero)
    if width == 1 and signed:
        y = e.op(
            "Where",
            e.op("GreaterOrEqual", y, e.constant(0, "zero")),
            e.constant(1, "one"),
            e.constant(-1, "minus"),
        )
    else:
        y = _rounded(e, _clamped(e, y, width, signed=signed, narrow=narrow), mode)
    return _from_integers(e, y, scale, zero, x)


def _to_integers(e: Expansion, x: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
    y = x if e.is_all(scale, 1, x) else e.op("Div", x, scale)
    return y if e.is_all(zero, 0, x) else e.op("Add", y, zero)


def _from_integers(e: Expansion, y: ir.Value, scale: ir.Value, zero: ir.Value, x: ir.Value) -> ir.Value:
    y = y if e.is_all(zero, 0, x) else e.op("Sub", y, zero)
    return y if e.is_all(scale, 1, x) else e.op("Mul", y, scale)


def _clamped(e: Expansion, y: ir.Value, width: Array, *, signed: bool, narrow: bool) -> ir.Value:
    """Between the smallest and the largest code of so many bits, computed in the bit width's own type as QONNX does."""
    if signed:
        low, high = -(2 ** (width - 1)) + narrow, 2 ** (width - 1) - 1
    else:
        low, high = 0 * width, 2**width - 1 - narrow
    return e.op("Clip", y, e.constant(low, "low"), e.constant(high, "high"))


def _rounded(e: Expansion, y: ir.Value, mode: object) -> ir.Value:
    """QONNX's rounding modes; Brevitas calls DOWN ROUND_TO_ZERO. The half ones but HALF_EVEN look at the magnitude."""
    name = str(mode).upper()
    if name in ("ROUND", "HALF_EVEN", "CEIL", "FLOOR"):
        return e.op({"CEIL": "Ceil", "FLOOR": "Floor"}.get(name, "Round"), y)
    if name not in _OF_MAGNITUDE:
        known = ", ".join(("ROUND", "HALF_EVEN", "CEIL", "FLOOR", *_OF_MAGNITUDE))
        raise e.wrong(f"must have one of {known} as rounding_mode, got {mode!r}")
    kind, added = _OF_MAGNITUDE[name]
    size = e.op("Abs", y)
    if added:
        size = e.op("Add", size, e.constant(added, "half"))
    return e.op("Mul", e.op("Sign", y), e.op(kind, size))


_OF_MAGNITUDE = {
    "UP": ("Ceil", 0.0),
    "DOWN": ("Floor", 0.0),
    "ROUND_TO_ZERO": ("Floor", 0.0),
    "HALF_UP": ("Floor", 0.5),
    "HALF_DOWN": ("Ceil", -0.5),
}


def _trunc(e: Expansion) -> ir.Value:
    """Drop low bits. Version 1 keeps the scale and clips nothing; version 2 names the scale that comes out."""
    if len(e.node.inputs) == 5:
        return _trunc_1(e)
    x, scale, zero, _, out_scale, out_bits = e.inputs(
        "x", "scale", "zero point", "input bit width", "output scale", "output bit width"
    )
    y = e.op("Round", _to_integers(e, x, scale, zero))
    factors = e.array(out_scale, "output scale") / e.array(scale, "scale")
    factor = (2 ** np.round(np.log2(factors))).astype(np.float32)
    y = e.op("Div", y, e.constant(factor, "factor"))
    width = e.number(out_bits, "output bit width")
    y = _clamped(e, y, width, signed=e.flag("signed", default=1), narrow=e.flag("narrow", default=0))
    y = _rounded(e, y, e.attribute("rounding_mode"))
    out_zero = e.constant(e.array(zero, "zero point") / factor, "zero_point")
    return _from_integers(e, y, out_scale, out_zero, x)


def _trunc_1(e: Expansion) -> ir.Value:
    x, scale, zero, bits, out_bits = e.inputs(
        "x", "scale", "zero point", "input bit width", "output bit width"
    )
    y = e.op("Round", _to_integers(e, x, scale, zero))
    dropped = e.number(bits, "input bit width") - e.number(out_bits, "output bit width")
    y = e.op("Div", y, e.constant(2.0**dropped, "factor"))
    return _from_integers(e, _rounded(e, y, e.attribute("rounding_mode")), scale, zero, x)


def _multi_threshold(e: Expansion) -> ir.Value:
    """out_scale * (how many of the channel's thresholds x reaches) + out_bias, as a chain of choices."""
    x, thresholds = e.inputs("x", "thresholds")
    table = e.array(thresholds, "table of thresholds").astype(np.float32)
    if table.ndim != 2 or not table.size:
        raise e.wrong(f"must have thresholds of shape [channels, steps], got {list(table.shape)}")
    table = np.sort(table, axis=1)  # how many are reached does not depend on their order
    scale, bias = e.real("out_scale", 1.0), e.real("out_bias", 0.0)
    shape = _threshold_shape(e, x, len(table))
    levels = [e.constant(scale * np.float32(count) + bias, "level") for count in range(table.shape[1] + 1)]
    y = levels[0]
    for column, level in zip(table.T, levels[1:], strict=True):
        reached = e.op("GreaterOrEqual", x, e.constant(column.reshape(shape), "threshold"))
        y = e.op("Where", reached, level, y)
    return y


def _threshold_shape(e: Expansion, x: ir.Value, channels: int) -> tuple[int, ...]:
    """The shape in which one threshold a channel meets x: the channels and an axis of 1 for each that follows."""
    if channels == 1:
        return ()
    rank = e.rank(x)
    layout = e.attribute("data_layout", default="") or _LAYOUTS.get(rank or 0, "")
    if rank is None and not layout:
        raise e.wrong("must have a data_layout, or an input of known shape: give --shape")
    axis = layout.index("C") if "C" in layout else 1
    rank = len(layout) if rank is None else rank
    size = None if x.shape is None or axis >= rank else x.shape[axis]
    if axis >= rank or (isinstance(size, int) and size != channels):
        raise e.wrong(f"must have thresholds for each of its {size} channels, got {channels}")
    return (channels, *[1] * (rank - axis - 1))


# --- layers -----------------------------------------------------------------------------------------------------------


def _refuse_float_quant(e: Expansion) -> ir.Value:
    raise e.wrong("cannot be converted: floating-point formats of few bits have no kernels here; use Quant")


def _marker(e: Expansion) -> ir.Value:
    return e.op("Identity", e.inputs("x")[0])


def _popcount(e: Expansion) -> ir.Value:
    """How many bits of two matrices of 0 and 1 are equal, as a product of -1 and 1."""
    one, two, half = e.constant(1, "one"), e.constant(2, "two"), e.constant(0.5, "half")
    left, right = (e.op("Sub", e.op("Mul", value, two), one) for value in e.inputs("left", "right"))
    terms = e.constant(e.array(e.inputs("left", "right")[1], "right matrix").shape[0], "terms")
    return e.op("Mul", e.op("Add", e.op("MatMul", left, right), terms), half)


def _average_pool(e: Expansion) -> ir.Value:
    """QuantAvgPool2d: the sum of a window, shifted right to the bits that come out."""
    (x,) = e.inputs("x")
    kernel, stride = int(e.attribute("kernel")), int(e.attribute("stride"))
    last = e.attribute("data_layout", default="NCHW") == "NHWC"
    size = kernel * kernel
    shift = max((size * (2 ** int(e.attribute("ibits")) - 1)).bit_length() - int(e.attribute("obits")), 0)
    y = e.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    y = e.op("AveragePool", y, kernel_shape=[kernel] * 2, strides=[stride] * 2)
    y = e.op("Round", e.op("Mul", y, e.constant(size, "size")))
    if shift:
        y = e.op("Floor", e.op("Mul", y, e.constant(2.0**-shift, "shift")))
    return e.op("Transpose", y, perm=[0, 2, 3, 1]) if last else y


def _channels_last(e: Expansion, kind: str) -> ir.Value:
    """ONNX's own operator between two Transposes; Conv has its weights channels last as well."""
    inputs = [value for value in e.node.inputs if value is not None]
    rank = e.rank(inputs[0]) or len(e.attribute("kernel_shape")) + 2
    for index in range(2 if kind == "Conv" else 1):
        inputs[index] = e.first(inputs[index], rank)
    attributes = {name: attribute.value for name, attribute in e.node.attributes.items()}
    return e.last(e.op(kind, *inputs, **attributes), rank)


_EXPANSIONS: Mapping[str, Callable[[Expansion], ir.Value]] = {
    "BipolarQuant": _bipolar,
    "Quant": _quant,
    "IntQuant": _quant,
    "Trunc": _trunc,
    "MultiThreshold": _multi_threshold,
    "FloatQuant": _refuse_float_quant,
    "DebugMarker": _marker,
    "XnorPopcountMatMul": _popcount,
    "QuantAvgPool2d": _average_pool,
    "MaxPoolNHWC": lambda e: _channels_last(e, "MaxPool"),
}
_WRAPPED: Mapping[str, Callable[[Expansion], ir.Value]] = {
    "Conv": lambda e: _channels_last(e, "Conv"),
    "MaxPool": lambda e: _channels_last(e, "MaxPool"),
    "BatchNormalization": lambda e: _channels_last(e, "BatchNormalization"),
}
