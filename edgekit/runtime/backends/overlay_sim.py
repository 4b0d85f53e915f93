"""Run a stage's part on the overlay it describes, simulated clock by clock by Verilator: its times mean nothing."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import MissingExtra
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.backends._overlay import open_on
from edgekit.runtime.overlay.simulation import missing, simulate

if (_lacks := missing()) is not None:
    raise MissingExtra(f"backend overlay-sim: {_lacks}")


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a plan with a design. The first time its simulation is compiled, which takes seconds to minutes.

    Raises BadBundle where the part holds none, or one made for other Verilog sources.
    """
    return open_on(simulate, data, part, inputs, outputs, options)
