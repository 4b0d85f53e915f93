"""SIGKILL of a real agent at every step of an install: it comes back, finishes, and tells the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Site, make_site, until
from bundles import null_bundle

# Run before the agent: counts what makes a change last (fsync, rename, commit) and kills the process at the n-th.
KILLER = """
import functools, os, pathlib, signal, sqlite3
armed, left = [False], [{point}]
def point(name):
    armed[0] = armed[0] or os.path.exists({arm!r})
    if armed[0]:
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
    if hasattr(pathlib, "_NormalAccessor") and hasattr(pathlib._NormalAccessor, name):  # Python 3.10 keeps its own
        setattr(pathlib._NormalAccessor, name, staticmethod(counted))
for name in ("fsync", "replace", "rename", "mkdir"):
    around(os, name)
class Counted(sqlite3.Connection):
    def execute(self, sql, *given):
        if sql == "COMMIT":
            point("before commit")
        result = super().execute(sql, *given)
        if sql == "COMMIT":
            point("after commit")
        return result
sqlite3.connect = functools.partial(sqlite3.connect, factory=Counted)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made


def lines(site: Site, point: int) -> tuple[str, ...]:
    folder = site.board.folder
    return (KILLER.format(point=point, arm=str(folder / "armed"), count=str(folder / "points")),)


def test_killed_during_the_download_it_goes_on_from_where_it_was(site: Site) -> None:
    process = site.board.spawn()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    site.repository.gate.clear()
    site.server.desire("pi5", site.add(version=2, padding=4_000_000), 2)
    slots = site.board.folder / "state/slots"
    until(lambda: any(part.stat().st_size > 10**6 for part in slots.glob(".part-*/*")), "half a download")
    process.kill()
    process.communicate()
    assert site.board.state["job"]["state"] == "downloading"
    site.repository.gate.set()
    site.repository.requests.clear()
    site.server.heard.clear()
    site.board.spawn()
    assert site.server.ended("job-2")["state"] == "active"
    ranges = [wanted for path, wanted in site.repository.requests if path == "targets/run/toy/2.edge"]
    begins = [int(str(wanted).removeprefix("bytes=").partition("-")[0]) for wanted in ranges]
    assert begins
    assert min(begins) > 10**6
    until(lambda: not list(slots.glob(".part-*")), "the cleaning up")


def test_killed_between_verifying_and_committing_it_serves_the_old_one_and_then_finishes(site: Site) -> None:
    """A trial that lasts gives the time to kill: the slot is installed, the state file does not know it yet."""
    process = site.board.spawn()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    site.server.desire("pi5", site.add(version=2, delay_ms=15), 2)
    until(lambda: "trial" in site.server.states("job-2"), "the trial")
    process.kill()
    process.communicate()
    state = site.board.state
    assert (state["job"]["state"], state["active"]["label"]) == ("trial", "toy/1")
    site.server.heard.clear()
    site.board.spawn()
    until(
        lambda: [r for k, r in site.server.heard if k == "reported" and r["bundle"] == "toy/1"],
        "the old one serving",
    )
    assert site.server.ended("job-2")["state"] == "active"
    until(lambda: site.server.last("reported")["bundle"] == "toy/2")  # type: ignore[index]
    states = site.server.states("job-2")
    assert states[-5:] == ["received", "verifying", "installed", "trial", "active"], (
        "its slot was still there"
    )


def test_killed_at_points_all_over_an_install_it_ends_in_a_verified_slot_and_a_true_report(
    site: Site,
) -> None:
    count = count_points(site)
    assert count > 50, "an install has many points at which a power cut could come"
    for number, point in enumerate(range(2, count, count // 5)):
        kill_at(site, point, rev=3 + number)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_point_of_an_install_it_ends_in_a_verified_slot_and_a_true_report(site: Site) -> None:
    for number, point in enumerate(range(1, count_points(site) + 1)):
        kill_at(site, point, rev=3 + number)


CANDIDATE = null_bundle(profiles=("raspberrypi5",))


def test_killed_at_points_all_over_a_measure_job_it_ends_and_leaves_nothing(site: Site) -> None:
    count = count_measuring(site)
    assert count > 20, "measuring has many points at which a power cut could come"
    for point in range(4, count, count // 3):
        kill_measuring_at(site, point)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_point_of_a_measure_job_it_ends_and_leaves_nothing(site: Site) -> None:
    for point in range(1, count_measuring(site) + 1):
        kill_measuring_at(site, point)


def count_measuring(site: Site) -> int:
    """Measure once, and count the points."""
    site.board.write(limits={"accepts_measure": True})
    process = site.board.spawn(*lines(site, 10**6))
    until(lambda: site.server.last("status") and site.server.last("reported"), "the agent")
    (site.board.folder / "armed").touch()
    shot = site.server.order("pi5", site.repository.add_round(site.folder, [CANDIDATE]))
    assert site.server.ended(shot.job_id)["state"] == "done"
    until(lambda: site.board.state["shots"][-1]["reported"])
    (site.board.folder / "armed").unlink()
    process.kill()
    process.communicate()
    return len((site.board.folder / "points").read_text().splitlines())


def kill_measuring_at(site: Site, point: int) -> None:
    """Measure, killed at that point; then start again, and have the server say it again, as it does at a birth."""
    site.server.heard.clear()
    process = site.board.spawn(*lines(site, point))
    until(lambda: site.server.last("status") and site.server.last("reported"), "the agent")
    (site.board.folder / "armed").touch()
    label = site.repository.add_round(site.folder, [CANDIDATE])
    shot = site.server.order("pi5", label)
    until(
        lambda: process.poll() is not None or "done" in site.server.states(shot.job_id),
        f"the kill at point {point}",
    )
    process.kill()
    process.communicate()
    (site.board.folder / "armed").unlink()
    before = site.server.last("info")
    process = site.board.spawn()
    until(lambda: site.server.last("info") != before, "the agent again")
    site.server.order("pi5", label, n=shot.n, job_id=shot.job_id, expires=shot.expires)
    end = site.server.ended(shot.job_id)
    assert end["state"] == "done", f"killed at point {point}"
    assert len(end["reports"]) == 1
    until(lambda: not (site.board.folder / "state/measure").exists(), "the cleaning up")
    process.kill()
    process.communicate()


def count_points(site: Site) -> int:
    """Install toy/1, and count the points of installing toy/2 over it."""
    process = site.board.spawn(*lines(site, 10**6))
    assert site.run(site.add(version=1), 1)["state"] == "active"
    (site.board.folder / "armed").touch()
    assert site.run(site.add(version=2), 2)["state"] == "active"
    until(lambda: site.board.state["job"]["reported"])
    (site.board.folder / "armed").unlink()
    process.kill()
    process.communicate()
    return len((site.board.folder / "points").read_text().splitlines())


def kill_at(site: Site, point: int, rev: int) -> None:
    """Install toy/`rev` over the version before it, killed at that point; then start again and look."""
    site.server.heard.clear()
    process = site.board.spawn(*lines(site, point))
    until(lambda: site.server.last("status") and site.server.last("reported"), "the agent")
    (site.board.folder / "armed").touch()
    site.server.desire("pi5", site.add(version=rev), rev)
    ended = f"job-{rev}"  # no two installs pass exactly the same number of points
    until(
        lambda: process.poll() is not None or "active" in site.server.states(ended),
        f"the kill at point {point}",
    )
    process.kill()
    process.communicate()
    (site.board.folder / "armed").unlink()
    assert site.board.state["active"]["label"] in (f"toy/{rev - 1}", f"toy/{rev}"), point
    before = len(site.server.heard)
    process = site.board.spawn()

    def settled() -> bool:
        told = [payload for kind, payload in site.server.heard[before:] if kind == "reported"]
        return bool(told) and (told[-1]["rev"], told[-1]["state"]) == (rev, "active")

    until(settled, f"the end after a kill at point {point}")
    assert site.server.last("reported")["bundle"] == f"toy/{rev}", point  # type: ignore[index]
    assert site.server.ended(f"job-{rev}")["state"] == "active", point
    kept = {site.board.state[slot]["content_id"] for slot in ("active", "previous")}
    until(lambda: site.board.slots == kept, f"the cleaning up after point {point}")
    process.terminate()
    process.communicate()
