"""Training with PyTorch (extra `train`): a graph as a module and back, one loop, recovery. Itself imports no torch."""

from __future__ import annotations

import importlib.util

from edgekit.core.errors import MissingExtra


def require_torch(wanted_by: str) -> None:
    """Raises MissingExtra, naming who needs it, where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(f"{wanted_by} needs PyTorch: pip install 'edgekit[train]'")
