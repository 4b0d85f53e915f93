"""What a finished bundle takes of memory when it is open, where a limit asks for it. Opens it in a child process."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekit.core import bundle
from edgekit.core.errors import EdgekitError
from edgekit.host.limits import Limits
from edgekit.host.pack import Finished, here
from edgekit.runtime.memory import measure_memory

_MB = 2**20


def memory_mb(finished: Finished, limits: Limits) -> float | None:
    """Private memory of the open bundle after a run, on this machine; None: no limit asks for it, or it is not known.

    Weights and buffers are the same on a board; what its processor's kernels rearrange may differ. A board judges the
    limit anew, by its own figure.
    """
    if limits.max_memory_mb is None:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bundle.edge"
            path.write_bytes(bundle.pack(here(finished.manifest), finished.files, {}))
            return measure_memory(path).ran_bytes / _MB
    except (EdgekitError, OSError):
        return None
