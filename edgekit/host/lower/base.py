"""What every lowering gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.core.manifest import Tensor


@dataclass(frozen=True)
class LoweredPart:
    """One file of a stage: its backend, its name's ending, its bytes, and the tensors at its borders.

    orders: of tensors that the part holds with their axes in another order than the stage: the stage's axis per axis of
    the part's tensor. Codes may be int8 in a part and uint8 in its stage: smaller by 128.
    """

    backend: str
    suffix: str
    content: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
