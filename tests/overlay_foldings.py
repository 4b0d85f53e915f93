"""Foldings of the networks in overlay_plans, and a plan with the design of one in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgekit.native.plan import Plan
from edgekit.runtime.overlay.design import Folding
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for

SMALL = {"L0": Folding(4, 3), "L1": Folding(4, 4), "L2": Folding(4, 12), "L3": Folding(3, 5)}


def published_cnv(channels: int) -> dict[str, Folding]:
    """BNN-PYNQ's folding of CNV W1A1."""
    pe, simd = (16, 32, 16, 16, 4, 1, 1, 1, 4), (channels, 32, 32, 32, 32, 32, 4, 8, 1)
    return {f"L{index}": Folding(*pair) for index, pair in enumerate(zip(pe, simd, strict=True))}


def published_lfc() -> dict[str, Folding]:
    """BNN-PYNQ's folding of LFC W1A1."""
    pairs = zip((32, 64, 32, 16), (64, 32, 64, 8), strict=True)
    return {f"L{index}": Folding(*pair) for index, pair in enumerate(pairs)}


def with_design(plan: Plan, foldings: Mapping[str, Folding]) -> Plan:
    """The plan with its overlay's design in it."""
    return replace(plan, design=design_for(chain_of(plan), foldings, 100.0).to_json())
