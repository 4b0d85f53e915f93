"""Tensors of the Open Inference Protocol as JSON and as bytes, and back. Little-endian, row-major, no padding.

Source: the protocol's specification (inference_rest.md) and the binary tensor data extension.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.core.errors import BadInput
from edgekit.runtime.backends import Array

BYTES = "BYTES"
DATATYPES: Mapping[str, str] = {
    "float32": "FP32",
    "float16": "FP16",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
"""Our dtypes by the protocol's names for them."""
_DTYPES = {datatype: np.dtype(dtype) for dtype, datatype in DATATYPES.items()}
KNOWN = (*_DTYPES, BYTES)


def from_bytes(data: memoryview, datatype: str, shape: tuple[int, ...], where: str) -> Array:
    """The tensor that lies in `data`; a view of it. Raises BadInput."""
    dtype = _DTYPES[datatype]
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise BadInput(f"{where}: {datatype} {list(shape)} takes {wanted} bytes, got {len(data)}")
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        if flags.size and int(flags.max()) > 1:
            raise BadInput(f"{where}: BOOL must be bytes of 0 and 1, got {int(flags.max())}")
        return flags.view(np.bool_).reshape(shape)
    found: Array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    return found


def from_json(data: object, datatype: str, shape: tuple[int, ...], where: str) -> Array:
    """The tensor in a list of JSON, flat or nested as `shape` says. Raises BadInput."""
    flat = _flat(data, shape, where)
    dtype, kinds = _DTYPES[datatype], {type(value) for value in flat}
    wanted = _KINDS.get(dtype.kind, frozenset({int}))
    as_bits = dtype.kind == "b" and kinds <= {bool, int} and set(flat) <= {0, 1}
    if not kinds <= wanted and not as_bits:
        names = ", ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds - wanted))
        raise BadInput(f"{where}: data of {datatype} must be {_IN_WORDS[dtype.kind]}, got {names}")
    try:
        with np.errstate(over="ignore"):
            wide: Array = np.array(flat, {"f": np.float64, "b": np.bool_}.get(dtype.kind, np.int64))
            array: Array = wide.astype(dtype).reshape(shape)
        fits = bool(np.isfinite(array).all() if dtype.kind == "f" else (array.ravel() == wide).all())
    except OverflowError:
        fits = False
    if not fits:
        raise BadInput(f"{where}: data has a number that {datatype} cannot hold")
    return array


_KINDS: Mapping[str, frozenset[type]] = {"f": frozenset({int, float}), "b": frozenset({bool})}
_IN_WORDS = {"f": "numbers", "b": "true and false", "i": "whole numbers", "u": "whole numbers"}


def _flat(data: object, shape: tuple[int, ...], where: str) -> list[Any]:
    if not isinstance(data, list):
        raise BadInput(f"{where}: needs data, a list, or binary_data_size")
    flat, sizes = data, list(shape)
    if flat and isinstance(flat[0], list):
        if not shape or len(flat) != shape[0]:
            raise _misshapen(where, shape)
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in flat):
                raise _misshapen(where, shape)
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != math.prod(sizes):
        raise BadInput(f"{where}: shape {list(shape)} takes {math.prod(sizes)} values, data has {len(flat)}")
    return flat


def _misshapen(where: str, shape: tuple[int, ...]) -> BadInput:
    return BadInput(f"{where}: data must be flat or nested as shape {list(shape)} says")


def one_text(data: memoryview, shape: tuple[int, ...], where: str) -> bytes:
    """The content of a BYTES tensor of one element: its length in 4 bytes, then itself. Raises BadInput."""
    if math.prod(shape) != 1:
        raise BadInput(f"{where}: BYTES must be of shape [1], one encoded image, got {list(shape)}")
    if len(data) < _LENGTH.size or _LENGTH.unpack_from(data)[0] != len(data) - _LENGTH.size:
        raise BadInput(f"{where}: BYTES must be a length in 4 bytes and as many bytes")
    return bytes(data[_LENGTH.size :])


_LENGTH = struct.Struct("<I")


def to_bytes(array: Array) -> bytes:
    """A tensor as it goes out in binary."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def to_json(array: Array) -> list[Any]:
    """A tensor's values, flat. What JSON cannot hold (NaN, infinity) is null: ask for binary data where it matters."""
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in values]
    return values


def texts_to_bytes(texts: Sequence[str]) -> bytes:
    """A BYTES tensor: each element's length in 4 bytes, then itself."""
    encoded = [text.encode() for text in texts]
    return b"".join(_LENGTH.pack(len(text)) + text for text in encoded)


def classes(output: Array, count: int, labels: tuple[str, ...] | None) -> list[str]:
    """The `count` largest values as `value:index[:label]`, as the classification extension writes them."""
    values = output.ravel()
    order = np.argsort(-values.astype(np.float64), kind="stable")[:count]
    found = []
    for index in order.tolist():
        value = values[index].item()
        text = f"{value:f}:{index}" if isinstance(value, float) else f"{int(value)}:{index}"
        found.append(f"{text}:{labels[index]}" if labels is not None and index < len(labels) else text)
    return found
