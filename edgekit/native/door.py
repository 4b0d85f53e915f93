"""Call the C kernels from Python; the one place that opens the library. Refuses wrong arrays, never converts."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.core.errors import MissingExtra
from edgekit.native import plan_door
from edgekit.native.plan_door import Content, OpenPlan

LIBRARY = "libedgekit_native.so"
ABI_VERSION = 2


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


def check_plan(content: Content) -> None:
    """Raise BadBundle, with the library's line on why, where these bytes are no plan that it runs."""
    plan_door.check(_library(), content)


def open_plan(content: Content, *, kernels: str | None = None, keep: bool = False) -> OpenPlan:
    """Open a plan file. kernels: the name of an instruction set, None for the fastest; keep: see OpenPlan.

    Raises BadBundle for what is no plan, BadInput for kernels that cannot run here.
    """
    return OpenPlan(_library(), content, kernels=kernels, keep=keep)
