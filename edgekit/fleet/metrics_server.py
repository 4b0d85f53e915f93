"""What /metrics tells of the server beside its boards' figures: what ends when, alerts, rollouts, roll-ups."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.rules import SEVERITIES
from edgekit.fleet.alerts.states import OPEN
from edgekit.fleet.alerts.world import repository_ends
from edgekit.fleet.broker import SERVER
from edgekit.fleet.certificates import read_pair
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.reading import ROLLED
from edgekit.fleet.rollouts.states import TRANSITIONS
from edgekit.fleet.store import get_fact
from edgekit.fleet.tls import WEB


def server_metrics(connection: sa.Connection, config: FleetConfig, now: float) -> Iterable[Metric]:
    """Every family, with labels from tables of ours. What cannot be read now is left out: `status` says why."""
    yield _metadata(config)
    yield _certificates(config)
    yield _alerts(connection)
    yield _rollouts(connection)
    yield from _rollups(connection, now)


def _metadata(config: FleetConfig) -> Metric:
    family = GaugeMetricFamily(
        "edgekit_metadata_expires_timestamp_seconds",
        "When the repository's metadata in force ends.",
        labels=("role",),
    )
    try:
        ends = repository_ends(config.repository)
    except (BadInput, WorldFailed):
        return family
    for role, end in sorted(ends.items()):
        family.add_metric((role,), end)
    return family


def _certificates(config: FleetConfig) -> Metric:
    family = GaugeMetricFamily(
        "edgekit_certificate_expires_timestamp_seconds",
        "When a certificate of the server ends, where it speaks TLS.",
        labels=("server",),
    )
    wanted = {
        "web": config.tls_dir / WEB if config.web.tls else None,
        "broker": config.broker.files_dir / SERVER if config.broker.tls else None,
    }
    for server, path in wanted.items():
        try:
            if path is not None:
                family.add_metric((server,), read_pair(path)[1].not_valid_after_utc.timestamp())
        except (BadInput, WorldFailed):
            continue
    return family


def _alerts(connection: sa.Connection) -> Metric:
    family = GaugeMetricFamily("edgekit_alerts", "Alerts that are not over.", labels=("severity", "state"))
    table = db.alerts
    query = (
        sa.select(table.c.severity, table.c.state, sa.func.count())
        .where(table.c.state.in_(OPEN))
        .group_by(table.c.severity, table.c.state)
    )
    found = {(severity, state): count for severity, state, count in connection.execute(query)}
    for severity in SEVERITIES:
        for state in OPEN:
            family.add_metric((severity, state), found.get((severity, state), 0))
    return family


def _rollouts(connection: sa.Connection) -> Metric:
    family = GaugeMetricFamily("edgekit_rollouts", "Rollouts by state.", labels=("state",))
    table = db.rollouts
    query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
    found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)}
    for state in TRANSITIONS:
        family.add_metric((state,), found.get(state, 0))
    return family


def _rollups(connection: sa.Connection, now: float) -> Iterable[Metric]:
    table, mark = db.records, get_fact(connection, ROLLED) or 0
    last = connection.scalar(sa.select(sa.func.max(table.c.id))) or 0
    yield GaugeMetricFamily(
        "edgekit_rollup_backlog_records", "Records in no roll-up yet.", value=max(0, last - mark)
    )
    oldest = connection.scalar(
        sa.select(table.c.received).where(table.c.id > mark).order_by(table.c.id).limit(1)
    )
    yield GaugeMetricFamily(
        "edgekit_rollup_lag_seconds",
        "Since when the oldest record in no roll-up waits; 0: none does.",
        value=0.0 if oldest is None else max(0.0, now - oldest),
    )
