"""Many rows into one table at once, past those whose key is there. The statement is compiled once from the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from edgekit.core.errors import WorldFailed, one_line


def insert_many(
    connection: sa.Connection, table: sa.Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> int:
    """Insert rows, their values in the order of `columns`, in their order; how many were new. Raises WorldFailed."""
    if not rows:
        return 0
    if connection.dialect.name == "postgresql":
        return _copy(connection, table, columns, rows)
    statement, ordered = _insert(table, columns)
    return connection.exec_driver_sql(statement, [ordered(row) for row in rows]).rowcount


@cache
def _insert(
    table: sa.Table, columns: tuple[str, ...]
) -> tuple[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]]:
    """SQLite's INSERT, and what brings a row into the order of its `?`s."""
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    insert = sqlite.insert(table).values(values).on_conflict_do_nothing()
    compiled = insert.compile(dialect=sqlite.dialect(paramstyle="qmark"))
    return str(compiled), itemgetter(*(columns.index(name) for name in compiled.positiontup or ()))


def _copy(
    connection: sa.Connection, table: sa.Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> int:
    """COPY knows no conflicts: into a table of the connection's own first, and from there."""
    own, listed = f"new_{table.name}", ", ".join(f'"{name}"' for name in columns)
    empty = f"SELECT {listed} FROM {table.name} WITH NO DATA"  # noqa: S608  (names of the schema)
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE IF NOT EXISTS {own} ON COMMIT DELETE ROWS AS {empty}")
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(f"COPY {own} ({listed}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    except connection.dialect.loaded_dbapi.OperationalError as err:
        if driver.closed:
            connection.invalidate(err)
        raise WorldFailed(f"database: {one_line(err)}") from err
    taken = f"SELECT {listed} FROM {own} ORDER BY 1, 2"  # noqa: S608
    added = connection.exec_driver_sql(f"INSERT INTO {table.name} ({listed}) {taken} ON CONFLICT DO NOTHING")
    connection.exec_driver_sql(f"TRUNCATE {own}")
    return added.rowcount
