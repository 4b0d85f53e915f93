"""tools/bench/anytime.py: what counts as met, and what there is to win, on made-up rows."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "anytime.py"


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_anytime", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_anytime"] = module
    spec.loader.exec_module(module)
    return module


bench = imported()


def row(**changes):
    found = {
        "network": "toy",
        "seed": 1,
        "exits": [
            {"name": "early", "macs": 0.2, "accuracy": 0.8, "agreement": 0.85},
            {"name": "last", "macs": 1.0, "accuracy": 0.9, "agreement": 1.0},
        ],
        "original_accuracy": 0.9,
        "policy": "confidence 0.5pt",
        "macs": 0.4,
        "ms": 0.45,
        "ms_range": [0.4, 0.5],
        "agreement": 0.995,
        "accuracy": 0.899,
        "lost": 0.1,
        "target": 0.5,
        "drop": 0.2,
        "made": False,
        "budgets": [{"budget": 0.5, "validation": 0.51, "test": 0.47}],
        "lead": {"mean": 0.01, "low": 0.008, "high": 0.012, "until": 0.8, "nowhere_below": True},
        "anytime": {"in_time": 0.995, "quality": [0.8, 0.9], "requests": 10, "deadlines_ms": [1, 2]},
    }
    return {**found, **changes}


def test_a_row_within_all_its_targets_meets_them():
    assert all(bench.verdicts(row()).values())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cost", {"macs": 0.51}),
        ("cost", {"ms": 0.51}),
        ("lost", {"lost": 0.21}),
        ("agreement", {"agreement": 0.989}),
        ("budgets", {"budgets": [{"budget": 0.5, "validation": 0.53, "test": 0.5}]}),
        ("budgets", {"budgets": [{"budget": 0.5, "validation": 0.5, "test": 0.56}]}),
        ("lead", {"lead": {"mean": 0.004, "low": 0, "high": 0.01, "nowhere_below": True}}),
        ("curve", {"lead": {"mean": 0.01, "low": 0, "high": 0.01, "nowhere_below": False}}),
        ("in time", {"anytime": {"in_time": 0.98, "quality": [0.8, 0.9]}}),
    ],
)
def test_a_missed_target_is_told_by_its_name(name, changes):
    missed = [target for target, met in bench.verdicts(row(**changes)).items() if not met]
    assert missed == [name]
    assert f"Missed: toy 1: {name}." in bench.page([row(**changes)], "command")


def test_a_network_made_with_exits_need_not_agree_with_itself():
    assert "agreement" not in bench.verdicts(row(made=True, agreement=0.9))


def test_what_there_is_to_win_is_the_gap_between_the_best_exit_and_the_static_mix():
    # the mix rises from 80 to 87.5 % at 0.8 of the cost: on average 6.25 points below the best
    assert bench.headroom(row()) == pytest.approx(6.25, abs=0.01)
