"""Make what a server needs before it runs, and give boards their identity. Speaks no HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic
from edgekit.fleet import broker
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.store import Store, devices, open_store
from edgekit.repo.keys import public_pem, read_or_make_key
from edgekit.repo.metadata import root_file


class Taken(BadInput):
    """The name is another board's already."""


@dataclass(frozen=True)
class Credentials:
    """What only the board gets to know; the server keeps hashes."""

    mqtt_password: str
    repo_token: str


def prepare(config: FleetConfig) -> None:
    """Make the data folder, the API token, the control key, the server's broker password and Mosquitto's files.

    What is there stays. Raises BadInput (no repository), WorldFailed.
    """
    root_file(config.repository)
    for folder in (config.data_dir, config.incoming, config.broker.files_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise WorldFailed(f"{folder}: could not be made: {err.strerror or err}") from err
    config.data_dir.chmod(0o700)
    for path in (config.token_file, config.broker.password_file):
        if not path.exists():
            write_atomic(path, f"{secrets.token_urlsafe(32)}\n".encode(), 0o600)
    control_key = read_or_make_key(config.control_key_file)
    write_atomic(config.control_public_file, public_pem(control_key).encode())
    here = config.broker
    broker.write_conf(here.files_dir, here.host, here.port, here.pid_file, as_root=os.geteuid() == 0)
    store = open_store(config.database_url)
    try:
        write_broker_files(config, store)
    finally:
        store.close()


def read_secret(path: Path) -> str:
    """A token or password file's one line. Raises BadInput where there is none, WorldFailed."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError) as err:
        raise BadInput(f"{path}: must hold a secret of one line") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    if not text or "\n" in text:
        raise BadInput(f"{path}: must hold a secret of one line")
    return text


def write_broker_files(config: FleetConfig, store: Store) -> bool:
    """Write Mosquitto's `passwd` and `acl` from the store and reload it; whether it could be told.

    Raises BadInput (no broker password), WorldFailed.
    """
    with store.read() as connection:
        rows = connection.execute(sa.select(devices.c.name, devices.c.broker_hash)).all()
    hashes = {f"{config.fleet}/{row.name}": row.broker_hash for row in rows}
    hashes[config.broker.username] = broker.password_hash(read_secret(config.broker.password_file))
    broker.write_passwd(config.broker.files_dir, hashes)
    broker.write_acl(config.broker.files_dir, config.fleet, config.broker.username)
    return broker.reload_broker(config.broker.pid_file)


def enroll(
    connection: sa.Connection,
    name: str,
    profile: str | None,
    tags: Sequence[str],
    now: float,
    *,
    again: bool = False,
) -> Credentials:
    """Add a board, or with `again` give a known one new credentials in place of the old. Raises Taken."""
    credentials = Credentials(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    values = {
        "profile": profile,
        "tags": json.dumps(sorted(set(tags))),
        "enrolled_at": now,
        "token_sha256": token_hash(credentials.repo_token),
        "broker_hash": broker.password_hash(credentials.mqtt_password),
    }
    known = connection.scalar(sa.select(devices.c.id).where(devices.c.name == name))
    if known is None:
        connection.execute(sa.insert(devices).values(name=name, **values))
    elif not again:
        raise Taken(f"a board called {name!r} is enrolled already; --again gives it new credentials")
    else:
        connection.execute(sa.update(devices).where(devices.c.id == known).values(**values))
    return credentials


def token_hash(token: str) -> str:
    """What the server keeps of a board's repository token."""
    return hashlib.sha256(token.encode()).hexdigest()


def board_files(config: FleetConfig, url: str) -> dict[str, Any]:
    """What every board is given besides its own credentials. Raises BadInput, WorldFailed."""
    path = root_file(config.repository)
    try:
        root = path.read_text(encoding="utf-8")
        control_key = config.control_public_file.read_text(encoding="ascii")
    except OSError as err:
        raise WorldFailed(f"{err.filename}: could not be read: {err.strerror or err}") from err
    return {
        "fleet": config.fleet,
        "broker": {"host": config.broker.public_host, "port": config.broker.public_port},
        "repository": {"url": f"{config.public_url or url}/repo"},
        "root": root,
        "control_key": control_key,
    }
