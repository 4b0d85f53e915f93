"""What every lowering gives."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.core.manifest import Tensor


@dataclass(frozen=True)
class LoweredPart:
    """One file of a stage: its backend, its name's ending, its bytes, and the tensors at its borders."""

    backend: str
    suffix: str
    content: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
