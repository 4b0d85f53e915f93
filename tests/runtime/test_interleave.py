from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgekit.runtime.data import Data
from edgekit.runtime.interleave import (
    FEWEST_ROUNDS,
    exit_latencies,
    in_turns,
    stage_latencies,
    turn_medians,
)

DATA = Data("none", range(3), None, lambda index: {}, str)


class Counted:
    """A session of two stages that notes when it ran. slow: of all."""

    def __init__(self, name: str, log: list[str], ms: float) -> None:
        self.name, self.log, self.ms = name, log, ms

    def stages(self, inputs: object) -> Iterator[tuple[int, float]]:
        self.log.append(self.name)
        yield 0, self.ms / 4
        yield 1, self.ms


def sessions(log: list[str], ms: float = 1000.0) -> tuple[Counted, ...]:
    return tuple(Counted(name, log, ms * (index + 1)) for index, name in enumerate("abc"))


def test_the_candidates_take_turns_and_every_other_round_goes_backwards() -> None:
    log: list[str] = []
    turns = in_turns(sessions(log), [DATA] * 3, rounds=4)  # type: ignore[arg-type]
    assert "".join(log)[-12:] == "abccbaabccba"
    assert [len(mine) for mine in turns] == [4, 4, 4]


def test_a_round_that_is_over_its_time_ends_when_each_had_its_fewest_turns() -> None:
    ticks = iter(range(1000))
    turns = in_turns(sessions([]), [DATA] * 3, 15, limit_s=1.0, clock=lambda: float(next(ticks)))  # type: ignore[arg-type]
    assert [len(mine) for mine in turns] == [FEWEST_ROUNDS] * 3


def test_a_stage_has_its_own_time_and_an_exit_the_time_up_to_it() -> None:
    (mine,) = in_turns(sessions([])[:1], [DATA], rounds=3)  # type: ignore[arg-type]
    assert [entry.p50 for entry in exit_latencies(mine)] == [250.0, 1000.0]
    assert [entry.p50 for entry in stage_latencies(mine)] == [250.0, 750.0]
    assert turn_medians(mine) == (1000.0, 1000.0, 1000.0)


def test_percentiles_are_those_of_all_requests() -> None:
    turns = (np.array([[1.0], [3.0]]), np.array([[5.0]]))
    (only,) = exit_latencies(turns)
    assert (only.mean, only.p50) == (3.0, 3.0)
    assert only.p99 == pytest.approx(np.percentile([1, 3, 5], 99))
