"""The plan file, version 1, for Python: encode and decode. The layout and every number are plan.h's; runs nothing."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadBundle, BadInput

Array = NDArray[Any]
MAGIC, MAJOR, MINOR = 0x4C504B45, 1, 0
MAX_TERMS, MAX_LEVELS = 1 << 24, 256

BITS, U8, I8, I32, F32 = 1, 2, 3, 4, 5
BIPOLAR, UNSIGNED2, SIGNED2, TERNARY, INTEGER8 = 1, 2, 3, 4, 5
PAD_MINUS, PAD_PLUS, PAD_ZERO = 0, 1, 2
SUMS, THRESHOLDS, SCALED = 0, 1, 2
QUANTIZE, LINEAR, THRESHOLD, POOL, SUM, ADD = 1, 2, 3, 4, 5, 6
AFFINE, REQUANTIZE, SOFTMAX, CONFIDENCE, COPY = 7, 8, 9, 10, 11
_INPUT, _OUTPUT, _CHANNELS_FIRST = 1, 2, 4

PLANES = {BIPOLAR: 1, UNSIGNED2: 2, SIGNED2: 2, TERNARY: 2}
LEVELS = {BIPOLAR: 2, UNSIGNED2: 4, SIGNED2: 4, TERNARY: 3}
VALUES = {BIPOLAR: (-1, 1), UNSIGNED2: (0, 1, 2, 3), SIGNED2: (-2, -1, 0, 1), TERNARY: (-1, 0, 1)}
KIND_NAMES = {
    QUANTIZE: "quantize",
    LINEAR: "linear",
    THRESHOLD: "threshold",
    POOL: "pool",
    SUM: "sum",
    ADD: "add",
    AFFINE: "affine",
    REQUANTIZE: "requantize",
    SOFTMAX: "softmax",
    CONFIDENCE: "confidence",
    COPY: "copy",
}
_DTYPES = {U8: "u1", I8: "i1", I32: "<i4", F32: "<f4"}

_HEADER = struct.Struct("<IHHIIIIIIHHIIII")
_TENSOR = struct.Struct("<BBBBiiiII")
_OPERATOR = struct.Struct("<HHiii64s")
_LINEAR = struct.Struct("<8H4B8I")
_QUANTIZE = struct.Struct("<fi")
_THRESHOLD = struct.Struct("<Ii4I")
_WINDOW = struct.Struct("<4H2I")
_AFFINE = struct.Struct("<4I")
_REQUANTIZE = struct.Struct("<ii6I")
_AFTER_CRC = 16  # bytes of the header up to and with crc32


@dataclass(frozen=True)
class PlanTensor:
    """h x w x c values, channels last. name: of inputs and outputs. channels_first: how an input lies outside."""

    type: int
    h: int
    w: int
    c: int
    coding: int = 0
    is_input: bool = False
    is_output: bool = False
    channels_first: bool = False
    name: str = ""

    @property
    def count(self) -> int:
        """Values in it."""
        return self.h * self.w * self.c


@dataclass(frozen=True)
class Quantize:
    """See EK_QUANTIZE."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Linear:
    """See ek_plan_linear. weights: codes uint8, or int8 for INTEGER8, (out_c, kernel_h, kernel_w, in_c).

    thresholds: int (out_c, levels - 1), rising; scale, bias: float32 (out_c,). pads: top, left, bottom, right.
    """

    weights: Array
    coding: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad: int = PAD_ZERO
    epilogue: int = SUMS
    thresholds: Array | None = None
    scale: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True)
class Threshold:
    """See EK_THRESHOLD. thresholds: (c, levels - 1) int32, or float32 for a float input; falling: bool (c,)."""

    thresholds: Array
    first: int = 0
    falling: Array | None = None


@dataclass(frozen=True)
class Window:
    """See ek_plan_window. smallest: bool (c,), of a pool."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    smallest: Array | None = None


@dataclass(frozen=True)
class Affine:
    """See EK_AFFINE: float32 (c,) each."""

    scale: Array
    bias: Array


@dataclass(frozen=True)
class Requantize:
    """See EK_REQUANTIZE: int32, int64, uint8 (c,) each."""

    low: int
    high: int
    multiplier: Array
    addend: Array
    shift: Array


Parameters = Quantize | Linear | Threshold | Window | Affine | Requantize | None


@dataclass(frozen=True)
class Operator:
    """One step. inputs, output: indices into Plan.tensors."""

    kind: int
    inputs: tuple[int, ...]
    output: int
    of: Parameters = None


@dataclass(frozen=True)
class Plan:
    """A network as the executor runs it. design: an overlay's folding, as JSON text."""

    tensors: tuple[PlanTensor, ...]
    operators: tuple[Operator, ...]
    design: str = field(default="")

    def marked(self, *, outputs: bool) -> tuple[int, ...]:
        """Indices of the plan's inputs or outputs, in the order in which the executor takes them."""
        wanted = "is_output" if outputs else "is_input"
        return tuple(index for index, tensor in enumerate(self.tensors) if getattr(tensor, wanted))


def row_words(terms: int) -> int:
    """32-bit words that one plane of a weight row takes."""
    return (terms + 31) // 32


def pack_weights(codes: Array, coding: int) -> bytes:
    """Weight codes (out_c, kernel_h, kernel_w, in_c) as the file's rows."""
    rows = codes.reshape(len(codes), -1)
    if coding == INTEGER8:
        return np.pad(rows.astype(np.int8), [(0, 0), (0, -rows.shape[1] % 4)]).tobytes()
    planes = np.stack([_plane(rows, coding, index) for index in range(PLANES[coding])], axis=1)
    packed = np.packbits(planes, axis=-1, bitorder="little")
    return np.pad(packed, [(0, 0), (0, 0), (0, -packed.shape[-1] % 4)]).tobytes()


def unpack_weights(data: bytes, coding: int, shape: tuple[int, int, int, int]) -> Array:
    """The inverse of pack_weights."""
    terms = shape[1] * shape[2] * shape[3]
    if coding == INTEGER8:
        rows = np.frombuffer(data, np.int8).reshape(shape[0], terms + -terms % 4)
        return np.ascontiguousarray(rows[:, :terms]).reshape(shape)
    words = np.frombuffer(data, np.uint8).reshape(shape[0], PLANES[coding], row_words(terms) * 4)
    planes = np.unpackbits(words, axis=-1, count=terms, bitorder="little")
    if coding == BIPOLAR:
        return planes[:, 0].reshape(shape)
    codes = planes[:, 0] + planes[:, 1] * (1 if coding == TERNARY else 2)
    return codes.astype(np.uint8).reshape(shape)


def _plane(codes: Array, coding: int, index: int) -> NDArray[np.bool_]:
    if coding == TERNARY:  # a thermometer: 0, 1, 2 bits set
        return np.asarray(codes > index, np.bool_)
    return np.asarray(codes >> index & 1, np.bool_)


# --- writing ------------------------------------------------------------------------------------------------


class _Data:
    """Bytes behind the tables, each piece at a multiple of 8."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._bytes = bytearray()

    def add(self, content: bytes) -> tuple[int, int]:
        if not content:
            return (0, 0)
        self._bytes += bytes(-len(self._bytes) % 8)
        offset = self._start + len(self._bytes)
        self._bytes += content
        return (offset, len(content))

    def array(self, array: Array | None, dtype: str) -> tuple[int, int]:
        return self.add(b"" if array is None else np.ascontiguousarray(array).astype(dtype).tobytes())

    def bits(self, flags: Array | None) -> tuple[int, int]:
        return self.add(b"" if flags is None else np.packbits(flags, bitorder="little").tobytes())

    def content(self) -> bytes:
        return bytes(self._bytes) + bytes(-len(self._bytes) % 8)


def encode(plan: Plan) -> bytes:
    """The file's bytes; the same plan gives the same ones. ek_plan_check says whether they make sense."""
    tensor_offset = _HEADER.size + -_HEADER.size % 8
    operator_offset = tensor_offset + len(plan.tensors) * _TENSOR.size
    start = operator_offset + len(plan.operators) * _OPERATOR.size
    data = _Data(start + -start % 8)
    tensors = b"".join(_encode_tensor(tensor, data) for tensor in plan.tensors)
    operators = b"".join(_encode_operator(operator, plan, data) for operator in plan.operators)
    design = data.add(plan.design.encode())
    rest = data.content()
    body = tensors + operators + bytes(-start % 8) + rest
    size = tensor_offset + len(body)
    fields = (
        *(len(plan.tensors), len(plan.operators), tensor_offset, operator_offset),
        *(_TENSOR.size, _OPERATOR.size),
        *(len(plan.marked(outputs=False)), len(plan.marked(outputs=True)), *design),
    )
    head = _HEADER.pack(MAGIC, MAJOR, MINOR, size, 0, *fields)
    after = head[_AFTER_CRC:] + bytes(tensor_offset - _HEADER.size) + body
    return (
        _HEADER.pack(MAGIC, MAJOR, MINOR, size, zlib.crc32(after), *fields)
        + after[_HEADER.size - _AFTER_CRC :]
    )


def _encode_tensor(tensor: PlanTensor, data: _Data) -> bytes:
    flags = _INPUT * tensor.is_input | _OUTPUT * tensor.is_output | _CHANNELS_FIRST * tensor.channels_first
    name = data.add(tensor.name.encode())
    return _TENSOR.pack(tensor.type, tensor.coding, flags, 0, tensor.h, tensor.w, tensor.c, *name)


def _encode_operator(operator: Operator, plan: Plan, data: _Data) -> bytes:
    first, second = (*operator.inputs, -1, -1)[:2]
    from_float = plan.tensors[first].type == F32
    return _OPERATOR.pack(
        operator.kind,
        0,
        first,
        second,
        operator.output,
        _encode_parameters(operator.of, data, from_float=from_float),
    )


def _encode_parameters(of: Parameters, data: _Data, *, from_float: bool) -> bytes:
    match of:
        case None:
            return b""
        case Quantize():
            return _QUANTIZE.pack(of.scale, of.zero_point)
        case Linear():
            return _encode_linear(of, data)
        case Threshold():
            dtype = "<f4" if from_float else "<i4"
            spans = (*data.array(of.thresholds, dtype), *data.bits(of.falling))
            return _THRESHOLD.pack(of.thresholds.shape[1] + 1, of.first, *spans)
        case Window():
            return _WINDOW.pack(*of.kernel, *of.stride, *data.bits(of.smallest))
        case Affine():
            return _AFFINE.pack(*data.array(of.scale, "<f4"), *data.array(of.bias, "<f4"))
        case Requantize():
            scaling = (*data.array(of.multiplier, "<i4"), *data.array(of.addend, "<i8"))
            return _REQUANTIZE.pack(of.low, of.high, *scaling, *data.array(of.shift, "u1"))


def _encode_linear(of: Linear, data: _Data) -> bytes:
    thresholds, wide = of.thresholds, False
    if thresholds is not None:
        thresholds, wide = _narrowed(thresholds)
    return _LINEAR.pack(
        *(*of.kernel, *of.stride, *of.pads),
        *(of.pad, of.coding, of.epilogue, wide),
        *data.add(pack_weights(of.weights, of.coding)),
        *data.array(thresholds, "<i4" if wide else "<i2"),
        *data.array(of.scale, "<f4"),
        *data.array(of.bias, "<f4"),
    )


def _narrowed(thresholds: Array) -> tuple[Array, bool]:
    """In 16 bits where all fit; the ends of int32 (always, never) become the ends of int16."""
    ends = np.iinfo(np.int32)
    short = np.iinfo(np.int16)
    inner = thresholds[(thresholds != ends.min) & (thresholds != ends.max)]
    if inner.size and (inner.min() <= short.min or inner.max() >= short.max):
        return thresholds, True
    return np.clip(thresholds, short.min, short.max), False


# --- reading ------------------------------------------------------------------------------------------------


def decode(content: bytes) -> Plan:
    """Read a plan. Raises BadBundle for what is none; ek_plan_check is the one that checks every bound."""
    try:
        return _decode(content)
    except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError) as err:
        raise BadBundle(f"the plan is damaged: {err}") from err


def decode_tensors(content: bytes | memoryview) -> tuple[PlanTensor, ...]:
    """The tensors alone, of a plan that ek_plan_check has accepted."""
    count, _, at, _, size, *_ = _HEADER.unpack_from(content)[5:]
    return tuple(_decode_tensor(content, at + index * size) for index in range(count))


def constant_bytes(content: bytes) -> int:
    """Bytes of weights, thresholds and scales in a plan that ek_plan_check has accepted."""
    _, count, _, at, _, size, *_ = _HEADER.unpack_from(content)[5:]
    spans = {LINEAR: (20, 4), THRESHOLD: (8, 2), POOL: (8, 1), AFFINE: (0, 2), REQUANTIZE: (8, 3)}
    total = 0
    for index in range(count):
        kind, _, _, _, _, raw = _OPERATOR.unpack_from(content, at + index * size)
        start, number = spans.get(kind, (0, 0))
        total += sum(struct.unpack_from(f"<{2 * number}I", raw, start)[1::2])
    return total


def _decode(content: bytes) -> Plan:
    magic, major, _, size, crc, *fields = _HEADER.unpack_from(content)
    if magic != MAGIC or size != len(content):
        raise BadBundle(
            f"must be a plan of {size} bytes, got {len(content)}" if magic == MAGIC else "must be a plan file"
        )
    if major != MAJOR:
        raise BadBundle(f"the plan has version {major}, this edgekit reads {MAJOR}: update edgekit")
    if crc != zlib.crc32(content[_AFTER_CRC:]):
        raise BadBundle("the plan is damaged: its checksum differs")
    n_tensors, n_operators, tensor_at, operator_at, tensor_size, operator_size, _, _, *design = fields
    tensors = tuple(_decode_tensor(content, tensor_at + index * tensor_size) for index in range(n_tensors))
    operators = tuple(
        _decode_operator(content, operator_at + index * operator_size, tensors)
        for index in range(n_operators)
    )
    return Plan(tensors, operators, _span(content, design[0], design[1]).decode())


def _span(content: bytes | memoryview, offset: int, size: int) -> bytes:
    if offset + size > len(content):
        raise ValueError(f"a span ends at {offset + size} of {len(content)} bytes")
    return bytes(content[offset : offset + size])


def _decode_tensor(content: bytes | memoryview, at: int) -> PlanTensor:
    kind, coding, flags, _, h, w, c, *name = _TENSOR.unpack_from(content, at)
    return PlanTensor(
        *(kind, h, w, c, coding),
        *(bool(flags & _INPUT), bool(flags & _OUTPUT), bool(flags & _CHANNELS_FIRST)),
        name=_span(content, *name).decode(),
    )


def _decode_operator(content: bytes, at: int, tensors: tuple[PlanTensor, ...]) -> Operator:
    kind, _, first, second, output, raw = _OPERATOR.unpack_from(content, at)
    inputs = tuple(index for index in (first, second) if index >= 0)
    return Operator(
        kind, inputs, output, _decode_parameters(content, kind, raw, tensors[first], tensors[output])
    )


def _decode_parameters(
    content: bytes, kind: int, raw: bytes, source: PlanTensor, made: PlanTensor
) -> Parameters:
    def array(offset: int, size: int, dtype: str) -> Array:
        found: Array = np.frombuffer(_span(content, offset, size), dtype).copy()
        return found

    def bits(offset: int, size: int) -> Array | None:
        if not size:
            return None
        return np.unpackbits(array(offset, size, "u1"), count=made.c, bitorder="little").astype(np.bool_)

    if kind == QUANTIZE:
        return Quantize(*_QUANTIZE.unpack_from(raw))
    if kind == LINEAR:
        return _decode_linear(content, raw, source, made)
    if kind == THRESHOLD:
        levels, start, *spans = _THRESHOLD.unpack_from(raw)
        dtype = _DTYPES[F32] if source.type == F32 else _DTYPES[I32]
        values = array(spans[0], spans[1], dtype).reshape(made.c, levels - 1)
        return Threshold(values, start, bits(spans[2], spans[3]))
    if kind in (POOL, SUM):
        kernel_h, kernel_w, stride_h, stride_w, *spans = _WINDOW.unpack_from(raw)
        return Window((kernel_h, kernel_w), (stride_h, stride_w), bits(spans[0], spans[1]))
    if kind == AFFINE:
        spans = list(_AFFINE.unpack_from(raw))
        return Affine(array(spans[0], spans[1], "<f4"), array(spans[2], spans[3], "<f4"))
    if kind == REQUANTIZE:
        low, high, *spans = _REQUANTIZE.unpack_from(raw)
        return Requantize(
            *(low, high, array(spans[0], spans[1], "<i4")),
            *(array(spans[2], spans[3], "<i8"), array(spans[4], spans[5], "u1")),
        )
    if kind not in KIND_NAMES:
        raise BadInput(f"the plan has an operator of unknown kind {kind}: update edgekit")
    return None


def _decode_linear(content: bytes, raw: bytes, source: PlanTensor, made: PlanTensor) -> Linear:
    *numbers, pad, coding, epilogue, wide = _LINEAR.unpack_from(raw)[:12]
    spans = _LINEAR.unpack_from(raw)[12:]
    kernel_h, kernel_w, stride_h, stride_w, *pads = numbers
    pieces = [_span(content, spans[2 * index], spans[2 * index + 1]) for index in range(4)]
    thresholds = np.frombuffer(pieces[1], "<i4" if wide else "<i2").astype(np.int32)
    if not wide:
        ends, short = np.iinfo(np.int32), np.iinfo(np.int16)
        thresholds[thresholds == short.min] = ends.min
        thresholds[thresholds == short.max] = ends.max
    return Linear(
        weights=unpack_weights(pieces[0], coding, (made.c, kernel_h, kernel_w, source.c)),
        coding=coding,
        kernel=(kernel_h, kernel_w),
        stride=(stride_h, stride_w),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        pad=pad,
        epilogue=epilogue,
        thresholds=thresholds.reshape(made.c, -1) if pieces[1] else None,
        scale=np.frombuffer(pieces[2], "<f4").copy() if pieces[2] else None,
        bias=np.frombuffer(pieces[3], "<f4").copy() if pieces[3] else None,
    )
