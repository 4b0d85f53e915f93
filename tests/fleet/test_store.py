"""The server's database file: whose it is to read."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from edgekit.fleet import store as module
from edgekit.fleet.store import open_store


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
