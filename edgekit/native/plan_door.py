"""Plans opened by the native library: memory, buffers, one call a run. door.py opens the library and hands it over."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadBundle, BadInput
from edgekit.native.plan import BITS, F32, I8, I32, PLANES, U8, Array, PlanTensor, decode_tensors

_KEEP = 1
_ALIGNMENT = 64
_WHY_SIZE = 256
_DTYPES = {BITS: np.uint8, U8: np.uint8, I8: np.int8, I32: np.int32, F32: np.float32}

# A plan's bytes. They are read in place as long as the plan is open; an array of uint8 may be a mapped file.
Content = bytes | NDArray[np.uint8]

_TEXT, _BYTES, _SIZE = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ek_plan_check": (ctypes.c_int32, [_BYTES, _SIZE, _TEXT, _SIZE]),
    "ek_plan_arena": (_SIZE, [_BYTES, _SIZE, _TEXT, ctypes.c_uint32]),
    "ek_plan_open": (
        ctypes.c_int32,
        [_BYTES, _SIZE, _BYTES, _SIZE, _TEXT, ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)],
    ),
    "ek_plan_run": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]),
    "ek_plan_codes": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64]),
}


def check(library: ctypes.CDLL, content: Content) -> None:
    """Raise BadBundle with the library's line where these bytes are no plan that it runs."""
    _checked(library, _aligned_copy(content))


def outside_shape(tensor: PlanTensor) -> tuple[int, ...]:
    """Shape of the array that stands for an input or output: see plan.h."""
    if tensor.type == BITS:
        return (tensor.h, tensor.w, PLANES[tensor.coding], (tensor.c + 7) // 8)
    if tensor.channels_first:
        return (tensor.c, tensor.h, tensor.w)
    return (tensor.h, tensor.w, tensor.c)


def outside_dtype(tensor: PlanTensor) -> np.dtype[Any]:
    """Dtype of that array; bits are bytes."""
    return np.dtype(_DTYPES[tensor.type])


def same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are one but for axes of length 1."""
    return [size for size in one if size != 1] == [size for size in other if size != 1]


class OpenPlan:
    """A plan in memory of its own, ready to run; for one thread at a time. inputs, outputs: in the order of `run`.

    keep: every tensor has its own place, so that `codes` can read it. kernels: the name of an instruction set; None
    takes the fastest here. Raises BadBundle for no plan, BadInput for kernels that this machine cannot run.
    """

    def __init__(
        self, library: ctypes.CDLL, content: Content, *, kernels: str | None = None, keep: bool = False
    ) -> None:
        self._library = library
        self._plan = _aligned_copy(content)
        name = None if kernels is None else kernels.encode()
        options = _KEEP if keep else 0
        self._keeps = keep
        file = self._plan.ctypes.data, self._plan.size
        self.arena_bytes = int(library.ek_plan_arena(*file, name, options))
        if self.arena_bytes == 0:
            _checked(library, self._plan)
            raise BadInput(
                f"kernels must be an instruction set that this machine runs, got {kernels!r}; edgekit native lists them"
                if kernels is not None
                else "the plan needs more memory than this machine can address"
            )
        self._arena = _aligned(self.arena_bytes)
        opened = ctypes.c_void_p()
        code = library.ek_plan_open(
            *file, self._arena.ctypes.data, self.arena_bytes, name, options, ctypes.byref(opened)
        )
        if code != 0 or opened.value is None:
            raise BadBundle(f"the plan cannot be opened: code {code}")
        self._opened = opened
        self.tensors = decode_tensors(memoryview(self._plan.data))
        self.inputs = tuple(tensor for tensor in self.tensors if tensor.is_input)
        self.outputs = tuple(tensor for tensor in self.tensors if tensor.is_output)
        self._call: Callable[[], int] | None = None

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Fix the arrays that `run_bound` reads and fills. Raises BadInput in one line for those that do not fit.

        They are contiguous, of outside_dtype, and of outside_shape but for axes of length 1.
        """
        self._call = self._bound(inputs, outputs, kept=None)  # not self: memory would wait for the collector

    def bound(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], int]:
        """A call that runs the plan on these arrays and returns 0; several may stand side by side. See bind."""
        return self._bound(inputs, outputs, kept=self)

    def _bound(self, inputs: Sequence[Array], outputs: Sequence[Array], kept: object) -> Callable[[], int]:
        """kept: what must live as long as the call does, besides the arrays."""
        given = _pointers("input", self.inputs, inputs), _pointers("output", self.outputs, outputs)
        given[0].kept = (kept, *inputs, *outputs)
        return partial(self._library.ek_plan_run, self._opened, *given)

    def run_bound(self) -> None:
        """Run once on the arrays that were bound."""
        if self._call is None:
            raise BadInput("bind the plan's inputs and outputs before it runs")
        code = self._call()
        if code != 0:
            raise BadInput(f"the plan was refused by the library with code {code}")

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run once on these arrays. Raises BadInput as `bind` does."""
        self.bind(inputs, outputs)
        self.run_bound()

    def codes(self, tensor: int) -> NDArray[np.int32]:
        """What a tensor held in the last run, (h, w, c): codes of bits, integers as they are, floats as their bits.

        Raises BadInput for a tensor that the plan has not, or a plan opened without keep.
        """
        if not self._keeps or not 0 <= tensor < len(self.tensors):
            raise BadInput(f"a tensor of a plan opened with keep is wanted, got {tensor}")
        about = self.tensors[tensor]
        found = np.empty((about.h, about.w, about.c), np.int32)
        code = self._library.ek_plan_codes(self._opened, tensor, found.ctypes.data, found.size)
        if code != 0:
            raise BadInput(f"tensor {tensor} was refused by the library with code {code}")
        return found


def _checked(library: ctypes.CDLL, plan: NDArray[np.uint8]) -> None:
    why = ctypes.create_string_buffer(_WHY_SIZE)
    if library.ek_plan_check(plan.ctypes.data, plan.size, why, _WHY_SIZE) != 0:
        raise BadBundle(f"not a plan that this edgekit runs: {why.value.decode('ascii', 'replace')}")


def _aligned(size: int) -> NDArray[np.uint8]:
    """`size` bytes at a multiple of 64."""
    held = np.empty(size + _ALIGNMENT, np.uint8)
    start = -held.ctypes.data % _ALIGNMENT
    return held[start : start + size]


def _aligned_copy(content: Content) -> NDArray[np.uint8]:
    """The bytes where the library can read numbers in place; copied only where they are not there already."""
    if isinstance(content, bytes):
        content = np.frombuffer(content or b"\0", np.uint8)  # of nothing numpy makes no array
    found = content
    if found.ctypes.data % 8 == 0:
        return found
    copied = _aligned(found.size)
    copied[...] = found
    return copied


def _pointers(what: str, tensors: Sequence[PlanTensor], arrays: Sequence[Array]) -> Any:
    if len(arrays) != len(tensors):
        raise BadInput(f"the plan has {len(tensors)} {what}s, got {len(arrays)} arrays")
    for tensor, array in zip(tensors, arrays, strict=True):
        _check_array(f"{what} {tensor.name!r}", tensor, array, written=what == "output")
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _check_array(where: str, tensor: PlanTensor, array: Array, *, written: bool) -> None:
    shape, dtype = outside_shape(tensor), outside_dtype(tensor)
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        came = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise BadInput(f"{where} must be an array of {dtype}, got {came}")
    if not same_shape(array.shape, shape):
        raise BadInput(f"{where} must have shape {list(shape)}, got {list(array.shape)}")
    if not array.flags.c_contiguous:
        raise BadInput(f"{where} must be C-contiguous; numpy.ascontiguousarray makes it so")
    if written and not array.flags.writeable:
        raise BadInput(f"{where} must be writeable")
