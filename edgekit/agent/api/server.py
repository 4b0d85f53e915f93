"""The local API's server: uvicorn on a thread of the agent's. The only file that needs the extra `api`."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import suppress
from typing import Any

from edgekit.agent import config
from edgekit.agent.api.app import App
from edgekit.agent.api.listen import BACKLOG, identity, listen
from edgekit.agent.runner import Runner
from edgekit.core.errors import MissingExtra

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as err:
    raise MissingExtra("the local API needs uvicorn: pip install 'edgekit[api]'") from err

log = logging.getLogger(__name__)
GRACE_S = 0.3  # for requests that wait when the agent is told to end; those that run are never interrupted
_HEADER_BYTES = 2**14
_KEEP_ALIVE_S = 30


class _Protocol(H11Protocol):
    """uvicorn's, with what a server open to any local client needs: bounded connections, and an end to waiting."""

    timeout_s = 10.0
    max_connections = 64
    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection too many, with a clear answer."""
        if len(self.connections) >= self.max_connections:
            self._refused = True
            error = f"too many connections ({self.max_connections}): try again in 1 s"
            transport.write(_plain(503, "Service Unavailable", error, "Retry-After: 1\r\n"))
            transport.close()
            return
        super().connection_made(transport)
        self._await_more()

    def _await_more(self) -> None:
        """The connection ends unless the next request's header, or room for an answer, comes in time."""
        if self._timer is None:
            self._timer = self.loop.call_later(self.timeout_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        """A header in pieces has its time from the first one on; a whole one stops the clock."""
        if self._refused:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self.cycle is None or self.cycle.response_complete:
            self._await_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        self._stop_waiting()
        if not self._refused:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read its answers: it has a while to begin."""
        super().pause_writing()
        self._await_more()

    def resume_writing(self) -> None:
        """The client reads."""
        self._stop_waiting()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """As the protocol has its errors. An answer that is on its way is not mixed with it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_plain(400, "Bad Request", f"no valid HTTP request: {msg}"))
        self.transport.close()


def _plain(status: int, reason: str, error: str, header: str = "") -> bytes:
    """A whole response and the end of the connection."""
    body = json.dumps({"error": error})
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{header}Connection: close\r\n\r\n{body}"
    ).encode()


class _Server(uvicorn.Server):
    """uvicorn's, waiting for its end without waking ten times a second."""

    def __init__(self, made: uvicorn.Config) -> None:
        super().__init__(made)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        """See uvicorn.Server."""
        await self.ended.wait()


class Api:
    """The local API: listens from the beginning, answers from `start` to `stop`."""

    def __init__(self, api: config.Api, runner: Runner, version: str) -> None:
        """Raises BadInput or WorldFailed where the address cannot be had."""
        self._config = api
        self.app = App(runner, version, api.timeout_s)
        self._socket = listen(api)
        self._identity = None if api.path is None else identity(api.path)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    @property
    def port(self) -> int:
        """The TCP port, also where the config left it to the system."""
        return 0 if self._config.path is not None else int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begin to answer. Returns when the server runs."""
        self._thread.start()
        self._ready.wait()
        log.info("local API on %s, %s", self._config.address, self._config.openness)

    def begin_stop(self) -> None:
        """Take no more requests; those that wait have a moment for their answer, then they are refused."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._begin_stop)

    def _begin_stop(self) -> None:
        assert self._loop is not None  # noqa: S101  (set before anybody can call)
        assert self._server is not None  # noqa: S101
        self._loop.call_later(GRACE_S, self.app.refuse_all)
        self._server.should_exit = True
        self._server.ended.set()

    def stop(self, timeout_s: float) -> None:
        """End, and take the Unix socket away."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._socket.close()
        path = self._config.path
        if path is not None and self._identity is not None and identity(path) == self._identity:
            path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("the local API met a defect and is over")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._server = _Server(_uvicorn_config(self._config, self.app))
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._server.serve(sockets=[self._socket])


def _uvicorn_config(api: config.Api, app: App) -> uvicorn.Config:
    limits: dict[str, Any] = {"timeout_s": api.timeout_s, "max_connections": api.max_connections}
    return uvicorn.Config(
        app,
        http=type("BoundedProtocol", (_Protocol,), limits),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # what clients do wrong is told to them; our own defects are logged by the app
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
