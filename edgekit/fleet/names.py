"""Texts that recur in what boards send (bundles, policies, exits) as numbers. A board brings a bounded number."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.store import insert_new

BUNDLE, PROFILE, POLICY, EXIT, MACHINE, REASON = "bundle", "profile", "policy", "exit", "machine", "reason"
NONE = 0  # no name: a board without a bundle
OTHER = "(more)"  # stands for what a board brings beyond its bound
MOST_OF_A_BOARD = 64  # new names of one kind
_AT_ONCE = 500
MOST_CHARACTERS = 200  # an index of PostgreSQL takes 2,700 bytes


def shortened(text: str) -> str:
    """A text as it is kept here."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def ids_of(
    connection: sa.Connection,
    kind: str,
    texts: Collection[str],
    device: int | None = None,
    most: int = MOST_OF_A_BOARD,
) -> dict[str, int]:
    """Text -> number, drawn now where it is new. device: who says it; beyond its bound a new text becomes OTHER."""
    found = known_ids(connection, kind, texts)
    missing = [text for text in texts if text not in found]
    if not missing:
        return found
    if device is not None:
        table = db.names
        had = sa.select(sa.func.count()).where(table.c.device == device, table.c.kind == kind)
        room = max(0, most - (connection.scalar(had) or 0))
        missing, beyond = missing[:room], missing[room:]
    else:
        beyond = []
    wanted = [*missing, OTHER] if beyond else missing
    rows = [
        {"kind": kind, "text": text, "device": None if text == OTHER else device} for text in sorted(wanted)
    ]
    insert_new(connection, db.names, rows)
    found |= known_ids(connection, kind, wanted)
    return found | dict.fromkeys(beyond, found.get(OTHER, NONE))


def texts_of(connection: sa.Connection, ids: Iterable[int | None]) -> dict[int, str]:
    """Number -> text, of those there are."""
    table = db.names
    found: dict[int, str] = {}
    wanted = sorted({number for number in ids if number})
    for first in range(0, len(wanted), _AT_ONCE):
        part = table.c.id.in_(wanted[first : first + _AT_ONCE])
        found |= {
            row.id: row.text for row in connection.execute(sa.select(table.c.id, table.c.text).where(part))
        }
    return found


def id_of(connection: sa.Connection, kind: str, text: str) -> int | None:
    """The number of a text, None where nobody ever said it."""
    return known_ids(connection, kind, [text]).get(text)


def all_of(connection: sa.Connection, kind: str) -> Mapping[int, str]:
    """Every text of a kind by its number."""
    table = db.names
    query = sa.select(table.c.id, table.c.text).where(table.c.kind == kind)
    return {row.id: row.text for row in connection.execute(query)}


def known_ids(connection: sa.Connection, kind: str, texts: Collection[str]) -> dict[str, int]:
    """Text -> number, of those that have one."""
    table = db.names
    found: dict[str, int] = {}
    wanted = sorted(set(texts))
    for first in range(0, len(wanted), _AT_ONCE):
        part = table.c.text.in_(wanted[first : first + _AT_ONCE])
        query = sa.select(table.c.text, table.c.id).where(table.c.kind == kind, part)
        found |= {row.text: row.id for row in connection.execute(query)}
    return found
