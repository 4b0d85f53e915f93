"""Migrations: today's tables come out on both databases, and what an older server stored comes over."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres import shared_postgres

from edgekit.core.errors import BadInput
from edgekit.core.histogram import histogram
from edgekit.fleet import migrations, rolling
from edgekit.fleet import schema as db
from edgekit.fleet.migrations import records_of_0001, timescale
from edgekit.fleet.names import texts_of
from edgekit.fleet.packing import pack_counts, unpack_counts
from edgekit.fleet.store import Store, get_fact, open_store

NEWER = "9999"


@pytest.mark.both_databases
def test_the_migrations_make_what_the_schema_says(store: Store) -> None:
    with store.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), db.metadata)
        audit = sa.inspect(connection).get_pk_constraint("records")
    assert found == [], "schema.py and the newest migration differ: python tools/fleet_migration.py"
    assert audit["constrained_columns"] == ["id"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database as the server before migrations left it: two boards, three records, an event, a job."""
    path = tmp_path / "fleet.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parent / "data" / "schema_2.sql").read_text())
        put = connection.execute
        put("INSERT INTO facts VALUES ('schema', '2'), ('revoked', '[\"toy/1\"]')")
        board = (
            "INSERT INTO devices (id, name, profile, tags, enrolled_at, token_sha256, broker_hash, online,"
        )
        board += (
            " boot_id, last_seen, info, reported, malformed, rev, n) VALUES (?, ?, 'pi', '[]', 1, ?, 'h',"
        )
        board += " ?, 'b1', 500, ?, ?, 3, 4, 5)"
        said = (json.dumps({"profile": "pi5"}), json.dumps({"bundle": "toy/2", "interval_s": 30.0}))
        put(board, (1, "a", "t1", True, *said))
        put(board, (2, "b", "t2", False, None, None))
        put("INSERT INTO boots VALUES (1, 1, 'b1', 1, 2, 2), (2, 2, 'b1', 1, 0, 7)")
        latency = histogram([1.0, 3.0])
        record = "INSERT INTO records (boot, seq, device, at, received, uptime_s, clock_synced, interval_s, bundle,"
        record += (
            " policy, requests, errors, deadline_missed, labelled, correct, exits, latency, latency_sum_ms,"
        )
        record += " energy_mj, energy_provenance, energy_on, busy_s, temperature_c)"
        record += (
            " VALUES (?, ?, ?, ?, ?, 60, 1, 60, 'toy/2', 'full', 2, 0, 0, 0, 0, ?, ?, 4.0, 8.0, 'simulated',"
        )
        record += " 'pi5', 0.1, ?)"
        exits, packed = json.dumps({"exit1": 1, "exit2": 1}), pack_counts(latency.counts)
        put(record, (1, 1, 1, 100.0, 101.0, exits, packed, 40.0))
        put(record, (1, 2, 1, 200.0, 102.0, exits, packed, 50.0))
        put(record, (2, 7, 2, 150.0, 90.0, exits, packed, None))
        put("INSERT INTO events VALUES (1, 3, 1, 100.0, 101.0, 'throttle', '{}')")
        put(
            "INSERT INTO jobs (id, job_id, created, expires, target, selector) VALUES (1, 'j1', 1, 2, 'toy/2', 'all')"
        )
        put("INSERT INTO job_devices (job, device, state, updated) VALUES (1, 1, 'active', 3)")
    connection.close()
    return path


def rows(store: Store, table: sa.Table) -> list[Any]:
    with store.read() as connection:
        return list(connection.execute(sa.select(table).order_by(*table.primary_key)))


def test_what_an_older_server_stored_comes_over(old: Path) -> None:
    store = open_store(f"sqlite:///{old}")
    records = rows(store, db.records)
    assert [(r.device, r.seq, r.at, r.requests, r.energy_mj, r.inputs_dropped) for r in records] == [
        (2, 7, 150.0, 2, 8.0, 0),
        (1, 1, 100.0, 2, 8.0, 0),
        (1, 2, 200.0, 2, 8.0, 0),
    ]  # in the order in which they came
    assert unpack_counts(records[0].latency) == histogram([1.0, 3.0]).counts
    with store.read() as connection:
        texts = texts_of(connection, range(1, 20))
        assert get_fact(connection, "revoked") == ["toy/1"]
        assert compare_metadata(MigrationContext.configure(connection), db.metadata) == []
        tables = set(sa.inspect(connection).get_table_names())
        assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == 2
    assert not {name for name in tables if name.startswith("old_")}
    assert {texts[key]: times for key, times in unpack_counts(records[0].exits, 2**62).items()} == {
        "exit1": 1,
        "exit2": 1,
    }
    assert (texts[records[0].bundle], texts[records[0].energy_on]) == ("toy/2", "pi5")
    assert records[0].energy_provenance == 1
    first, second = rows(store, db.presence)
    assert (first.online, first.boot_id, first.last_seen, first.interval_s) == (True, "b1", 500.0, 60.0)
    assert (first.record_at, first.temperature_c, second.record_at) == (200.0, 50.0, 150.0)
    device = rows(store, db.devices)[0]
    assert (device.says_profile, device.runs, device.n, device.malformed) == ("pi5", "toy/2", 5, 3)
    assert [(e.kind, e.seq) for e in rows(store, db.events)] == [("throttle", 3)]
    assert [(b.upto, b.last, b.forgotten) for b in rows(store, db.boots)] == [(2, 2, 0), (0, 7, 0)]
    assert [(j.job, j.state) for j in rows(store, db.job_devices)] == [(1, "active")]
    assert rolling.roll_up(store) == 3
    store.close()


def test_a_migration_that_is_killed_leaves_the_database_as_it_was_and_starts_again(old: Path) -> None:
    code = (
        "import os, sys\n"
        "from edgekit.fleet.migrations import records_of_0001 as step\n"
        "step._records = lambda *_: os._exit(7)\n"
        "from edgekit.fleet.store import open_store\n"
        "open_store(sys.argv[1])\n"
    )
    url = f"sqlite:///{old}"
    assert subprocess.run([sys.executable, "-c", code, url], check=False).returncode == 7
    with sqlite3.connect(old) as connection:
        assert connection.execute("SELECT count(*) FROM records WHERE policy = 'full'").fetchone() == (3,)
        assert connection.execute("SELECT value FROM facts WHERE key = 'schema'").fetchone() == ("2",)
    connection.close()
    store = open_store(url)
    assert len(rows(store, db.records)) == 3
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_start_at_once_make_the_tables_once(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'fleet.db'}"
    else:
        server = shared_postgres()
        url = server.url(server.new_database())
    code = "import sys; from edgekit.fleet.store import open_store; open_store(sys.argv[1]).close()"
    processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    store = open_store(url)
    with store.read() as connection:
        assert migrations.is_current(connection)
    store.close()


@pytest.mark.both_databases
def test_a_newer_schema_is_refused_by_name_and_left_alone(store: Store, database_url: str) -> None:
    with store.write() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{NEWER}'")
    with pytest.raises(BadInput, match=f"has schema {NEWER}, newer than this edgekit reads"):
        open_store(database_url)
    with store.read() as connection:
        assert migrations.revision_of(connection) == NEWER


def test_a_schema_older_than_it_can_bring_up_to_date_is_refused(old: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE facts SET value = '1' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(BadInput, match="has schema 1, wanted 2"):
        open_store(f"sqlite:///{old}")


def test_no_frozen_step_reads_what_the_schema_says_today() -> None:
    folder = Path(migrations.__file__).parent
    sources = [path.read_text() for path in folder.rglob("*.py") if path.name != "__init__.py"]
    assert len(sources) >= 4
    assert not [text for text in sources if "fleet.schema" in text or "fleet.packing" in text]
    assert records_of_0001._packed({0: 1, 300: 200}) == pack_counts({0: 1, 300: 200})


def test_a_server_without_timescale_keeps_plain_tables() -> None:
    server = shared_postgres()
    name = server.new_database()
    store = open_store(server.url(name))
    with store.write() as connection:
        assert not timescale.is_available(connection)
        assert not timescale.make_hypertables(connection)
    store.close()
    server.drop_database(name)


def test_the_calls_that_make_hypertables_name_our_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function stands in for TimescaleDB's, and notes what it was asked. The real one was not to be had."""
    server = shared_postgres()
    name = server.new_database()
    store = open_store(server.url(name))
    asked = "CREATE TABLE asked (hyper text, time_column text, seconds bigint)"
    stand_in = (
        "CREATE FUNCTION create_hypertable(r regclass, t name, chunk_time_interval bigint, migrate_data boolean) "
        "RETURNS void LANGUAGE sql AS $$ INSERT INTO asked VALUES (r::text, t, chunk_time_interval) $$"
    )
    monkeypatch.setattr(timescale, "is_available", lambda _: True)
    with store.write() as connection:
        assert not timescale.make_hypertables(connection)  # it is said to be there, and cannot be made
    monkeypatch.setattr(timescale, "EXTENSION", "plpgsql")
    with store.write() as connection:
        connection.exec_driver_sql(asked)
        connection.exec_driver_sql(stand_in)
        assert timescale.make_hypertables(connection)
        found = connection.exec_driver_sql("SELECT * FROM asked ORDER BY hyper").all()
    assert found == [("hours", "at", 14 * 86_400), ("minutes", "at", 86_400)]
    store.close()
    server.drop_database(name)
