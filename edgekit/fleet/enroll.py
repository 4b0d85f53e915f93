"""Make what a server needs before it runs; give boards their identity, renew it, take it back. Speaks no HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic
from edgekit.fleet import broker
from edgekit.fleet.certificates import Issued, check_signature, issue, serial_if_ours
from edgekit.fleet.config import FleetConfig, Limits, on_this_machine, read_secret
from edgekit.fleet.schema import certificates, devices, presence
from edgekit.fleet.store import Store, open_store
from edgekit.fleet.tls import CLIENT, authorities_of, keep_certificates, now_utc, write_revoked
from edgekit.fleet.views import Unknown
from edgekit.repo.keys import public_pem, read_or_make_key
from edgekit.repo.metadata import root_file

_REMEMBERED_S = 5 * 365 * 86_400.0  # a board may come back with a certificate that ended in the meantime


class Taken(BadInput):
    """The name is another board's already."""


@dataclass(frozen=True)
class Credentials:
    """What only the board gets to know; the server keeps hashes."""

    mqtt_password: str = field(repr=False)
    repo_token: str = field(repr=False)


def prepare(config: FleetConfig) -> None:
    """Make the data folder, the API token, the control key, the certificates, the server's password, Mosquitto's files.

    What is there stays. A machine that does not lead has the leader's certificates and password, and no repository.
    Raises BadInput (no repository; nothing was copied), WorldFailed.
    """
    if config.ingest.leader:
        root_file(config.repository)
    else:
        _check_copied(config)
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
    as_root = os.geteuid() == 0
    broker.write_conf(here.files_dir, here.host, here.port, here.pid_file, as_root=as_root, tls=here.tls)
    store = open_store(config.database_url)
    try:
        keep_certificates(config, store, now_utc())
        write_broker_files(config, store)
    finally:
        store.close()


def _check_copied(config: FleetConfig) -> None:
    """Whatever was drawn anew here, the leader's broker would not know."""
    wanted = [config.broker.password_file, *([config.tls_dir / CLIENT] if config.broker.tls else [])]
    missing = [str(path) for path in wanted if not path.exists()]
    if missing:
        raise BadInput(
            f"{config.path}: ingest.leader = false, so {' and '.join(missing)} must be a copy of the leader's"
        )


def write_broker_files(config: FleetConfig, store: Store) -> bool:
    """Write Mosquitto's `passwd`, `acl` and list of revoked certificates from the store; whether it could be told.

    It hangs up on whoever is no longer in `passwd`. Raises BadInput (no broker password), WorldFailed.
    """
    admitted = sa.select(devices.c.name, devices.c.broker_hash).where(devices.c.revoked_at.is_(None))
    with store.read() as connection:
        rows = connection.execute(admitted).all()
    write_revoked(config, store, now_utc())
    hashes = {f"{config.fleet}/{row.name}": row.broker_hash for row in rows}
    password = read_secret(config.broker.password_file)
    hashes |= {account: broker.password_hash(password) for account in config.broker.accounts}
    broker.write_passwd(config.broker.files_dir, hashes)
    broker.write_acl(config.broker.files_dir, config.fleet, config.broker.accounts)
    return broker.reload_broker(config.broker.pid_file)


def enroll(
    connection: sa.Connection,
    name: str,
    profile: str | None,
    tags: Sequence[str],
    now: float,
    *,
    again: bool = False,
    certificate: Issued | None = None,
    most: int = Limits().devices,
) -> Credentials:
    """Add a board, or with `again` give a known one, revoked or not, new credentials for the old.

    most: how many boards there may be; those that were revoked do not count. Raises Taken, BadInput (too many).
    """
    credentials = Credentials(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    values = {
        "profile": profile,
        "tags": json.dumps(sorted(set(tags))),
        "enrolled_at": now,
        "token_sha256": token_hash(credentials.repo_token),
        "broker_hash": broker.password_hash(credentials.mqtt_password),
        "certificate_serial": None,
        "certificate_expires": None,
        "revoked_at": None,
    }
    row = connection.execute(
        sa.select(devices.c.id, devices.c.revoked_at).where(devices.c.name == name)
    ).one_or_none()
    if row is not None and not again:
        raise Taken(f"a board called {name!r} is enrolled already; --again gives it new credentials")
    if row is None or row.revoked_at is not None:
        _check_room(connection, most)
    known = None if row is None else row.id
    if known is None:
        added = connection.execute(sa.insert(devices).values(name=name, **values))
        (known,) = added.inserted_primary_key or (0,)
        connection.execute(sa.insert(presence).values(device=known, online=False, records=0))
    else:
        connection.execute(sa.update(devices).where(devices.c.id == known).values(**values))
        _revoke_certificates(connection, known, now)
    if certificate is not None:
        _add_certificate(connection, known, certificate, now)
    return credentials


def _check_room(connection: sa.Connection, most: int) -> None:
    there = connection.scalar(
        sa.select(sa.func.count()).select_from(devices).where(devices.c.revoked_at.is_(None))
    )
    if (there or 0) >= most:
        raise BadInput(
            f"{there} boards are enrolled, and limits.devices is {most}: revoke some, or raise it in fleet.toml"
        )


def revoke(connection: sa.Connection, name: str, now: float) -> float:
    """Let a board's certificates, password and token count no more; since when (Unix seconds). Raises Unknown.

    Its history stays. The broker learns of it by `write_broker_files`.
    """
    row = connection.execute(
        sa.select(devices.c.id, devices.c.revoked_at).where(devices.c.name == name)
    ).one_or_none()
    if row is None:
        raise Unknown(f"there is no board called {name!r}")
    if row.revoked_at is not None:
        return float(row.revoked_at)
    connection.execute(sa.update(devices).where(devices.c.id == row.id).values(revoked_at=now))
    connection.execute(sa.update(presence).where(presence.c.device == row.id).values(online=False))
    _revoke_certificates(connection, row.id, now)
    return now


def board_of(connection: sa.Connection, token: str) -> tuple[int, str] | None:
    """The board (id, name) whose repository token that is; None where there is none, or it is revoked."""
    found = sa.select(devices.c.id, devices.c.name).where(
        devices.c.token_sha256 == token_hash(token), devices.c.revoked_at.is_(None)
    )
    row = connection.execute(found).one_or_none()
    return None if row is None else (row.id, row.name)


def new_certificate(config: FleetConfig, name: str, request: str) -> Issued | None:
    """Sign a board's first certificate, where the broker wants them. Raises BadInput, WorldFailed."""
    if not config.broker.tls:
        return None
    now = now_utc()
    return issue(authorities_of(config, now), request, f"{config.fleet}/{name}", now)


def renew_certificate(
    config: FleetConfig,
    connection: sa.Connection,
    board: tuple[int, str],
    request: str,
    old: str,
    signature: bytes,
) -> Issued:
    """Sign the next certificate of a known board (id, name); the old one stays good. Raises BadInput, WorldFailed.

    old: a certificate of its, which may have ended (a board that was in a drawer must come back by itself) but is not
    revoked. signature: of the request, by the old one's key: who has stolen the token alone gets no certificate.
    """
    now = now_utc()
    (device, name), authorities = board, authorities_of(config, now)
    address = f"{config.fleet}/{name}"
    serial, key = serial_if_ours(authorities, old, address)
    check_signature(key, signature, request.encode())
    found = connection.execute(
        sa.select(certificates.c.revoked_at).where(
            certificates.c.serial == serial, certificates.c.device == device
        )
    ).one_or_none()
    if found is None or found.revoked_at is not None:
        raise BadInput("certificate must be one that counts: this one was revoked, or is not known here")
    issued = issue(authorities, request, address, now)
    _add_certificate(connection, device, issued, now.timestamp())
    return issued


def _add_certificate(connection: sa.Connection, device: int, certificate: Issued, now: float) -> None:
    """Note a new one, and forget those that ended long ago."""
    serial, expires = certificate.serial, certificate.expires
    forgotten = (certificates.c.device == device) & (certificates.c.expires < now - _REMEMBERED_S)
    connection.execute(sa.delete(certificates).where(forgotten))
    connection.execute(sa.insert(certificates).values(serial=serial, device=device, expires=expires))
    connection.execute(
        sa.update(devices)
        .where(devices.c.id == device)
        .values(certificate_serial=serial, certificate_expires=expires)
    )


def _revoke_certificates(connection: sa.Connection, device: int, now: float) -> None:
    counting = (certificates.c.device == device) & certificates.c.revoked_at.is_(None)
    connection.execute(sa.update(certificates).where(counting).values(revoked_at=now))


def token_hash(token: str) -> str:
    """What the server keeps of a board's repository token."""
    return hashlib.sha256(token.encode()).hexdigest()


def board_files(config: FleetConfig, url: str) -> dict[str, Any]:
    """What every board is given besides its own credentials. Raises BadInput, WorldFailed."""
    path = root_file(config.repository)
    try:
        root = path.read_text(encoding="utf-8")
        control_key = config.control_public_file.read_text(encoding="ascii")
        ca = config.ca_file.read_text(encoding="ascii")
    except OSError as err:
        raise WorldFailed(f"{err.filename}: could not be read: {err.strerror or err}") from err
    here = config.broker
    told = {"broker.public_host": here.public_host, "public_url": config.public_url or config.web.host}
    for key, host in told.items():
        if on_this_machine(host) != host:
            raise BadInput(f"{config.path}: boards cannot be told to connect to {host}: set {key}")
    return {
        "fleet": config.fleet,
        "broker": {"host": here.public_host, "port": here.public_port, "tls": here.tls},
        "repository": {"url": f"{config.public_url or url}/repo", "tls": config.web.tls},
        "root": root,
        "control_key": control_key,
        "ca": ca if here.tls or config.web.tls else None,
    }
