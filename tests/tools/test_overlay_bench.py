"""tools/bench/overlay.py: what counts as met, and that a simulated network is compared with the CPU's kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("onnx_ir")
SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "overlay.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overlay_bench_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(model: int, simulated: int, *, equal: bool) -> dict[str, Any]:
    cycles = {"model": model, "simulated": simulated}
    return {"network": "lfc", "folding": "published", "interval_cycles": cycles, "equal_to_the_cpu": equal}


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (row(512, 512, equal=True), [True, True, True]),
        (row(512, 523, equal=True), [False, True, True]),
        (row(520, 520, equal=True), [True, False, True]),
        (row(512, 512, equal=False), [True, True, False]),
    ],
)
def test_cycles_within_two_percent_the_published_ones_and_equal_sums_are_met(
    bench: ModuleType, found: dict[str, Any], met: list[bool]
) -> None:
    assert [line["met"] for line in bench.targets([found])] == met
