from __future__ import annotations

import pytest

from edgekit.core.figure import Figure
from edgekit.core.profile import Power
from edgekit.runtime.energy import estimated, per_unit
from edgekit.runtime.power import EnergyWindow

KNOWN = Power("none", Figure(2.0, "W", "published"), Figure(6.0, "W", "published"))


def test_a_board_without_a_sensor_is_estimated_from_its_profile_and_says_so() -> None:
    figure = estimated(KNOWN, 60.0, 15.0, "raspberrypi4b")
    assert (figure.value, figure.unit) == (pytest.approx(1e3 * (45 * 2 + 15 * 6)), "mJ")
    assert (figure.provenance, figure.on) == ("estimated", "raspberrypi4b")


def test_nothing_is_estimated_without_the_profiles_figures() -> None:
    assert estimated(Power(), 60.0, 15.0, "raspberrypi4b").value is None
    assert estimated(Power(idle_w=KNOWN.idle_w), 60.0, 15.0, "raspberrypi4b").value is None


def test_time_inside_inferences_beyond_the_stretch_counts_once() -> None:
    assert estimated(KNOWN, 10.0, 12.0, "raspberrypi4b").value == 60_000


@pytest.mark.parametrize(
    ("window", "mj"),
    [
        (EnergyWindow(500.0, 1.0, 20), 50.0),
        (EnergyWindow(500.0, 0.99, 20), None),
        (EnergyWindow(500.0, 1.0, 19), None),
        (EnergyWindow(None, 5.0, 90, "no permission"), None),
    ],
)
def test_energy_per_inference_wants_a_second_and_twenty_updates(
    window: EnergyWindow, mj: float | None
) -> None:
    found = per_unit(window, 10)
    assert found.mj == mj
    assert (found.why is None) == (mj is not None)
