"""Find the overlay's Verilog and its register map: data that ships with edgekit. Reads no file's content."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from edgekit.core.errors import BadInput

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable

FOLDER = "pynq_bnn"


def overlay_sources() -> Traversable:
    """The folder firmware_stubs/pynq_bnn; raises BadInput where it was not packaged.

    A wheel has it inside the package, a checkout beside it.
    """
    packaged = files("edgekit") / "firmware_stubs" / FOLDER
    if packaged.is_dir():
        return packaged
    beside = Path(str(files("edgekit"))).parent / "firmware_stubs" / FOLDER
    if beside.is_dir():
        return beside
    raise BadInput(f"the overlay's Verilog firmware_stubs/{FOLDER} is not part of this installation")
