"""Silences: who need not be told of what, until when. Each is a line in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput, one_line, printable
from edgekit.core.selector import parse_selector
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.world import World
from edgekit.fleet.audit import note
from edgekit.fleet.views import Unknown

MOST = 1000
MOST_WHY = 500
LONGEST_S = 366 * 86_400.0


def silence_rows(connection: sa.Connection, now: float) -> list[dict[str, Any]]:
    """The silences in force, the one that ends first first."""
    table = db.silences
    query = sa.select(table).where(table.c.until > now).order_by(table.c.until, table.c.id)
    return [dict(row) for row in connection.execute(query).mappings()]


def silence(
    connection: sa.Connection,
    now: float,
    who: str,
    *,
    until: float,
    why: str,
    rule: str | None = None,
    selector: str = "all",
) -> dict[str, Any]:
    """Tell nobody of a rule's alerts (None: of any rule's) about the boards that a selector means, until a moment.

    What is about no board is silenced by "all". Raises BadInput.
    """
    try:
        parse_selector(selector)
    except BadInput as err:
        raise BadInput(one_line(err).replace("--to", "selector", 1)) from err
    if not now < until <= now + LONGEST_S:
        raise BadInput("until must be a moment from now to a year from now, in Unix seconds")
    if not why.strip() or len(why) > MOST_WHY:
        raise BadInput(f"why must be a text of at most {MOST_WHY} characters")
    table = db.silences
    connection.execute(sa.delete(table).where(table.c.until <= now))
    if (connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0) >= MOST:
        raise BadInput(f"there are {MOST} silences already: take some back first")
    row = {
        "rule": rule,
        "selector": selector,
        "until": until,
        "by": printable(who)[:128],
        "why": printable(why.strip()),
        "created": now,
    }
    number = connection.execute(sa.insert(table).values(**row)).inserted_primary_key
    made = {"id": number[0] if number else 0, **row}
    note(connection, now, who, "alerts.silence", f"silence:{made['id']}", {k: row[k] for k in _TOLD})
    return made


_TOLD = ("rule", "selector", "until", "why")


def unsilence(connection: sa.Connection, now: float, who: str, number: int) -> None:
    """Take a silence back. Raises Unknown."""
    table = db.silences
    if not connection.execute(sa.delete(table).where(table.c.id == number)).rowcount:
        raise Unknown(f"there is no silence {number}")
    note(connection, now, who, "alerts.unsilence", f"silence:{number}")


def silencer(rows: list[dict[str, Any]], world: World) -> Callable[[Any], bool]:
    """Whether an alert (rule, device) is silenced now."""
    boards: dict[int, set[int]] = {}
    for row in rows:
        try:
            boards[row["id"]] = {board.id for board in world.selected(row["selector"])}
        except BadInput:  # of another version's grammar
            boards[row["id"]] = set()

    def is_silenced(alert: Any) -> bool:
        return any(_covers(row, alert, boards[row["id"]]) for row in rows)

    return is_silenced


def _covers(row: Mapping[str, Any], alert: Any, boards: set[int]) -> bool:
    if row["rule"] is not None and row["rule"] != alert.rule:
        return False
    if row["selector"].strip() == "all":
        return True
    return alert.device is not None and alert.device in boards
