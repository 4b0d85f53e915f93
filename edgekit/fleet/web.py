"""The web process: API, repository and page on one socket. Reads and writes the store, never the broker."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn
from nicegui import ui

from edgekit.core.errors import one_line
from edgekit.core.files import write_atomic
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.config import FleetConfig, read_secret
from edgekit.fleet.pages import add_pages
from edgekit.fleet.store import open_store
from edgekit.fleet.tls import WEB, web_context

log = logging.getLogger("edgekit.fleet.web")

_CLOSE_S = 2
_LOOK_EVERY = 10  # of the server's ticks of 0.1 s: whether its certificate was renewed


def run_web(config: FleetConfig, listener: socket.socket, url: str, stop: threading.Event) -> None:
    """Serve until SIGTERM; the address is written once requests are answered. Raises BadInput, WorldFailed."""
    store = open_store(config.database_url)
    context = Context(config, store, read_secret(config.token_file), lambda: url)
    app = make_app(context)
    add_pages(context)
    ui.run_with(app, title=f"edgekit fleet {config.fleet}", dark=None, show_welcome_message=False)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_CLOSE_S)
    settings.load()
    if config.web.tls:
        settings.ssl = web_context(config)
    server = _Server(settings)
    server.certificate = config.tls_dir / WEB
    server.stop = stop
    server.ready = lambda: write_atomic(config.address_file, f"{url}\n".encode())
    try:
        server.run(sockets=[listener])
    finally:
        store.close()


class _Server(uvicorn.Server):
    """Says when it answers, and heeds a stop that came before it could."""

    stop: threading.Event
    ready: Callable[[], None]
    certificate: Path
    changed_ns = 0

    async def on_tick(self, counter: int) -> bool:
        if self.config.ssl is not None and counter % _LOOK_EVERY == 0:
            self.take_new_certificate(self.config.ssl)
        return await super().on_tick(counter)

    def take_new_certificate(self, context: ssl.SSLContext) -> None:
        """Show the one that `fleet serve` has renewed from the next connection on."""
        try:
            changed_ns = self.certificate.stat().st_mtime_ns
            if changed_ns != self.changed_ns:
                context.load_cert_chain(self.certificate)
                self.changed_ns = changed_ns
        except OSError as err:
            log.warning("%s: cannot be used, the one before serves on: %s", self.certificate, one_line(err))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.stop.is_set():
            self.should_exit = True
        elif self.started:
            log.info("serving, process %d", os.getpid())
            self.ready()
