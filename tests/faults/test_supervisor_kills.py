"""SIGKILL of the supervisor at every step of a trial: the next one ends in an environment that was confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import until
from supervised import ENDS, GOOD, Root

# Counts what makes a change last, and what starts and ends agents; kills the process at the n-th.
KILLER = """
import os, signal, subprocess
left = [{point}]
def point(name):
    if not os.path.exists({arm!r}):
        return
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with open({count!r}, "a") as file:
        file.write(name + "\\n")
def around(module, name):
    true = getattr(module, name)
    def counted(*given, **named):
        point("before " + name)
        result = true(*given, **named)
        point("after " + name)
        return result
    setattr(module, name, counted)
for name in ("fsync", "replace", "rename", "unlink", "symlink"):
    around(os, name)
import pathlib
if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10 keeps its own
    for name in ("replace", "rename", "unlink", "symlink"):
        setattr(pathlib._NormalAccessor, name, staticmethod(getattr(os, name)))
around(subprocess, "Popen")
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path / "root")
    made.add("old")
    yield made
    made.end()


def lines(root: Root, point: int) -> str:
    folder = root.folder
    return KILLER.format(point=point, arm=str(folder / "armed"), count=str(folder / "points"))


def count(root: Root, behaviour: str) -> int:
    """Try an environment once and count the points of it."""
    root.add("counted", behaviour)
    process = root.start(before=lines(root, 10**6))
    root.settled("old")
    (root.folder / "armed").touch()
    root.want("counted", "counting")
    until(lambda: root.state.get("last"), "the verdict")
    root.settled("counted" if root.state["last"]["passed"] else "old")
    (root.folder / "armed").unlink()
    process.kill()
    process.wait()
    return len((root.folder / "points").read_text().splitlines())


def kill_at(root: Root, point: int, behaviour: str, before: str) -> str:
    """Try an environment, killed at that point; then start again and look. What is confirmed in the end."""
    name = root.add(f"new-{point}", behaviour)
    process = root.start(before=lines(root, point))
    root.settled(before)
    root.want(name, f"job-{point}")
    (root.folder / "armed").touch()
    until(lambda: process.poll() is not None, f"the kill at point {point}")
    (root.folder / "armed").unlink()
    until(lambda: root.running() is None, "the agent's end with its supervisor")
    assert root.state.get("current") in (before, name), f"killed at point {point}"
    process = root.start()
    until(
        lambda: (root.state.get("last") or {}).get("job") == f"job-{point}",
        f"the verdict after point {point}",
    )
    passed = behaviour == GOOD
    assert root.state["last"]["passed"] == passed, f"killed at point {point}"
    root.settled(name if passed else before)
    process.kill()
    process.wait()
    return name if passed else before


@pytest.mark.parametrize("behaviour", [GOOD, ENDS], ids=["confirms", "ends"])
def test_killed_at_points_all_over_a_trial_it_ends_in_a_confirmed_environment(
    root: Root, behaviour: str
) -> None:
    points = count(root, behaviour)
    assert points >= 15, "a trial has many points at which a power cut could come"
    current = root.state["current"]
    for point in range(1, points + 1, points // 4):
        current = kill_at(root, point, behaviour, current)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("behaviour", [GOOD, ENDS], ids=["confirms", "ends"])
def test_killed_at_every_point_of_a_trial_it_ends_in_a_confirmed_environment(
    root: Root, behaviour: str
) -> None:
    points = count(root, behaviour)
    current = root.state["current"]
    for point in range(1, points + 1):
        current = kill_at(root, point, behaviour, current)
