"""Time networks on this machine, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime.data import Data
from edgekit.runtime.session import Session

ROUNDS = 15
_ROUND_MS = 60.0  # how long one network's turn takes, about
_MOST = 64  # samples in a turn
_WARM_UP = 3


def interleaved(
    sessions: Sequence[Session], data: Data, rounds: int = ROUNDS
) -> tuple[NDArray[np.float64], ...]:
    """Per network the ms from request to each exit, shape (requests, exits), run to the last: `rounds` turns each.

    The turns alternate, so that a busy moment of the machine meets all networks alike.
    """
    per_turn = [_samples_a_turn(session, data) for session in sessions]
    times: list[list[list[float]]] = [[] for _ in sessions]
    for turn in range(rounds):
        for session, count, mine in zip(sessions, per_turn, times, strict=True):
            for index in range(count):
                mine.append(run_to_the_end(session, data, turn * count + index))
    return tuple(np.array(mine) for mine in times)


def run_to_the_end(session: Session, data: Data, index: int) -> list[float]:
    """ms from request to each exit for sample `index` (modulo their number)."""
    return [elapsed for _, elapsed in session.stages(data.inputs(index % data.count))]


def _samples_a_turn(session: Session, data: Data) -> int:
    once = min(run_to_the_end(session, data, index)[-1] for index in range(_WARM_UP))
    return max(1, min(_MOST, int(_ROUND_MS / max(once, 1e-3))))
