"""The runtimes that execute a stage's parts: one a file, found by name. Each works on buffers the Session owns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.core import registry
from edgekit.core.errors import MissingExtra
from edgekit.core.manifest import Part

Array = NDArray[Any]
ENTRY_POINTS = "edgekit.backends"
_CACHE_LINE = 64  # bytes


@dataclass(frozen=True)
class Options:
    """How parts are opened. providers: execution providers in order, for backends that have them.

    opened: what was made of a part's file, by `BACKEND SHA256`, for further parts of that file in one session: stages
    that repeat others hold their weights once. members: the bundle's members by name (KeyError for none), for a backend
    whose part needs more than its file.
    """

    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    opened: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    members: Callable[[str], bytes] | None = field(default=None, compare=False, repr=False)


class Runner(Protocol):
    """One opened part. Its input and output buffers were fixed when it was opened."""

    provider: str  # what really runs it, as the report names it

    def run(self) -> None:
        """Read the input buffers, fill the output buffers. Raises EdgekitError when the runtime fails."""


# (file content, part, input buffers by name, output buffers by name, options) -> Runner
Open = Callable[[bytes, Part, Mapping[str, Array], Mapping[str, Array], Options], Runner]

BACKENDS: dict[str, str] = {
    "onnxruntime": "edgekit.runtime.backends.onnxruntime",
    "litert": "edgekit.runtime.backends.litert",
    "tflite-runtime": "edgekit.runtime.backends.tflite_runtime",
    "native": "edgekit.runtime.backends.native",
    "overlay": "edgekit.runtime.backends.overlay",
    "overlay-sim": "edgekit.runtime.backends.overlay_sim",
    "null": "edgekit.runtime.backends.null",
}


def opener(name: str) -> Open:
    """The backend's `open_part`. Raises BadInput that lists the known ones; imports only the one asked for."""
    return registry.pick("backend", _table(), name)()


def known_backends() -> tuple[str, ...]:
    """Names of all backends, ours and installed ones."""
    return tuple(sorted(_table()))


def is_installed(name: str) -> bool:
    """Whether the backend's runtime is here and works. Raises BadInput for an unknown name."""
    try:
        opener(name)
    except MissingExtra:
        return False
    return True


@functools.cache
def _table() -> dict[str, Callable[[], Open]]:
    found: dict[str, Callable[[], Open]] = {
        point.name: point.load for point in entry_points(group=ENTRY_POINTS)
    }
    return found | {name: functools.partial(_built_in, module) for name, module in BACKENDS.items()}


def _built_in(module: str) -> Open:
    open_part: Open = import_module(module).open_part
    return open_part


def allocate(dtype: str, shape: tuple[int, ...]) -> Array:
    """A zeroed buffer, contiguous, that stays where it is and begins a cache line: no vector crosses one."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    held = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -held.ctypes.data % _CACHE_LINE
    return held[start : start + size].view(kind).reshape(shape)
