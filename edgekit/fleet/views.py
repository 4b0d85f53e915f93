"""What is shown of the fleet as a whole, as JSON values, computed from the store when asked. Unknown is None.

Boards, jobs, events and bundles have files of their own, *_views.py; what others call by this name is here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.histogram import Histogram
from edgekit.fleet import schema as db
from edgekit.fleet.board_views import (
    SERIES_POINTS,
    boards_by,
    boards_counted,
    device_detail,
    device_page,
    device_rows,
    device_series,
    facets,
    points_of,
)
from edgekit.fleet.bundle_views import bundle_detail, bundle_rows
from edgekit.fleet.event_views import event_page
from edgekit.fleet.figures import Sum, total
from edgekit.fleet.job_views import job_boards, job_detail, job_head, job_page, job_rows
from edgekit.fleet.names import texts_of
from edgekit.fleet.reading import ROLLED, fleet_series, step_of
from edgekit.fleet.store import get_fact
from edgekit.fleet.viewing import DEFAULT_WINDOW_S, Unknown, actions, job_row

INGESTER_SILENT_S = 60.0  # it is gone, or was never meant to stay

_PACE = ("at", "since", "connected", "messages", "records", "events", "dropped", "commits", "batch_s")

_actions, _job = actions, job_row

__all__ = [
    "DEFAULT_WINDOW_S",
    "SERIES_POINTS",
    "Unknown",
    "bundle_detail",
    "bundle_rows",
    "device_detail",
    "device_page",
    "device_rows",
    "device_series",
    "event_page",
    "facets",
    "fleet_points",
    "fleet_status",
    "get_fact",
    "ingesters",
    "job_boards",
    "job_detail",
    "job_head",
    "job_page",
    "job_rows",
]


def fleet_status(connection: sa.Connection, now: float, window_s: float = DEFAULT_WINDOW_S) -> dict[str, Any]:
    """The whole fleet in one object: how many boards, what they did, how ingest is."""
    parts = fleet_series(connection, now - window_s, now)
    figures = total(part[3] for part in parts)
    presence, records = db.presence, db.records
    rolled = connection.scalar(sa.select(sa.func.sum(presence.c.records))) or 0
    fresh = sa.select(sa.func.count()).where(records.c.id > (get_fact(connection, ROLLED) or 0))
    counted = sa.select(db.counters.c.key, db.counters.c.count)  # row.count would be a method
    malformed = connection.scalar(sa.select(sa.func.sum(db.devices.c.malformed)))
    return {
        "window_s": window_s,
        "boards": boards_counted(connection, now),
        **figures.summary(texts_of(connection, figures.names)),
        "by_profile": _by(connection, now, parts, "profile"),
        "by_bundle": _by(connection, now, parts, "bundle"),
        "records": int(rolled) + (connection.scalar(fresh) or 0),
        "malformed": int(malformed or 0),
        "dropped": {row[0]: row[1] for row in connection.execute(counted)},
        "ingest": get_fact(connection, "ingest"),
        "ingesters": ingesters(connection, now),
    }


def ingesters(connection: sa.Connection, now: float) -> list[dict[str, Any]]:
    """How each ingester that lives does, by its number: Records a second and ms from arrival to commit, last minute."""
    rows = []
    facts = db.facts
    for key in connection.scalars(sa.select(facts.c.key).where(facts.c.key.startswith("ingest:"))):
        fact = get_fact(connection, key)
        if now - fact["at"] > INGESTER_SILENT_S:
            continue
        lag = Histogram({int(bucket): number for bucket, number in fact.get("lag", {}).items()})
        row = {"number": int(key.partition(":")[2]), **{name: fact.get(name) for name in _PACE}}
        rows.append(row | {"rate": fact.get("rate", 0.0), "lag_p99_ms": lag.percentile_ms(99)})
    return sorted(rows, key=lambda row: int(row["number"]))


def fleet_points(
    connection: sa.Connection,
    now: float,
    window_s: float = DEFAULT_WINDOW_S,
    *,
    profile: str | None = None,
    bundle: str | None = None,
) -> list[dict[str, Any]]:
    """All boards' figures over time as a board's series has them; those of one profile or bundle alone where asked."""
    found = fleet_series(connection, now - window_s, now)
    texts = texts_of(connection, {number for part in found for number in part[1:3]})
    wanted = [
        (at, number, figures)
        for at, kind, number, figures in found
        if (profile is None or texts.get(kind) == profile) and (bundle is None or texts.get(number) == bundle)
    ]
    return points_of(connection, wanted, step_of(window_s))


def _by(
    connection: sa.Connection, now: float, parts: Sequence[tuple[int, int, int, Sum]], key: str
) -> list[dict[str, Any]]:
    """Figures and boards of each profile or bundle."""
    sums: dict[str, list[Sum]] = {}
    texts = texts_of(connection, {number for part in parts for number in part[1:3]})
    for _, profile, bundle, figures in parts:
        sums.setdefault(texts.get(profile if key == "profile" else bundle, "unknown"), []).append(figures)
    boards = {name or "unknown": (count, here) for name, count, here in boards_by(connection, now, key)}
    rows = []
    for name in sorted({*sums, *boards}):
        figures = total(sums.get(name, ()))
        count, here = boards.get(name, (0, 0))
        summary = figures.summary(texts_of(connection, figures.names))
        rows.append({key: name, "boards": count, "online": here, **summary})
    return rows
