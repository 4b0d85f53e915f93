"""Run a stage's part on a PYNQ board's programmable logic. Has never run on a board: see runtime/overlay/board.py.

The bitstream is the bundle's member `overlay/DESIGN_ID.bit` with its `.hwh` beside it, or the file that
$EDGEKIT_OVERLAY_BIT names. The owner builds it from the build.tcl that convert writes; the driver checks its design_id.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.core.files import write_atomic
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.backends._overlay import open_on
from edgekit.runtime.overlay.board import Board
from edgekit.runtime.overlay.design import Design

BIT = "EDGEKIT_OVERLAY_BIT"
CACHE = "EDGEKIT_CACHE"


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a plan with a design on this board; loads the bitstream.

    Raises BadBundle where the part holds none or does not own up to running code, BadInput where there is no bitstream
    or it is another design's.
    """
    if not part.executes_code:
        raise BadBundle(
            f"{part.file}: a part of backend overlay loads a bitstream: it must say executes_code"
        )
    return open_on(partial(_board, options), data, part, inputs, outputs, options)


def _board(options: Options, design: Design) -> Board:
    return Board(bitstream(options, design), design.clock_mhz)


def bitstream(options: Options, design: Design) -> Path:
    """The .bit file for a design, its .hwh beside it: unpacked from the bundle into the cache, or as the owner says."""
    name = f"overlay/{design.design_id}"
    try:
        if options.members is None:
            raise KeyError(name)
        content = {suffix: options.members(name + suffix) for suffix in (".hwh", ".bit")}
    except KeyError:
        given = os.environ.get(BIT)
        if given is None:
            raise BadInput(
                f"the bundle has no member {name}.bit with its .hwh, and ${BIT} names none: build it from the "
                "build.tcl that convert wrote"
            ) from None
        return Path(given)
    named = os.environ.get(CACHE)
    folder = (Path(named) if named else Path.home() / ".cache" / "edgekit") / "overlay"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise WorldFailed(f"{folder}: cannot be made: {err.strerror or err}") from err
    for suffix, data in content.items():
        write_atomic(folder / f"{design.design_id}{suffix}", data)
    return folder / f"{design.design_id}.bit"
