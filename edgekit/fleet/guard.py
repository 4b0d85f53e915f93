"""Who may come in: a program by the API token, a board by its own, a browser by session. Knows no data."""

from __future__ import annotations

import hashlib
import hmac
import html
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.core.errors import WorldFailed, one_line

API, REPOSITORY, CERTIFICATE, LOGIN, LOGOUT = "/api/", "/repo/", "/certificate", "/login", "/logout"
FAVICON = "/favicon.ico"  # browsers ask for it before anybody logged in
COOKIE = "edgekit_session"
SESSION_S = 30 * 86_400
MAX_BODY_BYTES = 6_000_000  # targets metadata is at most 5 MB; bundles are streamed
_LOGIN_BYTES = 4096
_HEADERS = {
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware around everything the web process serves.

    is_board(token): whether a repository token belongs to an enrolled board.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        is_board: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app, self.token, self.is_board, self.clock = app, token, is_board, clock
        self.session_key = hashlib.sha256(b"edgekit session\0" + token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it here."""
        if scope["type"] == "websocket":
            if self._has_session(Headers(scope=scope)) and _same_origin(Headers(scope=scope)):
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = await self._answer(Request(scope, receive))
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
        else:
            await self.app(scope, receive, _with_headers(send))

    async def _answer(self, request: Request) -> Response | None:
        """What to answer instead of letting the request through; None lets it through."""
        path = request.url.path
        if path.startswith(API):
            if not self._is_token(bearer(request.headers)):
                return unauthorized("the API wants the token from the server's data_dir/api.token")
            return _too_large(request)
        if path.startswith(REPOSITORY) or path == CERTIFICATE:
            token = bearer(request.headers)
            try:
                known = token is not None and await run_in_threadpool(self.is_board, token)
            except WorldFailed as err:
                return JSONResponse({"error": one_line(err)}, 503)
            if not known:
                return unauthorized("the repository wants the token of an enrolled board")
            return _too_large(request)
        if path == FAVICON:
            return None
        if path == LOGIN:
            return await self._login(request)
        if path == LOGOUT:
            response = RedirectResponse(LOGIN, 303)
            response.delete_cookie(COOKIE)
            return response
        given = request.query_params.get("token")
        if given is not None and request.method == "GET":
            return self._enter(request, given, _without_token(request))
        if self._has_session(request.headers):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(LOGIN, 303)
        return unauthorized("log in first")

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(login_page())
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LOGIN_BYTES:
                return HTMLResponse(login_page("That is no token."), 413)
        given = parse_qs(body.decode("ascii", "replace")).get("token", [""])[0]
        return self._enter(request, given.strip(), "/")

    def _enter(self, request: Request, given: str, where: str) -> Response:
        if not self._is_token(given):
            return HTMLResponse(login_page("That is not this server's token."), 401)
        response = RedirectResponse(where, 303)
        expires = str(int(self.clock()) + SESSION_S)
        value = f"{expires}.{self._sign(expires)}"
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, value, max_age=SESSION_S, httponly=True, samesite="lax", secure=secure)
        return response

    def _is_token(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _has_session(self, headers: Mapping[str, str]) -> bool:
        cookies = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        morsel = cookies.get(COOKIE)
        expires, _, signature = (morsel.value if morsel else "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(expires).encode()):
            return False
        return expires.isdecimal() and int(expires) > self.clock()

    def _sign(self, expires: str) -> str:
        return hmac.new(self.session_key, expires.encode(), hashlib.sha256).hexdigest()


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def unauthorized(why: str) -> Response:
    """401, as every route gives it."""
    return JSONResponse({"error": why}, 401, {"www-authenticate": "Bearer"})


def _too_large(request: Request) -> Response | None:
    if request.method == "PUT" or request.method in {"GET", "HEAD"}:
        return None
    length = request.headers.get("content-length", "")
    if (
        not length.isdecimal() or "transfer-encoding" in request.headers
    ):  # with both, some servers heed the other
        return JSONResponse({"error": "the request must say its Content-Length"}, 411)
    if int(length) > MAX_BODY_BYTES:
        return JSONResponse(
            {"error": f"the request must be at most {MAX_BODY_BYTES} bytes, got {length}"}, 413
        )
    return None


def _without_token(request: Request) -> str:
    rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
    path = "/" + request.url.path.lstrip("/")  # never //host: that would lead elsewhere
    return f"{path}?{urlencode(rest)}" if rest else path


def _same_origin(headers: Mapping[str, str]) -> bool:
    """A page of another origin must not open our websocket with the user's cookie."""
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return wrapped


def login_page(problem: str = "") -> str:
    """The only page a stranger sees."""
    said = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    return _LOGIN.replace("<!--problem-->", said)


_LOGIN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>edgekit fleet</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
:root { --page: #f4f5f7; --card: #fff; --ink: #1b1f24; --dim: #59636e; --line: #d1d9e0; --go: #0b6e4f;
  --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --page: #101418; --card: #191f26; --ink: #e6edf3; --dim: #9aa7b3; --line: #37414b; --go: #1f8a66;
    --bad: #ff8a80 }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
form { width: min(26rem, 92vw); padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px }
h1 { margin: 0 0 .25rem; font-size: 1.35rem }
p { margin: 0 0 1.25rem; color: var(--dim); font-size: .925rem }
label { display: block; margin-bottom: .35rem; font-weight: 600; font-size: .925rem }
input, button { width: 100%; padding: .65rem .8rem; font: inherit; border-radius: 8px }
input { border: 1px solid var(--line); background: transparent; color: inherit }
button { margin-top: 1rem; border: 0; background: var(--go); color: #fff; font-weight: 600; cursor: pointer }
:focus-visible { outline: 2px solid var(--go); outline-offset: 2px }
.problem { margin: 1rem 0 0; color: var(--bad) }
code { font-size: .9em }
</style></head><body>
<form method="post" action="/login">
<h1>edgekit fleet</h1>
<p>Enter this server's token: the line in <code>api.token</code> in its data folder.</p>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<!--problem-->
<button>Open the fleet</button>
</form></body></html>
"""
