"""What memories take of a 7-series device, as yosys maps them: LUT RAM with its multiplexers, block RAM modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

# (words, bits) of a RAMB18 in each of its modes (UG473, simple dual port); a RAMB36 holds twice the words, and 512 x 72
_HALF = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))
_FULL = (*((2 * words, bits) for words, bits in _HALF), (512, 72))
_HALF_COST, _FULL_COST = 129, 257  # yosys' own, share/yosys/xilinx/brams_xc4v.txt
_MUX_COST = 0.25  # of one LUT, where two mappings take as many blocks


@dataclass(frozen=True)
class Memory:
    """luts: LUT RAM, multiplexers of banks and their decoders; ffs: the bank read last; bram18: a RAMB36 counts two."""

    luts: float
    ffs: int = 0
    bram18: int = 0


def lut_ram(depth: int, width: int) -> Memory:
    """A simple dual port memory in LUT RAM, read in the same cycle: RAM32M (6 bits) or RAM64M (3 bits) of four LUTs."""
    if depth <= 32:
        return Memory(4 * math.ceil(width / 6))
    if width == 1 and depth <= 128:
        return Memory(4)
    if 64 < depth <= 96:
        return Memory(3 * 4 * math.ceil(width / 6) + _mux(3, width, missing=2))
    banks = math.ceil(depth / 64)
    return Memory(banks * 4 * math.ceil(width / 3) + _mux(banks, width, missing=2))


def block_ram(depth: int, width: int) -> Memory:
    """A simple dual port memory in block RAM, read a cycle later: the mode that costs yosys least."""
    modes = [(words, bits, 1, _HALF_COST) for words, bits in _HALF]
    modes += [(words, bits, 2, _FULL_COST) for words, bits in _FULL]
    ways = []
    for words, bits, halves, cost in modes:
        banks, columns = math.ceil(depth / words), math.ceil(width / bits)
        luts = _mux(banks, width, missing=3)
        ways.append((banks * columns * cost + _MUX_COST * luts, banks, luts, banks * columns * halves))
    _, banks, luts, bram18 = min(ways)
    return Memory(luts, math.ceil(math.log2(banks)), bram18)


def _mux(banks: int, width: int, *, missing: int) -> float:
    """LUTs that pick a word of `banks` and enable the writing of one. missing: a bit of 5 to 15 banks but 8 takes."""
    if banks <= 4:
        return 0 if banks == 1 else banks + width
    steps = math.ceil(math.log2(banks))
    if banks == 2**steps or steps > 4:
        return 8 * steps - 10 + (2 * steps - 3) * width
    return steps + 2 + missing * width
