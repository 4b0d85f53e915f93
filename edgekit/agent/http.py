"""HTTP to the repository: a pool with the board's credentials, GET from an offset, a body that may not crawl.

Knows neither metadata nor bundles.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import urllib3

from edgekit.agent.config import Repository
from edgekit.agent.remote import NetworkFailed
from edgekit.core.errors import one_line

CHUNK = 1 << 16
PARTIAL, NOT_SATISFIABLE = 206, 416
_CONNECT_S, _SILENT_S = 10.0, 30.0
_PATIENCE_S, _SLOWEST = 60.0, 256  # after so many seconds, a mean of fewer bytes per second is no download


def open_pool(repository: Repository) -> urllib3.PoolManager:
    """Connections to the repository, not yet opened."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "edgekit-agent"}
    if repository.token is not None:
        headers["Authorization"] = f"Bearer {repository.token}"
    timeout = urllib3.Timeout(connect=_CONNECT_S, read=_SILENT_S)
    return urllib3.PoolManager(num_pools=2, headers=headers, retries=False, timeout=timeout)


class Response:
    """A response that is given back when left."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.response = response
        self.status = response.status

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()


def get(http: urllib3.PoolManager, url: str, offset: int) -> Response:
    """GET from `offset`. Raises NetworkFailed."""
    headers = {**http.headers, "Range": f"bytes={offset}-"} if offset else None
    try:
        response = http.request("GET", url, headers=headers, preload_content=False, redirect=False)
    except urllib3.exceptions.HTTPError as err:
        raise NetworkFailed(f"{url}: {_plain(err)}") from err
    if response.status not in (200, PARTIAL):
        response.close()
        raise NetworkFailed(f"{url}: the repository answered {response.status}", response.status)
    return Response(response)


def chunks(answer: Response, url: str) -> Iterator[bytes]:
    """The body in pieces. Raises NetworkFailed when it breaks off or crawls."""
    begun, total = time.monotonic(), 0
    try:
        for chunk in answer.response.stream(CHUNK, decode_content=False):
            total += len(chunk)
            spent = time.monotonic() - begun
            if spent > _PATIENCE_S and total < _SLOWEST * spent:
                raise NetworkFailed(f"{url}: too slow, {total} bytes in {spent:.0f} s")
            yield chunk
    except urllib3.exceptions.HTTPError as err:
        raise NetworkFailed(f"{url}: {_plain(err)}") from err


def _plain(err: Exception) -> str:
    """urllib3's errors without object addresses."""
    reason = getattr(err, "reason", None) or err
    return f"{type(reason).__name__}: {one_line(reason).rpartition('>: ')[2]}"[:200]
