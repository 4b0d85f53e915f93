"""The process that does what nobody waits for: roll-ups and what follows from them. Serves no HTTP, speaks no MQTT."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet.alerts.task import LOOK_S, Alerts
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.retention import Forgetting
from edgekit.fleet.rolling import AT_ONCE, roll_up
from edgekit.fleet.rollouts.commands import published
from edgekit.fleet.rollouts.conduct import step
from edgekit.fleet.standings import Standings
from edgekit.fleet.store import Store, get_fact, open_store, put_fact

log = logging.getLogger("edgekit.fleet.background")

JOURNAL = "background"  # fact
JOURNAL_S, SILENT_S = 30.0, 300.0
_MOST_WHY = 300
_POLL_S = 0.2
_BREATH_S = (
    0.12  # between steps: who waits for SQLite's lock looks every 0.1 s, and would rarely find it free
)


@dataclass(frozen=True)
class Task:
    """Something done again and again. run: one step; True where there is more to do at once."""

    name: str
    every_s: float
    run: Callable[[], bool]


@dataclass
class Journal:
    """What became of the tasks, kept as a fact: {"at", "tasks": {name: {"at", "s", "longest_s", "steps", "why"}}}.

    s, longest_s: how long steps took since this process started, in seconds. why: the last step failed.
    """

    store: Store
    clock: Callable[[], float]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, task: str, seconds: float, why: str | None) -> None:
        """A step ended."""
        run = self.tasks.setdefault(task, {"at": 0.0, "s": 0.0, "longest_s": 0.0, "steps": 0, "why": None})
        run["s"] += seconds
        run["longest_s"] = max(run["longest_s"], seconds)
        run |= {"at": self.clock(), "steps": run["steps"] + 1, "why": why and why[:_MOST_WHY]}

    def keep(self) -> bool:
        """Put it into the store."""
        with self.store.write() as connection:
            put_fact(connection, JOURNAL, {"at": self.clock(), "tasks": self.tasks})
        return False


def tasks_of(config: FleetConfig, store: Store, clock: Callable[[], float]) -> list[Task]:
    """Everything this process does, in its order."""
    alerts = Alerts(store, config.fleet, config.alert_rules, config.repository, clock)
    return [
        Task("roll-ups", 5.0, lambda: roll_up(store) == AT_ONCE),
        Task("alerts", LOOK_S, alerts.step),
        Task("rollouts", 1.0, lambda: step(store, clock(), lambda: published(config.repository))),
        Task("standings", 5.0, Standings(store, clock).step),
        Task("retention", 10.0, Forgetting(store, config.retention, clock).step),
    ]


def run_background(
    config: FleetConfig, stop: threading.Event, clock: Callable[[], float] = time.time
) -> None:
    """Do all tasks until told to stop. Raises BadInput, WorldFailed (the store cannot be opened)."""
    store = open_store(config.database_url)
    try:
        journal = Journal(store, clock)
        run_tasks([*tasks_of(config, store, clock), Task("journal", JOURNAL_S, journal.keep)], stop, journal)
    finally:
        store.close()


def run_tasks(tasks: Sequence[Task], stop: threading.Event, journal: Journal | None = None) -> None:
    """Step through tasks when they are due. What fails is said and tried again; the others go on.

    Each gets one step in a round, also one that has more to do at once: none waits for longer than all others' steps.
    """
    due = dict.fromkeys((task.name for task in tasks), 0.0)
    while not stop.is_set():
        for task in tasks:
            if time.monotonic() >= due[task.name] and not stop.is_set():
                begun = time.monotonic()
                more, why = _step(task)
                if journal is not None:
                    journal.note(task.name, time.monotonic() - begun, why)
                due[task.name] = time.monotonic() + (0.0 if more else task.every_s)
        stop.wait(min(_POLL_S, max(_BREATH_S, min(due.values()) - time.monotonic())))


def _step(task: Task) -> tuple[bool, str | None]:
    """Whether there is more to do, and why it failed."""
    try:
        return task.run(), None
    except EdgekitError as err:
        log.warning("%s: %s", task.name, one_line(err))
        return False, one_line(err)
    except Exception as err:
        log.exception("%s met a defect", task.name)
        return False, one_line(err)


def background_problems(connection: sa.Connection, now: float) -> list[str]:
    """What this process cannot do, or that it has said nothing for a while, in lines."""
    kept = get_fact(connection, JOURNAL)
    if kept is None:
        return []
    if now - kept["at"] > SILENT_S:
        return [
            f"background: nothing was heard of its process for {(now - kept['at']) / 60:.0f} min: see the log"
        ]
    return [f"background: {name}: {run['why']}" for name, run in sorted(kept["tasks"].items()) if run["why"]]
