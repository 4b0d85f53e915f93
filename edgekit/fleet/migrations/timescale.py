"""TimescaleDB's hypertables for the boards' roll-ups, where the extension is. Not tried with a real TimescaleDB."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from edgekit.core.errors import one_line

log = logging.getLogger("edgekit.fleet.migrations")

EXTENSION = "timescaledb"
CHUNKS_S = {"minutes": 86_400, "hours": 14 * 86_400}  # table -> seconds of `at` in one chunk


def is_available(connection: sa.Connection) -> bool:
    """Whether the server could be told to use it."""
    if connection.dialect.name != "postgresql":
        return False
    asked = sa.text("SELECT count(*) FROM pg_available_extensions WHERE name = :name")
    return bool(connection.scalar(asked, {"name": EXTENSION}))


def make_hypertables(connection: sa.Connection) -> bool:
    """Turn the roll-ups into hypertables, empty ones or not; whether that was done. A refusal leaves plain tables."""
    if not is_available(connection):
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION}")
            for table, seconds in CHUNKS_S.items():
                make = "SELECT create_hypertable('{}', 'at', chunk_time_interval => {}, migrate_data => true)"
                connection.exec_driver_sql(make.format(table, seconds))
    except DBAPIError as err:
        log.warning("TimescaleDB is there, but is not used: %s", one_line(err.orig or err))
        return False
    return True
