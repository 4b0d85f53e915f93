"""Keep the server's certificates and the lists of revoked ones; make the contexts that use them. Signs no board.

data_dir/tls/ca-1.pem ...     the authority: key and certificate (0600)
data_dir/tls/web.pem          the page, the API and the repository (0600)
data_dir/tls/client.pem       ingest, towards the broker (0600)
data_dir/ca.pem               what others check all of these against: public
files_dir/{ca,server,revoked}.pem    the same for Mosquitto (server.pem: 0600)
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.files import write_atomic
from edgekit.fleet import broker
from edgekit.fleet import schema as db
from edgekit.fleet.certificates import (
    Authority,
    in_force,
    keep_authorities,
    keep_server,
    read_authorities,
    revoked_in,
    revoked_pem,
    trusted_pem,
)
from edgekit.fleet.config import FleetConfig, on_this_machine
from edgekit.fleet.store import Store

WEB, CLIENT = "web.pem", "client.pem"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def now_utc() -> datetime:
    """The time, as certificates have it."""
    return datetime.now(timezone.utc)


def keep_certificates(config: FleetConfig, store: Store, now: datetime) -> bool:
    """Make what is missing, renew what is due; whether anything was. Raises BadInput (a damaged key), WorldFailed."""
    try:
        config.tls_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise WorldFailed(f"{config.tls_dir}: could not be made: {err.strerror or err}") from err
    authorities = keep_authorities(config.tls_dir, config.fleet, now)
    here = config.broker
    made = [
        keep_server(config.tls_dir / WEB, web_names(config), authorities, now),
        keep_server(config.tls_dir / CLIENT, (), authorities, now, client=here.username),
        keep_server(here.files_dir / broker.SERVER, broker_names(config), authorities, now),
    ]
    public = trusted_pem(authorities)
    made += [_replace(path, public) for path in (config.ca_file, here.files_dir / broker.CA)]
    return write_revoked(config, store, now, authorities) or any(made)


def write_revoked(
    config: FleetConfig, store: Store, now: datetime, authorities: Sequence[Authority] | None = None
) -> bool:
    """Write the lists of revoked certificates for Mosquitto; whether they changed. Raises BadInput, WorldFailed."""
    if authorities is None:
        authorities = authorities_of(config, now)
    table = db.certificates
    with store.read() as connection:
        rows = connection.execute(
            sa.select(table.c.serial, table.c.revoked_at).where(
                table.c.revoked_at.is_not(None), table.c.expires > now.timestamp()
            )
        ).all()
    path = config.broker.files_dir / broker.REVOKED
    old = path.read_bytes() if path.exists() else b""
    new = revoked_pem(authorities, [(row.serial, row.revoked_at) for row in rows], now, old)
    with contextlib.suppress(ValueError):
        if old and revoked_in(old) == revoked_in(new):
            return False
    write_atomic(path, new)
    return True


def authorities_of(config: FleetConfig, now: datetime) -> list[Authority]:
    """The authorities in force, which `fleet serve` keeps. Raises BadInput, WorldFailed."""
    found = in_force(read_authorities(config.tls_dir), now)
    if not found:
        raise BadInput(f"{config.tls_dir}: holds no authority; start: edgekit fleet serve")
    return found


def web_names(config: FleetConfig) -> list[str]:
    """By what names and addresses the web process is reached."""
    told = urlsplit(config.public_url).hostname if config.public_url else None
    return _names(told, on_this_machine(config.web.host))


def broker_names(config: FleetConfig) -> list[str]:
    """By what names and addresses the broker is reached."""
    return _names(config.broker.public_host, config.broker.reached_at)


def broker_context(config: FleetConfig) -> ssl.SSLContext:
    """The server as a client of its broker: it shows its certificate and checks the broker's. Raises WorldFailed."""
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(config.tls_dir / CLIENT)
    except OSError as err:  # ssl's errors are some
        raise WorldFailed(f"{config.tls_dir}: the certificates cannot be used: {one_line(err)}") from err
    return context


def web_context(config: FleetConfig) -> ssl.SSLContext:
    """The web process as a server. Clients show no certificate: a browser has none. Raises WorldFailed."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(config.tls_dir / WEB)
    except OSError as err:
        raise WorldFailed(f"{config.tls_dir / WEB}: cannot be used: {one_line(err)}") from err
    return context


def _names(told: str | None, own: str) -> list[str]:
    return list(dict.fromkeys(name for name in (told, own, *_LOOPBACK) if name))


def _replace(path: Path, data: bytes) -> bool:
    if path.exists() and path.read_bytes() == data:
        return False
    write_atomic(path, data)
    return True
