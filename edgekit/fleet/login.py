"""A browser's way in and out: name and password, the server's token, a link for once; its session's cookie.

The guard has checked that the request comes from a page of ours where it changes something.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from edgekit.core.checks import NAME
from edgekit.core.errors import BadInput, one_line
from edgekit.fleet import accounts, audit, login_page, passwords
from edgekit.fleet.access import SERVER_TOKEN, Caller
from edgekit.fleet.attempts import Attempts
from edgekit.fleet.links import Links
from edgekit.fleet.origin import Names
from edgekit.fleet.sessions import LIFE_S, end_session, open_session, session_caller
from edgekit.fleet.store import Store

LOGIN, LOGOUT, PASSWORD = "/login", "/logout", "/password"
COOKIE = "edgekit_session"
_MAX_FORM = 8192
_MAX_WAITING = 32  # passwords to compare, one after the other
_NO_LOGIN = "Name and password do not go together."
_PAGE_HEADERS = {"cache-control": "no-store", "content-security-policy": login_page.CONTENT_POLICY}


class Door:
    """Everything between a stranger and a session. token: the server's own."""

    def __init__(
        self, store: Store, token: str, names: Names, links: Links, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._token, self._names, self._links, self._clock = store, token, names, links, clock
        self._attempts = Attempts()
        self._comparing = ThreadPoolExecutor(1, "passwords")  # the other requests' threads stay free
        self._waiting = 0

    # --- sessions ---

    def cookie_of(self, headers: Mapping[str, str], scheme: str) -> str | None:
        """The session's value that a request brings."""
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return None
        morsel = cookies.get(self._cookie(scheme, headers.get("host")))
        return morsel.value if morsel and morsel.value else None

    def caller(self, value: str) -> Caller | None:
        """Whose session that is. Raises WorldFailed."""
        with self._store.read() as connection:
            return session_caller(connection, value, self._token, self._clock())

    # --- screens ---

    async def login(self, request: Request) -> Response:
        """GET shows the page, or lets a link's bearer in; POST wants name and password, or the token."""
        if request.method != "POST":
            code = request.query_params.get("link")
            where = path_of_ours(request.query_params.get("next"))
            if code is None or _is_prefetch(request):
                return page(login_page.login_page(where=where))
            if self._links.take(code, self._clock()):
                return await self._enter(request, None, where)
            if await self._known(request):
                return RedirectResponse(where, 303)
            return page(login_page.login_page("That link was used already, or is too old.", where), 401)
        fields = await _form(request)
        where = path_of_ours(fields.get("next"))
        if "token" in fields:
            return await self._by_token(request, fields["token"].strip(), where)
        return await self._by_password(request, fields.get("name", ""), fields.get("password", ""), where)

    async def logout(self, request: Request) -> Response:
        """POST ends the session; GET only asks."""
        if request.method != "POST":
            return page(login_page.logout_page())
        value = self.cookie_of(request.headers, request.url.scheme)
        if value is not None:
            await run_in_threadpool(self._end, value)
        response = RedirectResponse(LOGIN, 303)
        name = self._cookie(request.url.scheme, request.headers.get("host"))
        secure = self._names.is_secure(request.url.scheme, request.headers.get("host"))
        response.delete_cookie(name, secure=secure, httponly=True, samesite="strict")
        return response

    async def password(self, request: Request, caller: Caller) -> Response:
        """A user's own password: GET shows the form, POST changes it and ends the user's other sessions."""
        if caller.kind != "user":
            return page(login_page.said_page("The server's token has no password: log in as a user."), 403)
        if request.method != "POST":
            return page(login_page.password_page(caller.name))
        fields = await _form(request)
        new = fields.get("new", "")
        try:
            if new != fields.get("again", ""):
                raise BadInput("the new password must be given twice, the same")
            passwords.check_new(new, caller.name)
        except BadInput as err:
            return page(login_page.password_page(caller.name, _sentence(err)), 400)
        user = await self._compared(request, caller.name, fields.get("current", ""))
        if isinstance(user, _No):
            said = "That is not your present password." if user.status == 401 else user.why
            return page(login_page.password_page(caller.name, said), user.status, user.headers)
        hashed = await self._hashed(new)
        return await self._enter(request, user, "/", new_hash=hashed)

    # --- ways in ---

    async def _by_token(self, request: Request, given: str, where: str) -> Response:
        # No wait here: 256 random bits are not guessed, and an operator's last way in stays open.
        if hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
            return await self._enter(request, None, where)
        address = address_of(request)
        await self._note_failed(self._attempts.failed(None, address, self._clock()), None, address)
        return page(login_page.login_page("That is not this server's token.", where), 401)

    async def _by_password(self, request: Request, name: str, password: str, where: str) -> Response:
        user = await self._compared(request, name, password)
        if isinstance(user, _No):
            return page(login_page.login_page(user.why, where, name[:64]), user.status, user.headers)
        if passwords.is_outdated(user.password):
            hashed = await self._hashed(password)
            await run_in_threadpool(self._refresh, user, hashed)
            user = replace(user, password=hashed)
        return await self._enter(request, user, where)

    async def _compared(self, request: Request, name: str, password: str) -> accounts.User | _No:
        """The user, where name and password go together and nobody has guessed too often. Raises WorldFailed."""
        address, now = address_of(request), self._clock()
        key = name if NAME.fullmatch(name) else ""
        wait = self._attempts.must_wait_s(key, address, now)
        if wait > 0:
            seconds = math.ceil(wait)
            why = f"Too many attempts that failed: try again in {seconds} s."
            return _No(why, 429, {"retry-after": str(seconds)})
        if self._waiting >= _MAX_WAITING:
            return _No("Too many people log in at the moment: try again.", 503, {"retry-after": "5"})
        worth = self._attempts.failed(key, address, now)  # until the opposite is shown
        user = await run_in_threadpool(self._find, key)
        if not await self._in_turn(lambda: accounts.is_login(user, password)) or user is None:
            await self._note_failed(worth, None if user is None else key, address)
            return _No(_NO_LOGIN, 401)
        request.state.failed_before = self._attempts.succeeded(key, address, now)
        return user

    async def _enter(
        self, request: Request, user: accounts.User | None, where: str, new_hash: str | None = None
    ) -> Response:
        """Open a session (of the server's token where there is no user) and go on; with a new password first."""
        old = self.cookie_of(request.headers, request.url.scheme)
        value = await run_in_threadpool(self._open, request, user, old, new_hash)
        if value is None:
            return page(login_page.login_page("This account was changed a moment ago: log in again."), 401)
        response = RedirectResponse(where, 303, {"cache-control": "no-store"})
        host = request.headers.get("host")
        response.set_cookie(
            self._cookie(request.url.scheme, host),
            value,
            max_age=int(LIFE_S),
            httponly=True,
            samesite="strict",
            secure=self._names.is_secure(request.url.scheme, host),
        )
        return response

    # --- the store, in a worker thread ---

    def _find(self, name: str) -> accounts.User | None:
        with self._store.read() as connection:
            return accounts.find_user(connection, name)

    def _open(
        self, request: Request, user: accounts.User | None, old: str | None, new_hash: str | None
    ) -> str | None:
        """The new session's value; None where the user changed since its password was compared."""
        now, detail = self._clock(), {"address": address_of(request)}
        with self._store.write() as connection:
            if old is not None:
                end_session(connection, old, self._token)
            if user is None:
                audit.note(connection, now, SERVER_TOKEN, "login", f"user:{SERVER_TOKEN}", detail)
                return open_session(connection, None, self._token, now)
            present = accounts.find_user(connection, user.name)
            if present is None or present.id != user.id or present.password != user.password:
                return None
            if new_hash is not None:
                accounts.set_password(connection, user.name, new_hash)
                audit.note(connection, now, user.name, "user.password", f"user:{user.name}", detail)
            else:
                failed = getattr(request.state, "failed_before", 0)
                told = detail | ({"failed_before": failed} if failed else {})
                audit.note(connection, now, user.name, "login", f"user:{user.name}", told)
            return open_session(connection, user.id, self._token, now)

    def _end(self, value: str) -> None:
        now = self._clock()
        with self._store.write() as connection:
            caller = session_caller(connection, value, self._token, now)
            end_session(connection, value, self._token)
            if caller is not None:
                audit.note(connection, now, caller.name, "logout", f"user:{caller.name}")

    def _refresh(self, user: accounts.User, hashed: str) -> None:
        with self._store.write() as connection:
            accounts.refresh_hash(connection, user, hashed)

    async def _note_failed(self, worth: int, user: str | None, address: str) -> None:
        """A line for the third failure, the sixth, the twelfth: whoever guesses does not fill the store."""
        if worth:
            subject = f"address:{address}" if user is None else f"user:{user}"
            await run_in_threadpool(self._write_failed, subject, {"failed": worth, "address": address})

    def _write_failed(self, subject: str, detail: Mapping[str, object]) -> None:
        with self._store.write() as connection:
            audit.note(connection, self._clock(), audit.SERVER, "login.failed", subject, detail)

    # --- scrypt, one after the other ---

    async def _hashed(self, password: str) -> str:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._comparing, passwords.hash_password, password)

    async def _in_turn(self, compare: Callable[[], bool]) -> bool:
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._comparing, compare)
        finally:
            self._waiting -= 1

    async def _known(self, request: Request) -> bool:
        value = self.cookie_of(request.headers, request.url.scheme)
        return value is not None and await run_in_threadpool(self.caller, value) is not None

    def _cookie(self, scheme: str, host: str | None) -> str:
        """Its name: behind TLS one that no page of plain http, and none of a neighbouring name, can set."""
        return f"__Host-{COOKIE}" if self._names.is_secure(scheme, host) else COOKIE


class _No:
    """Why a name and password did not let anybody in."""

    def __init__(self, why: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.why, self.status, self.headers = why, status, headers or {}


def page(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One of login_page's screens."""
    return HTMLResponse(text, status, {**_PAGE_HEADERS, **(headers or {})})


def path_of_ours(where: str | None) -> str:
    """A path to go on to: never another host's (two slashes), never the way out."""
    if not where or not where.startswith("/") or where[1:2] in {"/", "\\"} or not where.isprintable():
        return "/"
    return "/" if where.partition("?")[0] in {LOGIN, LOGOUT} or len(where) > 2000 else where


def address_of(request: Request) -> str:
    """Where the browser is; behind a proxy on this machine, what that says (X-Forwarded-For)."""
    return request.client.host if request.client is not None else ""


def _is_prefetch(request: Request) -> bool:
    """A browser, or a chat's preview, that only looks: it must not use a link up."""
    return "prefetch" in request.headers.get("sec-purpose", request.headers.get("purpose", ""))


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form; of a large one none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM:
            return {}
    found = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True)
    return {key: values[0] for key, values in found.items()}


def _sentence(err: BadInput) -> str:
    text = one_line(err)
    return f"{text[:1].upper()}{text[1:]}."
