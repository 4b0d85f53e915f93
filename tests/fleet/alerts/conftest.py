"""Boards that say things, and alerts evaluated whenever a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.histogram import histogram
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.reading import alert_page
from edgekit.fleet.alerts.sending import Receiver, receivers_of, send_next
from edgekit.fleet.alerts.task import Alerts
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.intake import Received
from edgekit.fleet.rolling import roll_up
from edgekit.fleet.store import Store, put_fact

URL = "json://user:secret-word@127.0.0.1:9/hook"


@dataclass
class Ward:
    """A store with boards, rules, a clock that stands, and a receiver that keeps what it is given."""

    store: Store
    folder: Path
    now: float = NOW
    heard: list[tuple[str, str, str]] = field(default_factory=list)
    seq: int = 0

    def rules(self, text: str, *, send: str = f'urls = ["{URL}"]\nwait = "0s"\n') -> None:
        (self.folder / "alerts.toml").write_text(f"[send]\n{send}{text}")
        self.start()

    def start(self) -> None:
        """As a process that begins: nothing is known but what the store holds."""
        self.alerts = Alerts(
            self.store, "demo", self.folder / "alerts.toml", self.folder, lambda: self.now, self._never
        )
        self.alerts._sender.serve = lambda *_: None  # type: ignore[method-assign]  # the test sends

    def _never(self, *_: Any) -> str | None:
        raise AssertionError

    def _hear(self, url: str, severity: str, title: str, body: str, seconds: float) -> str | None:
        del url, seconds
        self.heard.append((severity, title, body))
        return None

    def receiver(self) -> Receiver:
        return receivers_of(self.store, [URL])[0]

    def step(self, later_s: float = 0.0) -> list[str]:
        """Go on in time, evaluate, send: the titles that were heard."""
        self.now += later_s
        self.alerts.step()
        before = len(self.heard)
        while send_next(self.store, self.receiver(), self.now, 1.0, self._hear):
            pass
        return [title for _, title, _ in self.heard[before:]]

    def enroll(self, number: int, prefix: str = "b", **presence: Any) -> None:
        """Many boards at once, online since now."""
        with self.store.write() as connection:
            first = (connection.scalar(sa.select(sa.func.max(db.devices.c.id))) or 0) + 1
            rows = [
                {
                    "id": first + n,
                    "name": f"{prefix}{n:04d}",
                    "profile": "host",
                    "tags": "[]",
                    "enrolled_at": NOW,
                    "token_sha256": f"{prefix}{n}",
                    "broker_hash": "",
                    "malformed": 0,
                    "rev": 0,
                    "n": 0,
                }
                for n in range(number)
            ]
            connection.execute(sa.insert(db.devices), rows)
            usual = {"online": True, "last_seen": self.now, "records": 0} | presence
            connection.execute(sa.insert(db.presence), [{"device": row["id"]} | usual for row in rows])

    def presence(self, **values: Any) -> None:
        with self.store.write() as connection:
            connection.execute(sa.update(db.presence).values(**values))

    def broker(self, *, connected: bool, since: float | None = None) -> None:
        with self.store.write() as connection:
            at = self.now if since is None else since
            put_fact(connection, "ingest", {"connected": connected, "why": "refused", "since": at})

    def record(
        self, board: str = "b0000", requests: int = 1000, latency_ms: float = 2.0, **more: Any
    ) -> None:
        """What a board says of the last minute."""
        self.seq += 1
        usual: dict[str, Any] = {
            "exit_counts": {"exit3": requests},
            "latency": histogram([latency_ms] * requests),
        }
        record = Record(
            seq=self.seq,
            uptime_s=float(self.seq),
            time=self.now,
            clock_synced=True,
            interval_s=60.0,
            bundle=more.pop("bundle", "toy/1"),
            policy=more.pop("policy", "full"),
            requests=requests,
            **(usual | more),
        )
        with self.store.write() as connection:
            commit_batch(
                connection, [Received(board, "telemetry", "boot", 1, records=(record,))], [], self.now
            )
        while roll_up(self.store):
            pass

    def page(self, state: str | None = None) -> dict[str, Any]:
        with self.store.read() as connection:
            return alert_page(connection, self.now, state=state)

    def states(self) -> list[tuple[str, str]]:
        return [(row["subject"], row["state"]) for row in self.page()["alerts"]]


@pytest.fixture
def ward(store: Store, tmp_path: Path) -> Iterator[Ward]:
    made = Ward(store, tmp_path)
    made.broker(connected=True, since=NOW - 3600)
    yield made
    made.alerts.close()


MakeBundle = Callable[..., Any]
