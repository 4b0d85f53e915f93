"""What boards are told to do: signed, published, and confirmed once the broker has it. The leading ingester's alone.

Some at a time: whoever commands all boards at once must not hold up what these send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.core import jobs as job_states
from edgekit.core.messages import OneShot
from edgekit.fleet import schema as db
from edgekit.fleet import seal
from edgekit.fleet.store import Store

AT_ONCE = 200  # commands, and boards that were born, between two batches
UNDER_WAY = 1000  # that the broker has not confirmed

Publish = Callable[[str, str, dict[str, Any], bool], "int | None"]
"""(device, kind, payload, retain) -> the publication's number, None where there is no connection."""


@dataclass
class Teller:
    """What is under way on one connection, and how far the pending ones were gone through."""

    store: Store
    fleet: str
    control_key: Ed25519PrivateKey
    clock: Callable[[], float]
    publish: Publish
    sent: dict[int, tuple[str, int, int]] = field(
        default_factory=dict
    )  # number of a publication -> its topic, device and rev or n
    births: dict[str, None] = field(
        default_factory=dict
    )  # in their order: boards that came online and were not told yet what they should run
    refused: set[tuple[str, int, int]] = field(
        default_factory=set
    )  # by the broker: not sent again on this connection
    _desired_after: int = 0  # device
    _shots_after: tuple[int, int] = (0, 0)  # device, job

    def forget(self) -> None:
        """The connection is gone, and with it what was under way."""
        self.sent.clear()
        self.refused.clear()
        self._desired_after, self._shots_after = 0, (0, 0)

    def born(self, names: Iterable[str]) -> None:
        """Boards came online: they are told in their turn."""
        self.births |= dict.fromkeys(sorted(names))

    def step(self) -> bool:
        """Publish some of what is pending and tell some newborn; whether there is more to do at once."""
        more = self._pending_desired()
        more = self._pending_shots() or more
        return self._tell_newborn() or more

    def confirm(self, answers: Iterable[tuple[int, bool]]) -> None:
        """What the broker has (number, True) is no longer pending, unless a newer revision took its place."""
        done = []
        for number, taken in answers:
            key = self.sent.pop(number, None)
            if key is not None and taken:
                done.append(key)
            elif key is not None:
                self.refused.add(key)
        if not done:
            return
        with self.store.write() as connection:
            for topic, table, own in (
                ("desired", db.desired, db.desired.c.rev),
                ("job", db.commands, db.commands.c.n),
            ):
                keys = [
                    {"of": device, "number": number} for kind, device, number in sorted(done) if kind == topic
                ]
                if keys:
                    which = (table.c.device == sa.bindparam("of")) & (own == sa.bindparam("number"))
                    connection.execute(sa.update(table).where(which).values(pending=False), keys)

    def _room(self) -> int:
        return min(AT_ONCE, UNDER_WAY - len(self.sent))

    def _tell_newborn(self) -> bool:
        """After a broker's restart all boards are born at once: some at a time, while what is said is let go of."""
        if not self.births or self._room() <= 0:
            return False
        names = list(self.births)[:AT_ONCE]
        born = db.devices.c.name.in_(names)
        self._publish_desired(self._desired(born))
        self._publish_shots(self._shots(born))
        for name in names:
            del self.births[name]
        return bool(self.births)

    def _pending_desired(self) -> bool:
        room, table = self._room(), db.desired
        if room <= 0:
            return False
        rows = self._desired(table.c.pending & (table.c.device > self._desired_after), room)
        sent = self._publish_desired(rows)
        full = len(rows) == room
        self._desired_after = rows[-1].device if full else 0
        return full and sent > 0

    def _pending_shots(self) -> bool:
        room, table = self._room(), db.commands
        if room <= 0:
            return False
        device, job = self._shots_after
        after = (table.c.device > device) | ((table.c.device == device) & (table.c.job > job))
        rows = self._shots(table.c.pending & after, room)
        sent = self._publish_shots(rows)
        full = len(rows) == room
        self._shots_after = (rows[-1].device, rows[-1].job) if full else (0, 0)
        return full and sent > 0

    def _desired(self, which: sa.ColumnElement[bool], most: int | None = None) -> Sequence[sa.Row[Any]]:
        with self.store.read() as connection:
            return connection.execute(
                sa.select(db.desired, db.devices.c.name)
                .join(db.devices, db.devices.c.id == db.desired.c.device)
                .where(which)
                .order_by(db.desired.c.device)
                .limit(most)
            ).all()

    def _publish_desired(self, rows: Iterable[sa.Row[Any]]) -> int:
        """Sign and publish desired states, except those that are on their way; how many went out."""
        before = len(self.sent)
        under_way = self.refused.union(self.sent.values())
        for row in rows:
            key = ("desired", row.device, row.rev)
            if key not in under_way or not row.pending:
                payload = seal.desired_of(row, self.fleet).to_json()
                self._send(key, row.name, payload, retain=True)
        return len(self.sent) - before

    def _shots(self, which: sa.ColumnElement[bool], most: int | None = None) -> Sequence[sa.Row[Any]]:
        """What boards should do once and have not ended; a board's in their order."""
        commands, states = db.commands, db.job_devices
        same = (states.c.job == commands.c.job) & (states.c.device == commands.c.device)
        with self.store.read() as connection:
            return connection.execute(
                sa.select(commands, db.devices.c.name, db.jobs.c.job_id, db.jobs.c.target, db.jobs.c.expires)
                .join(db.devices, db.devices.c.id == commands.c.device)
                .join(db.jobs, db.jobs.c.id == commands.c.job)
                .join(states, same)
                .where(which, states.c.state.not_in(job_states.FINAL), db.jobs.c.expires > self.clock())
                .order_by(commands.c.device, commands.c.job)
                .limit(most)
            ).all()

    def _publish_shots(self, rows: Iterable[sa.Row[Any]]) -> int:
        before = len(self.sent)
        under_way = self.refused.union(self.sent.values())
        for row in rows:
            key = ("job", row.device, row.n)
            if key not in under_way or not row.pending:
                to = f"{self.fleet}/{row.name}"
                shot = OneShot(to, row.n, row.job_id, row.action, row.target, row.expires)
                self._send(key, row.name, shot.to_json(), retain=False)
        return len(self.sent) - before

    def _send(self, key: tuple[str, int, int], name: str, payload: dict[str, Any], *, retain: bool) -> None:
        number = self.publish(name, key[0], seal.sealed(payload, self.control_key), retain)
        if number is not None:
            self.sent[number] = key
