"""The reader behind all tabs: what it shares, how rarely it reads, what it forgets. The clock is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edgekit.fleet.screens.fresh import REFRESH_S, Reader


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Source:
    """Counts its readings, each of which takes `cost_s`."""

    def __init__(self, clock: Clock, cost_s: float = 0.0) -> None:
        self.clock, self.cost_s, self.times = clock, cost_s, 0

    def __call__(self) -> int:
        self.times += 1
        self.clock.time += self.cost_s
        return self.times


async def here(function: Callable[[], Any]) -> Any:
    """Run it, after others had their turn."""
    await asyncio.sleep(0)
    return function()


def test_many_tabs_share_one_reading() -> None:
    async def run() -> None:
        clock = Clock()
        reader, source = Reader(clock, here), Source(clock)
        assert await asyncio.gather(*(reader.read("a", source) for _ in range(50))) == [1] * 50
        clock.time += REFRESH_S - 0.1
        assert await reader.read("a", source) == 1
        assert await reader.read("a", source, now=True) == 2
        clock.time += REFRESH_S
        assert await reader.read("a", source) == 3
        assert await reader.read("b", source) == 4

    asyncio.run(run())


def test_what_is_slow_is_read_at_most_a_tenth_of_the_time() -> None:
    async def run() -> None:
        clock = Clock()
        reader, source = Reader(clock, here), Source(clock, cost_s=1.0)
        while clock.time < 200:
            await reader.read("a", source)
            clock.time += 0.5
        assert source.times <= 10

    asyncio.run(run())


def test_a_failure_is_everybodys_and_the_next_one_asks_again() -> None:
    async def run() -> None:
        clock = Clock()
        reader, source = Reader(clock, here), Source(clock)

        def fail() -> int:
            raise ValueError("no")

        answers = await asyncio.gather(*(reader.read("a", fail) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ValueError] * 3
        assert await reader.read("a", source) == 1

    asyncio.run(run())


def test_what_nobody_asks_for_is_forgotten() -> None:
    async def run() -> None:
        clock = Clock()
        reader, source = Reader(clock, here), Source(clock)
        for number in range(2000):
            await reader.read(number, source)
        assert len(reader._kept) <= 500
        clock.time += 100
        await reader.read("last", source)
        assert list(reader._kept) == ["last"]

    asyncio.run(run())
