"""Call the C kernels from Python; the one place that opens the library. Refuses wrong arrays, never converts."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.registry import pick
from edgekit.native import plan_door
from edgekit.native.packing import words_for
from edgekit.native.plan_door import Content, OpenPlan

LIBRARY = "libedgekit_native.so"
ABI_VERSION = 2
_CHOSEN = -1
_NO_KERNEL = -2
_INT32_MAX = 2**31 - 1


class Kernel(NamedTuple):
    """One row of the library's kernel table."""

    family: str
    name: str
    built: bool  # compiled into this library
    supported: bool  # built, and this CPU can run it
    chosen: bool  # what runs when no kernel is named


class _KernelInfo(ctypes.Structure):
    _fields_ = (
        ("family", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("built", ctypes.c_int32),
        ("supported", ctypes.c_int32),
        ("chosen", ctypes.c_int32),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ek_abi_version": (ctypes.c_int32, []),
    "ek_cpu_features": (ctypes.c_uint64, []),
    "ek_cpu_feature_name": (ctypes.c_char_p, [ctypes.c_int32]),
    "ek_kernel_count": (ctypes.c_int32, []),
    "ek_kernel_get": (ctypes.c_int32, [ctypes.c_int32, ctypes.POINTER(_KernelInfo)]),
    "ek_binary_dense": (
        ctypes.c_int32,
        [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int64, ctypes.c_int32],
    ),
    **plan_door.SIGNATURES,
}


@cache
def _library() -> ctypes.CDLL:
    """The opened library with its functions typed. Raises MissingExtra where it was not built or is another version.

    $EDGEKIT_NATIVE_LIBRARY names another file, for who works on the kernels: a build with a sanitizer, say.
    """
    given = os.environ.get("EDGEKIT_NATIVE_LIBRARY")
    resource = Path(given) if given else files("edgekit.native") / LIBRARY
    if not resource.is_file():
        raise MissingExtra(f"the native library {LIBRARY} is not built; run tools/setup or reinstall edgekit")
    with as_file(resource) as path:
        library = ctypes.CDLL(str(path))
    found = library.ek_abi_version()
    if found != ABI_VERSION:
        raise MissingExtra(
            f"the native library has ABI version {found}, wanted {ABI_VERSION}; run tools/setup or reinstall edgekit"
        )
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise MissingExtra(f"the native library has no {name}; run tools/setup or reinstall edgekit")
        function.restype, function.argtypes = result, arguments
    return library


def cpu_features() -> tuple[str, ...]:
    """What this CPU can run, as far as the kernels care: "avx2", "avx512vnni", "neon", "dotprod", ..."""
    library = _library()
    bits = library.ek_cpu_features()
    names = []
    bit = 0
    while (name := library.ek_cpu_feature_name(bit)) is not None:
        if bits >> bit & 1:
            names.append(name.decode())
        bit += 1
    return tuple(names)


def kernels() -> tuple[Kernel, ...]:
    """The kernel table, slowest first within a family. Every instruction set is listed, built or not."""
    library = _library()
    rows = []
    for index in range(library.ek_kernel_count()):
        info = _KernelInfo()
        library.ek_kernel_get(index, ctypes.byref(info))
        rows.append(
            Kernel(
                info.family.decode(),
                info.name.decode(),
                bool(info.built),
                bool(info.supported),
                bool(info.chosen),
            )
        )
    return tuple(rows)


def binary_dense(
    x_bits: NDArray[np.uint64], w_bits: NDArray[np.uint64], n: int, kernel: str | None = None
) -> NDArray[np.int32]:
    """Multiply a binary matrix by a binary vector: n - 2 * popcount(x xor w), row by row.

    x_bits: uint64 (words,), w_bits: uint64 (rows, words), words = ceil(n/64), both as pack_bits makes them (bits past
    n are ignored). n: how many values a row has, 1 to 2^31 - 1. kernel: a name of the table; None takes the chosen one.
    Returns int32 (rows,), each in -n..n with n's parity. Raises BadInput for a wrong shape, dtype or memory layout, for
    an unknown kernel and for one that cannot run here. (Rastegari et al. 2016, XNOR-Net, section 3.)
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _INT32_MAX:
        raise BadInput(f"binary_dense: n must be an integer from 1 to {_INT32_MAX}, got {n!r}")
    words = words_for(n)
    _check("x_bits", x_bits, (words,), n)
    _check("w_bits", w_bits, ("rows", words), n)
    index = _CHOSEN if kernel is None else pick("binary_dense kernel", _indices("binary_dense"), kernel)
    rows = w_bits.shape[0]
    out = np.empty(rows, np.int32)
    code = _library().ek_binary_dense(x_bits.ctypes.data, w_bits.ctypes.data, out.ctypes.data, rows, n, index)
    if code == _NO_KERNEL:
        raise BadInput(
            f"binary_dense: kernel {kernel!r} cannot run on this machine; edgekit native lists those that can"
        )
    if code != 0:
        raise BadInput(f"binary_dense: refused by the library with code {code}")
    return out


@cache
def _indices(family: str) -> dict[str, int]:
    return {row.name: index for index, row in enumerate(kernels()) if row.family == family}


def _check(name: str, array: NDArray[np.uint64], wanted: tuple[int | str, ...], n: int) -> None:
    """Raise BadInput unless the array is uint64, C-contiguous and of the wanted shape (a text matches any length)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint64:
        came = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise BadInput(f"binary_dense: {name} must be an array of uint64, got {came}")
    fits = array.ndim == len(wanted) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        text = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
        raise BadInput(f"binary_dense: {name} must have shape ({text}) for n = {n}, got {array.shape}")
    if not array.flags.c_contiguous:
        raise BadInput(f"binary_dense: {name} must be C-contiguous; numpy.ascontiguousarray makes it so")


def check_plan(content: Content) -> None:
    """Raise BadBundle, with the library's line on why, where these bytes are no plan that it runs."""
    plan_door.check(_library(), content)


def open_plan(content: Content, *, kernels: str | None = None, keep: bool = False) -> OpenPlan:
    """Open a plan file. kernels: the name of an instruction set, None for the fastest; keep: see OpenPlan.

    Raises BadBundle for what is no plan, BadInput for kernels that cannot run here.
    """
    return OpenPlan(_library(), content, kernels=kernels, keep=keep)
