"""Lay out values of +1 and -1 as the 64-bit words that the binary kernels read. numpy only; opens no library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def words_for(n: int) -> int:
    """How many 64-bit words hold n values."""
    return (n + 63) // 64


def pack_bits(positive: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack along the last axis: (..., n) -> (..., ceil(n/64)).

    positive: True for +1, False for -1. Value i becomes bit i % 64 of word i // 64; bits past n are 0.
    """
    n = positive.shape[-1]
    octets = np.packbits(positive, axis=-1, bitorder="little")
    padding = words_for(n) * 8 - octets.shape[-1]
    octets = np.pad(octets, [(0, 0)] * (positive.ndim - 1) + [(0, padding)])
    return octets.view("<u8").astype(np.uint64, copy=False)


def unpack_bits(words: NDArray[np.uint64], n: int) -> NDArray[np.bool_]:
    """The inverse of pack_bits: (..., ceil(n/64)) -> (..., n)."""
    octets = words.astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=n, bitorder="little").astype(np.bool_)
