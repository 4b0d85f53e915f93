"""What boards are sorted by follows what they sent."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.histogram import histogram
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet import standings
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.intake import Received
from edgekit.fleet.rolling import roll_up
from edgekit.fleet.standings import PASS_S, Standings
from edgekit.fleet.store import Store


@pytest.fixture(autouse=True)
def _enrolled(boards: tuple[str, ...]) -> None:
    del boards


def put(store: Store, device: str, seq: int, at: float, latency_ms: float, bundle: str = "m/1") -> None:
    record = Record(
        seq,
        60.0,
        at,
        True,
        60.0,
        bundle,
        "full",
        4,
        latency=histogram([latency_ms] * 4),
        labelled=4,
        correct=3,
    )
    with store.write() as connection:
        commit_batch(connection, [Received(device, "telemetry", "b1", 1, records=(record,))], [], at)


def kept(store: Store) -> dict[str, sa.Row[tuple[object, ...]]]:
    query = sa.select(db.devices.c.name, db.standings).join(
        db.standings, db.standings.c.device == db.devices.c.id
    )
    with store.read() as connection:
        return {row.name: row for row in connection.execute(query)}


def test_every_board_has_a_row_of_its_last_day_with_the_bundle_it_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standings, "_BOARDS_AT_ONCE", 2)
    put(store, "pi5-a", 1, NOW - 3 * 86_400, 9.0)
    put(store, "pi5-a", 2, NOW - 600, 50.0, "m/0")
    put(store, "pi5-a", 3, NOW - 60, 1.0)
    put(store, "orin", 1, NOW - 60, 5.0)
    roll_up(store)
    work = Standings(store, lambda: NOW)
    assert work.step()
    assert not work.step()
    rows = kept(store)
    assert set(rows) == {"pi5-a", "pi5-b", "orin"}
    assert (rows["pi5-a"].requests, rows["pi5-a"].accuracy) == (4, 0.75)
    assert rows["pi5-a"].p99 == pytest.approx(1.0, rel=0.07)
    assert rows["orin"].p50 == pytest.approx(5.0, rel=0.07)
    assert (rows["pi5-b"].requests, rows["pi5-b"].p99) == (0, None)


def test_a_pass_begins_again_when_its_time_has_come_and_not_before(store: Store) -> None:
    times = [NOW]
    work = Standings(store, lambda: times[-1])
    work.step()
    put(store, "orin", 1, NOW, 5.0)
    work.step()
    assert kept(store)["orin"].requests == 0
    times.append(NOW + PASS_S)
    work.step()
    assert kept(store)["orin"].requests == 4
