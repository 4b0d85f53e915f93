"""Dynamic fixed point arithmetic in whole numbers, slow and obvious (Das et al. 2018, arXiv 1802.00930). NumPy only.

A tensor is integers of `bits` bits with one exponent. Products of two are summed in 32 bits, which hold only a short
chain of them in the worst case: 2 at 16 bits, 8 at 15, 32 at 14. After a chain the sum goes into a float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput

_LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True)
class Fixed:
    """codes * 2^exponent; codes: int32, magnitudes up to 2^(bits-1) - 1."""

    codes: NDArray[np.int32]
    exponent: int
    bits: int

    def floats(self) -> NDArray[np.float64]:
        """What it stands for, exactly."""
        return np.asarray(np.ldexp(self.codes.astype(np.float64), self.exponent))


@dataclass(frozen=True)
class Sums:
    """codes * 2^exponent; codes: int32, what products and their sums are held in."""

    codes: NDArray[np.int32]
    exponent: int


def largest(bits: int) -> int:
    """The largest magnitude of a code: the range is the same on both sides."""
    return int(2 ** (bits - 1)) - 1


def safe_chain(bits: int) -> int:
    """How many products of such codes 32 bits hold, whatever they are."""
    return _LARGEST_SUM // largest(bits) ** 2


def to_fixed(values: NDArray[Any], bits: int = 16) -> Fixed:
    """The nearest numbers with one exponent; zeros have exponent 0. The exponent is looked at again after rounding."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise BadInput("dfp16: values must be finite")
    top = float(np.abs(values).max(initial=0.0))
    if top == 0:
        return Fixed(np.zeros(values.shape, np.int32), 0, bits)
    exponent = int(np.frexp(top)[1]) - 1 - (bits - 2)
    codes = np.rint(np.ldexp(values, -exponent))
    if np.abs(codes).max() > largest(bits):
        exponent += 1
        codes = np.rint(np.ldexp(values, -exponent))
    return Fixed(codes.astype(np.int32), exponent, bits)


def multiply(first: Fixed, second: Fixed) -> Sums:
    """Element by element: integers multiply, exponents add. Two codes of 16 bits always fit 32."""
    codes = first.codes.astype(np.int64) * second.codes.astype(np.int64)
    return Sums(codes.astype(np.int32), first.exponent + second.exponent)


def add(first: Sums, second: Sums) -> Sums:
    """The one with the smaller exponent is shifted right by the gap. Raises BadInput where 32 bits do not hold it."""
    low, high = sorted((first, second), key=lambda each: each.exponent)
    gap = min(high.exponent - low.exponent, 31)
    return Sums(_held((low.codes.astype(np.int64) >> gap) + high.codes), high.exponent)


def down_convert(sums: Sums, bits: int = 16) -> Fixed:
    """32 bits to `bits`: shifted right until the largest magnitude fits, the exponent grows by as much."""
    top = int(np.abs(sums.codes.astype(np.int64)).max(initial=0))
    right = max(0, top.bit_length() - (bits - 1))
    codes = np.clip(sums.codes.astype(np.int64) >> right, -largest(bits), largest(bits))
    return Fixed(codes.astype(np.int32), sums.exponent + right, bits)


def matmul(first: Fixed, second: Fixed, chain: int | None = None) -> NDArray[np.float32]:
    """[M, K] x [K, N], sums of `chain` products in 32 bits and those in float32.

    chain: None: the longest that is safe. A longer one is refused where a sum would really overflow, with BadInput.
    """
    depth = first.codes.shape[1]
    length = safe_chain(max(first.bits, second.bits)) if chain is None else chain
    if depth != second.codes.shape[0] or length < 1:
        raise BadInput(
            f"dfp16: wants [M, K] x [K, N] and a chain of at least 1, got {list(first.codes.shape)} x "
            f"{list(second.codes.shape)} and {length}"
        )
    exponent = first.exponent + second.exponent
    total = np.zeros((first.codes.shape[0], second.codes.shape[1]), np.float32)
    for start in range(0, depth, length):
        part = slice(start, start + length)
        products = first.codes[:, part, None].astype(np.int64) * second.codes[None, part]
        running = _held(np.cumsum(products, axis=1))  # every sum on the way, not only the last
        total += np.ldexp(running[:, -1].astype(np.float32), exponent)
    return total


def _held(sums: NDArray[np.int64]) -> NDArray[np.int32]:
    top = int(np.abs(sums).max(initial=0))
    if top > _LARGEST_SUM:
        raise BadInput(f"dfp16: a sum of {top} does not fit 32 bits: take a shorter chain or fewer bits")
    return sums.astype(np.int32)
