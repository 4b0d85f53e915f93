"""HTTP as an application sees it: bodies with their limits and compression, replies. Knows no route and no bundle."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekit.agent.api.errors import Refusal
from edgekit.core.errors import BadInput, one_line

Message = MutableMapping[str, Any]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[bytes, str]
DISCARD_S = 2.0  # how long the rest of a refused request is read, so that its client can read the answer
_DISCARD_BYTES = 2**26
_COMPRESS_FROM = 1024
_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_TAKES_GZIP = re.compile(r"(?:^|[,\s])(?:gzip|\*)\s*(?:$|,|;(?!\s*q=0(?:\.0*)?\s*(?:,|$)))")
_TAKES_DEFLATE = re.compile(r"(?:^|[,\s])deflate\s*(?:$|,|;(?!\s*q=0(?:\.0*)?\s*(?:,|$)))")


class Gone(Exception):
    """The client hung up."""


@dataclass(frozen=True)
class Reply:
    """A whole response. headers: without the length."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)


def json_reply(value: object, status: int = 200, **headers: str) -> Reply:
    """A response of JSON; headers: more of them, with _ for -."""
    names = tuple((name.replace("_", "-").encode(), text.encode()) for name, text in headers.items())
    return Reply(json.dumps(value).encode(), status, (*Reply.headers, *names))


class Body:
    """The body of one request, read to its end or to a limit."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise Gone
        self.complete = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def read(self, limit: int) -> bytes:
        """All of it. Raises Refusal beyond `limit`."""
        parts, size = [], 0
        while not self.complete:
            parts.append(await self._next())
            size += len(parts[-1])
            if size > limit:
                raise Refusal(413, f"a request may have {limit} bytes for this bundle, got more")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def discard(self) -> None:
        """Read on for a while and keep nothing: a client that still sends would not read our answer."""
        size = 0
        while not self.complete and size < _DISCARD_BYTES:
            size += len(await self._next())


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where what is awaited inside takes longer: asyncio.timeout for Python 3.10."""
    task, expired = asyncio.current_task(), False
    assert task is not None  # noqa: S101  (an application is called in one)

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if not expired:
            raise
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise TimeoutError from None
    finally:
        timer.cancel()


def whole_number(text: str, what: str) -> int:
    """The number in a header called `what`. Raises BadInput."""
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise BadInput(f"{what} must be a whole number, got {text[:40]!r}")
    return int(text)


def content_length(headers: Headers) -> int | None:
    """Of the body; None where it is not said. Raises BadInput."""
    text = headers.get(b"content-length")
    return None if text is None else whole_number(text, "Content-Length")


def decoded(data: bytes, encoding: str, limit: int) -> bytes:
    """The body without its compression; deflate is zlib's, as HTTP has it. Raises Refusal, BadInput."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding not in _ENCODINGS:
        raise Refusal(415, f"Content-Encoding must be gzip, deflate or identity, got {encoding[:40]!r}")
    decoder = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        plain = decoder.decompress(data, limit + 1)
    except zlib.error as err:
        raise BadInput(f"the body is not {encoding}: {one_line(err)}") from err
    if len(plain) > limit:
        raise Refusal(413, f"a request may have {limit} bytes for this bundle, got more behind {encoding}")
    if not decoder.eof or decoder.unused_data:
        raise BadInput(f"the body is not one whole {encoding} stream")
    return plain


def encoded(data: bytes, accepted: str) -> tuple[bytes, str | None]:
    """The body in a compression that the client accepts, where that is worth it, and what it is called."""
    encoding = _wanted_encoding(accepted)
    if encoding is None or len(data) < _COMPRESS_FROM:
        return data, None
    encoder = zlib.compressobj(1, zlib.DEFLATED, _ENCODINGS[encoding])
    return encoder.compress(data) + encoder.flush(), encoding


def _wanted_encoding(accepted: str) -> str | None:
    accepted = accepted.lower()
    if _TAKES_GZIP.search(accepted):
        return "gzip"
    return "deflate" if _TAKES_DEFLATE.search(accepted) else None
