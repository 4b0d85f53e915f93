"""Users with passwords and roles, and the API's tokens, in the store. Knows no HTTP and no session.

Every function takes the caller's transaction. What is secret is drawn here, handed out once, and kept as a hash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.fleet import passwords
from edgekit.fleet.access import ROLES, Caller
from edgekit.fleet.audit import SERVER
from edgekit.fleet.enroll import Taken
from edgekit.fleet.schema import sessions, tokens, users
from edgekit.fleet.views import Unknown

MAX_USERS, MAX_TOKENS = 1000, 1000
TOKEN_PREFIX = "edgekit_"  # noqa: S105  (so that scanners of repositories can find one that got there)


@dataclass(frozen=True)
class User:
    """One who may log in. password: its hash."""

    id: int
    name: str
    role: str
    password: str = field(repr=False)

    @property
    def caller(self) -> Caller:
        """As routes and the audit log know it."""
        return Caller(self.name, self.role, "user")


# --- users ---


def add_user(connection: sa.Connection, name: str, role: str, hashed: str, now: float) -> None:
    """Add a user with a password's hash. Raises Taken, BadInput."""
    check_user_name(name)
    check_role(role)
    if find_user(connection, name) is not None:
        raise Taken(f"there is a user called {name!r} already")
    if (connection.scalar(sa.select(sa.func.count()).select_from(users)) or 0) >= MAX_USERS:
        raise BadInput(f"there are {MAX_USERS} users already: remove one first")
    connection.execute(sa.insert(users).values(name=name, role=role, password=hashed, created=now))


def check_user_name(name: str) -> str:
    """A name that tells a user from the server itself. Raises BadInput."""
    checks.name(name, "name")
    if name.lower() == SERVER:
        raise BadInput(f"name must be another one: the audit log calls the server itself {SERVER!r}")
    return name


def check_role(role: str) -> str:
    """One of ROLES. Raises BadInput."""
    return checks.choice(role, "role", ROLES)


def remove_user(connection: sa.Connection, name: str) -> None:
    """Remove a user; its sessions end. Raises Unknown."""
    user = known_user(connection, name)
    end_sessions_of(connection, user.id)
    connection.execute(sa.delete(users).where(users.c.id == user.id))


def set_role(connection: sa.Connection, name: str, role: str) -> str:
    """Give a user another role; its sessions end. The role before. Raises Unknown, BadInput."""
    user = known_user(connection, name)
    connection.execute(sa.update(users).where(users.c.id == user.id).values(role=check_role(role)))
    end_sessions_of(connection, user.id)
    return user.role


def set_password(connection: sa.Connection, name: str, hashed: str) -> None:
    """Give a user another password's hash; its sessions end. Raises Unknown."""
    user = known_user(connection, name)
    connection.execute(sa.update(users).where(users.c.id == user.id).values(password=hashed))
    end_sessions_of(connection, user.id)


def refresh_hash(connection: sa.Connection, user: User, hashed: str) -> None:
    """The same password, hashed with today's costs; unless it was changed in the meantime."""
    same = (users.c.id == user.id) & (users.c.password == user.password)
    connection.execute(sa.update(users).where(same).values(password=hashed))


def find_user(connection: sa.Connection, name: str) -> User | None:
    """The user of that name."""
    row = connection.execute(
        sa.select(users.c.id, users.c.name, users.c.role, users.c.password).where(users.c.name == name)
    ).one_or_none()
    return None if row is None else User(*row)


def known_user(connection: sa.Connection, name: str) -> User:
    """The same. Raises Unknown."""
    user = find_user(connection, name)
    if user is None:
        raise Unknown(f"there is no user called {checks.shown(name)}")
    return user


def user_rows(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every user by name, without hashes."""
    query = sa.select(users.c.name, users.c.role, users.c.created).order_by(users.c.name)
    return [dict(row) for row in connection.execute(query).mappings()]


def end_sessions_of(connection: sa.Connection, user: int) -> None:
    """Let a user's browsers be strangers again."""
    connection.execute(sa.delete(sessions).where(sessions.c.user == user))


def is_login(user: User | None, password: str) -> bool:
    """Whether the password is the user's. Takes the same time where there is no such user."""
    good = passwords.is_password(password, passwords.NOBODY if user is None else user.password)
    return good and user is not None


# --- tokens of the API ---


def add_token(connection: sa.Connection, name: str, role: str, now: float, expires: float | None) -> str:
    """Make a token; it is told this once. expires: Unix seconds. Raises Taken, BadInput."""
    checks.name(name, "name")
    check_role(role)
    if connection.scalar(sa.select(tokens.c.id).where(tokens.c.name == name)) is not None:
        raise Taken(f"there is a token called {name!r} already; remove it first, or take another name")
    if (connection.scalar(sa.select(sa.func.count()).select_from(tokens)) or 0) >= MAX_TOKENS:
        raise BadInput(f"there are {MAX_TOKENS} tokens already: remove one first")
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row: Mapping[str, Any] = {
        "name": name,
        "role": role,
        "sha256": sha256(token),
        "created": now,
        "expires": expires,
    }
    connection.execute(sa.insert(tokens).values(**row))
    return token


def remove_token(connection: sa.Connection, name: str) -> None:
    """Let a token count no more. Raises Unknown."""
    if connection.execute(sa.delete(tokens).where(tokens.c.name == name)).rowcount == 0:
        raise Unknown(f"there is no token called {checks.shown(name)}")


def token_rows(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every token by name, without its hash; those that have expired as well."""
    query = sa.select(tokens.c.name, tokens.c.role, tokens.c.created, tokens.c.expires)
    return [dict(row) for row in connection.execute(query.order_by(tokens.c.name)).mappings()]


def token_caller(connection: sa.Connection, token: str, now: float) -> Caller | None:
    """Whose token that is; None for one that nobody has, or that has expired."""
    counts = tokens.c.expires.is_(None) | (tokens.c.expires > now)
    row = connection.execute(
        sa.select(tokens.c.name, tokens.c.role).where(tokens.c.sha256 == sha256(token), counts)
    ).one_or_none()
    return None if row is None else Caller(f"token:{row.name}", row.role, "token")


def sha256(secret: str) -> str:
    """What is kept of 256 random bits; a slow hash is for what people think up."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
