"""HTTP to the repository: a pool with the board's credentials, a span of a file, a body that may not crawl.

Knows neither metadata nor bundles. Follows no redirect: credentials and requests stay where the config sends them.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from edgekit.agent.config import Repository
from edgekit.agent.repository.base import CHUNK, NetworkFailed
from edgekit.agent.tls import Tls
from edgekit.core.errors import one_line

OK, PARTIAL = 200, 206
MAX_RETRY_AFTER_S = 600.0  # what a server may ask us to wait
_CONNECT_S, _SILENT_S = 10.0, 30.0
_WINDOW_S, _SLOWEST = 60.0, 256  # fewer bytes a second over so many seconds, or a head so late, are no answer
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)")
_SMALLEST_BUFFER = 1 << 14
_OBJECT = re.compile(r"^(?:<.*>|\w+\(.*?\)): ")


def open_pool(
    repository: Repository, rate: float | None = None, tls: Tls | None = None
) -> urllib3.PoolManager:
    """Connections to the repository, not yet opened. Raises WorldFailed where a file that https needs cannot be used.

    tls: what the board knows and shows.
    rate: bytes a second that are read at most: the kernel is told not to take far more than that ahead of us.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "edgekit-agent"}
    if repository.token is not None:
        headers["Authorization"] = f"Bearer {repository.token}"
    timeout = urllib3.Timeout(connect=_CONNECT_S, read=_SILENT_S)
    options = list(HTTPConnection.default_socket_options)
    if rate is not None:
        options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, max(_SMALLEST_BUFFER, min(int(rate), CHUNK))))
    https = repository.url.startswith("https://")
    pool = urllib3.PoolManager(
        num_pools=2,
        headers=headers,
        retries=False,
        timeout=timeout,
        socket_options=options,
        ssl_context=(tls or Tls()).context(repository.ca, "repository.ca") if https else None,
    )
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


@contextmanager
def _within(seconds: float, get: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Cut the connection over which something takes longer. A timeout of the socket counts anew with every byte."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        found = get()
        if found is not None:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError(f"no answer within {seconds:g} s")


class _Connection(HTTPConnection):
    answering: socket.socket | None = None  # that the last answer comes over: `sock` may be None by then

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself has it
        self.answering = self.sock
        with _within(_WINDOW_S, lambda: self.sock):
            return super().getresponse()


class _TlsConnection(HTTPSConnection):
    answering: socket.socket | None = None

    def connect(self) -> None:
        with _within(_WINDOW_S, lambda: self.sock):
            super().connect()

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself has it
        self.answering = self.sock
        with _within(_WINDOW_S, lambda: self.sock):
            return super().getresponse()


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class HttpFiles:
    """A repository's files, below one address."""

    def __init__(
        self, http: urllib3.PoolManager, url: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._url = url
        self._clock = clock

    def open(self, path: str, start: int = 0, end: int | None = None) -> HttpBody:
        """As base.Files says. A server may answer with the whole file: the body says where it begins."""
        url = f"{self._url}/{path}"
        ranged = start > 0 or end is not None
        span = f"bytes={start}-{'' if end is None else end - 1}"
        headers = {**self._http.headers, "Range": span} if ranged else None
        try:
            response = self._http.request("GET", url, headers=headers, preload_content=False, redirect=False)
        except urllib3.exceptions.HTTPError as err:
            raise NetworkFailed(f"{url}: {_plain(err)}") from err
        body = HttpBody(response, url, start if response.status == PARTIAL else 0, self._clock)
        if response.status not in (OK, PARTIAL):
            body.close()
            raise NetworkFailed(
                f"{url}: the repository answered {response.status}",
                response.status,
                _retry_after(response.headers.get("Retry-After")),
            )
        if response.status == PARTIAL and not _begins_at(response.headers.get("Content-Range"), start):
            body.close()
            raise NetworkFailed(f"{url}: asked for {span}, got {response.headers['Content-Range'][:80]}")
        return body


class HttpBody:
    """The body of one answer, which begins at byte `start` of the file. Left half-read, its connection is closed."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, url: str, start: int, clock: Callable[[], float]
    ) -> None:
        self.start = start
        self._response = response
        self._url = url
        self._clock = clock

    def __enter__(self) -> HttpBody:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it where something is left on it."""
        self._response.close()

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The body in pieces of at most `size` bytes. Raises NetworkFailed when it breaks off or crawls."""
        begun, got = self._clock(), 0
        while chunk := self._read(size):
            got += len(chunk)
            spent = self._clock() - begun
            if spent > _WINDOW_S:
                if got < _SLOWEST * spent:
                    raise NetworkFailed(f"{self._url}: too slow, {got} bytes in {spent:.0f} s")
                begun, got = self._clock(), 0
            yield chunk

    def _read(self, size: int) -> bytes:
        """What has come, not waiting until it is `size` bytes: so that a crawl is seen.

        Of an answer in chunks that may take for ever nevertheless: a chunk's head, or what comes after the last one.
        """
        connection = self._response.connection
        answering = connection.answering if isinstance(connection, (_Connection, _TlsConnection)) else None
        chunked = getattr(self._response, "chunked", False)
        try:
            with _within(_WINDOW_S, lambda: answering) if chunked else nullcontext():
                return self._response.read1(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as err:
            raise NetworkFailed(f"{self._url}: {_plain(err)}") from err


def _begins_at(content_range: str | None, start: int) -> bool:
    """Whether a partial answer holds what was asked for. One that does not say is found out by the file's hash."""
    if content_range is None:
        return True
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    return found is not None and int(found[1]) == start


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, as RFC 9110 (10.2.3) writes them: a number or a date; None where it says nothing usable."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        seconds = float(value)
    else:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _plain(err: Exception) -> str:
    """urllib3's errors without its objects: what comes after `_TlsConnection(host='10.0.0.1', port=443): `."""
    reason = getattr(err, "reason", None) or err
    first = reason.args[0] if reason.args else None  # behind it stands the cause, which says the same again
    text = first if isinstance(first, str) else one_line(reason)
    return f"{type(reason).__name__}: {_OBJECT.sub('', text)}"[:200]
