from __future__ import annotations

from dataclasses import replace

from edgekit.agent.monitor import HEALTH_S, Monitor
from edgekit.runtime.health import Health
from edgekit.runtime.power import EnergyMeter, Reading

COOL = Health(50.0, throttled=False, under_voltage=False, flags=(), memory_available_mb=500.0)


class Sensor:
    """A sensor whose reads are counted."""

    name = "test"

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        return Reading(power_mw=1000.0)


class World:
    """A clock, a board's health, and what the monitor said about it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = COOL
        self.said: list[bool] = []
        self.sensor = Sensor()
        meter = EnergyMeter(self.sensor, lambda: self.now)
        self.monitor = Monitor(
            meter, lambda: self.health, lambda on, health: self.said.append(on), 0.1, lambda: self.now
        )

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.monitor.step()


def test_the_beginning_and_the_end_of_throttling_are_said_once() -> None:
    world = World()
    world.pass_time(3)
    assert world.said == []
    world.health = replace(COOL, throttled=True, flags=("throttled",))
    world.pass_time(3)
    assert world.said == [True]
    world.health = COOL
    world.pass_time(3)
    assert world.said == [True, False]


def test_a_board_that_does_not_say_is_not_slowed_down() -> None:
    world = World()
    world.health = replace(COOL, throttled=None)
    world.pass_time(3)
    assert world.said == []


def test_power_is_sampled_every_round_and_health_every_second() -> None:
    world = World()
    before = world.sensor.reads
    world.health = replace(COOL, temperature_c=61.0)
    world.monitor.step()
    world.health = replace(COOL, temperature_c=62.0)
    world.pass_time(HEALTH_S / 2)
    assert world.monitor.health.temperature_c == 61.0
    world.pass_time(HEALTH_S)
    assert world.monitor.health.temperature_c == 62.0
    assert world.sensor.reads - before == 16
