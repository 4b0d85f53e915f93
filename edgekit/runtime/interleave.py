"""Time several sessions in turns, so that a busy or hot moment of the machine meets all of them. Decides nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.core.report import Latency
from edgekit.runtime.data import Data
from edgekit.runtime.session import Clock, Session

ROUNDS = 15
FEWEST_ROUNDS = 3
_ROUND_MS = 60.0  # how long one network's turn takes, about
_MOST = 64  # samples in a turn
_WARM_UP = 3
Times = NDArray[np.float64]


def in_turns(
    sessions: Sequence[Session],
    data: Sequence[Data],
    rounds: int = ROUNDS,
    limit_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[tuple[Times, ...], ...]:
    """Per session, per turn: ms from request to each exit, of shape (requests, exits), all stages run.

    data: each session's own inputs. Ends after `rounds` turns of each, or when `limit_s` seconds are over and each had
    three. Every other round goes backwards, so that nobody always comes after the same neighbour.
    """
    end = None if limit_s is None else clock() + limit_s
    counts = [_samples_a_turn(session, mine) for session, mine in zip(sessions, data, strict=True)]
    times: list[list[Times]] = [[] for _ in sessions]
    for turn in range(rounds):
        if end is not None and turn >= FEWEST_ROUNDS and clock() >= end:
            break
        order = range(len(sessions))
        for index in order if turn % 2 == 0 else reversed(order):
            count = counts[index]
            rows = [run_to_the_end(sessions[index], data[index], turn * count + row) for row in range(count)]
            times[index].append(np.array(rows))
    return tuple(tuple(mine) for mine in times)


def run_to_the_end(session: Session, data: Data, index: int) -> list[float]:
    """ms from request to each exit for sample `index` (modulo their number)."""
    return [elapsed for _, elapsed in session.stages(data.inputs(index % data.count))]


def _samples_a_turn(session: Session, data: Data) -> int:
    once = min(run_to_the_end(session, data, index)[-1] for index in range(_WARM_UP))
    return max(1, min(_MOST, int(_ROUND_MS / max(once, 1e-3))))


def exit_latencies(turns: Sequence[Times]) -> tuple[Latency, ...]:
    """From request to each exit, over all turns."""
    return _latencies(np.concatenate(turns))


def stage_latencies(turns: Sequence[Times]) -> tuple[Latency, ...]:
    """Each stage's own time, over all turns."""
    return _latencies(np.diff(np.concatenate(turns), axis=1, prepend=0.0))


def turn_medians(turns: Sequence[Times]) -> tuple[float, ...]:
    """The median time of the whole network in each turn, in ms."""
    return tuple(round(float(np.median(turn[:, -1])), 6) for turn in turns)


def _latencies(columns: Times) -> tuple[Latency, ...]:
    percentiles = np.percentile(columns, [50, 95, 99], axis=0)
    rows = np.vstack([columns.mean(axis=0), percentiles]).T
    return tuple(Latency(*(round(value, 6) for value in row)) for row in rows.tolist())
