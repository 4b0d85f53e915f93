"""Weights, thresholds and masks of a plan as the words an overlay's memories take. Pure: touches no device.

The layout is that of firmware_stubs/pynq_bnn/rtl: entry row fold * SF + column fold of an mvu's weights holds the
weight of row p and column s of the folds in bit p * SIMD + s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadBundle
from edgekit.native import plan as pl
from edgekit.native.plan import Linear, Plan, Threshold, Window
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.design import Design

Array = NDArray[Any]
LANE_BITS = 32
_BYTE = 255


@dataclass(frozen=True)
class Load:
    """Words for one lane of a memory, from entry 0 on."""

    unit: int
    memory: int
    lane: int
    words: NDArray[np.uint32]


def loads(plan: Plan, design: Design) -> Iterator[Load]:
    """All that a design's units hold of a plan. Raises BadBundle where the two do not fit together."""
    for unit in design.units:
        if unit.operator is None:
            continue
        if not 0 <= unit.operator < len(plan.operators):
            raise BadBundle(
                f"the overlay's design names operator {unit.operator}, the plan has {len(plan.operators)}"
            )
        operator = plan.operators[unit.operator]
        of = operator.of
        if unit.kind == "mvu" and isinstance(of, Linear):
            yield from _matrix(unit.parameters, of, unit.name)
        elif unit.kind == "pool" and isinstance(of, Window):
            channels = plan.tensors[operator.output].c
            yield from _mask(unit.parameters, of, channels, unit.name)
        elif unit.kind == "binarize" and isinstance(of, Threshold):
            threshold = np.clip(of.thresholds.reshape(-1)[:1], 0, _BYTE + 1)
            yield Load(unit.parameters["UNIT"], reg.MEMORY_THRESHOLDS, 0, threshold.astype(np.uint32))
        else:
            kind = pl.KIND_NAMES[operator.kind]
            raise BadBundle(
                f"the overlay's {unit.kind} {unit.name} cannot hold operator {unit.operator} ({kind})"
            )


def _matrix(of: Mapping[str, int], linear: Linear, name: str) -> Iterator[Load]:
    weights = linear.weights.reshape(len(linear.weights), -1)
    rows, terms = weights.shape
    if terms != of["TERMS"] or terms > of["MW"] or rows > of["MH"]:
        raise BadBundle(
            f"the overlay's {name} multiplies {of['MH']} rows of {of['TERMS']}, the plan has {rows} of {terms}"
        )
    bits = np.ones((of["MH"], of["MW"]), np.uint8)  # columns beyond the terms: +1 against inputs that are -1
    bits[:rows, :terms] = weights > 0
    simd, pe = of["SIMD"], of["PE"]
    folds = bits.reshape(of["MH"] // pe, pe, of["MW"] // simd, simd).transpose(0, 2, 1, 3)
    for lane, column in enumerate(_lanes(folds.reshape(-1, pe * simd))):
        yield Load(of["UNIT"], reg.MEMORY_WEIGHTS, lane, column)
    if of["THRESHOLDS"]:
        levels = _levels(of, linear, rows).reshape(-1, pe)
        for lane in range(pe):
            yield Load(of["UNIT"], reg.MEMORY_THRESHOLDS, lane, levels[:, lane].astype(np.uint32))


def _levels(of: Mapping[str, int], linear: Linear, rows: int) -> NDArray[np.int64]:
    """What the unit compares with: popcounts of bits, sums of bytes. Rows that are none are never reached."""
    terms = of["TERMS"]
    most = terms if of["IN_BITS"] == 1 else _BYTE * terms
    given = np.full(of["MH"], most + 1, np.int64)
    if linear.thresholds is None:
        raise BadBundle("the overlay's design wants thresholds where the plan's layer has none")
    given[:rows] = np.clip(linear.thresholds[:, 0].astype(np.int64), -most, most + 1)
    if of["IN_BITS"] == 1:
        return (given + terms + 1) // 2  # sum = 2 popcount - terms
    return given


def _mask(of: Mapping[str, int], window: Window, channels: int, name: str) -> Iterator[Load]:
    if channels != of["WIDTH"] * of["FOLDS"]:
        raise BadBundle(
            f"the overlay's {name} pools {of['WIDTH'] * of['FOLDS']} channels, the plan has {channels}"
        )
    smallest = np.zeros(channels, np.uint8) if window.smallest is None else window.smallest.astype(np.uint8)
    for lane, column in enumerate(_lanes(smallest.reshape(of["FOLDS"], of["WIDTH"]))):
        yield Load(of["UNIT"], reg.MEMORY_MASK, lane, column)


def _lanes(bits: Array) -> Iterator[NDArray[np.uint32]]:
    """Columns of 32 bits of (entries, width) bits, the first bit lowest."""
    padded = np.pad(bits, [(0, 0), (0, -bits.shape[1] % LANE_BITS)])
    words = np.ascontiguousarray(np.packbits(padded, axis=1, bitorder="little")).view("<u4")
    for lane in range(words.shape[1]):
        yield np.ascontiguousarray(words[:, lane])
