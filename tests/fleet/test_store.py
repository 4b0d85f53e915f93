"""The database: whose it is to read, what one reads of it at once, and what becomes of it when it is gone."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from postgres import make_postgres

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.fleet import store as module
from edgekit.fleet.store import Store, get_fact, open_store, put_fact


def test_the_database_is_nobody_elses_to_read_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the hashes of passwords and tokens."""
    seen: list[int] = []

    def looks(connection: sqlite3.Connection, record: object) -> None:
        on_connect(connection, record)
        seen.extend(path.stat().st_mode & 0o777 for path in tmp_path.iterdir())

    on_connect = module._on_connect
    monkeypatch.setattr(module, "_on_connect", looks)
    before = os.umask(0o022)
    try:
        open_store(f"sqlite:///{tmp_path / 'fleet.db'}").close()
        (tmp_path / "fleet.db").chmod(0o644)
        open_store(f"sqlite:///{tmp_path / 'fleet.db'}").close()
    finally:
        os.umask(before)
    assert seen
    assert set(seen) == {0o600}


def test_a_database_that_was_killed_is_a_failure_of_the_world_and_is_met_again_when_it_is_back() -> None:
    server = make_postgres()
    store = open_store(server.url(server.new_database()))
    try:
        with store.write() as connection:
            put_fact(connection, "kept", 1)
        hang_up = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'edgekit'"
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises(WorldFailed))
            connection = stack.enter_context(store.write())
            put_fact(connection, "lost", 1)
            server.sql(hang_up)
            put_fact(connection, "lost", 2)
        server.stop()
        with pytest.raises(WorldFailed, match="database:"), store.read() as connection:
            get_fact(connection, "kept")
        server.start()
        with store.read() as connection:
            assert (get_fact(connection, "kept"), get_fact(connection, "lost")) == (1, None)
    finally:
        store.close()
        server.stop()


def test_a_new_connection_does_not_wait_for_who_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    first, second = open_store(url), open_store(url)
    second.engine.dispose()
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 0)
    try:
        with first.write() as writing:
            put_fact(writing, "a", 1)
            with second.read() as reading:
                assert get_fact(reading, "a") is None
    finally:
        first.close()
        second.close()


@pytest.mark.both_databases
def test_what_is_read_together_is_of_one_moment(store: Store) -> None:
    with store.write() as connection:
        put_fact(connection, "value", 1)
    with store.read() as reading:
        assert get_fact(reading, "value") == 1
        with store.write() as connection:
            put_fact(connection, "value", 2)
        assert get_fact(reading, "value") == 1
    with store.read() as connection:
        assert get_fact(connection, "value") == 2


def test_an_address_that_cannot_be_used_is_not_shown_for_it_may_hold_a_password() -> None:
    with pytest.raises(BadInput) as failure:
        open_store("postgresql+psycopg://fleet:secret@db:not-a-port/fleet")
    assert "secret" not in str(failure.value)
