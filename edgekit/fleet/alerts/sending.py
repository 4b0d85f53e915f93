"""Send messages that wait in the store, each receiver in a thread of its own. Decides nothing about alerts.

A message counts as sent once its receiver took it, and that is written after: a server that is killed in between sends
it again (at least once). Addresses hold secrets: they are neither stored nor logged; a receiver is known by a number
made from its address and a secret of this store.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet import schema as db
from edgekit.fleet.store import Store, get_fact, put_fact

log = logging.getLogger("edgekit.fleet.alerts")

FIRST_DELAY_S, MAX_DELAY_S = 5.0, 900.0
KEEP_SENT_S = 7 * 86_400.0
LATE_S = 120.0  # a message that waits longer is a problem
SALT = "alerts:salt"
_HOST_SCHEMES = {"json", "jsons", "xml", "xmls", "form", "forms", "mqtt", "mqtts", "mailto", "mailtos"}
_CODE = re.compile(r"error[= ](\d{3})")
_TYPES = {"info": "info", "warning": "warning", "critical": "failure"}

Deliver = Callable[[str, str, str, str, float], "str | None"]
"""(address, severity, title, body, seconds) -> None: it was taken; else why not, without secrets."""


@dataclass(frozen=True)
class Receiver:
    """An address somebody is told at. id: what the store calls it. shown: without secrets."""

    id: str
    shown: str
    url: str = field(repr=False)


def receivers_of(store: Store, urls: Sequence[str]) -> tuple[Receiver, ...]:
    """Receivers for apprise's addresses. Raises WorldFailed."""
    if not urls:
        return ()
    with store.read() as connection:
        salt = get_fact(connection, SALT)
    if salt is None:
        with store.write() as connection:
            salt = get_fact(connection, SALT) or secrets.token_hex(32)
            put_fact(connection, SALT, salt)
    return tuple(_receiver(url, index, str(salt)) for index, url in enumerate(urls, 1))


def _receiver(url: str, index: int, salt: str) -> Receiver:
    number = hmac.new(salt.encode(), url.encode(), hashlib.sha256).hexdigest()[:16]
    return Receiver(number, shown_address(url, index), url)


def shown_address(url: str, index: int) -> str:
    """An address without what may be secret: its kind, its place in the file, and the host where that is none."""
    scheme = url.partition("://")[0].lower()
    scheme = scheme if re.fullmatch(r"[a-z0-9]{1,20}", scheme) else "address"
    host = ""
    if scheme in _HOST_SCHEMES:
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or ""
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,100}", host):
        host = ""
    return f"{scheme}://{host} (address {index})" if host else f"{scheme} (address {index})"


def deliver(url: str, severity: str, title: str, body: str, seconds: float) -> str | None:
    """Send one message with apprise; why it was not taken, None where it was."""
    import apprise  # 0.3 s: only where something is sent

    said: list[str] = []
    handler = _Codes(said)
    quiet = logging.getLogger("apprise")
    quiet.propagate = False  # its lines hold addresses
    quiet.addHandler(handler)
    try:
        service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if service is None:
            return "apprise does not know this kind of address, or something is missing in it"
        service.socket_connect_timeout = min(service.socket_connect_timeout or seconds, seconds)
        service.socket_read_timeout = min(service.socket_read_timeout or seconds, seconds)
        taken = service.notify(body=body, title=title, notify_type=_TYPES.get(severity, "info"))
    except Exception as err:  # noqa: BLE001  (of somebody else's code; its text may hold the address)
        return f"failed: {type(err).__name__}"
    finally:
        quiet.removeHandler(handler)
    return None if taken else " ".join(["did not take it", *dict.fromkeys(said)])


class _Codes(logging.Handler):
    """Keeps HTTP codes of what apprise says, and nothing else of it."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said, self._thread = said, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        match = _CODE.search(record.getMessage())
        if match and record.thread == self._thread:  # other receivers' threads log there as well
            self._said.append(f"(HTTP {match[1]})")


def send_next(store: Store, receiver: Receiver, now: float, seconds: float, give: Deliver = deliver) -> bool:
    """Send the oldest message that is due; whether there was one. Raises WorldFailed (the store)."""
    table = db.notifications
    mine = (table.c.receiver == receiver.id) & table.c.sent.is_(None) & (table.c.next_try <= now)
    with store.read() as connection:
        row: Any = connection.execute(
            sa.select(table).where(mine).order_by(table.c.id).limit(1)
        ).one_or_none()
    if row is None:
        return False
    why = give(receiver.url, row.severity, row.title, row.body, seconds)
    if why is None:
        values = {"sent": now, "attempts": row.attempts + 1, "why": None}
    else:
        delay = min(FIRST_DELAY_S * 2 ** min(row.attempts, 20), MAX_DELAY_S)
        values = {"attempts": row.attempts + 1, "why": why[:200], "next_try": now + delay}
        log.warning("alerts: %s %s; again in %.0f s", receiver.shown, why, delay)
    with store.write() as connection:
        connection.execute(sa.update(table).where(table.c.id == row.id).values(**values))
        if why is not None:  # the others wait as long: it is the receiver that fails, not the message
            others = (table.c.receiver == receiver.id) & table.c.sent.is_(None)
            connection.execute(sa.update(table).where(others).values(next_try=values["next_try"]))
    return True


def waiting_problems(connection: sa.Connection, receivers: Mapping[str, str], now: float) -> list[str]:
    """One line per receiver that does not take what it should."""
    table = db.notifications
    query = (
        sa.select(table.c.receiver, sa.func.count(), sa.func.min(table.c.created), sa.func.max(table.c.why))
        .where(table.c.sent.is_(None))
        .group_by(table.c.receiver)
    )
    return [
        f"alerts: {receivers[row[0]]} has not taken {row[1]} messages{f': {row[3]}' if row[3] else ''}"
        for row in connection.execute(query)
        if row[0] in receivers and (row[3] or now - row[2] > LATE_S)
    ]


def forget_sent(connection: sa.Connection, known: Sequence[str], now: float) -> None:
    """Old messages, and those for addresses that are no longer in the file."""
    table = db.notifications
    old = (table.c.sent < now - KEEP_SENT_S) | (table.c.sent.is_(None) & table.c.receiver.not_in(list(known)))
    connection.execute(sa.delete(table).where(old))


class Sender:
    """A thread for each receiver: one that hangs keeps nobody else waiting."""

    def __init__(self, store: Store, clock: Callable[[], float], give: Deliver = deliver) -> None:
        self._store, self._clock, self._give = store, clock, give
        self._threads: dict[str, threading.Thread] = {}
        self._wanted: dict[str, Receiver] = {}
        self._seconds = 20.0
        self._wake = threading.Condition()
        self._rounds = 0

    def serve(self, receivers: Sequence[Receiver], seconds: float) -> None:
        """These receivers from now on; looks for messages at once."""
        with self._wake:
            self._wanted = {receiver.id: receiver for receiver in receivers}
            self._seconds = seconds
            self._rounds += 1
            self._wake.notify_all()
            for receiver in receivers:
                if receiver.id not in self._threads:
                    thread = threading.Thread(
                        target=self._run, args=(receiver,), name=f"alerts-{receiver.id}", daemon=True
                    )
                    self._threads[receiver.id] = thread
                    thread.start()

    def close(self) -> None:
        """Tell the threads to end; one that is sending ends after that."""
        self.serve((), self._seconds)
        for thread in list(self._threads.values()):
            thread.join(1.0)

    def _run(self, receiver: Receiver) -> None:
        seen = -1
        while True:
            with self._wake:
                self._wake.wait_for(lambda seen=seen: self._rounds != seen)  # type: ignore[misc]
                seen = self._rounds
                if receiver.id not in self._wanted:
                    self._threads.pop(receiver.id, None)
                    return
            try:
                while send_next(self._store, receiver, self._clock(), self._seconds, self._give):
                    if receiver.id not in self._wanted:
                        break
            except EdgekitError as err:
                log.warning("alerts: %s", one_line(err))
            except Exception:
                log.exception("sending alerts met a defect")
