"""What a driver needs of an overlay, wherever it is: registers and two streams. Nothing else about a board."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Device(Protocol):
    """An overlay that is there. Streams carry 64-bit words, lowest byte first; lengths are whole words."""

    name: str  # as reports name what ran: says "simulated" where it is
    longest_transfer: int  # bytes of one send or receive

    def read(self, address: int) -> int:
        """The register at a byte address. Raises WorldFailed where nothing answers."""

    def write(self, address: int, values: NDArray[np.uint32]) -> None:
        """Write words from a byte address on, each to the next register. Raises WorldFailed."""

    def send(self, data: Bytes) -> None:
        """Begin to stream bytes in, as one transfer; does not wait. The bytes stay as they are until receive ends."""

    def receive(self, data: Bytes, limit_cycles: int) -> int:
        """Stream out into `data` until the transfer ends or the clock has run so often; how many bytes came."""

    def abort(self) -> None:
        """End both transfers; what was under way is lost."""

    def close(self) -> None:
        """Free it."""


def words(*values: int) -> NDArray[np.uint32]:
    """Numbers as registers take them."""
    made: NDArray[Any] = np.array(values, np.uint32)
    return made
