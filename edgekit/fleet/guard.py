"""Who may come in: a program by a token, a board by its own, a browser by session; and with which role."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.core.checks import shown
from edgekit.core.errors import WorldFailed, one_line
from edgekit.fleet import login_page
from edgekit.fleet.access import API, METRICS, OPERATOR, SERVER_TOKEN, Caller, needed_role
from edgekit.fleet.accounts import token_caller
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import board_of
from edgekit.fleet.links import Links
from edgekit.fleet.login import COOKIE, LOGIN, LOGOUT, PASSWORD, Door, page
from edgekit.fleet.origin import names_of
from edgekit.fleet.store import Store

__all__ = ["CERTIFICATE", "COOKIE", "LOGIN", "LOGOUT", "Guard", "bearer", "unauthorized"]

REPOSITORY, CERTIFICATE = "/repo/", "/certificate"
FAVICON = "/favicon.ico"  # browsers ask for it before anybody logged in
MAX_BODY_BYTES = 6_000_000  # targets metadata is at most 5 MB; bundles are streamed
LOOK_AGAIN_S = 5.0  # a page that is open notices within this that its session has ended
_SOURCES = {  # what a page of ours may load, and whom it may speak to
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",  # Vue compiles the page's templates in the browser
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "font-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "content-security-policy": "; ".join(f"{what} {where}" for what, where in _SOURCES.items()),
    "referrer-policy": "same-origin",  # with no-referrer, forms of our own pages would say `Origin: null`
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware around everything the web process serves. token: the server's own.

    Whoever comes in by token or session is left in the request's state as `caller`, a session's value as `session`.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: FleetConfig,
        store: Store,
        token: str,
        links: Links,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app, self._store, self._token, self._clock = app, store, token, clock
        self._names = names_of(config)
        self._door = Door(store, token, self._names, links, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it here."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except WorldFailed as err:
            answer = JSONResponse({"error": one_line(err)}, 503)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
        else:
            await self.app(scope, receive, _with_headers(send))

    async def _answer(self, request: Request) -> Response | None:
        """What to answer instead of letting the request through; None lets it through."""
        path, host = request.scope["path"], request.headers.get("host")  # as routes see it
        if not self._names.answers_to(host):
            return _misdirected(host)
        if not _is_readable(path, request.scope["query_string"]):
            return JSONResponse({"error": "the address must be of ASCII, without NUL"}, 400)
        if path.startswith(API) or path == METRICS:
            return await self._program(request, path)
        if path.startswith(REPOSITORY) or path == CERTIFICATE:
            token = bearer(request.headers)
            if token is None or not await run_in_threadpool(self._is_board, token):
                return unauthorized("the repository wants the token of an enrolled board")
            return _too_large(request)
        return await self._browser(request, path)

    # --- programs ---

    async def _program(self, request: Request, path: str) -> Response | None:
        token = bearer(request.headers)
        caller = None if token is None else await self._token_caller(token)
        if caller is None:
            return unauthorized(
                "the API wants a token: the one in the server's data_dir/api.token, or one of its own"
            )
        wanted = needed_role(request.method, path)
        if not caller.may(wanted):
            return JSONResponse(
                {"error": f"this wants a token of role {wanted}, this one's is {caller.role}"}, 403
            )
        request.state.caller = caller
        return _too_large(request)

    async def _token_caller(self, token: str) -> Caller | None:
        if hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
            return Caller(SERVER_TOKEN, OPERATOR, "server")
        return await run_in_threadpool(self._kept_token, token)

    def _kept_token(self, token: str) -> Caller | None:
        with self._store.read() as connection:
            return token_caller(connection, token, self._clock())

    def _is_board(self, token: str) -> bool:
        with self._store.read() as connection:
            return board_of(connection, token) is not None

    # --- browsers ---

    async def _browser(self, request: Request, path: str) -> Response | None:
        if path == FAVICON:
            return None
        changes = request.method not in {"GET", "HEAD", "OPTIONS"}
        if changes and not self._names.is_own_page(request.headers, request.url.scheme):
            return page(
                login_page.said_page("This request came from another site's page: it was not done."), 403
            )
        if path == LOGIN:
            return await self._door.login(request)
        if path == LOGOUT:
            return await self._door.logout(request)
        value = self._door.cookie_of(request.headers, request.url.scheme)
        caller = None if value is None else await run_in_threadpool(self._door.caller, value)
        if caller is None:
            return _to_login(request)
        if path == PASSWORD:
            return await self._door.password(request, caller)
        request.state.caller, request.state.session = caller, value
        return None

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page's websocket lives as long as its session."""
        headers = Headers(scope=scope)
        value = self._door.cookie_of(headers, scope.get("scheme", "ws"))
        good = self._names.answers_to(headers.get("host")) and self._names.is_own_page(
            headers, scope.get("scheme", "ws")
        )
        try:
            caller = await run_in_threadpool(self._door.caller, value) if good and value is not None else None
        except WorldFailed:
            caller = None
        if caller is None or value is None:
            await send({"type": "websocket.close", "code": 1008})
            return
        scope.setdefault("state", {}).update(caller=caller, session=value)
        watched = _Watched(self._door, value, receive, send)
        await self.app(scope, watched.receive, watched.send)


class _Watched:
    """A websocket that is closed soon after its session has ended."""

    def __init__(self, door: Door, value: str, receive: Receive, send: Send) -> None:
        self._door, self._value, self._receive, self._send = door, value, receive, send
        self._looked, self._ended = time.monotonic(), False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "websocket.receive" or await self._still():
            return message
        return {"type": "websocket.disconnect", "code": 1008}

    async def send(self, message: Message) -> None:
        if message["type"] != "websocket.send" or await self._still():
            await self._send(message)

    async def _still(self) -> bool:
        if self._ended or time.monotonic() - self._looked < LOOK_AGAIN_S:
            return not self._ended
        self._looked = time.monotonic()
        try:
            if await run_in_threadpool(self._door.caller, self._value) is not None:
                return True
        except WorldFailed:  # it was good a moment ago; the next message asks again
            return True
        self._ended = True
        await self._send({"type": "websocket.close", "code": 1008})
        return False


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def _is_readable(path: str, query: bytes) -> bool:
    """PostgreSQL takes no NUL, and nothing here is called so; a query that is no ASCII is none of HTTP."""
    return "\0" not in path and b"%00" not in query and b"\0" not in query and query.isascii()


def unauthorized(why: str) -> Response:
    """401, as every route gives it."""
    return JSONResponse({"error": why}, 401, {"www-authenticate": "Bearer"})


def _to_login(request: Request) -> Response:
    """A stranger's answer: the login page for who wants a page, else 401."""
    if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
        return unauthorized("log in first")
    if request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        return page(login_page.bounce_page())  # the cookie may only have stayed behind
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(LOGIN if asked == "/" else f"{LOGIN}?next={quote(asked)}", 303)


def _misdirected(host: str | None) -> Response:
    why = f"this server is not called {shown(host)}; where a proxy calls it so, public_url must say that name"
    return JSONResponse({"error": why}, 421)


def _too_large(request: Request) -> Response | None:
    if request.method == "PUT" or request.method in {"GET", "HEAD"}:
        return None
    length = request.headers.get(
        "content-length", "0"
    )  # without either header there is no body (RFC 9112, 6.3)
    if (
        not length.isdecimal() or "transfer-encoding" in request.headers
    ):  # with both, some servers heed the other
        return JSONResponse({"error": "the request must say its Content-Length"}, 411)
    if int(length) > MAX_BODY_BYTES:
        return JSONResponse(
            {"error": f"the request must be at most {MAX_BODY_BYTES} bytes, got {length}"}, 413
        )
    return None


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return wrapped
