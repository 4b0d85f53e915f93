"""Keep each board's figures of the last 24 hours in one row, so that thousands of boards can be sorted by them.

A copy, as old as one pass over the fleet takes; what a page shows of a board is read anew (fleet.reading).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import NONE
from edgekit.fleet.reading import board_sums
from edgekit.fleet.store import Store, insert_new

WINDOW_S = 86_400.0
PASS_S = 300.0  # between the begins of two passes
_BOARDS_AT_ONCE = 200
_COLUMNS = tuple(column.name for column in db.standings.c if column.name != "device")


@dataclass
class Standings:
    """One pass after another over all boards; each `step` is a slice."""

    store: Store
    clock: Callable[[], float]
    board: int = 0  # boards up to this number were done in this pass
    begun: float = 0.0

    def step(self) -> bool:
        """Bring the next boards up to date; False where there is nothing to do for a while."""
        now = self.clock()
        if self.board == 0:
            if 0 <= now - self.begun < PASS_S:
                return False
            self.begun = now
        self.board = refresh(self.store, self.board, now)
        return self.board > 0


def refresh(store: Store, start: int, now: float) -> int:
    """Compute the rows of the next boards after number `start`; the last one's number, 0 after the last board."""
    devices, presence = db.devices, db.presence
    with store.read() as connection:
        query = (
            sa.select(devices.c.id, presence.c.bundle)
            .join(presence, presence.c.device == devices.c.id)
            .where(devices.c.id > start)
            .order_by(devices.c.id)
            .limit(_BOARDS_AT_ONCE)
        )
        boards = {row.id: row.bundle or NONE for row in connection.execute(query)}
        sums = board_sums(connection, now - WINDOW_S, now, list(boards))
    rows = [_row(device, sums.get(device, {}).get(bundle, Sum()), now) for device, bundle in boards.items()]
    if rows:
        with store.write() as connection:
            _put(connection, rows)
    return max(boards) if len(boards) == _BOARDS_AT_ONCE else 0


def _row(device: int, figures: Sum, now: float) -> dict[str, Any]:
    latency = figures.histogram.summary()
    return {
        "device": device,
        "computed": now,
        "requests": figures.requests,
        "errors": figures.errors,
        "deadline_missed": figures.deadline_missed,
        "p50": latency["p50"],
        "p95": latency["p95"],
        "p99": latency["p99"],
        "accuracy": figures.correct / figures.labelled if figures.labelled else None,
        "energy_mj": figures.energy_mj / figures.energy_requests if figures.energy_requests else None,
    }


def _put(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    table = db.standings
    insert_new(connection, table, rows)
    change = sa.update(table).where(table.c.device == sa.bindparam("key"))
    values: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in _COLUMNS}
    connection.execute(
        change.values(values),
        [{"key": row["device"]} | {f"to_{name}": row[name] for name in _COLUMNS} for row in rows],
    )
