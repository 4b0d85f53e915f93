"""The web process: API, repository and page on one socket. Reads and writes the store, never the broker."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

import uvicorn
from nicegui import ui

from edgekit.core.files import write_atomic
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import read_secret
from edgekit.fleet.pages import add_pages
from edgekit.fleet.store import open_store

log = logging.getLogger("edgekit.fleet.web")

_CLOSE_S = 2


def run_web(config: FleetConfig, listener: socket.socket, url: str, stop: threading.Event) -> None:
    """Serve until SIGTERM; the address is written once requests are answered. Raises BadInput, WorldFailed."""
    store = open_store(config.database_url)
    context = Context(config, store, read_secret(config.token_file), lambda: url)
    app = make_app(context)
    add_pages(context)
    ui.run_with(app, title=f"edgekit fleet {config.fleet}", dark=None, show_welcome_message=False)
    server = _Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_CLOSE_S)
    )
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.stop.is_set():
            self.should_exit = True
        elif self.started:
            log.info("serving, process %d", os.getpid())
            self.ready()
