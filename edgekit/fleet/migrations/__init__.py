"""Bring a database's tables up to date, step by step, in one transaction. There is no way back: restore a backup.

A step (versions/) is frozen when it was released, and imports nothing of the server: what schema.py says today is not
what it said then. Several processes may start at once: SQLite's writer lock or an advisory lock lets one do it, and the
others find it done. One that is killed leaves what was there before.
"""

from __future__ import annotations

import contextlib
import json
from importlib.resources import as_file, files

import sqlalchemy as sa

from edgekit.core.errors import BadInput

HEAD = "0002"
_FIRST, _FIRST_FACT = "0001", 2  # databases of before there were migrations say 2 in the fact "schema"
_LOCK = 0x6564_6765_0001  # of PostgreSQL's advisory locks


def is_current(connection: sa.Connection) -> bool:
    """Whether the tables are today's."""
    return revision_of(connection) == HEAD


def revision_of(connection: sa.Connection) -> str | None:
    """Which step the tables are at, None where there are none of ours, or they are older than migrations."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def migrate(connection: sa.Connection, url: str) -> None:
    """Do the steps that are missing, in the caller's write transaction. url: what messages call the database.

    Raises BadInput where the tables are newer than this edgekit, or older than it can bring up to date.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    revision = revision_of(connection)
    if revision == HEAD:
        return
    if revision is not None and revision > HEAD:
        raise BadInput(
            f"{url}: has schema {revision}, newer than this edgekit reads ({HEAD}): update edgekit, or restore a "
            "backup from before"
        )
    adopted = revision is None and _is_older_than_migrations(connection, url)
    from alembic import command  # a tenth of a second, which only a start with something to do pays
    from alembic.config import Config

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(as_file(files(__package__)))
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.attributes["connection"] = connection
        if adopted:
            command.stamp(config, _FIRST)
        command.upgrade(config, HEAD)


def _is_older_than_migrations(connection: sa.Connection, url: str) -> bool:
    if not sa.inspect(connection).has_table("facts"):
        return False
    fact = connection.scalar(sa.text("SELECT value FROM facts WHERE key = 'schema'"))
    version = None if fact is None else json.loads(fact)
    if version != _FIRST_FACT:
        raise BadInput(
            f"{url}: has schema {version}, wanted {_FIRST_FACT} or one of migrations: start a new database"
        )
    return True
