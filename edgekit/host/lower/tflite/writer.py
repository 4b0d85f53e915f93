"""Write a TFLite file: tensors, operators, one subgraph. The same calls give the same bytes. Knows no ONNX.

The schema is the one that LiteRT's package ships (github.com/google-ai-edge/LiteRT, schema.fbs, version 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import MissingExtra

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
except ImportError as err:
    raise MissingExtra("writing .tflite files needs ai-edge-litert: pip install 'edgekit[litert]'") from err

__all__ = ["DTYPES", "Array", "Quant", "TfliteFile", "options", "schema"]

Array = NDArray[Any]
VERSION, IDENTIFIER = 3, b"TFL3"
_OLD_CODES = 127  # codes above it stand in a field of their own, which older readers do not know
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}
DTYPES = {code: name for name, code in _TYPES.items()}


@dataclass(frozen=True)
class Quant:
    """real = scale * (code - zero), per tensor, or per index of `axis`. Scales are float32 values."""

    scale: tuple[float, ...]
    zero: tuple[int, ...]
    axis: int = 0

    @property
    def per_tensor(self) -> bool:
        """One scale for all."""
        return len(self.scale) == 1

    def same(self, other: Quant | None) -> bool:
        """Whether both read codes alike."""
        return other is not None and (self.scale, self.zero) == (other.scale, other.zero)


@dataclass
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None
    data: Array | None


@dataclass(frozen=True)
class _Operator:
    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


class TfliteFile:
    """A file in the making: what is added is numbered from 0."""

    def __init__(self) -> None:
        self._tensors: list[_Tensor] = []
        self._operators: list[_Operator] = []
        self._constants: dict[tuple[object, ...], int] = {}
        self._made: dict[int, _Operator] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: str, quant: Quant | None = None) -> int:
        """A tensor that some operator or the caller fills."""
        self._tensors.append(_Tensor(name, tuple(map(int, shape)), dtype, quant, None))
        return len(self._tensors) - 1

    def constant(self, array: Array, quant: Quant | None = None, name: str = "") -> int:
        """A tensor with its numbers; equal ones are stored once."""
        array = np.asarray(array, order="C")
        key = (array.dtype.name, array.shape, quant, array.tobytes())
        if key not in self._constants:
            self._tensors.append(_Tensor(name, array.shape, array.dtype.name, quant, array))
            self._constants[key] = len(self._tensors) - 1
        return self._constants[key]

    def operator(
        self, code: str, version: int, inputs: Sequence[int], outputs: Sequence[int], options: Any = None
    ) -> None:
        """One operator by its name in the schema (`CONV_2D`). -1 among inputs: one that is left out."""
        made = _Operator(code, version, tuple(inputs), tuple(outputs), options)
        self._operators.append(made)
        self._made.update(dict.fromkeys(outputs, made))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._tensors[tensor].shape

    def dtype(self, tensor: int) -> str:
        """A tensor's type."""
        return self._tensors[tensor].dtype

    def quant(self, tensor: int) -> Quant | None:
        """How a tensor's codes are read; None: they are numbers."""
        return self._tensors[tensor].quant

    def maker(self, tensor: int) -> tuple[str, tuple[int, ...]] | None:
        """The operator that fills a tensor: its code and inputs."""
        made = self._made.get(tensor)
        return None if made is None else (made.code, made.inputs)

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name

    def requantify(self, tensor: int, quant: Quant) -> None:
        """Write a scale exactly as a kernel wants it; it must be the tensor's own but for rounding."""
        self._tensors[tensor].quant = quant

    def operators(self, outputs: Sequence[int]) -> list[tuple[str, int]]:
        """Code and version of every operator that these outputs need."""
        return [(entry.code, entry.version) for entry in self._live(outputs)]

    def _live(self, outputs: Sequence[int]) -> list[_Operator]:
        needed, live = set(outputs), []
        for entry in reversed(self._operators):
            if needed & set(entry.outputs):
                needed |= set(entry.inputs)
                live.append(entry)
        return live[::-1]

    def to_bytes(self, inputs: Sequence[int], outputs: Sequence[int], name: str) -> bytes:
        """The file, without what no output needs."""
        live = self._live(outputs)
        used = sorted({*inputs, *outputs, *(t for o in live for t in (*o.inputs, *o.outputs) if t >= 0)})
        number = {tensor: index for index, tensor in enumerate(used)} | {-1: -1}
        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.description = VERSION, "edgekit"
        model.buffers = [schema.BufferT()]  # buffer 0 stands for no data
        graph.name = name
        taken = {self._tensors[tensor].name for tensor in used}
        free = (name for name in (f"t{index}" for index in itertools.count()) if name not in taken)
        graph.tensors = [self._packed(model, self._tensors[tensor], free) for tensor in used]
        graph.inputs = [number[tensor] for tensor in inputs]
        graph.outputs = [number[tensor] for tensor in outputs]
        codes = sorted({(entry.code, entry.version) for entry in live})
        model.operatorCodes = [_operator_code(code, version) for code, version in codes]
        graph.operators = [
            _operator(entry, codes.index((entry.code, entry.version)), number) for entry in live
        ]
        model.subgraphs = [graph]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _packed(self, model: Any, tensor: _Tensor, free: Iterator[str]) -> Any:
        made = schema.TensorT()
        made.name = tensor.name or next(free)  # other tools want every tensor to have one
        made.shape, made.type = list(tensor.shape), _TYPES[tensor.dtype]
        if tensor.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(tensor.data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        if tensor.quant is not None:
            quant = schema.QuantizationParametersT()
            quant.scale = np.array(tensor.quant.scale, np.float32)
            quant.zeroPoint = np.array(tensor.quant.zero, np.int64)
            quant.quantizedDimension = 0 if tensor.quant.per_tensor else tensor.quant.axis
            made.quantization = quant
        return made


def options(kind: str, **fields: Any) -> Any:
    """An operator's options: `options("Pool2DOptions", filterWidth=2)`. An unknown field is an AttributeError."""
    made = getattr(schema, f"{kind}T")()
    for key, value in fields.items():
        getattr(made, key)
        setattr(made, key, value)
    return made


def _operator_code(code: str, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = getattr(schema.BuiltinOperator, code)
    made.deprecatedBuiltinCode = min(made.builtinCode, _OLD_CODES)
    made.version = version
    return made


def _operator(entry: _Operator, index: int, number: dict[int, int]) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = index
    made.inputs = [number[tensor] for tensor in entry.inputs]
    made.outputs = [number[tensor] for tensor in entry.outputs]
    if entry.options is not None:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(entry.options).__name__[:-1])
        made.builtinOptions = entry.options
    return made
