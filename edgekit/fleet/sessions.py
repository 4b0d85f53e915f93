"""A browser's session: a random value in its cookie, and only a hash of it in the store. Knows nothing of HTTP.

A session of the server's own token is kept under a hash of both: with another api.token it is nobody's.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from edgekit.fleet.access import OPERATOR, SERVER_TOKEN, Caller
from edgekit.fleet.accounts import sha256
from edgekit.fleet.schema import sessions, users

LIFE_S = 7 * 86_400.0
MAX_PER_USER = 50  # the oldest gives way


def open_session(connection: sa.Connection, user: int | None, server_token: str, now: float) -> str:
    """A new session's value for the cookie. user: users.id; None: of the server's token."""
    value = secrets.token_urlsafe(32)
    _tidy(connection, user, now)
    key = sha256(value) if user is not None else _of_server(value, server_token)
    row = {"sha256": key, "user": user, "created": now, "expires": now + LIFE_S}
    connection.execute(sa.insert(sessions).values(**row))
    return value


def session_caller(connection: sa.Connection, value: str, server_token: str, now: float) -> Caller | None:
    """Whose session that is; None where there is none, or it has ended."""
    keys = (sha256(value), _of_server(value, server_token))
    row = connection.execute(
        sa.select(sessions.c.sha256, sessions.c.user, users.c.name, users.c.role)
        .outerjoin(users, users.c.id == sessions.c.user)
        .where(sessions.c.sha256.in_(keys), sessions.c.expires > now)
    ).one_or_none()
    if row is None:
        return None
    if row.user is None:
        return Caller(SERVER_TOKEN, OPERATOR, "server") if row.sha256 == keys[1] else None
    return Caller(row.name, row.role, "user") if row.name is not None and row.sha256 == keys[0] else None


def end_session(connection: sa.Connection, value: str, server_token: str) -> None:
    """Forget one session; none is there afterwards, whether or not there was."""
    keys = (sha256(value), _of_server(value, server_token))
    connection.execute(sa.delete(sessions).where(sessions.c.sha256.in_(keys)))


def _of_server(value: str, server_token: str) -> str:
    return sha256(f"{value}\0{server_token}")


def _tidy(connection: sa.Connection, user: int | None, now: float) -> None:
    """Forget what has ended, and a user's oldest where they are too many."""
    connection.execute(sa.delete(sessions).where(sessions.c.expires <= now))
    of_user = sessions.c.user.is_(None) if user is None else sessions.c.user == user
    newest = sa.select(sessions.c.sha256).where(of_user).order_by(sessions.c.created.desc())
    kept = connection.scalars(newest.limit(MAX_PER_USER - 1)).all()
    connection.execute(sa.delete(sessions).where(of_user, sessions.c.sha256.not_in(kept)))
