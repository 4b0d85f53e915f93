"""Records and events that the server has not confirmed: on disk before they are sent, gone when it says so.

One sequence of numbers per start of the agent runs over all of them. A capped file drops the oldest telemetry first and
job events last, and counts. A damaged file is set aside; a full disk costs what does not fit; neither ends the agent.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.core.errors import one_line
from edgekit.core.messages import Event, JobEvent
from edgekit.core.record import Record

log = logging.getLogger(__name__)
RECORD, EVENT, JOB = "record", "event", "job"
KINDS = (RECORD, EVENT, JOB)  # in the order in which a full outbox drops them
_TABLES = """
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
    UNIQUE (boot, seq));
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Item:
    """One thing to send. payload: what `to_json` of a Record, Event or JobEvent gives."""

    boot_id: str
    seq: int
    kind: str
    payload: Mapping[str, Any]
    size: int


@dataclass(frozen=True)
class Counts:
    """Of one kind, over the life of the file: made = acked + dropped + held."""

    made: int
    acked: int
    dropped: int
    held: int


class Outbox:
    """One SQLite file (WAL, every commit on disk), one connection, any number of threads."""

    def __init__(
        self, path: Path, boot_id: str, cap_bytes: int, on_put: Callable[[], None] = lambda: None
    ) -> None:
        """Open or make `path`. on_put: called after something new is in.

        damaged: why the file that was here had to be set aside, None when all was well. durable: what is held outlives
        the process; not so where no file could be opened.
        """
        self._path = path
        self.boot_id = boot_id
        self._cap_bytes = cap_bytes
        self._on_put = on_put
        self._lock = threading.RLock()
        self._lost = dict.fromkeys(KINDS, 0)  # could not be written, and the file does not know yet
        self._next_seq = 1
        self.damaged: str | None = None
        self.durable = True
        self._db = self._open()
        self._held_bytes = self._sum_bytes()

    def put(self, item: Record | JobEvent | Event) -> int | None:
        """Store it under the next number, which is set in it, and drop what goes over the cap.

        Returns the number; None when the disk took nothing: then the loss is counted, and no number is used up.
        """
        with self._lock:
            seq = self._next_seq
            kind, payload = _payload(item, self.boot_id, seq)
            try:
                self._insert(seq, kind, payload)
            except sqlite3.Error as err:
                if not self._failed("a new " + kind, err) or not self._insert_again(seq, kind, payload):
                    self._lost[kind] += 1
                    return None
            self._next_seq = seq + 1
        self._on_put()
        return seq

    def boots(self) -> tuple[str, ...]:
        """The starts of the agent of which something is held, the oldest first."""
        rows = self._read("SELECT boot FROM items GROUP BY boot ORDER BY MIN(id)")
        return tuple(row[0] for row in rows)

    def floor(self, boot_id: str) -> int | None:
        """The lowest number of that start that is held; None where nothing is."""
        rows = self._read("SELECT MIN(seq) FROM items WHERE boot = ?", boot_id)
        return rows[0][0] if rows else None

    def after(self, boot_id: str, seq: int, limit: int) -> tuple[Item, ...]:
        """At most `limit` items of that start with higher numbers, in order."""
        query = "SELECT seq, kind, payload FROM items WHERE boot = ? AND seq > ? ORDER BY seq LIMIT ?"
        rows = self._read(query, boot_id, seq, limit)
        return tuple(Item(boot_id, row[0], row[1], json.loads(row[2]), len(row[2])) for row in rows)

    def release(self, boot_id: str, upto: int) -> int:
        """The server has everything of that start up to `upto`. Returns how many that let go."""
        return self._release(boot_id, range(upto + 1))

    def release_these(self, boot_id: str, seqs: Sequence[int]) -> int:
        """The broker has these, ascending (`ack = "broker"` only). Returns how many that let go."""
        return self._release(boot_id, seqs)

    def counts(self, *kinds: str) -> Counts:
        """What happened to everything of these kinds since the file was made."""
        counters = dict(self._read("SELECT name, value FROM counters"))
        with self._lock:
            lost = {kind: self._lost[kind] for kind in kinds}
        held = dict(self._read("SELECT kind, COUNT(*) FROM items GROUP BY kind"))
        return Counts(
            sum(counters.get(f"made_{kind}", 0) + lost[kind] for kind in kinds),
            sum(counters.get(f"acked_{kind}", 0) for kind in kinds),
            sum(counters.get(f"dropped_{kind}", 0) + lost[kind] for kind in kinds),
            sum(held.get(kind, 0) for kind in kinds),
        )

    def report_drops(self, time: float | None) -> None:
        """Put one Event that says how much was dropped since the last one; none when nothing was."""
        with self._lock:
            counters = dict(self._read("SELECT name, value FROM counters"))
            dropped = {kind: counters.get(f"dropped_{kind}", 0) for kind in KINDS}
            new = {kind: count - counters.get(f"told_{kind}", 0) for kind, count in dropped.items()}
            if not any(new.values()):
                return
            detail = {f"{kind}s": count for kind, count in new.items() if count} | {
                "total": sum(dropped.values())
            }
            if self.put(Event(self.boot_id, 1, "dropped", time, detail)) is None:
                return
            with suppress(sqlite3.Error), self._transaction() as db:
                for kind, count in new.items():
                    _count(db, f"told_{kind}", count)
        log.warning("outbox dropped %s", detail)

    def close(self) -> None:
        """Close the file. Nothing is lost by not calling it."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    def _insert(self, seq: int, kind: str, payload: str) -> None:
        with self._transaction() as db:
            row = (self.boot_id, seq, kind, payload)
            db.execute("INSERT INTO items (boot, seq, kind, payload) VALUES (?, ?, ?, ?)", row)
            _count(db, f"made_{kind}", 1)
            for lost, count in self._lost.items():
                if count:
                    _count(db, f"made_{lost}", count)
                    _count(db, f"dropped_{lost}", count)
            gone = self._drop(db, self._held_bytes + len(payload) - self._cap_bytes)
        self._lost = dict.fromkeys(KINDS, 0)
        self._held_bytes += len(payload) - gone

    def _insert_again(self, seq: int, kind: str, payload: str) -> bool:
        try:
            self._insert(seq, kind, payload)
        except sqlite3.Error as err:
            log.error("outbox %s: %s", self._path, one_line(err))  # noqa: TRY400  (the line says it all)
            return False
        return True

    def _release(self, boot_id: str, seqs: Sequence[int]) -> int:
        """Delete what is held of these numbers (ascending) and count it as acknowledged."""
        if not seqs:
            return 0
        query = "SELECT id, kind, length(payload), seq FROM items WHERE boot = ? AND seq BETWEEN ? AND ?"
        with self._lock:
            rows = [row for row in self._read(query, boot_id, seqs[0], seqs[-1]) if row[3] in seqs]
            try:
                with self._transaction() as db:
                    db.executemany("DELETE FROM items WHERE id = ?", [(row[0],) for row in rows])
                    for kind in {row[1] for row in rows}:
                        _count(db, f"acked_{kind}", sum(row[1] == kind for row in rows))
            except sqlite3.Error as err:
                self._failed("what was acknowledged", err)
                return 0
            self._held_bytes -= sum(row[2] for row in rows)
            return len(rows)

    def _drop(self, db: sqlite3.Connection, excess: int) -> int:
        """Delete the oldest of the least important until `excess` bytes are gone. Returns the bytes deleted."""
        gone = 0
        for kind in KINDS if excess > 0 else ():
            victims: list[int] = []
            for item, size in db.execute(
                "SELECT id, length(payload) FROM items WHERE kind = ? ORDER BY id", (kind,)
            ):
                if gone >= excess:
                    break
                victims.append(item)
                gone += size
            db.executemany("DELETE FROM items WHERE id = ?", [(item,) for item in victims])
            if victims:
                _count(db, f"dropped_{kind}", len(victims))
        return gone

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as err:
                self._failed("what is held", err)
                return []

    def _sum_bytes(self) -> int:
        return int(self._read("SELECT COALESCE(SUM(length(payload)), 0) FROM items")[0][0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _failed(self, what: str, err: sqlite3.Error) -> bool:
        """A full or failing disk is waited out; a damaged file is replaced, and then this returns True."""
        log.error("outbox %s: %s: %s", self._path, what, one_line(err))
        if not _is_damage(err):
            return False
        with suppress(sqlite3.Error):
            self._db.close()
        self._db = self._replace(err)
        self._held_bytes = 0
        return True

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.Error as err:
            return self._replace(err) if _is_damage(err) else self._in_memory(err)

    def _replace(self, err: sqlite3.Error) -> sqlite3.Connection:
        """Set the damaged file aside (one is kept) and begin a new one."""
        self.damaged = one_line(err)
        log.error("outbox %s is damaged (%s): set aside, a new one begins", self._path, self.damaged)
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            with suppress(OSError):
                part.replace(self._path.with_name(f"{self._path.name}.damaged{suffix}"))
        try:
            return _connect(self._path)
        except sqlite3.Error as again:
            return self._in_memory(again)

    def _in_memory(self, err: sqlite3.Error) -> sqlite3.Connection:
        log.error(
            "outbox %s cannot be opened (%s): it is in memory, and ends with the agent",
            self._path,
            one_line(err),
        )
        self.durable = False
        return _connect(":memory:")


def _connect(path: Path | str) -> sqlite3.Connection:
    if isinstance(path, Path):
        _make_private(path)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        db.execute(
            "PRAGMA page_size = 1024"
        )  # a Record fits into one: less is written to the card per commit
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check found damage")
        db.executescript(_TABLES)
    except BaseException:
        db.close()
        raise
    return db


def _make_private(path: Path) -> None:
    """SQLite makes files by the umask, and the ones beside them as the first is. Failing here is left to SQLite."""
    with suppress(OSError):
        if path.is_file():
            path.chmod(0o600)  # no descriptor: closing one would take SQLite's locks away
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _is_damage(err: sqlite3.Error) -> bool:
    """Whether the file itself is wrong. Full disks and locks are OperationalErrors."""
    return isinstance(err, sqlite3.DatabaseError) and not isinstance(
        err, (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError)
    )


def _count(db: sqlite3.Connection, name: str, by: int) -> None:
    db.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, by),
    )


def _payload(item: Record | JobEvent | Event, boot_id: str, seq: int) -> tuple[str, str]:
    if isinstance(item, Record):
        kind, numbered = RECORD, replace(item, seq=seq).to_json()
    else:
        kind = JOB if isinstance(item, JobEvent) else EVENT
        numbered = replace(item, boot_id=boot_id, seq=seq).to_json()
    return kind, json.dumps(numbered, separators=(",", ":"), allow_nan=False)
