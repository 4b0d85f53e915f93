"""What both overlay backends share: a part is a plan with a design, its image copied in and its sums copied out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgekit.core.errors import BadBundle, BadInput
from edgekit.core.manifest import Part, Tensor
from edgekit.native import door
from edgekit.native import plan as pl
from edgekit.native.plan import PlanTensor
from edgekit.native.plan_door import outside_dtype, outside_shape, same_shape
from edgekit.runtime.backends import Array, Options
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.device import Device
from edgekit.runtime.overlay.driver import Overlay, parse_design

OpenDevice = Callable[[Design], Device]


class OverlayRunner:
    """One image at a time through a loaded overlay."""

    def __init__(self, overlay: Overlay, image: Array, sums: Array) -> None:
        self.provider = overlay.device.name
        self._overlay = overlay
        self._image = image.reshape(1, -1)
        self._sums = sums.reshape(-1)

    def run(self) -> None:
        """See backends.Runner."""
        self._sums[:] = self._overlay.run(self._image).sums.reshape(-1)


def open_on(
    open_device: OpenDevice,
    data: bytes,
    part: Part,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    options: Options,
) -> OverlayRunner:
    """Open a part on a device. Raises BadBundle for no plan of an overlay or other tensors than its manifest's."""
    key = f"{part.backend} {part.sha256}"
    overlay = options.opened.get(key)
    if overlay is None:
        overlay = _loaded(open_device, data, part)
    _check_tensor(part, part.inputs, overlay.input)
    _check_tensor(part, part.outputs, overlay.output)
    options.opened[key] = overlay
    return OverlayRunner(overlay, inputs[part.inputs[0].name], outputs[part.outputs[0].name])


def _loaded(open_device: OpenDevice, data: bytes, part: Part) -> Overlay:
    try:
        door.check_plan(data)
        plan = pl.decode(data)
        design = parse_design(plan)
    except BadInput as err:
        raise BadBundle(f"{part.file}: {err}") from err
    if part.design_id is not None and part.design_id != design.design_id:
        raise BadBundle(
            f"{part.file}: its manifest names design_id {part.design_id}, the plan holds {design.design_id}"
        )
    return Overlay(open_device(design), plan)


def _check_tensor(part: Part, listed: tuple[Tensor, ...], found: PlanTensor) -> None:
    """Arrays are read and written blindly: what the plan says must be what the manifest says."""
    dtype, shape = outside_dtype(found), outside_shape(found)
    fits = (
        len(listed) == 1
        and part.in_file(listed[0].name) == found.name
        and np.dtype(listed[0].dtype) == dtype
        and same_shape(shape, listed[0].shape)
    )
    if not fits:
        raise BadBundle(
            f"{part.file}: the plan's tensor {found.name} is {dtype} {list(shape)}, not those its manifest lists"
        )
