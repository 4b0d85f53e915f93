"""How many cycles an overlay takes for an image: the interval between two images, and the first one's latency.

A matrix-vector unit takes OFM^2 * K^2 * C_in * C_out / (PE * SIMD) cycles an image, every other unit one cycle for each
beat that enters or leaves it, and all work at once: the slowest sets the interval (Umuroglu et al., FINN,
2017). Cycles are counted, no clock is promised.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.runtime.overlay.design import Design, FoldedLayer, Unit
from edgekit.runtime.overlay.topology import DENSE

REGISTERS = 5  # cycles that a beat spends in the registers of one layer's units


def unit_cycles(unit: Unit) -> int:
    """Cycles that one image takes this unit while nobody makes it wait; 0 for the registers."""
    of = unit.parameters
    match unit.kind:
        case "mvu":
            return unit.frames * (of["MW"] // of["SIMD"]) * (of["MH"] // of["PE"])
        case "swu":
            return max(of["IN_H"] * of["IN_W"] * of["FOLDS"], _window_beats(unit))
        case "pool":
            return of["IN_H"] * of["IN_W"] * of["FOLDS"]
        case "width":
            return unit.frames * max(of["IN_BEATS"], of["OUT_BEATS"])
        case "stream_in" | "stream_out":
            return of["BEATS"]
        case "fifo" | "binarize":
            return unit.frames
        case _:
            return 0


def interval_cycles(design: Design) -> int:
    """Cycles between two images of a long stream: those of the slowest unit."""
    return max(unit_cycles(unit) for unit in design.units)


def images_per_second(cycles: int, clock_mhz: float) -> float:
    """Images a second at `cycles` an image."""
    return clock_mhz * 1e6 / cycles


def latency_cycles(design: Design) -> int:
    """Cycles from the first word of an image to the last word of its answer in an empty overlay.

    Row by row: a layer begins a row when the rows that its windows cover have come and its last row is done.
    """
    first = design.layers[0]
    rows = max(1, first.layer.in_h)
    source = max(unit_cycles(unit) for unit in _before(design, first))
    ready = [source * (row + 1) / rows for row in range(rows)]
    for item in design.layers:
        ready = _rows_done(item, ready)
    return round(ready[-1]) + design.output_beats


def _before(design: Design, first: FoldedLayer) -> Sequence[Unit]:
    own = [unit for unit in design.units if unit.layer in {"", first.layer.name}]
    end = next(index for index, unit in enumerate(own) if unit.kind in {"swu", "mvu", "pool"})
    return own[:end]


def _rows_done(item: FoldedLayer, ready: Sequence[float]) -> list[float]:
    """When each row of this layer's output has left it, from when each row of its input has come."""
    layer = item.layer
    if layer.kind == DENSE:
        # the first neuron fold runs while the vector comes in
        columns = item.columns // item.columns_at_once
        return [ready[-1] + item.cycles - (columns - 1 if item.rows > 1 else 0) + REGISTERS]
    if item.folding is None:
        return [ready[(row + 1) * layer.kernel[0] - 1] + REGISTERS for row in range(layer.out_h)]
    done: list[float] = []
    now = 0.0
    for row in range(layer.out_h):
        last = row * layer.stride[0] - layer.pads[0] + layer.kernel[0] - 1
        needed = ready[min(max(last, 0), layer.in_h - 1)] + REGISTERS
        now = max(now, needed) + layer.out_w * item.depth
        done.append(now)
    return done


def _window_beats(unit: Unit) -> int:
    of = unit.parameters
    out_h = (of["IN_H"] + of["PAD_TOP"] + of["PAD_BOTTOM"] - of["K_H"]) // of["STRIDE_H"] + 1
    out_w = (of["IN_W"] + of["PAD_LEFT"] + of["PAD_RIGHT"] - of["K_W"]) // of["STRIDE_W"] + 1
    return out_h * out_w * of["K_H"] * of["K_W"] * of["FOLDS"]
