"""Turn alerts into few messages, in the transaction that notes them as told. Sends nothing (sending.py).

Alerts of one rule and one group are one message, however many boards they are about. A message waits a little for
others of its group; when the rate is used up, what is left waits, and is told together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.alerts.rules import SEVERITIES, Rules
from edgekit.fleet.alerts.states import ACTIVE, FIRING, RESOLVED

SHOWN = 10  # alerts of a message that are named
MOST_WAITING = 200  # messages for one receiver; beyond, the last one stands for what follows
SILENCED = "silenced"
RATE_S = 60.0
_MOST_BODY = 16_000
_AT_ONCE = 500


@dataclass
class Group:
    """Alerts that are told together. again: they were told before, and still go on."""

    rule: str
    grouped: str
    severity: str
    fired: list[Any] = field(default_factory=list)
    ended: list[Any] = field(default_factory=list)
    again: list[Any] = field(default_factory=list)

    @property
    def rows(self) -> list[Any]:
        """All of them."""
        return [*self.fired, *self.ended, *self.again]


def groups_of(rows: Iterable[Any]) -> list[Group]:
    """Alerts by rule and group, the gravest first."""
    found: dict[tuple[str, str], Group] = {}
    for row in rows:
        group = found.setdefault((row.rule, row.grouped), Group(row.rule, row.grouped, row.severity))
        list_of = group.ended if row.state == RESOLVED else group.fired if row.told is None else group.again
        list_of.append(row)
    order = {severity: index for index, severity in enumerate(reversed(SEVERITIES))}
    return sorted(found.values(), key=lambda g: (order.get(g.severity, 9), g.rule, g.grouped))


def message_of(fleet: str, groups: Sequence[Group]) -> tuple[str, str, str]:
    """Severity, title and body of one message about some groups."""
    worst = max((group.severity for group in groups), key=SEVERITIES.index)
    if len(groups) == 1:
        title = f"[{worst}] {fleet}: {_head(groups[0])}"
    else:
        number = sum(len(group.rows) for group in groups)
        title = f"[{worst}] {fleet}: {number:,} alerts of {len(groups)} rules or groups"
    parts = []
    for group in groups[:50]:
        lines = [f"{_head(group)}:"] if len(groups) > 1 else []
        for word, rows in (("", group.fired), ("still: ", group.again), ("resolved: ", group.ended)):
            lines += [f"{word}{_name(row)}: {row.text}" for row in rows[:SHOWN]]
            if len(rows) > SHOWN:
                lines.append(f"{word}and {len(rows) - SHOWN:,} more")
        parts.append("\n".join(lines))
    return worst, title[:200], "\n\n".join(parts)[:_MOST_BODY]


def _head(group: Group) -> str:
    kind = group.rule + (f" ({group.grouped[:60]})" if group.grouped else "")
    words = [
        f"{_counted(rows)}{word}"
        for word, rows in (
            (" firing", group.fired),
            (" still firing", group.again),
            (" resolved", group.ended),
        )
        if rows
    ]
    return f"{kind}: {', '.join(words)}"


def _counted(rows: Sequence[Any]) -> str:
    if len(rows) == 1:
        return _name(rows[0])
    about = str(rows[0].subject).partition(":")[0]
    return f"{len(rows):,} {about}s" if about != "fleet" else f"{len(rows):,} alerts"


def _name(row: Any) -> str:
    kind, _, name = str(row.subject).partition(":")
    return name if kind == "board" else str(row.subject)


def untold(connection: sa.Connection, rules: Rules, now: float) -> list[Any]:
    """Alerts that somebody should hear of: new ones, resolved ones, and those that go on for the rule's `repeat`."""
    table = db.alerts
    new = table.c.state.in_((*ACTIVE, RESOLVED)) & table.c.told.is_(None)
    ended = (table.c.state == RESOLVED) & (table.c.told == FIRING)
    found = [*connection.execute(sa.select(table).where(new | ended).order_by(table.c.id))]
    known = {row.id for row in found}
    for rule in rules.rules:
        if rule.repeat_s is None:
            continue
        going_on = (table.c.rule == rule.name) & table.c.state.in_(ACTIVE) & (table.c.told == FIRING)
        due = sa.select(table.c.id).where(going_on, table.c.sent <= now - rule.repeat_s)
        if connection.scalar(due.limit(1)) is not None:
            rows = connection.execute(sa.select(table).where(going_on).order_by(table.c.id))
            found += [row for row in rows if row.id not in known]
    return found


def tell(
    connection: sa.Connection,
    fleet: str,
    rules: Rules,
    receivers: Sequence[str],
    is_silenced: Callable[[Any], bool],
    now: float,
) -> int:
    """Write the messages that are due for every receiver, and note their alerts as told; how many messages.

    One transaction: a message is there exactly if its alerts are noted.
    """
    rows = untold(connection, rules, now)
    if not rows:
        return 0
    quiet = {row.id for row in rows if is_silenced(row)}
    _note(connection, [row for row in rows if row.id in quiet and row.state == RESOLVED], now, SILENCED)
    groups = groups_of(row for row in rows if row.id not in quiet)
    if not receivers:  # there is nobody: what still fires is told to the first one that comes
        _note(connection, [row for group in groups for row in group.ended], now)
        return 0
    due = [group for group in groups if _is_due(group, rules.sending.wait_s, now)]
    left = rules.sending.per_minute - _lately(connection, now)
    messages = _shared_out(due, left)
    for together in messages:
        _enqueue(connection, receivers, message_of(fleet, together), now)
        _note(connection, [row for group in together for row in group.rows], now)
    return len(messages)


def _is_due(group: Group, wait_s: float, now: float) -> bool:
    if group.again:
        return True
    return bool(min(row.updated for row in group.rows) <= now - wait_s)


def _shared_out(groups: Sequence[Group], left: int) -> list[list[Group]]:
    """At most `left` messages: one a group, and the rest in the last."""
    if left <= 0 or not groups:
        return []
    if len(groups) <= left:
        return [[group] for group in groups]
    return [*([group] for group in groups[: left - 1]), list(groups[left - 1 :])]


def _lately(connection: sa.Connection, now: float) -> int:
    table = db.notifications
    query = sa.select(sa.func.count(sa.distinct(table.c.batch))).where(table.c.created > now - RATE_S)
    return int(connection.scalar(query) or 0)


def _note(connection: sa.Connection, rows: Sequence[Any], now: float, word: str | None = None) -> None:
    """Alerts are told as what they are now."""
    table = db.alerts
    by_word: dict[str, list[int]] = {}
    for row in rows:
        by_word.setdefault(word or (RESOLVED if row.state == RESOLVED else FIRING), []).append(row.id)
    for told, ids in by_word.items():
        for first in range(0, len(ids), _AT_ONCE):
            part = table.c.id.in_(ids[first : first + _AT_ONCE])
            connection.execute(sa.update(table).where(part).values(told=told, sent=now))


def _enqueue(
    connection: sa.Connection, receivers: Sequence[str], message: tuple[str, str, str], now: float
) -> str:
    """One row for each receiver; the batch they are."""
    table, batch = db.notifications, os.urandom(8).hex()
    severity, title, body = message
    waiting = _waiting(connection)
    for receiver in receivers:
        if waiting.get(receiver, 0) < MOST_WAITING:
            row = {"batch": batch, "receiver": receiver, "created": now, "severity": severity, "title": title}
            connection.execute(sa.insert(table).values(**row, body=body, attempts=0, next_try=now))
        else:
            _fold(connection, receiver, title)
    return batch


def enqueue_test(connection: sa.Connection, fleet: str, receivers: Sequence[str], now: float) -> str:
    """A message that says nothing but that messages arrive; its batch."""
    body = "This is a test of how alerts are sent. Nothing is wrong."
    return _enqueue(connection, receivers, ("info", f"[info] {fleet}: test", body), now)


def _waiting(connection: sa.Connection) -> Mapping[str, int]:
    table = db.notifications
    query = (
        sa.select(table.c.receiver, sa.func.count()).where(table.c.sent.is_(None)).group_by(table.c.receiver)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def _fold(connection: sa.Connection, receiver: str, title: str) -> None:
    """A receiver that takes nothing for long: what comes now is one line more in the newest message that waits."""
    table = db.notifications
    mine = (table.c.receiver == receiver) & table.c.sent.is_(None)
    newest = connection.execute(sa.select(table).where(mine).order_by(table.c.id.desc()).limit(1)).one()
    body = f"{newest.body}\n\nlater: {title}"
    if len(body) > _MOST_BODY:
        body = newest.body if newest.body.endswith("\n…") else f"{newest.body}\n…"
    connection.execute(sa.update(table).where(table.c.id == newest.id).values(body=body))
