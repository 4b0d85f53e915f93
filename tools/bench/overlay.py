#!/usr/bin/env python3
"""The overlay's cycle model against Verilator's simulation of the whole, and its bits against the CPU's kernels.

    python tools/bench/overlay.py [--quick] [--images N]

LFC and CNV of models/ in BNN-PYNQ's published foldings (PE and SIMD a layer; CNV's first layer has one input channel
here instead of three, which changes no cycles), and in the folding that convert chooses for pynq-z1. Cycles are counted
by the simulation's own register. Images a second are cycles at 100 MHz, a clock that is assumed: nothing here was
placed, routed or run on a board. --quick: LFC alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.profile import profile
from edgekit.host.load import load
from edgekit.host.lower import native
from edgekit.host.lower.overlay import for_overlay
from edgekit.host.overlay.resources import design_resources
from edgekit.host.pack_plan import as_plan_source
from edgekit.native import door, plan
from edgekit.native.plan import Plan
from edgekit.runtime.measure import machine_name
from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, latency_cycles
from edgekit.runtime.overlay.design import Design, Folding
from edgekit.runtime.overlay.driver import Overlay
from edgekit.runtime.overlay.simulation import simulate
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for

ROOT = Path(__file__).parents[2]
IMAGES = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
CLOCK_MHZ = 100.0
PUBLISHED = {  # PE, SIMD of each layer; cycles from image to image
    "lfc": (((32, 64), (64, 32), (32, 64), (16, 8)), 512),
    "cnv": (((16, 1), (32, 32), (16, 32), (16, 32), (4, 32), (1, 32), (1, 4), (1, 8), (4, 1)), 32_768),
}
WITHIN = 0.02


def main() -> None:
    """Print one JSON object; progress goes to stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--images", type=int, default=10)
    given = parser.parse_args()
    names = ["lfc"] if given.quick else ["lfc", "cnv"]
    rows = [row for name in names for row in measured(name, given.images)]
    json.dump(
        {"machine": machine_name(), "images": given.images, "rows": rows, "targets": targets(rows)},
        sys.stdout,
        indent=1,
    )
    sys.stdout.write("\n")


def measured(name: str, count: int) -> Iterator[dict[str, Any]]:
    """A row for each folding of the network."""
    (stage,) = native.plans(as_plan_source(load(ROOT / "models" / f"fashion_mnist_{name}_w1a1.onnx").graph))
    chosen = for_overlay([stage], profile("pynq-z1"), None)
    bare = chosen.overlay.plan
    folding = {f"L{index}": Folding(*pair) for index, pair in enumerate(PUBLISHED[name][0])}
    published = design_for(chain_of(bare), folding, CLOCK_MHZ)
    for which, design in (("published", published), ("chosen for pynq-z1", chosen.design)):
        sys.stderr.write(f"{name}, {which}\n")
        yield {"network": name, "folding": which, **simulated(bare, design, images(count))}


def simulated(bare: Plan, design: Design, x: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The design run in the simulation, and what the models say of it."""
    with_design = Plan(bare.tensors, bare.operators, design.to_json())
    overlay = Overlay(simulate(design), with_design)
    alone, stream = overlay.run(x[:1]), overlay.run(x)
    overlay.close()
    interval, latency = interval_cycles(design), latency_cycles(design)
    taken = design_resources(design)
    return {
        "interval_cycles": {"model": interval, "simulated": stream.interval_cycles},
        "latency_cycles": {"model": latency, "simulated": alone.cycles},
        "images_per_second_at_100_mhz": round(images_per_second(stream.interval_cycles, CLOCK_MHZ), 1),
        "estimated_post_synthesis": {
            "luts": round(taken.luts),
            "ffs": round(taken.ffs),
            "bram36": taken.bram36,
        },
        "equal_to_the_cpu": bool(np.array_equal(stream.sums, on_cpu(bare, x, stream.sums.shape))),
    }


def on_cpu(bare: Plan, x: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The same sums by the CPU's kernels."""
    opened = door.open_plan(plan.encode(bare))
    sums = np.zeros(shape, np.int32)
    for image, out in zip(x, sums, strict=True):
        opened.run([image[None]], [out[None]])
    return sums


def images(count: int) -> np.ndarray[Any, Any]:
    """Test images of Fashion-MNIST."""
    with gzip.open(IMAGES) as file:
        content = file.read(16 + count * 784)
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, 28, 28)


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Model within 2 % of the simulation; the published cycles."""
    found = []
    for row in rows:
        label = f"{row['network']}, {row['folding']} folding"
        model, seen = row["interval_cycles"]["model"], row["interval_cycles"]["simulated"]
        found.append(target(f"{label}: simulated over modelled cycles", seen / model, 1 - WITHIN, 1 + WITHIN))
        if row["folding"] == "published":
            wanted = PUBLISHED[row["network"]][1]
            found.append(target(f"{label}: modelled over published cycles", model / wanted, 1.0, 1.0))
        found.append(target(f"{label}: sums equal to the CPU's", float(row["equal_to_the_cpu"]), 1.0, 1.0))
    return found


def target(name: str, value: float, low: float, high: float) -> dict[str, Any]:
    """One line of the result."""
    text = f"{low:g} to {high:g}" if low != high else f"{low:g}"
    return {
        "name": name,
        "value": value,
        "min": low,
        "max": high,
        "unit": "1",
        "target": text,
        "met": low <= value <= high,
    }


if __name__ == "__main__":
    main()
