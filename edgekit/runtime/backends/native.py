"""Run a stage's part, a plan file, with our own kernels (edgekit/native): no other runtime is needed.

Fast kernels pack the weights; the plan's own bytes, in which they stand once more, are let go: see _mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.core.errors import BadBundle, BadInput
from edgekit.core.manifest import Part, Tensor
from edgekit.native import door
from edgekit.native.plan import PlanTensor
from edgekit.native.plan_door import OpenPlan, outside_dtype, outside_shape, same_shape
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.backends._mapped import WORTH_A_FILE, opened_from_file


class PlanRunner:
    """An opened plan with the arrays it reads and fills."""

    def __init__(self, run: Callable[[], int], provider: str, file: str) -> None:
        self.provider = provider
        self._run = run
        self._file = file

    def run(self) -> None:
        """See backends.Runner."""
        code = self._run()
        if code != 0:
            raise BadBundle(f"{self._file}: the native library failed with code {code}")


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a plan; one thread. Raises BadBundle for no plan, or one whose tensors are not those of its manifest."""
    key = f"{part.backend} {part.sha256}"
    opened = options.opened.get(key)
    try:
        if opened is None:
            opened = _opened(data)
    except BadInput as err:
        raise BadBundle(f"{part.file}: {err}") from err
    _check_tensors(part, opened)
    try:
        run = opened.bound(
            [inputs[_outside_name(part, part.inputs, tensor)] for tensor in opened.inputs],
            [outputs[_outside_name(part, part.outputs, tensor)] for tensor in opened.outputs],
        )
    except BadInput as err:
        raise BadBundle(f"{part.file}: {err}") from err
    options.opened[key] = opened
    return PlanRunner(run, f"native/{_fastest()}", part.file)


def _opened(data: bytes) -> OpenPlan:
    mapped = None
    if len(data) >= WORTH_A_FILE:
        mapped = opened_from_file(data, lambda path: door.open_plan(np.memmap(path, np.uint8, "r")))
    return door.open_plan(data) if mapped is None else mapped


def _outside_name(part: Part, tensors: Sequence[Tensor], wanted: PlanTensor) -> str:
    return next(tensor.name for tensor in tensors if part.in_file(tensor.name) == wanted.name)


def _check_tensors(part: Part, opened: OpenPlan) -> None:
    """Arrays are read and written blindly: what the plan says must be what the manifest says."""
    for wanted, found in ((part.inputs, opened.inputs), (part.outputs, opened.outputs)):
        listed = {part.in_file(tensor.name): tensor for tensor in wanted}
        fits = len(found) == len(listed) and all(
            tensor.name in listed
            and outside_dtype(tensor).name == listed[tensor.name].dtype
            and same_shape(outside_shape(tensor), listed[tensor.name].shape)
            for tensor in found
        )
        if not fits:
            held = {tensor.name: (outside_dtype(tensor).name, outside_shape(tensor)) for tensor in found}
            raise BadBundle(f"{part.file}: the plan's tensors are {held}, not those its manifest lists")


def _fastest() -> str:
    return next(row.name for row in door.kernels() if row.family == "xnor" and row.chosen)
