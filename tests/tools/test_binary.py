"""tools/bench/binary.py: what counts as met, how chains and cycles are reckoned, and that both sides' networks run."""

import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("onnxruntime")
FOLDER = Path(__file__).parents[2] / "tools" / "bench"


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


networks = imported("binary_networks")
bench = imported("binary")


@pytest.mark.parametrize(
    ("values", "bound", "met"),
    [
        ([17.9, 18.0, 30.0], ">= 18", True),
        ([17.0, 17.9, 30.0], ">= 18", False),
        ([1.0, 1.15, 9.0], "<= 1.15", True),
        ([1.0, 1.16, 1.2], "<= 1.15", False),
        ([1.0], "", None),
    ],
)
def test_the_median_is_held_against_the_target(values: list[float], bound: str, met: bool | None) -> None:
    found = bench.line("some", values, bound, "ratio")
    assert (found["met"], found["target"]) == (met, bound)
    assert (found["min"], found["max"]) == (min(values), max(values))


def test_a_layer_costs_what_four_more_of_it_add() -> None:
    times = bench.Times({"bits x1": [3.0, 4.0], "bits x5": [11.0, 16.0]})
    assert times.layer("bits") == [2.0, 3.0]


def test_cycles_are_those_of_the_same_rounds_additions() -> None:
    times = bench.Times({"adds": [0.5, 1.0]})
    assert times.per_cycle(1000, [1.0, 1.0], 10) == [50.0, 100.0]


def test_cnv_has_the_published_number_of_weights() -> None:
    weights = sum(layer.kernel**2 * layer.in_c * layer.out_c for layer in networks.CNV)
    assert weights == 1_542_848


@pytest.mark.parametrize("layers", [networks.CNV, (networks.Layer(7, 32, 32),) * 2], ids=["cnv", "chain"])
def test_the_networks_of_both_sides_run(layers: tuple) -> None:
    first = networks.p.U8 if layers is networks.CNV else networks.p.BITS
    bench.our_call(networks.plan_of(layers, first=first, last=networks.p.SUMS))()
    bench.peer_call(networks.fp32_of(layers))()
    bench.peer_call(networks.int8_of(layers))()


@pytest.mark.skipif(shutil.which("cc") is None, reason="not installed: cc")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="cycles.c is for x86")
def test_the_loops_that_tell_cycles_compile_and_run(tmp_path: Path) -> None:
    clock = bench.Clock(tmp_path)
    features = bench.door.cpu_features()
    clock.call("dependent_adds", 2)()
    for name, needed in (
        ("avx2_limit", "avx2"),
        ("fma_limit", "avx512f"),
        ("avx512_limit", "avx512vpopcntdq"),
    ):
        run = clock.call(name, 2)
        if needed in features:
            run()
