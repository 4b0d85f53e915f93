from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime.power import EnergyMeter, EnergyWindow, Reading


class Bench:
    """A sensor and a clock that a test moves by hand."""

    name = "bench"

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.now_s = 100.0

    def read(self) -> Reading:
        return self.reading

    def clock(self) -> float:
        return self.now_s


def power(value_mw: float) -> Reading:
    return Reading(power_mw=value_mw)


def energy(value_mj: float) -> Reading:
    return Reading(energy_mj=value_mj)


GAP = Reading(why="no permission to read it")


def windows(start: Reading, steps: Sequence[tuple[float, Reading, bool]]) -> list[EnergyWindow]:
    """Run a meter over steps of (seconds later, what the sensor says, close the window)."""
    bench = Bench(start)
    meter = EnergyMeter(bench, bench.clock)
    closed = []
    for seconds, reading, close in steps:
        bench.now_s += seconds
        bench.reading = reading
        if close:
            closed.append(meter.close_window())
        else:
            assert meter.sample() == reading
    return closed


def test_power_is_added_up_by_the_trapezoid_rule() -> None:
    (window,) = windows(power(1000), [(1, power(3000), False), (2, power(3000), False), (1, power(0), True)])

    assert window == EnergyWindow(energy_mj=2000 + 6000 + 1500, seconds=4, updates=2)


def test_a_counter_is_taken_at_its_differences() -> None:
    (window,) = windows(energy(500), [(1, energy(700), False), (1, energy(1000), True)])

    assert window == EnergyWindow(energy_mj=500, seconds=2, updates=2)


def test_a_gap_makes_the_energy_unknown_with_its_reason_and_never_zero() -> None:
    (window,) = windows(power(1000), [(1, GAP, False), (1, power(1000), False), (1, power(1000), True)])

    assert window == EnergyWindow(None, 3, 1, "no permission to read it")


def test_the_window_after_a_gap_is_known_again() -> None:
    steps = [(1.0, GAP, False), (1.0, power(1000), True), (1.0, power(2000), True)]

    assert windows(power(1000), steps)[1] == EnergyWindow(1500, 1, 1)


def test_a_window_that_begins_in_a_gap_does_not_know_its_first_stretch() -> None:
    steps = [(1.0, GAP, True), (1.0, power(1000), False), (1.0, power(1000), True)]

    assert [window.energy_mj for window in windows(power(1000), steps)] == [None, None]


def test_a_board_without_a_sensor_never_knows_and_says_why() -> None:
    why = Reading(why="this board has no power sensor")

    assert windows(why, [(1, why, False), (1, why, True)]) == [EnergyWindow(None, 2, 0, why.why)]


def test_a_sensor_that_says_zero_gives_zero() -> None:
    assert windows(power(0), [(1, power(0), True)]) == [EnergyWindow(0.0, 1, 0)]


def test_a_counter_that_falls_is_not_trusted() -> None:
    (window,) = windows(energy(500), [(1, energy(400), True)])

    assert (window.energy_mj, window.why) == (None, "the sensor's readings do not fit together")


def test_a_window_without_time_has_no_energy() -> None:
    assert windows(power(1000), [(0, power(1000), True)]) == [EnergyWindow(None, 0, 0, "no time has passed")]


def test_only_what_is_new_counts_as_an_update_of_the_sensor() -> None:
    slow = [(0.1, power(1000 + 50 * (step // 5)), False) for step in range(1, 50)]

    assert windows(power(1000), [*slow, (0.1, power(1450), True)])[0].updates == 9


def test_a_steady_sensor_that_names_its_period_is_believed_to_keep_it() -> None:
    steady = Reading(1000.0, period_s=0.25)
    steps = [(0.1, steady, False)] * 39 + [(0.1, steady, True)]

    assert windows(steady, steps)[0].updates == 13, (
        "every third reading: the first ones after a quarter of a second"
    )


def test_idle_power_is_the_mean_of_the_stretches_in_which_nothing_was_done() -> None:
    bench = Bench(power(2000))
    meter = EnergyMeter(bench, bench.clock)
    for step in range(60):
        bench.now_s += 0.5
        bench.reading = power(2000 + step % 2)
        meter.sample(idle=True)
        assert (meter.idle_power_mw is None) == (step < 20), "20 updates at least"
    bench.reading = power(9000)
    bench.now_s += 10
    meter.sample()
    assert meter.idle_power_mw == pytest.approx(2000.5, abs=0.1)
    assert meter.close_window().energy_mj == pytest.approx(30 * 2000.5 + 10 * 5500, rel=1e-3), (
        "subtracted nowhere"
    )


def test_a_sensor_that_hangs_makes_nobody_wait_and_costs_the_windows_it_touches() -> None:
    hangs, let_go = threading.Event(), threading.Event()
    bench = Bench(power(1000))
    meter = EnergyMeter(bench, bench.clock)
    true_read = bench.read

    def read() -> Reading:
        hangs.set()
        assert let_go.wait(10)
        return true_read()

    bench.read = read  # type: ignore[method-assign]
    sampling = threading.Thread(target=meter.sample)
    sampling.start()
    assert hangs.wait(10)
    begun = time.monotonic()
    first = meter.close_window()
    assert time.monotonic() - begun < 5
    assert (first.energy_mj, first.why) == (None, "the power sensor does not answer")
    bench.now_s += 3
    let_go.set()
    sampling.join()
    second = meter.close_window()
    assert (second.energy_mj, second.why) == (None, "the power sensor did not answer in time")
    bench.now_s += 2
    assert meter.close_window() == EnergyWindow(2000, 2, 0)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9000), st.booleans()), min_size=1))
def test_windows_meet_without_gap_or_overlap(steps: list[tuple[int, int, bool]]) -> None:
    last = (1.0, power(0), True)
    split = windows(power(0), [*((s, power(p), close) for s, p, close in steps), last])
    whole = windows(power(0), [*((s, power(p), False) for s, p, _ in steps), last])

    assert sum(window.energy_mj or 0.0 for window in split) == pytest.approx(whole[0].energy_mj)
    assert sum(window.seconds for window in split) == pytest.approx(whole[0].seconds)
    assert sum(window.updates for window in split) == whole[0].updates
