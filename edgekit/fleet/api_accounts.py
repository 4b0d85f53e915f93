"""The API's routes about who may come in: users, tokens, one-time links, and the audit log. No hash leaves here."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.exceptions import HTTPException

from edgekit.fleet import accounts, audit, passwords
from edgekit.fleet.access import Who, caller_of
from edgekit.fleet.context import MAX_DAYS, Body, Context
from edgekit.fleet.login import LOGIN, path_of_ours


class NewUser(Body):
    """Somebody who may log in."""

    name: str
    role: str
    password: str = Field(max_length=passwords.MAX_BYTES, repr=False)


class NewRole(Body):
    """A user's next role."""

    role: str


class NewPassword(Body):
    """A user's next password."""

    password: str = Field(max_length=passwords.MAX_BYTES, repr=False)


class NewToken(Body):
    """A token for a program. expires_s: seconds from now; None: never."""

    name: str
    role: str
    expires_s: float | None = Field(None, gt=0, le=MAX_DAYS * 86400, allow_inf_nan=False)


class NewLink(Body):
    """A link that lets one browser in. path: the screen it leads to."""

    path: str = Field("/", max_length=2000)


def add_account_routes(router: APIRouter, context: Context) -> None:
    """/me, /login-links, /audit, /users and /tokens."""
    store, clock = context.store, context.clock

    @router.get("/me")
    def me(request: Request) -> dict[str, Any]:
        """Whose token this is, and its role."""
        caller = caller_of(request)
        return {"v": 1, "name": caller.name, "role": caller.role}

    @router.post("/login-links", status_code=201)
    def new_link(new: NewLink, request: Request, who: Who) -> dict[str, Any]:
        """A path that opens the page in one browser, once. Only for the server's own token: it stands for that."""
        if caller_of(request).kind != "server":
            raise HTTPException(403, "only the token in data_dir/api.token makes links")
        now = clock()
        code = context.links.make(now)
        with store.write() as connection:
            audit.note(connection, now, who, "login.link", f"user:{who}")
        link = f"{LOGIN}?link={code}&next={quote(path_of_ours(new.path), safe='')}"
        return {"v": 1, "path": link, "expires": now + context.links.life_s}

    @router.get("/audit")
    def audit_log(
        subject: Annotated[str | None, Query(max_length=300)] = None,
        before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
        limit: Annotated[int, Query(ge=1, le=audit.MAX_ROWS)] = 100,
    ) -> dict[str, Any]:
        """Who changed what, the newest first; `next` as `before` gives the older lines."""
        with store.read() as connection:
            found = audit.lines(connection, subject, before, limit)
        return {"v": 1, "lines": found, "next": found[-1]["id"] if len(found) == limit else None}

    _add_user_routes(router, context)
    _add_token_routes(router, context)


def _add_user_routes(router: APIRouter, context: Context) -> None:
    store, clock = context.store, context.clock

    @router.get("/users")
    def list_users() -> dict[str, Any]:
        """Who may log in, and with which role."""
        with store.read() as connection:
            return {"v": 1, "users": accounts.user_rows(connection)}

    @router.post("/users", status_code=201)
    def add_user(new: NewUser, who: Who) -> dict[str, Any]:
        """Add a user."""
        accounts.check_user_name(new.name)
        accounts.check_role(new.role)
        hashed = passwords.hash_password(passwords.check_new(new.password, new.name))
        with store.write() as connection:
            now = clock()
            accounts.add_user(connection, new.name, new.role, hashed, now)
            audit.note(connection, now, who, "user.add", f"user:{new.name}", {"role": new.role})
        return {"v": 1, "name": new.name, "role": new.role}

    @router.post("/users/{name}/remove")
    def remove_user(name: str, who: Who) -> dict[str, Any]:
        """Remove a user; its sessions end at once."""
        with store.write() as connection:
            accounts.remove_user(connection, name)
            audit.note(connection, clock(), who, "user.remove", f"user:{name}")
        return {"v": 1, "name": name, "removed": True}

    @router.post("/users/{name}/role")
    def set_role(name: str, new: NewRole, who: Who) -> dict[str, Any]:
        """Give a user another role; its sessions end at once."""
        with store.write() as connection:
            before = accounts.set_role(connection, name, new.role)
            detail = {"role": new.role, "before": before}
            audit.note(connection, clock(), who, "user.role", f"user:{name}", detail)
        return {"v": 1, "name": name, "role": new.role}

    @router.post("/users/{name}/password")
    def set_password(name: str, new: NewPassword, who: Who) -> dict[str, Any]:
        """Give a user another password; its sessions end at once."""
        with store.read() as connection:
            accounts.known_user(connection, name)
        hashed = passwords.hash_password(passwords.check_new(new.password, name))
        with store.write() as connection:
            accounts.set_password(connection, name, hashed)
            audit.note(connection, clock(), who, "user.password", f"user:{name}")
        return {"v": 1, "name": name}


def _add_token_routes(router: APIRouter, context: Context) -> None:
    store, clock = context.store, context.clock

    @router.get("/tokens")
    def list_tokens() -> dict[str, Any]:
        """The API's tokens: names, roles and ends."""
        with store.read() as connection:
            return {"v": 1, "tokens": accounts.token_rows(connection)}

    @router.post("/tokens", status_code=201)
    def add_token(new: NewToken, who: Who) -> dict[str, Any]:
        """Make a token; the answer holds it, this once."""
        with store.write() as connection:
            now = clock()
            expires = None if new.expires_s is None else now + new.expires_s
            token = accounts.add_token(connection, new.name, new.role, now, expires)
            detail = {"role": new.role, "expires": expires}
            audit.note(connection, now, who, "token.add", f"token:{new.name}", detail)
        return {"v": 1, "name": new.name, "role": new.role, "expires": expires, "token": token}

    @router.post("/tokens/{name}/remove")
    def remove_token(name: str, who: Who) -> dict[str, Any]:
        """Let a token count no more."""
        with store.write() as connection:
            accounts.remove_token(connection, name)
            audit.note(connection, clock(), who, "token.remove", f"token:{name}")
        return {"v": 1, "name": name, "removed": True}
