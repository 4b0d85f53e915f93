"""What is known of every ONNX value while it becomes a TFLite tensor: its layouts, its codes, its number if constant.

**Layouts.** ONNX counts axes as N, C, H, W; TFLite's kernels want N, H, W, C. A value can exist as several tensors,
one per order of its axes: order (0, 2, 3, 1) means that the tensor's axes are the value's axes 0, 2, 3, 1. An operator
asks for the order it needs (`at`), and only then a TRANSPOSE is written. ONNX's own Transpose writes nothing: the same
tensor is another value in another order.

**Codes.** A float value that comes out of DequantizeLinear is known by its codes (`codes`); a DEQUANTIZE is written
only when a float kernel asks for it. uint8 codes become int8 by subtracting 128 from codes and zero points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.host.graph import static_shape
from edgekit.host.lower.tflite.writer import DTYPES, Array, Quant, TfliteFile, options

Order = tuple[int, ...]
SHIFT = 128  # between uint8 and int8 codes
_HALF = "float16"
_FEW_AXES = 4


class Unsupported(Exception):
    """This operator cannot be written; the text says why."""


@dataclass
class Known:
    """One ONNX value. array: a constant's numbers, in ONNX's order. codes: the value it is the dequantization of."""

    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None
    array: Array | None = None
    codes: str | None = None
    forms: dict[Order, int] = field(default_factory=dict)


def first(rank: int) -> Order:
    """ONNX's own order of axes."""
    return tuple(range(rank))


def last(rank: int) -> Order:
    """Channels last."""
    return first(rank) if rank < 3 else (0, *range(2, rank), 1)


def squeezed(order: Order, shape: Sequence[int]) -> Order:
    """The order without axes of size 1: two orders that agree in it hold the same bytes."""
    return tuple(axis for axis in order if shape[axis] != 1)


def normalized(scale: Array, zero: Array | None, axis: int, rank: int) -> tuple[Quant, int]:
    """How int8 codes are read, and what to subtract from the ONNX codes to get them.

    Raises Unsupported for blocks and for types of 16 bits.
    """
    if scale.ndim > 1 or (scale.ndim == 1 and scale.size > 1 and rank == 0):
        raise Unsupported("quantized in blocks")
    dtype = "uint8" if zero is None else zero.dtype.name
    if dtype not in ("uint8", "int8", "int32", "int4", "uint4"):
        raise Unsupported(f"quantized to {dtype}")
    shift = SHIFT if dtype == "uint8" else 0
    scales = tuple(map(float, np.atleast_1d(scale).astype(np.float32)))
    zeros = np.atleast_1d(np.zeros(1) if zero is None else zero).astype(np.int64)
    shifted = np.broadcast_to(zeros, (len(scales),)) - shift
    return Quant(scales, tuple(map(int, shifted)), axis % max(rank, 1) if len(scales) > 1 else 0), shift


class Values:
    """The table of values, and the file they are written to."""

    def __init__(self) -> None:
        self.file = TfliteFile()
        self.known: dict[str, Known] = {}
        self._fresh = 0

    # --- what is known

    def __getitem__(self, name: str) -> Known:
        return self.known[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """In ONNX's order."""
        return self.known[name].shape

    def rank(self, name: str) -> int:
        """How many axes."""
        return len(self.known[name].shape)

    def is_constant(self, name: str) -> bool:
        """Whether its numbers are known now: a weight, or the dequantization of one."""
        entry = self.known[name]
        return entry.array is not None or (
            entry.codes is not None and self.known[entry.codes].array is not None
        )

    def constant(self, name: str) -> Array:
        """A constant's numbers, dequantized where they are codes. Raises Unsupported where it is computed."""
        entry = self.known[name]
        if entry.array is not None:
            return entry.array
        codes = None if entry.codes is None else self.known[entry.codes]
        if codes is None or codes.array is None or codes.quant is None:
            raise Unsupported(f"{name!r} must be a constant")
        return dequantized(codes.array, codes.quant)

    def quant_of(self, name: str) -> Quant | None:
        """How the codes behind a float value are read; None where it has none."""
        codes = self.known[name].codes
        return None if codes is None else self.known[codes].quant

    def orders(self, name: str) -> tuple[Order, ...]:
        """Orders in which the value, or else its codes, exist already."""
        entry = self.known[name]
        if entry.forms or entry.codes is None:
            return tuple(entry.forms)
        return tuple(self.known[entry.codes].forms)

    def preferred(self, names: Sequence[str]) -> Order:
        """The order in which the widest computed value exists, ONNX's own only where there is no other."""
        computed = [name for name in names if not self.is_constant(name)] or list(names)
        name = max(computed, key=self.rank)
        own = first(self.rank(name))
        return next((order for order in self.orders(name) if order != own), own)

    # --- new values

    def fresh(self, stem: str) -> str:
        """A name for a value that the ONNX graph does not have."""
        self._fresh += 1
        return f"{stem}#{self._fresh}"

    def add_constant(self, name: str, array: Array, quant: Quant | None = None) -> str:
        """A value whose numbers are known."""
        self.known[name] = Known(array.shape, array.dtype.name, quant, array)
        return name

    def new(
        self,
        name: str,
        shape: Sequence[int],
        order: Order,
        dtype: str = "float32",
        quant: Quant | None = None,
    ) -> int:
        """A computed value, and the tensor that holds it in this order."""
        if dtype == _HALF:
            dtype = "float32"  # the processor's kernels compute in it
        if dtype not in DTYPES.values():
            raise Unsupported(f"of {dtype}")
        placed = None if quant is None or quant.per_tensor else replace(quant, axis=order.index(quant.axis))
        tensor = self.file.tensor(name, [shape[axis] for axis in order], dtype, placed or quant)
        self.known[name] = Known(tuple(shape), dtype, quant, forms={order: tensor})
        return tensor

    def alias(self, name: str, source: str) -> None:
        """Another name for the same value."""
        self.known[name] = self.known[source]

    # --- tensors

    def at(self, name: str, order: Order | None = None) -> int:
        """The tensor of a value in an order (None: ONNX's own); writes what it takes to have it."""
        entry = self.known[name]
        order = first(len(entry.shape)) if order is None else order
        if order not in entry.forms:
            entry.forms[order] = self._make(name, entry, order)
        return entry.forms[order]

    def _make(self, name: str, entry: Known, order: Order) -> int:
        shape = [entry.shape[axis] for axis in order]
        if entry.array is not None:
            return self._constant(entry, order)
        if entry.forms:
            source, tensor = next(iter(entry.forms.items()))
            return self._reordered(name, entry, source, tensor, order)
        if entry.codes is None:
            raise Unsupported(f"{name!r} is made by nothing that could be written")
        codes = self.at(entry.codes, order)
        made = self.file.tensor(name, shape, "float32")
        quant = self.file.quant(codes)
        version = 2 if quant is None or quant.per_tensor else 5
        version = 1 if self.file.dtype(codes) == "uint8" else version
        self.file.operator("DEQUANTIZE", version, [codes], [made], options("DequantizeOptions"))
        return made

    def _constant(self, entry: Known, order: Order) -> int:
        array = np.asarray(entry.array).transpose(order)
        quant = entry.quant
        if quant is not None and not quant.per_tensor:
            quant = replace(quant, axis=order.index(quant.axis))
        tensor = self.file.constant(np.ascontiguousarray(array), quant)
        if array.dtype.name != _HALF:
            return tensor
        made = self.file.tensor("", array.shape, "float32")
        self.file.operator("DEQUANTIZE", 3, [tensor], [made], options("DequantizeOptions"))
        return made

    def _reordered(self, name: str, entry: Known, source: Order, tensor: int, order: Order) -> int:
        shape = [entry.shape[axis] for axis in order]
        if squeezed(source, entry.shape) == squeezed(order, entry.shape):
            return self.reshaped(tensor, shape, f"{name}/turned")
        if len(order) > _FEW_AXES:  # the kernels know few axes: those of size 1 are left out
            axes, wanted = squeezed(source, entry.shape), squeezed(order, entry.shape)
            tensor = self.reshaped(tensor, [entry.shape[axis] for axis in axes])
            place = [axes.index(axis) for axis in wanted]
            turned = self.file.tensor(
                "", [entry.shape[axis] for axis in wanted], self.file.dtype(tensor), self.file.quant(tensor)
            )
            self._transpose(tensor, turned, place)
            return self.reshaped(turned, shape, f"{name}/turned")
        made = self.file.tensor(f"{name}/turned", shape, self.file.dtype(tensor), self.file.quant(tensor))
        self._transpose(tensor, made, [source.index(axis) for axis in order])
        return made

    def _transpose(self, tensor: int, made: int, places: Sequence[int]) -> None:
        moves = self.ints(places)
        version = 2 if self.file.dtype(tensor) == "int8" else 1
        self.file.operator("TRANSPOSE", version, [tensor, moves], [made], options("TransposeOptions"))

    def reshaped(self, tensor: int, shape: Sequence[int], name: str = "") -> int:
        """The tensor's bytes in another shape; one RESHAPE of another is written as one."""
        shape = tuple(shape)
        while True:
            if self.file.shape(tensor) == shape:
                return tensor
            maker = self.file.maker(tensor)
            if maker is None or maker[0] != "RESHAPE":
                break
            tensor = maker[1][0]
        made = self.file.tensor(name, shape, self.file.dtype(tensor), self.file.quant(tensor))
        self.reshape_into(tensor, made)
        return made

    def reshape_into(self, tensor: int, made: int) -> None:
        """Fill a tensor that exists with another's bytes."""
        wanted = np.array(self.file.shape(made), np.int32)
        self.file.operator(
            "RESHAPE",
            1,
            [tensor, self.file.constant(wanted)],
            [made],
            options("ReshapeOptions", newShape=wanted),
        )

    def copied(self, tensor: int, name: str) -> int:
        """A tensor of its own with the same content: for an output that has another name already."""
        made = self.file.tensor(
            name, self.file.shape(tensor), self.file.dtype(tensor), self.file.quant(tensor)
        )
        self.reshape_into(tensor, made)
        return made

    def emit(
        self, code: str, inputs: Sequence[int], output: int, kind: str | None = None, **fields: Any
    ) -> None:
        """An operator in the version for its types: 1 for float32, 2 for int8 where nothing else is known of it."""
        self.file.operator(
            code,
            2 if self.file.dtype(output) == "int8" or self.file.dtype(inputs[0]) == "int8" else 1,
            inputs,
            [output],
            options(kind or f"{_camel(code)}Options", **fields) if kind != "" else None,
        )

    def ints(self, values: Sequence[int]) -> int:
        """A constant of int32."""
        return self.file.constant(np.array(values, np.int32))

    def float_constant(self, value: float, like: str = "float32") -> int:
        """A constant number."""
        return self.file.constant(np.array(value, like))

    def padded_rank(self, name: str, rank: int) -> str:
        """The value with axes of size 1 put in front, as broadcasting does; itself where it has the rank."""
        entry = self.known[name]
        if len(entry.shape) >= rank:
            return name
        shape = (1,) * (rank - len(entry.shape)) + entry.shape
        wider = f"{name}#rank{rank}"
        if wider in self.known:
            return wider
        if entry.array is not None:
            quant = entry.quant
            if quant is not None and not quant.per_tensor:
                quant = replace(quant, axis=quant.axis + rank - len(entry.shape))
            return self.add_constant(wider, entry.array.reshape(shape), quant)
        if entry.codes is not None:
            codes = self.padded_rank(entry.codes, rank)
            self.known[wider] = Known(shape, entry.dtype, codes=codes)
            return wider
        self.known[wider] = Known(
            shape, entry.dtype, entry.quant, forms={first(rank): self.reshaped(self.at(name), shape, wider)}
        )
        return wider


def dequantized(codes: Array, quant: Quant) -> Array:
    """The real numbers behind codes, float32."""
    scale, zero = np.array(quant.scale, np.float32), np.array(quant.zero, np.int64)
    if not quant.per_tensor:
        shape = [1] * codes.ndim
        shape[quant.axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    else:
        scale, zero = scale[0], zero[0]
    return np.asarray((codes.astype(np.int64) - zero).astype(np.float32) * scale, np.float32)


def _camel(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


# --- reading ONNX nodes


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """A static shape. Raises Unsupported."""
    shape = static_shape(value)
    if shape is None:
        raise Unsupported(f"the shape of {value.name!r} is not known")
    return shape


def type_of(value: ir.Value) -> str:
    """The numpy name of the value's type. Raises Unsupported."""
    if value.dtype is None:
        raise Unsupported(f"the type of {value.name!r} is not known")
    try:
        return str(value.dtype.numpy())
    except TypeError as err:
        raise Unsupported(f"values of type {value.dtype}") from err


def attributes(node: ir.Node) -> Mapping[str, Any]:
    """Plain values of a node's attributes."""
    plain = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        plain[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return plain


def names(node: ir.Node) -> list[str]:
    """Names of the inputs; "" for one that is left out."""
    return ["" if value is None else value.name or "" for value in node.inputs]


def optional_input(node: ir.Node, index: int) -> str | None:
    """The name of an input that may be left out."""
    given = names(node)
    return given[index] if index < len(given) and given[index] else None


def grouped_axes(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """How a reshape maps axes: the smallest runs of axes (without those of size 1) that hold equally many numbers."""
    if math.prod(before) != math.prod(after) or not math.prod(after):
        raise Unsupported(f"from shape {list(before)} to {list(after)}")
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left or right:
        mine, other = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[i] for i in mine)) != (b := math.prod(after[i] for i in other)):
            if a < b:
                mine.append(left.pop(0))
            else:
                other.append(right.pop(0))
        yield mine, other


Rule = Callable[..., None]
