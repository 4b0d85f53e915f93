from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from agents import until

from edgekit.agent.monitor import CLEAR_S, HEALTH_S, UNKNOWN, Change, Monitor
from edgekit.runtime.health import CONDITIONS, Health
from edgekit.runtime.power import EnergyMeter, Reading

COOL = Health(50.0, throttled=False, under_voltage=False, flags=(), memory_available_mb=500.0)


def with_flags(*flags: str) -> Health:
    return replace(COOL, flags=flags)


class Sensor:
    """A sensor whose reads are counted."""

    name = "test"

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        return Reading(power_mw=1000.0 + self.reads % 2)


class World:
    """A clock, a board's health, and what the monitor said about it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = COOL
        self.changes: list[Change] = []
        self.sensor = Sensor()
        self.active = 0
        self.meter = EnergyMeter(self.sensor, lambda: self.now)
        self.monitor = Monitor(
            self.meter, lambda: self.health, self.changes.append, 0.1, lambda: self.now, lambda: self.active
        )

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.monitor.step()

    @property
    def said(self) -> list[tuple[str, bool]]:
        return [entry for change in self.changes for entry in change.words.items()]

    @property
    def turns(self) -> list[bool]:
        return [change.slowed for change in self.changes if change.turned]


@pytest.fixture
def world() -> World:
    made = World()
    made.pass_time(3)
    assert made.changes == []
    return made


@pytest.mark.parametrize("word", CONDITIONS)
def test_the_beginning_and_the_end_of_every_condition_are_said_once_and_slow_the_board(
    world: World, word: str
) -> None:
    world.health = with_flags(word)
    world.pass_time(9)
    assert (world.said, world.turns) == ([(word, True)], [True])
    world.health = COOL
    world.pass_time(CLEAR_S + HEALTH_S + 0.1)
    assert (world.said, world.turns) == ([(word, True), (word, False)], [True, False])


def test_a_condition_that_flaps_is_one_episode(world: World) -> None:
    for _ in range(10):
        world.health = with_flags("under-voltage")
        world.pass_time(HEALTH_S)
        world.health = COOL
        world.pass_time(HEALTH_S)
    assert world.said == [("under-voltage", True)]
    world.pass_time(2 * CLEAR_S)
    assert world.said == [("under-voltage", True), ("under-voltage", False)]


def test_conditions_that_overlap_slow_the_board_once(world: World) -> None:
    world.health = with_flags("under-voltage")
    world.pass_time(HEALTH_S)
    world.health = with_flags("under-voltage", "frequency-capped")
    world.pass_time(3)
    world.health = with_flags("frequency-capped")
    world.pass_time(2 * CLEAR_S)
    assert world.said == [("under-voltage", True), ("frequency-capped", True), ("under-voltage", False)]
    assert world.turns == [True]
    world.health = COOL
    world.pass_time(2 * CLEAR_S)
    assert world.turns == [True, False]


def test_a_dip_between_two_looks_is_told_by_its_has_happened_bit(world: World) -> None:
    world.health = with_flags("under-voltage-has-happened")
    world.pass_time(HEALTH_S)
    assert world.said == [("under-voltage", True)]
    assert world.changes[0].health.flags == ("under-voltage-has-happened",)
    world.pass_time(30)
    assert world.said == [("under-voltage", True), ("under-voltage", False)]


def test_what_happened_before_the_start_is_no_news() -> None:
    world = World()
    world.health = with_flags("throttled-has-happened", "under-voltage-has-happened")
    world.pass_time(30)
    assert world.changes == []
    world.health = replace(UNKNOWN)  # the firmware did not answer once
    world.pass_time(HEALTH_S)
    world.health = with_flags("throttled-has-happened", "under-voltage-has-happened")
    world.pass_time(30)
    assert world.changes == []


def test_over_current_is_an_episode_while_its_counter_grows(world: World) -> None:
    world.health = replace(COOL, over_current_events=7, flags=("over-current-has-happened",))
    world.pass_time(10)
    assert world.changes == [], "they were before the start"
    for count in range(8, 12):
        world.health = replace(world.health, over_current_events=count)
        world.pass_time(HEALTH_S)
    assert (world.said, world.turns) == ([("over-current", True)], [True])
    world.pass_time(CLEAR_S + HEALTH_S)
    assert world.turns == [True, False]


def test_a_board_that_does_not_say_is_not_slowed_down(world: World) -> None:
    world.health = UNKNOWN
    world.pass_time(10)
    assert world.changes == []


def test_power_is_sampled_every_round_and_health_every_other_second() -> None:
    world = World()
    before = world.sensor.reads
    assert world.monitor.health == UNKNOWN, "the start does not wait for it"
    world.health = replace(COOL, temperature_c=61.0)
    world.monitor.step()
    world.health = replace(COOL, temperature_c=62.0)
    world.pass_time(HEALTH_S / 2)
    assert world.monitor.health.temperature_c == 61.0
    world.pass_time(HEALTH_S)
    assert world.monitor.health.temperature_c == 62.0
    assert world.sensor.reads - before == 31


def test_idle_power_is_measured_only_while_no_request_was_answered() -> None:
    world = World()
    for _ in range(200):
        world.active += 2  # one request since the last sample
        world.pass_time(0.1)
    assert world.meter.idle_power_mw is None
    world.active += 1  # one that lasts
    world.pass_time(20)
    assert world.meter.idle_power_mw is None
    world.active += 1
    world.pass_time(20)
    assert world.meter.idle_power_mw == pytest.approx(1000.5, abs=0.5)


def test_a_sensor_that_hangs_stops_neither_the_thread_nor_its_end() -> None:
    let_go, hanging = threading.Event(), threading.Event()

    def health() -> Health:
        hanging.set()
        assert let_go.wait(10)
        raise OSError("and then it fails")

    monitor = Monitor(EnergyMeter(Sensor(), lambda: 0.0), health, lambda change: None, 0.01)
    monitor.start()
    assert hanging.wait(10)
    assert monitor.health == UNKNOWN
    hanging.clear()
    let_go.set()
    assert hanging.wait(10), "it goes on after a defect"
    monitor.stop()
    until(lambda: not monitor.is_alive(), "the end")
