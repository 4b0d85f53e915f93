"""The process that does what nobody waits for: roll-ups and what follows from them. Serves no HTTP, speaks no MQTT."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet.alerts.task import LOOK_S, Alerts
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.retention import Forgetting
from edgekit.fleet.rolling import AT_ONCE, roll_up
from edgekit.fleet.rollouts.commands import published
from edgekit.fleet.rollouts.conduct import step
from edgekit.fleet.standings import Standings
from edgekit.fleet.store import Store, open_store

log = logging.getLogger("edgekit.fleet.background")

_POLL_S = 0.2
_BREATH_S = 0.12  # between steps: who waits for SQLite's lock looks every 0.1 s, and would rarely find it free


@dataclass(frozen=True)
class Task:
    """Something done again and again. run: one step; True where there is more to do at once."""

    name: str
    every_s: float
    run: Callable[[], bool]


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
        run_tasks(tasks_of(config, store, clock), stop)
    finally:
        store.close()


def run_tasks(tasks: Sequence[Task], stop: threading.Event) -> None:
    """Step through tasks when they are due. What fails is said and tried again; the others go on."""
    due = dict.fromkeys((task.name for task in tasks), 0.0)
    while not stop.is_set():
        for task in tasks:
            if time.monotonic() >= due[task.name] and not stop.is_set():
                more = _step(task)
                due[task.name] = time.monotonic() + (0.0 if more else task.every_s)
        stop.wait(min(_POLL_S, max(_BREATH_S, min(due.values()) - time.monotonic())))


def _step(task: Task) -> bool:
    try:
        return task.run()
    except EdgekitError as err:
        log.warning("%s: %s", task.name, one_line(err))
    except Exception:
        log.exception("%s met a defect", task.name)
    return False
