"""The database and how it is opened: transactions, errors, small helpers. The tables are in schema.py.

What a board sends is keyed by (boot, seq), so a replayed or re-ordered batch changes nothing. A commit is on the disk
when it returns (synchronous=FULL): acknowledgements to boards rest on that.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, SQLAlchemyError

from edgekit.core.errors import BadInput, MissingExtra, WorldFailed, one_line
from edgekit.fleet.migrations import is_current, migrate
from edgekit.fleet.schema import counters, facts, records

BUSY_TIMEOUT_MS = 15_000
CONNECT_TIMEOUT_S = 5
WAL_BYTES = 64 * 2**20  # SQLite's log is cut to this when all of it is in the database
_NO_VACUUM = 0
_RECORDS_LOCK = 0x6564_6765_0002  # of PostgreSQL's advisory locks
_OPTIONS: Mapping[
    str, Mapping[str, Any]
] = {  # of create_engine; a database that was started again is met again
    "postgresql": {
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "edgekit"},
    }
}


@dataclass(frozen=True)
class Store:
    """An open database."""

    engine: sa.Engine

    @cached_property
    def _reader(self) -> sa.Engine:
        if self.engine.dialect.name == "sqlite":
            return self.engine  # a transaction that reads sees one state of the file
        return self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @cached_property
    def _writer(self) -> sa.Engine:
        return self.engine.execution_options(edgekit_write=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view. Raises WorldFailed where the database fails."""
        with _translated(), self._reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction; committed on leaving, on the disk then.

        On SQLite it holds the writer's lock from its start. On PostgreSQL others write at the same time: who reads a
        row to write it locks it (`with_for_update`, which says nothing on SQLite). Raises WorldFailed where the
        database fails; then nothing of it is stored.
        """
        with _translated(), self._writer.begin() as connection:
            yield connection

    @property
    def shown_url(self) -> str:
        """Its address without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_store(url: str) -> Store:
    """Open the database, bringing its tables up to date. Raises BadInput (newer schema), MissingExtra, WorldFailed."""
    store = Store(_engine(url))
    try:
        with store.read() as connection:
            current = is_current(connection)
        if not current:
            with store.write() as connection:
                migrate(connection, store.shown_url)
            _make_shrinkable(store)
    except BaseException:
        store.close()
        raise
    return store


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        engine = sa.create_engine(parsed, **_OPTIONS.get(parsed.get_backend_name(), {}))
    except ModuleNotFoundError as err:
        raise MissingExtra("a database of PostgreSQL needs: pip install 'edgekit[postgresql]'") from err
    except (SQLAlchemyError, ValueError) as err:  # its text may hold a password
        raise BadInput(
            "database_url must be sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE, not what it is"
        ) from err
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            _make_private(Path(engine.url.database))
        sa.event.listen(engine, "connect", _on_connect)
        sa.event.listen(engine, "begin", _on_begin)
    return engine


def _make_private(path: Path) -> None:
    """SQLite makes files by the umask, and the ones beside them as the first is. Failing here is left to SQLite."""
    with contextlib.suppress(OSError):
        if path.exists():
            path.chmod(0o600)  # no descriptor: closing one would take SQLite's locks away
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _make_shrinkable(store: Store) -> None:
    """Have SQLite's file give back what is deleted: one that was made without that is written anew, once."""
    if store.engine.dialect.name != "sqlite":
        return
    with _translated(), store.engine.connect() as connection:
        if connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() != _NO_VACUUM:
            return
        connection.rollback()
        driver: Any = connection.connection.driver_connection
        with contextlib.suppress(
            sqlite3.OperationalError
        ):  # somebody reads it, or there is no room: it stays
            driver.execute("PRAGMA auto_vacuum=INCREMENTAL")
            driver.execute("VACUUM")


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose key is not there yet; the others stay as they are."""
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), list(rows))


def put_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, each in place of the one with its primary key. All have the same columns, the key among them."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(table)
    key = [column.name for column in table.primary_key]
    values = {name: insert.excluded[name] for name in rows[0] if name not in key}
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=values), list(rows))


def share_records(connection: sa.Connection) -> None:
    """Say that this transaction inserts records: the roll-up waits for its end before it reads the highest number.

    Numbers become visible out of order on PostgreSQL: who drew 10 may commit after who drew 11.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_RECORDS_LOCK)))


def records_up_to(store: Store) -> int | None:
    """The highest record's number; nobody still inserts one at or below it. None where there is no record."""
    with store.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_RECORDS_LOCK)))
        found: int | None = connection.scalar(sa.select(sa.func.max(records.c.id)))
        return found


def get_fact(connection: sa.Connection, key: str) -> Any:
    """A small value of the server's own, None where there is none."""
    value = connection.scalar(sa.select(facts.c.value).where(facts.c.key == key))
    return None if value is None else json.loads(value)


def put_fact(connection: sa.Connection, key: str, value: Any) -> None:
    """Keep a small value."""
    put_rows(connection, facts, [{"key": key, "value": json.dumps(value)}])


def count(connection: sa.Connection, key: str, by: int = 1) -> None:
    """Raise a counter."""
    insert_new(connection, counters, [{"key": key, "count": 0}])
    connection.execute(sa.update(counters).where(counters.c.key == key).values(count=counters.c.count + by))


def _on_connect(connection: Any, _record: object) -> None:
    # The driver's own transaction handling is off: _on_begin says when one starts, and of which kind.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    if not connection.execute("PRAGMA page_count").fetchone()[0]:  # it waits for the writer, even as a no-op
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    for pragma in (
        "journal_mode=WAL",
        f"journal_size_limit={WAL_BYTES}",
        "synchronous=FULL",
        "foreign_keys=ON",
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
    except (
        OperationalError,
        InternalError,
    ) as err:  # InternalError: a disk that is full, a database that is shut down
        raise WorldFailed(f"database: {one_line(err.orig or err)}") from err
    except DBAPIError as err:
        if err.connection_invalidated:
            raise WorldFailed(f"database: {one_line(err.orig or err)}") from err
        raise
