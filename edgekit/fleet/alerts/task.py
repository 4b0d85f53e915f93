"""The background process's task: reload the rules, evaluate those that are due, tell what is to be told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet.alerts import evaluate, world
from edgekit.fleet.alerts.reading import FACT
from edgekit.fleet.alerts.readings import EVERY_S, Eyes, read
from edgekit.fleet.alerts.rules import KINDS, LONGEST_WINDOW_S, Rule, Rules, default_rules, read_rules
from edgekit.fleet.alerts.sending import (
    Deliver,
    Receiver,
    Sender,
    deliver,
    forget_sent,
    receivers_of,
    waiting_problems,
)
from edgekit.fleet.alerts.silences import silence_rows, silencer
from edgekit.fleet.alerts.telling import tell
from edgekit.fleet.store import Store, get_fact, put_fact

log = logging.getLogger("edgekit.fleet.alerts")

NAME, LOOK_S = "alerts", 15.0
WINDOWED_S = 60.0  # figures of minutes change no faster
_DROPS = "alerts:drops"
_TIDY_S = 3600.0


class Alerts:
    """Rules, when each is due, and who is told. Everything an alert knows is in the store, nothing here."""

    def __init__(
        self,
        store: Store,
        fleet: str,
        rules_file: Path | None,
        repository: Path,
        clock: Callable[[], float],
        give: Deliver = deliver,
    ) -> None:
        self._store, self._fleet, self._file, self._clock = store, fleet, rules_file, clock
        self._repository = repository
        self._manifests = world.Manifests(repository)
        self._sender = Sender(store, clock, give)
        self._rules: Rules = default_rules()
        self._read: object = None
        self._problem: str | None = None
        self._receivers: tuple[Receiver, ...] = ()
        self._due: dict[str, float] = {}
        self._notes: dict[str, str | None] = {}
        self._next_tidy = 0.0

    def step(self) -> bool:
        """One evaluation. Raises WorldFailed (the store)."""
        now = self._clock()
        self._reload()
        self._count_drops(now)
        with self._store.read() as connection:
            seen = world.look(connection, now)
            drops = [(at, number) for at, number in get_fact(connection, _DROPS) or []]
            eyes = Eyes(connection, self._manifests, self._repository, drops)
            changes = [change for rule in self._rules.rules for change in self._evaluate(rule, seen, eyes)]
            silences = silence_rows(connection, now)
        evaluate.write(self._store, changes)
        names = [receiver.id for receiver in self._receivers]
        with self._store.write() as connection:
            told = tell(connection, self._fleet, self._rules, names, silencer(silences, seen), now)
        if told:
            log.info("alerts: %d messages", told)
        self._sender.serve(self._receivers, self._rules.sending.timeout_s)
        self._tidy(now)
        self._say(now)
        return False

    def close(self) -> None:
        """Let go of the threads that send."""
        self._sender.close()

    def _evaluate(self, rule: Rule, seen: world.World, eyes: Eyes) -> list[evaluate.Change]:
        if seen.now < self._due.get(rule.name, 0.0):
            return []
        every = EVERY_S.get(rule.kind, WINDOWED_S if KINDS[rule.kind].windowed else 0.0)
        try:
            found = read(rule, seen, eyes)
        except EdgekitError as err:
            self._notes[rule.name] = one_line(err)
            return []
        self._due[rule.name] = seen.now + every - LOOK_S / 2 if every else 0.0
        self._notes[rule.name] = found.note
        return evaluate.changes_of(rule, found, evaluate.open_alerts(eyes.connection, rule.name), seen.now)

    def _reload(self) -> None:
        """Read the rules again where their file has changed; a wrong one leaves what holds in force."""
        stamp = None if self._file is None else _stamp(self._file)
        if stamp == self._read and self._read is not None:
            return
        if self._file is None and self._read is not None:
            return
        self._read = stamp or "default"
        try:
            rules = read_rules(self._file)
        except EdgekitError as err:
            self._problem = f"alerts: {one_line(err)}; the rules from before hold"
            log.warning("%s", self._problem)
            self._read = (stamp, "wrong")  # a file it names may be put right without a change in this one
            return
        self._problem, self._rules, self._due = None, rules, {}
        self._receivers = receivers_of(self._store, rules.sending.urls)
        log.info("alerts: %d rules, %d addresses", len(rules.rules), len(self._receivers))

    def _count_drops(self, now: float) -> None:
        """Once a minute, how many messages were dropped so far: what happened within a window is a difference."""
        with self._store.read() as connection:
            known = get_fact(connection, _DROPS) or []
            number = world.dropped_messages(connection)
        if known and 0 <= now - known[-1][0] < WINDOWED_S - LOOK_S / 2:
            return
        kept = [entry for entry in known if now - LONGEST_WINDOW_S <= entry[0] <= now]
        with self._store.write() as connection:
            put_fact(connection, _DROPS, [*kept, [now, number]])

    def _tidy(self, now: float) -> None:
        if now < self._next_tidy:
            return
        self._next_tidy = now + _TIDY_S
        evaluate.forget(self._store, {rule.name: rule for rule in self._rules.rules}, now)
        with self._store.write() as connection:
            forget_sent(connection, [receiver.id for receiver in self._receivers], now)

    def _say(self, now: float) -> None:
        """Keep in the store what the page and `fleet status` show."""
        shown = {receiver.id: receiver.shown for receiver in self._receivers}
        with self._store.read() as connection:
            waiting = waiting_problems(connection, shown, now)
            known = get_fact(connection, FACT)
        fact: dict[str, Any] = {
            "problems": [*([self._problem] if self._problem else []), *waiting],
            "rules": [_row(rule, self._notes.get(rule.name)) for rule in self._rules.rules],
            "receivers": [{"id": number, "shown": text} for number, text in shown.items()],
        }
        if fact != known:
            with self._store.write() as connection:
                put_fact(connection, FACT, fact)


def _row(rule: Rule, note: str | None) -> dict[str, Any]:
    names = ("name", "kind", "severity", "selector", "above", "clear", "for_s", "clear_for_s", "group_by")
    return {name: getattr(rule, name) for name in names} | {
        "unit": KINDS[rule.kind].unit,
        "note": None if note is None else note[:300],
    }


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as err:
        return str(err.errno)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
