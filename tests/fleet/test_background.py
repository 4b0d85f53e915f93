"""The background process: tasks do not stop each other, and what became of them can be read."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from servers import NOW

from edgekit.core.errors import WorldFailed
from edgekit.fleet.background import (
    JOURNAL,
    JOURNAL_S,
    SILENT_S,
    Journal,
    Task,
    background_problems,
    run_tasks,
)
from edgekit.fleet.store import Store, get_fact


def test_a_task_that_fails_does_not_stop_the_others_and_says_why(
    store: Store, clock: Callable[[], float]
) -> None:
    stop, done = threading.Event(), []

    def fails() -> bool:
        raise WorldFailed("the disk is full")

    def is_broken() -> bool:
        raise RuntimeError("a defect")

    def works() -> bool:
        done.append(1)
        stop.set()
        return False

    journal = Journal(store, clock)
    tasks = [Task("fails", 1.0, fails), Task("is broken", 1.0, is_broken), Task("works", 1.0, works)]
    run_tasks(tasks, stop, journal)
    journal.keep()
    assert done == [1]
    with store.read() as connection:
        kept = get_fact(connection, JOURNAL)
        problems = background_problems(connection, NOW)
    assert {name: (run["steps"], run["why"]) for name, run in kept["tasks"].items()} == {
        "fails": (1, "the disk is full"),
        "is broken": (1, "a defect"),
        "works": (1, None),
    }
    assert problems == ["background: fails: the disk is full", "background: is broken: a defect"]


def test_a_task_that_always_has_more_to_do_does_not_starve_the_others() -> None:
    stop, steps = threading.Event(), []

    def greedy() -> bool:
        steps.append("greedy")
        return True

    def modest() -> bool:
        steps.append("modest")
        if steps.count("modest") == 3:
            stop.set()
        return False

    run_tasks([Task("greedy", 5.0, greedy), Task("modest", 0.0, modest)], stop)
    assert steps == ["greedy", "modest"] * 3


def test_it_ends_after_the_step_in_which_it_is_told_to() -> None:
    stop = threading.Event()

    def last() -> bool:
        stop.set()
        return True

    run_tasks([Task("last", 0.0, last), Task("never", 0.0, lambda: pytest.fail("it ran"))], stop)


@pytest.mark.both_databases
def test_a_process_that_is_silent_for_long_is_a_problem(store: Store) -> None:
    time = [NOW]
    journal = Journal(store, lambda: time[0])
    with store.read() as connection:
        assert background_problems(connection, NOW) == []
    journal.note("roll-ups", 0.1, None)
    journal.keep()
    with store.read() as connection:
        assert background_problems(connection, NOW + JOURNAL_S) == []
        (problem,) = background_problems(connection, NOW + SILENT_S + 60)
    assert problem == "background: nothing was heard of its process for 6 min: see the log"
