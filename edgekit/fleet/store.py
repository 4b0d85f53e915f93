"""The tables and how they are opened: SQLAlchemy Core on SQLite (WAL). No rule about boards or jobs lives here.

What a board sends is keyed by (boot, seq), so a replayed or re-ordered batch changes nothing. A commit is on the disk
when it returns (synchronous=FULL): acknowledgements to boards rest on that.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from edgekit.core.errors import BadInput, WorldFailed, one_line

SCHEMA_VERSION = 2
BUSY_TIMEOUT_MS = 15_000

metadata = MetaData()

facts = Table(
    "facts", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

counters = Table(
    "counters",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("profile", String(64)),  # as enrolled; what the agent says stands in info
    Column("tags", Text, nullable=False),  # JSON list
    Column("enrolled_at", Float, nullable=False),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("broker_hash", Text, nullable=False),  # the password as Mosquitto keeps it
    Column("online", Boolean, nullable=False, default=False),
    Column("boot_id", String(64)),  # of the last birth
    Column("last_seen", Float),
    Column("info", Text),  # JSON, as last sent
    Column("reported", Text),  # JSON, as last sent
    Column("malformed", BigInteger, nullable=False, default=0),  # messages that were dropped
    Column("malformed_why", Text),
    Column("rev", BigInteger, nullable=False, default=0),  # of the last desired
    Column("n", BigInteger, nullable=False, default=0),  # of the last command
    Column("certificate_serial", Text),  # of the one in force; None: it has none
    Column("certificate_expires", Float),
    Column("revoked_at", Float),  # its credentials count no more
)

certificates = Table(  # of boards; forgotten when they have ended
    "certificates",
    metadata,
    Column("serial", String(64), primary_key=True),  # hexadecimal
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked_at", Float),
    Index("certificates_by_device", "device"),
)

boots = Table(
    "boots",
    metadata,
    Column("id", Integer, primary_key=True),  # grows in the order in which boots were first heard of
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("floor", BigInteger, nullable=False, default=1),
    Column("upto", BigInteger, nullable=False, default=0),  # all from floor to here is in the store
    Column("last", BigInteger, nullable=False, default=0),  # the highest number in the store
    sa.UniqueConstraint("device", "boot_id"),
)

records = Table(
    "records",
    metadata,
    Column("boot", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("at", Float, nullable=False),  # the board's time; where its clock is not trusted, when it came
    Column("received", Float, nullable=False),
    Column("uptime_s", Float, nullable=False),
    Column("clock_synced", Boolean, nullable=False),
    Column("interval_s", Float, nullable=False),
    Column("bundle", Text),
    Column("policy", Text),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("deadline_missed", BigInteger, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("correct", BigInteger, nullable=False),
    Column("exits", Text, nullable=False),  # JSON: name -> count
    Column("latency", LargeBinary, nullable=False),  # fleet.packing
    Column("latency_sum_ms", Float, nullable=False),
    Column("energy_mj", Float),
    Column("energy_provenance", String(16)),
    Column("energy_on", Text),
    Column("energy_why", Text),
    Column("busy_s", Float, nullable=False),
    Column("temperature_c", Float),
    Column("throttled", Boolean),
    Column("under_voltage", Boolean),
    Column("memory_mb", Float),
    Index("records_by_time", "device", "at"),
)

events = Table(
    "events",
    metadata,
    Column("boot", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("received", Float, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Index("events_by_time", "device", "at"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("boot", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("received", Float, nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("target", Text),
    Column("reason", Text),
    Column("detail", Text),
    Index("job_events_by_job", "job_id", "device"),
    Index("job_events_by_time", "device", "at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("target", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("policy", Text),  # JSON
    Column("interval_s", Float),
    Column("config", Text),  # JSON
)

job_devices = Table(
    "job_devices",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),  # core.jobs.STATES, or "pending": no word from the board yet
    Column("reason", Text),
    Column("detail", Text),
    Column("updated", Float, nullable=False),
    Index("job_devices_by_device", "device", "job"),
)

commands = Table(  # one-shots: a job's command to one board, published until the board has ended the job
    "commands",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("action", String(16), nullable=False),  # core.messages.ACTIONS
    Column("n", BigInteger, nullable=False),
    Column("pending", Boolean, nullable=False),  # the broker has not confirmed it
    Index("commands_pending", "pending"),
)

job_reports = Table(
    "job_reports",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("reports", Text, nullable=False),  # JSON: core.bench
)

desired = Table(
    "desired",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("rev", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("target", Text),
    Column("policy", Text),  # JSON
    Column("interval_s", Float),
    Column("config", Text),  # JSON
    Column("expires", Float, nullable=False),
    Column("pending", Boolean, nullable=False),  # the broker has not confirmed it
    Index("desired_pending", "pending"),
)


@dataclass(frozen=True)
class Store:
    """An open database."""

    engine: sa.Engine

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view. Raises WorldFailed where the database fails."""
        with _translated(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that holds the writer's lock from its start; committed on leaving, on the disk then.

        Raises WorldFailed where the database fails; then nothing of it is stored.
        """
        with _translated(), self.engine.execution_options(edgekit_write=True).begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_store(url: str) -> Store:
    """Open the database, making its tables where there are none. Raises BadInput (newer schema), WorldFailed."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            _make_private(Path(engine.url.database))
        sa.event.listen(engine, "connect", _on_connect)
        sa.event.listen(engine, "begin", _on_begin)
    store = Store(engine)
    with store.write() as connection:
        metadata.create_all(connection)
        version = get_fact(connection, "schema")
        if version is not None and version > SCHEMA_VERSION:
            raise BadInput(
                f"{url}: has schema {version}, newer than this edgekit reads ({SCHEMA_VERSION}): update"
            )
        if version != SCHEMA_VERSION:
            _add_missing_columns(connection)
            put_fact(connection, "schema", SCHEMA_VERSION)
    return store


def _make_private(path: Path) -> None:
    """SQLite makes files by the umask, and the ones beside them as the first is. Failing here is left to SQLite."""
    with contextlib.suppress(OSError):
        if path.exists():
            path.chmod(0o600)  # no descriptor: closing one would take SQLite's locks away
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _add_missing_columns(connection: sa.Connection) -> None:
    """Bring older tables up to the schema: what came later is nullable."""
    known = sa.inspect(connection)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in known.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                connection.exec_driver_sql(f'ALTER TABLE {table.name} ADD COLUMN "{column.name}" {kind}')


def insert_new(connection: sa.Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose key is not there yet; the others stay as they are."""
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), list(rows))


def get_fact(connection: sa.Connection, key: str) -> Any:
    """A small value of the server's own, None where there is none."""
    value = connection.scalar(sa.select(facts.c.value).where(facts.c.key == key))
    return None if value is None else json.loads(value)


def put_fact(connection: sa.Connection, key: str, value: Any) -> None:
    """Keep a small value."""
    connection.execute(sa.delete(facts).where(facts.c.key == key))
    connection.execute(sa.insert(facts).values(key=key, value=json.dumps(value)))


def count(connection: sa.Connection, key: str, by: int = 1) -> None:
    """Raise a counter."""
    insert_new(connection, counters, [{"key": key, "count": 0}])
    connection.execute(sa.update(counters).where(counters.c.key == key).values(count=counters.c.count + by))


def _on_connect(connection: Any, _record: object) -> None:
    # The driver's own transaction handling is off: _on_begin says when one starts, and of which kind.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("edgekit_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what the world does to a database into WorldFailed; what a value does to it stays what it is."""
    try:
        yield
    except OperationalError as err:
        raise WorldFailed(f"database: {one_line(err.orig or err)}") from err
    except DBAPIError as err:
        if err.connection_invalidated:
            raise WorldFailed(f"database: {one_line(err.orig or err)}") from err
        raise
