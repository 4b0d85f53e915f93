"""What the units of an overlay take of a 7-series device: LUTs, flip-flops, block RAMs. Estimated, post-synthesis.

Each unit is counted from its parameters: memories as yosys maps them (memories.py), and terms of its structure (bits of
adders, comparators, counters) whose weights tools/bench/overlay_resources.py fits to yosys' results over a grid of
parameters. Nothing here was placed or routed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from edgekit.core.registry import pick
from edgekit.host.overlay.coefficients import FFS, LUTS
from edgekit.host.overlay.memories import Memory, block_ram, lut_ram
from edgekit.runtime.overlay.design import Design

LANE = 32  # bits of the load bus, and of a lane of weights
LEAF = 6  # bits that a popcount takes in its leaves


@dataclass(frozen=True)
class Resources:
    """LUTs (logic and LUT RAM), flip-flops, block RAMs of 18 kbit (one of 36 kbit counts as two)."""

    luts: float
    ffs: float
    bram18: int

    @property
    def bram36(self) -> float:
        """Block RAMs of 36 kbit; half of one is one of 18 kbit."""
        return self.bram18 / 2

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.luts + other.luts, self.ffs + other.ffs, self.bram18 + other.bram18)


@dataclass(frozen=True)
class Terms:
    """A unit as the fit sees it. fixed: memories and registers that are counted, not fitted.

    luts, ffs: name of a term -> how many of it; weights by the same names in coefficients.py.
    """

    fixed: Resources
    luts: Mapping[str, float]
    ffs: Mapping[str, float]


def unit_resources(kind: str, parameters: Mapping[str, int]) -> Resources:
    """The estimate for one unit. Raises BadInput that lists the known kinds."""
    return _estimated(
        kind, tuple(sorted((name, value) for name, value in parameters.items() if name != "UNIT"))
    )


def design_resources(design: Design) -> Resources:
    """The sum over a design's units, without the DMA, interconnect and processor around it."""
    return sum(
        (unit_resources(unit.kind, unit.parameters) for unit in design.units), start=Resources(0, 0, 0)
    )


def terms_of(kind: str, parameters: Mapping[str, int]) -> Terms:
    """The structure of one unit in numbers."""
    return pick("unit of an overlay", _TERMS, kind)(parameters)


@lru_cache(maxsize=65536)
def _estimated(kind: str, parameters: tuple[tuple[str, int], ...]) -> Resources:
    terms = terms_of(kind, dict(parameters))
    luts = sum(LUTS[kind][name] * count for name, count in terms.luts.items())
    ffs = sum(FFS[kind][name] * count for name, count in terms.ffs.items())
    return Resources(max(0.0, terms.fixed.luts + luts), max(0.0, terms.fixed.ffs + ffs), terms.fixed.bram18)


def _mvu(of: Mapping[str, int]) -> Terms:
    pe, simd, bits = of["PE"], of["SIMD"], of["IN_BITS"]
    synapse_folds, neuron_folds = of["MW"] // simd, of["MH"] // pe
    depth = synapse_folds * neuron_folds
    part = _bits(simd + 1) if bits == 1 else 9 + _bits(simd)
    total = max(of["ACCW"], part)
    thresholds = bool(of["THRESHOLDS"])
    memories = [_weights(pe * simd, depth, block=bool(of["BLOCK_RAM"]))]
    if neuron_folds > 1:
        memories.append(lut_ram(synapse_folds, bits * simd))
    if thresholds:
        memories += [lut_ram(neuron_folds, of["ACCW"])] * pe
    # with one synapse fold nothing is accumulated; with one neuron fold two of the counters are the same
    summed = total if synapse_folds > 1 else 0
    counters = _bits(depth) + (_bits(synapse_folds) + _bits(neuron_folds)) * (neuron_folds > 1)
    flags = (8 if synapse_folds > 1 else 3) + (neuron_folds > 1)
    unused = 0 if thresholds else _bits(neuron_folds)  # which row it is matters to thresholds only
    given = 1 if thresholds else total
    registers = bits * simd + pe * (part + summed + given) + flags + counters + _bits(depth) - unused
    luts: dict[str, float] = {
        "sum": pe * summed,
        "reached": pe * of["ACCW"] * thresholds,
        "given": pe * total * (not thresholds),
        "pe": pe,
        "selected": bits * simd * (neuron_folds > 1),
        "counters": counters,
        "lanes": -(-pe * simd // LANE),
        "unit": 1,
    }
    luts |= _popcount_terms(simd, pe) if bits == 1 else _bytesum_terms(simd, pe)
    return Terms(_fixed(memories, registers), luts, {})


def _popcount_terms(simd: int, pe: int) -> dict[str, float]:
    leaves: dict[int, int] = {}
    adders = _tree(simd, leaves)
    found: dict[str, float] = {f"leaf{size}": pe * leaves.get(size, 0) for size in range(1, LEAF + 1)}
    return found | {"adders": pe * adders}


def _tree(bits: int, leaves: dict[int, int]) -> int:
    """Adder bits of popcount.v for so many bits; counts its leaves by size."""
    if bits <= LEAF:
        leaves[bits] = leaves.get(bits, 0) + 1
        return 0
    left = (bits + 11) // 12 * LEAF if bits <= 6 * LEAF else bits // 2
    return _tree(left, leaves) + _tree(bits - left, leaves) + _bits(bits + 1)


def _bytesum_terms(simd: int, pe: int) -> dict[str, float]:
    adders = _byte_tree(simd)
    return {
        "masked": pe * 8 * simd,
        "byte_adders": pe * adders,
        "all_values": adders,
        "signs": pe * (9 + _bits(simd)),
    }


def _byte_tree(count: int) -> int:
    """Adder bits of bytesum.v."""
    if count == 1:
        return 0
    left = (count + 1) // 2
    return _byte_tree(left) + _byte_tree(count - left) + 8 + _bits(count)


def _weights(width: int, depth: int, *, block: bool) -> Memory:
    lanes, rest = divmod(width, LANE)
    luts, ffs, bram18 = 0.0, 0, 0
    for count, bits in ((lanes, LANE), (1, rest)):
        if count and bits:
            lane = block_ram(depth, bits) if block else lut_ram(depth, bits)
            luts, bram18 = luts + count * lane.luts, bram18 + count * lane.bram18
            ffs = max(ffs, lane.ffs) if block else ffs + count * bits  # one lane's choice of bank serves all
    return Memory(luts, ffs, bram18)


def _swu(of: Mapping[str, int]) -> Terms:
    out_h = (of["IN_H"] + of["PAD_TOP"] + of["PAD_BOTTOM"] - of["K_H"]) // of["STRIDE_H"] + 1
    out_w = (of["IN_W"] + of["PAD_LEFT"] + of["PAD_RIGHT"] - of["K_W"]) // of["STRIDE_W"] + 1
    left_over = of["IN_H"] + of["PAD_TOP"] - (out_h - 1) * of["STRIDE_H"] - of["K_H"]
    rows = 2 * max(of["K_H"], of["STRIDE_H"]) + max(0, left_over)
    words = rows * of["IN_W"] * of["FOLDS"]
    address = _bits(words)
    column = max(_bits((of["IN_W"] + of["PAD_LEFT"] + of["PAD_RIGHT"]) * of["FOLDS"]), address)
    height = _bits(of["IN_H"] + of["PAD_TOP"] + of["PAD_BOTTOM"] + of["STRIDE_H"] + rows + 1) + 1
    counts = (of["IN_W"] * of["FOLDS"], rows, of["FOLDS"], of["K_W"], of["K_H"], out_w, out_h)
    counters = sum(_bits(count) for count in counts if count > 1)
    padded_rows, padded_columns = of["PAD_TOP"] + of["PAD_BOTTOM"] > 0, of["PAD_LEFT"] + of["PAD_RIGHT"] > 0
    luts = {
        "address": address,
        "height": height,
        "slots": address * (rows > 6),
        "counters": counters,
        "padded_rows": height * padded_rows,
        "padded_columns": column * padded_columns,
        "outside": of["WIDTH"] * (padded_rows or padded_columns),
        "padded": padded_rows or padded_columns,
        "unit": 1,
    }
    ffs = {
        "address": address,
        "column": 2 * column,
        "height": height,
        "counters": counters,
        "slot": 2 * _bits(rows),
        "padded_rows": 2 * height * padded_rows,
        "unit": 1,
    }
    return Terms(_fixed([block_ram(words, of["WIDTH"])], 0), luts, ffs)


def _pool(of: Mapping[str, int]) -> Terms:
    out_w = of["IN_W"] // of["K_W"]
    words = out_w * of["FOLDS"]
    lanes, rest = divmod(of["WIDTH"], LANE)
    memories = [lut_ram(words, of["WIDTH"]), *[lut_ram(of["FOLDS"], LANE)] * lanes]
    if rest:
        memories.append(lut_ram(of["FOLDS"], rest))
    counts = (of["FOLDS"], of["IN_W"], of["K_W"], of["K_H"])
    counters = sum(_bits(count) for count in counts if count > 1)
    some_columns, some_rows = of["IN_W"] % of["K_W"] > 0, of["IN_H"] % of["K_H"] > 0
    dropped = some_columns * _bits(out_w)
    dropped += some_rows * (_bits(of["IN_H"]) + _bits(of["IN_H"] // of["K_H"]))
    shared = {"counters": counters, "address": _bits(words), "dropped": dropped, "unit": 1}
    luts = {"width": of["WIDTH"], "lanes": lanes + (rest > 0), **shared}
    return Terms(_fixed(memories, 0), luts, dict(shared))


def _width(of: Mapping[str, int]) -> Terms:
    given, wanted = of["IN_WIDTH"], of["OUT_WIDTH"]
    if (given, of["IN_BEATS"]) == (wanted, of["OUT_BEATS"]):
        return Terms(Resources(0, 0, 0), {}, {})
    common = math.lcm(given, wanted)
    if common == given:
        return _narrow(given, wanted, of["IN_BEATS"], of["OUT_BEATS"])
    if common == wanted:
        return _widen(given, wanted, of["IN_BEATS"], of["OUT_BEATS"])
    words = -(-of["IN_BEATS"] * given // common)
    first = _widen(given, common, of["IN_BEATS"], words)
    second = _narrow(common, wanted, words, of["OUT_BEATS"])
    between = _fifo({"WIDTH": common, "DEPTH": 2})
    queue = Resources(sum(LUTS["fifo"][name] * count for name, count in between.luts.items()), 0, 0)
    luts = {
        "gear_picked": second.luts["picked"] + second.luts["chained"],
        "gear_filled": first.luts["filled"],
        "gear_words": common // given + common // wanted,
        "gear": 1,
    }
    return Terms(first.fixed + between.fixed + queue + second.fixed, luts, {})


def _narrow(given: int, wanted: int, beats: int, frame: int) -> Terms:
    words = given // wanted
    exact = frame == beats * words
    step = _bits(words) if words > 1 else 0
    inside = 0 if exact else _bits(max(beats, 1)) + _bits(max(frame, 1))
    # up to four words fit one LUT a bit; of more yosys makes a chain
    chained = words > 4
    luts = {
        "picked": wanted * (1 < words <= 4),
        "chained": wanted * (words - 1) * chained,
        "chain": chained,
        "decoded": words * (words > 8),
        "narrow_frame": inside,
        "narrow": 1,
    }
    return Terms(Resources(0, step + inside + (not exact), 0), luts, {})


def _widen(given: int, wanted: int, beats: int, frame: int) -> Terms:
    words = wanted // given
    exact = beats == frame * words
    step = _bits(words)
    inside = 0 if exact else _bits(max(beats, 2))
    luts = {
        "enables": words,
        "filled": 0 if exact else wanted,
        "widen_step": step,
        "widen_frame": inside,
        "widen": 1,
    }
    held = min(words, beats) - 1  # words that wait for the last of their beat
    return Terms(Resources(0, held * given + step + inside, 0), luts, {})


def _fifo(of: Mapping[str, int]) -> Terms:
    address = _bits(of["DEPTH"]) if of["DEPTH"] > 2 else 1
    # five bits of a count is what yosys adds worst: too few for a carry chain
    luts = {"address": address, "small": address == 4, "unit": 1}
    return Terms(_fixed([lut_ram(1 << address, of["WIDTH"])], 4 * address + 1), luts, {})


def _binarize(of: Mapping[str, int]) -> Terms:
    return Terms(Resources(0, 9, 0), {"lanes": of["LANES"], "unit": 1}, {"unit": 1})


def _bus_end(of: Mapping[str, int]) -> Terms:
    bits = _bits(of["BEATS"]) if of["BEATS"] > 1 else 0
    return Terms(Resources(0, 0, 0), {"counter": bits, "unit": 1}, {"counter": bits, "unit": 1})


def _registers(of: Mapping[str, int]) -> Terms:
    return Terms(Resources(0, 0, 0), {"unit": 1}, {"unit": 1})


def _fixed(memories: list[Memory], ffs: float) -> Resources:
    luts = sum(memory.luts for memory in memories)
    return Resources(
        luts, ffs + sum(memory.ffs for memory in memories), sum(memory.bram18 for memory in memories)
    )


def _bits(count: int) -> int:
    """Bits that tell `count` states apart."""
    return math.ceil(math.log2(count)) if count > 1 else 0


_TERMS: Mapping[str, Callable[[Mapping[str, int]], Terms]] = {
    "mvu": _mvu,
    "swu": _swu,
    "pool": _pool,
    "width": _width,
    "fifo": _fifo,
    "binarize": _binarize,
    "stream_in": _bus_end,
    "stream_out": _bus_end,
    "axil_regs": _registers,
}
