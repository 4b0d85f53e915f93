"""Open a bundle for a command on this machine."""

from __future__ import annotations

import contextlib
import sys

from rich.console import Console

from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput
from edgekit.runtime.session import Session, open_session

_SIMULATED = "overlay-sim"
_BUILDING = "opening the overlay's simulation, which is built once: a minute"  # within 80 columns


def open_here(bundle: Bundle) -> Session:
    """The bundle's session; says on a terminal what takes long. Raises BadInput where it would run code of its own."""
    manifest = bundle.manifest
    if manifest.executes_code:
        raise BadInput(
            f"{bundle.label} brings code of its own (a bitstream, or a compiled library), which only an agent runs, "
            "where its agent.toml says accepts_code = true"
        )
    if not any(part.backend == _SIMULATED for stage in manifest.stages for part in stage.parts):
        return open_session(manifest, bundle.read)
    with Console(stderr=True).status(_BUILDING) if sys.stderr.isatty() else contextlib.nullcontext():
        return open_session(manifest, bundle.read)
