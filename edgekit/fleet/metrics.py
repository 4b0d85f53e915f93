"""`/metrics`: the fleet's figures for Prometheus, with labels whose number is bounded: no board, no job is a label.

Counters come from the totals that records are added to once (`fleet_totals`), so they only grow. What is asked again
within a few seconds is answered from memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping

import sqlalchemy as sa
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.responses import Response

from edgekit.core.histogram import BUCKETS, PER_DECADE, edge_ms
from edgekit.fleet import schema as db
from edgekit.fleet.board_views import boards_by, boards_counted
from edgekit.fleet.context import Context
from edgekit.fleet.figures import Sum
from edgekit.fleet.metrics_server import server_metrics
from edgekit.fleet.names import texts_of
from edgekit.fleet.store import get_fact
from edgekit.fleet.views import ingesters

MOST_BUNDLES = 50  # of which a label tells; the others together are OTHER
MOST_PROFILES = 50
MOST_EXITS = 20
OTHER = "other"
KEPT_S = 5.0
_EDGES = tuple(range(PER_DECADE, BUCKETS - 1, PER_DECADE // 4))  # every fourth of a decade from 0.01 ms on
_COUNTERS = {
    "requests": "Requests that were answered.",
    "errors": "Requests that failed.",
    "deadline_missed": "Answers that came after their deadline.",
    "inputs_dropped": "Inputs that were replaced or refused before they were answered.",
    "answers_lost": "Answers that a sink could not give.",
    "cancelled": "Requests whose client hung up before their turn.",
    "nan_confidences": "Answers whose confidence was no number.",
    "records": "Records in the roll-ups.",
}


class FleetCollector:
    """What prometheus_client asks at each scrape."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterable[Metric]:
        """Everything, from one consistent view of the store."""
        now = self._context.clock()
        with self._context.store.read() as connection:
            yield from _totals(connection)
            yield from _boards(connection, now)
            yield from _ingest(connection, now)
            yield from _server(connection)
            yield from server_metrics(connection, self._context.config, now)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering asks no database."""
        return ()


def metrics_router(context: Context) -> APIRouter:
    """/metrics. The guard has checked the token."""
    router = APIRouter(include_in_schema=False)
    registry = CollectorRegistry()
    registry.register(FleetCollector(context))
    answer = _kept(lambda: generate_latest(registry), context.clock)

    @router.get("/metrics")
    def metrics() -> Response:
        return Response(answer(), media_type=CONTENT_TYPE_LATEST)

    return router


def _kept(make: Callable[[], bytes], clock: Callable[[], float]) -> Callable[[], bytes]:
    lock, kept = threading.Lock(), (-KEPT_S, b"")

    def answer() -> bytes:
        nonlocal kept
        with lock:
            if not 0 <= clock() - kept[0] < KEPT_S:
                kept = (clock(), make())
            return kept[1]

    return answer


def _totals(connection: sa.Connection) -> Iterable[Metric]:
    """Counters and histograms by profile and bundle."""
    rows = connection.execute(sa.select(db.fleet_totals)).all()
    texts = texts_of(connection, {number for row in rows for number in (row.profile, row.bundle)})
    profiles = _labels({row.profile for row in rows}, texts, MOST_PROFILES)
    bundles = _labels({row.bundle for row in rows}, texts, MOST_BUNDLES)
    sums: dict[tuple[str, str], Sum] = {}
    for row in rows:
        sums.setdefault((profiles[row.profile], bundles[row.bundle]), Sum()).add(row)
    for key, text in _COUNTERS.items():
        family = CounterMetricFamily(f"edgekit_{key}", text, labels=("profile", "bundle"))
        for labels, figures in sorted(sums.items()):
            family.add_metric(labels, getattr(figures, key))
        yield family
    energy = CounterMetricFamily(
        "edgekit_energy_joules", "Energy of the intervals where it is known.", labels=("profile", "bundle")
    )
    known = CounterMetricFamily(
        "edgekit_energy_requests", "Requests of those intervals.", labels=("profile", "bundle")
    )
    latency = HistogramMetricFamily(
        "edgekit_latency_seconds", "Latency of requests.", labels=("profile", "bundle")
    )
    for labels, figures in sorted(sums.items()):
        energy.add_metric(labels, figures.energy_mj / 1000)
        known.add_metric(labels, figures.energy_requests)
        latency.add_metric(labels, _buckets(figures), figures.latency_sum_ms / 1000)
    yield from (energy, known, latency, _exits(connection, sums))


def _exits(connection: sa.Connection, sums: Mapping[tuple[str, str], Sum]) -> Metric:
    """Where requests left their network, by bundle alone: three labels would be too many series."""
    family = CounterMetricFamily(
        "edgekit_exits", "Requests by the exit they left through.", labels=("bundle", "exit")
    )
    numbers = {number for figures in sums.values() for number in figures.exits}
    names = _labels(numbers, texts_of(connection, numbers), MOST_EXITS)
    found: dict[tuple[str, str], int] = {}
    for (_, bundle), figures in sums.items():
        for number, count in figures.exits.items():
            key = (bundle, names[number])
            found[key] = found.get(key, 0) + count
    for labels, count in sorted(found.items()):
        family.add_metric(labels, count)
    return family


def _labels(numbers: Collection[int], texts: Mapping[int, str], most: int) -> dict[int, str]:
    """Number -> label. The `most` that were heard of first keep theirs for ever: a counter never falls."""
    first = set(sorted(numbers)[:most])
    return {number: texts.get(number, "none") if number in first else OTHER for number in numbers}


def _buckets(figures: Sum) -> list[tuple[str, float]]:
    """Cumulative counts at a few edges of the store's own buckets: nothing is interpolated."""
    found: list[tuple[str, float]] = []
    total = 0
    waiting = sorted(figures.latency.items())
    for edge in _EDGES:
        while waiting and waiting[0][0] <= edge:
            total += waiting.pop(0)[1]
        found.append((f"{edge_ms(edge) / 1000:.6g}", total))
    return [*found, ("+Inf", total + sum(count for _, count in waiting))]


def _boards(connection: sa.Connection, now: float) -> Iterable[Metric]:
    states = GaugeMetricFamily(
        "edgekit_boards", "Boards in a state; one may be in several.", labels=("state",)
    )
    for state, count in boards_counted(connection, now).items():
        states.add_metric((state,), count)
    here = GaugeMetricFamily(
        "edgekit_profile_boards", "Boards that are not revoked, by profile.", labels=("profile", "online")
    )
    rows = sorted(boards_by(connection, now, "profile"), key=lambda row: (-row[1], row[0] or ""))
    by_profile: dict[str, list[int]] = {}
    for place, (profile, boards, there) in enumerate(rows):
        label = (profile or "none") if place < MOST_PROFILES else OTHER
        known = by_profile.setdefault(label, [0, 0])
        known[0], known[1] = known[0] + boards - there, known[1] + there
    for label, (away, there) in sorted(by_profile.items()):
        here.add_metric((label, "false"), away)
        here.add_metric((label, "true"), there)
    jobs = GaugeMetricFamily("edgekit_job_boards", "Boards by the state of a job.", labels=("state",))
    table = db.job_devices
    query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
    for state, count in sorted(connection.execute(query)):
        jobs.add_metric((state,), count)
    yield from (states, here, jobs)


def _ingest(connection: sa.Connection, now: float) -> Iterable[Metric]:
    """How ingesters do; their number, of which there are at most 16, is a label."""
    fact = get_fact(connection, "ingest") or {}
    yield GaugeMetricFamily(
        "edgekit_ingest_connected", "Whether the broker is connected.", value=bool(fact.get("connected"))
    )
    rows = ingesters(connection, now)
    rate = sum(row["rate"] for row in rows)
    yield GaugeMetricFamily(
        "edgekit_ingest_records_per_second", "Records committed, last minute.", value=rate
    )
    lag = GaugeMetricFamily(
        "edgekit_ingest_lag_seconds",
        "From a message's arrival to its commit, 99th percentile of the last minute.",
        labels=("ingester",),
    )
    for row in rows:
        if row["lag_p99_ms"] is not None:
            lag.add_metric((str(row["number"]),), row["lag_p99_ms"] / 1000)
    yield lag


def _server(connection: sa.Connection) -> Iterable[Metric]:
    dropped = CounterMetricFamily("edgekit_dropped", "What was dropped on arrival.", labels=("what",))
    table = db.counters
    for what, count in connection.execute(
        sa.select(table.c.key, table.c.count).order_by(table.c.key).limit(50)
    ):
        dropped.add_metric((what,), count)
    yield dropped
    size = _bytes(connection)
    if size is not None:
        yield GaugeMetricFamily("edgekit_database_bytes", "Size of the database.", value=size)


def _bytes(connection: sa.Connection) -> int | None:
    if connection.dialect.name == "sqlite":
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0
        return int(pages) * int(connection.exec_driver_sql("PRAGMA page_size").scalar() or 0)
    return int(connection.scalar(sa.select(sa.func.pg_database_size(sa.func.current_database()))) or 0)
