"""Costs scaled to a fleet's figures: factors that are known come back, and what cannot help is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.core.cost import Work, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.profile import Costs, OpCosts
from edgekit.host.refine import refine, scaled
from edgekit.runtime.detect import find_profile


def figure(value: float, unit: str) -> Figure:
    return Figure(value, unit, "published", None, "a sheet")


def own(macs: float) -> OpCosts:
    return OpCosts(figure(macs, "MAC/s"), figure(1e10, "B/s"), figure(2.0, "us"))


COSTS = Costs(
    threads=1,
    macs_per_second={"float32": figure(5e9, "MAC/s")},
    bytes_per_second=figure(8e9, "B/s"),
    call_overhead_us=figure(3.0, "us"),
    operators={"Conv": {"float32": own(2e10), "int8": own(6e10)}, "Gemm": {"float32": own(1e10)}},
)
PROFILE = replace(find_profile("raspberrypi5"), cost=COSTS)
TRUTH = {("Conv", "float32"): 1.6, ("Conv", "int8"): 0.7, ("Gemm", "float32"): 2.5}


def bundles() -> list[dict[str, Any]]:
    """Four bundles of two stages whose work leans to different groups."""
    found = []
    for index, (conv, small, gemm) in enumerate(((40, 5, 3), (5, 90, 3), (10, 10, 12), (25, 40, 1))):
        stages = [
            [
                Work("Conv", "float32", conv * 10**6, 10**5, 3),
                Work("Conv.1x1", "int8", small * 10**6, 10**5, 2),
            ],
            [
                Work("Gemm", "float32", gemm * 10**6, 10**5, 1),
                Work("Conv", "float32", conv * 10**6, 10**5, 3),
            ],
        ]
        exits = [{"name": "exit1", "stage": 0}, {"name": "exit2", "stage": 1}]
        work = [[entry.to_json() for entry in stage] for stage in stages]
        found.append(
            {"bundle": f"m/{index + 1}", "backends": ["onnxruntime"], "exits": exits, "stages": work}
        )
    return found


def true_ms(work: Work) -> float:
    """What the work really takes."""
    return (predict(PROFILE, [work]).value or 0.0) * TRUTH[work.op.partition(".")[0], work.format]


def figures(*, noise: float = 0.02, boards: int = 3, simulated: int = 0) -> dict[str, Any]:
    """What a server says of boards that are slower and faster by TRUTH."""
    random = np.random.default_rng(5)
    rows = []
    for bundle in bundles():
        stages = [[Work.from_json(entry) for entry in stage] for stage in bundle["stages"]]
        times = [sum(map(true_ms, stage)) for stage in stages]
        for board in range(boards):
            early = int(random.integers(100, 900))
            mean = times[0] + times[1] * (1000 - early) / 1000
            sum_ms = 1000 * mean * float(np.exp(random.normal(0, noise)))
            exits = {"exit1": early, "exit2": 1000 - early}
            row = {"board": f"pi-{board}", "bundle": bundle["bundle"], "at": 0, "requests": 1000}
            rows.append(row | {"sum_ms": sum_ms, "exits": exits})
    return {"boards": boards, "simulated": simulated, "silent": 0, "rows": rows, "bundles": bundles()}


def test_known_factors_of_groups_come_back_and_predictions_of_held_out_bundles_improve() -> None:
    made = refine(PROFILE, figures(), 1000, "2027-01-15")
    found = {group: factor for groups, factor in made.factors for group in groups}
    assert found == pytest.approx(TRUTH, rel=0.15)
    assert (made.requests, made.boards, made.bundles, made.held_out) == (12_000, 3, 4, "bundle")
    assert made.before > 0.2
    assert made.after < made.before / 3


def test_the_scaled_profile_predicts_what_was_measured_and_says_where_from() -> None:
    made = refine(PROFILE, figures(noise=0.0), 1000, "2027-01-15")
    work = [Work("Conv.1x1", "int8", 10**7, 10**5, 2)]
    before, after = predict(PROFILE, work).value, predict(made.profile, work).value
    assert before is not None
    assert after == pytest.approx(before * 0.7, rel=0.1)
    scaled = made.profile.cost.operators["Conv"]["int8"].macs_per_second
    assert (scaled.provenance, scaled.when) == ("measured", "2027-01-15")
    assert "3 boards of a fleet" in (scaled.on or "")
    assert made.profile.cost.macs_per_second == COSTS.macs_per_second  # nothing was said of it


def test_groups_that_always_come_together_share_a_factor() -> None:
    said = figures()
    said["rows"] = [
        row | {"exits": {"exit2": 1000}, "sum_ms": 250.0 * (40 + index)}
        for index, row in enumerate(row for row in said["rows"] if row["bundle"] == "m/1")
    ]
    made = refine(PROFILE, said, 1000, "2027-01-15")
    assert [len(groups) for groups, _ in made.factors] == [len(TRUTH) - len(made.untouched)]
    assert made.held_out == "board"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [], "simulated": 7}, "all 7 boards of this profile are simulated"),
        ({"rows": []}, "there are 0"),
        ({"bundles": []}, "there are 0"),
    ],
)
def test_too_little_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        refine(PROFILE, figures() | change, 1000, "2027-01-15")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_figures_of_one_board_and_one_bundle_cannot_be_checked_and_are_refused() -> None:
    said = figures(boards=1)
    said["rows"] = said["rows"][:1]
    with pytest.raises(BadInput, match="one of each"):
        refine(PROFILE, said, 100, "2027-01-15")


def test_figures_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BadInput, match=r"contradict|no better"):
        refine(PROFILE, figures(noise=1.5), 1000, "2027-01-15")


def test_a_profile_that_is_right_stays() -> None:
    right = replace(PROFILE, cost=scaled(COSTS, TRUTH, "a sheet", "2027-01-15"))
    with pytest.raises(BadInput, match="the profile stays"):
        refine(right, figures(noise=0.1), 1000, "2027-01-15")
