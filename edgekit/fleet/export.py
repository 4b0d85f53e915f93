"""Exports: all rows of a kind, in slices by their key, each read in a transaction of its own and then let go.

So a slow reader holds nothing of the database, and SQLite's log does not grow behind it. Rows come in the order of the
key; each names the cursor to go on from. What is written while an export runs may be in it or not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.exported import COLUMNS
from edgekit.core.selector import parse_selector
from edgekit.fleet import schema as db
from edgekit.fleet.export_rows import KEYS, TABLES, Board, shown_rows
from edgekit.fleet.store import Store

AT_ONCE = 4
SLICE_ROWS = 1_000
_NUMBERS = 10_000  # of records looked through in one slice
_GROUP = 50  # boards looked through in one slice
_NAMED = 500  # boards that a statement names one by one
_HARMFUL = ("=", "+", "-", "@", "\t", "\r", "\n")  # OWASP, "CSV Injection"

Key = tuple[float, ...]


@dataclass(frozen=True)
class Export:
    """What is asked for. since, until: Unix seconds, of `at`. cursor: of the last row that the caller has."""

    what: str
    since: float
    until: float
    to: str = "all"
    cursor: str | None = None

    def __post_init__(self) -> None:
        """Raises BadInput."""
        if self.what not in COLUMNS:
            raise BadInput(f"what must be one of {', '.join(COLUMNS)}, got {self.what!r}")
        if not self.since < self.until:
            raise BadInput(f"since must be before until, got {self.since:g} and {self.until:g}")
        parse_selector(self.to)
        self.key()

    def key(self) -> Key | None:
        """The cursor as values. Raises BadInput."""
        if self.cursor is None:
            return None
        parts = self.cursor.split(":")
        try:
            found = tuple(float(part) if "." in part or "e" in part else int(part) for part in parts)
        except ValueError:
            found = ()
        whole = all(math.isfinite(value) and abs(value) < 2**63 for value in found)
        if len(found) != len(KEYS[self.what]) or not whole:
            raise BadInput(f"cursor must be that of a row of {self.what}, got {self.cursor[:100]!r}")
        return found


def export_slices(
    store: Store, export: Export, slice_rows: int = SLICE_ROWS
) -> Iterator[list[dict[str, Any]]]:
    """The rows, some at a time; no transaction is open between two slices. Raises WorldFailed."""
    with store.read() as connection:
        boards = _boards(connection, export.to)
    slices = _by_number if export.what == "records" else _by_board
    texts: dict[int, str] = {}
    for query in slices(store, export, boards, slice_rows):
        with store.read() as connection:
            rows = connection.execute(query.statement).all()
            shown = shown_rows(
                connection, export.what, [row for row in rows if row.device in boards], boards, texts
            )
        query.last = rows[-1] if len(rows) == slice_rows else None
        if shown:
            yield shown


@dataclass
class _Slice:
    """A statement, and the last row that it gave where there may be more of it; set by who ran it."""

    statement: sa.Select[Any]
    last: Any = None


def _by_number(store: Store, export: Export, boards: Mapping[int, Board], most: int) -> Iterator[_Slice]:
    """Records by their number, up to the highest there is now."""
    table = db.records
    with store.read() as connection:
        low, high = connection.execute(sa.select(sa.func.min(table.c.id), sa.func.max(table.c.id))).one()
    if high is None:
        return
    key = export.key()
    done = low - 1 if key is None else max(low - 1, int(key[0]))
    while done < high:
        upto = min(high, done + _NUMBERS)
        query = _within(table, export).where(table.c.id > done, table.c.id <= upto)
        if len(boards) <= _NAMED:
            query = query.where(table.c.device.in_(list(boards)))
        part = _Slice(query.order_by(table.c.id).limit(most))
        yield part
        done = upto if part.last is None else part.last.id


def _by_board(_store: Store, export: Export, boards: Mapping[int, Board], most: int) -> Iterator[_Slice]:
    """Rows by board and time: some boards' at once, each from where the slice before ended."""
    table, names = TABLES[export.what], KEYS[export.what]
    columns = [table.c[name] for name in names]
    ids = sorted(boards)
    key = export.key()
    place = 0 if key is None else bisect_left(ids, key[0])
    while place < len(ids):
        group = ids[place : place + _GROUP]
        query = _within(table, export).where(table.c.device.in_(group))
        if key is not None and group[0] == key[0]:
            rest = sa.tuple_(*columns[1:]) > sa.tuple_(*(sa.literal(value) for value in key[1:]))
            query = query.where(sa.or_(table.c.device != group[0], rest))
        part = _Slice(query.order_by(*columns).limit(most))
        yield part
        if part.last is None:
            place += len(group)
        else:
            key = tuple(getattr(part.last, name) for name in names)
            place = bisect_left(ids, key[0])


def _within(table: sa.Table, export: Export) -> sa.Select[Any]:
    return sa.select(table).where(table.c.at >= export.since, table.c.at < export.until)


def _boards(connection: sa.Connection, to: str) -> dict[int, Board]:
    """The boards that are meant, revoked ones among them: their history stays."""
    table, selector = db.devices, parse_selector(to)
    query = sa.select(
        table.c.id, table.c.name, table.c.profile, table.c.says_profile, table.c.tags, table.c.runs
    )
    found = {}
    for row in connection.execute(query):
        profile = row.says_profile or row.profile
        if selector.matches(name=row.name, profile=profile, tags=json.loads(row.tags), bundle=row.runs):
            found[row.id] = Board(row.name, profile)
    return found


def ndjson(_what: str, slices: Iterator[Sequence[Mapping[str, Any]]]) -> Iterator[bytes]:
    """One JSON object a line."""
    for rows in slices:
        yield "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(what: str, slices: Iterator[Sequence[Mapping[str, Any]]]) -> Iterator[bytes]:
    """A heading, and a line for each row; a text that a spreadsheet would take for a formula gets an apostrophe."""
    columns = list(COLUMNS[what])
    yield _lines([columns])
    for rows in slices:
        yield _lines([[_cell(row[name]) for name in columns] for row in rows])


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(_HARMFUL) else value


FORMATS: Mapping[str, tuple[str, Callable[[str, Iterator[Any]], Iterator[bytes]]]] = {
    "ndjson": ("application/x-ndjson", ndjson),
    "csv": ("text/csv; charset=utf-8", as_csv),
}


@dataclass
class Places:
    """How many exports may run at the same time."""

    most: int = AT_ONCE
    taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self) -> None:
        """Raises WorldFailed where all are taken."""
        with self._lock:
            if self.taken >= self.most:
                raise WorldFailed(f"{self.most} exports run already: try again when one has ended")
            self.taken += 1

    def give_back(self) -> None:
        """One export has ended."""
        with self._lock:
            self.taken -= 1
