"""Training with PyTorch (extra `train`): a graph as a module and back, one loop, recovery. Itself imports no torch."""

from __future__ import annotations

import importlib.util
import os

from edgekit.core.errors import MissingExtra


def require_torch(wanted_by: str) -> None:
    """Call before the first import of PyTorch. Raises MissingExtra, naming who needs it, where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(f"{wanted_by} needs PyTorch: pip install 'edgekit[train]'")
    # Threads that wait must sleep: spinning ones made a step many times slower as soon as another wanted the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
