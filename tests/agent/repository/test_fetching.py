"""A whole agent's downloads: when they begin, what they cost, what is kept of them, and how patient they are."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from agents import Site, until
from bundles import null_files, null_manifest

from edgekit.agent import install
from edgekit.agent.jobs import Superseded
from edgekit.agent.repository import patience
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.repository.patience import patiently
from edgekit.core.bundle import pack

PADDING = bytes(range(256)) * 4000


def add(site: Site, version: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bundle whose big member is the same in every version."""
    files, parts = null_files()
    files["notes/big.bin"] = PADDING
    manifest = null_manifest(files, parts, version=version, profiles=("raspberrypi5",))
    data = pack(manifest, files, {"v": 1})
    monkeypatch.setattr("agents.null_bundle", lambda **_: data)
    return site.add(version=version)


def jobs_of(site: Site) -> set[str]:
    return {path for path, _ in site.repository.requests if path.endswith("timestamp.json")}


def parts(site: Site) -> set[str]:
    return {name for name in site.board.slots if name.startswith(".part-")}


def test_an_agent_fetches_what_changed_between_two_versions(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(site, 1, monkeypatch)
    site.board.start()
    assert site.run(first, 1)["state"] == "active"
    assert site.run(add(site, 2, monkeypatch), 2)["state"] == "active"
    assert site.repository.sent["targets/run/toy/1.edge"] > len(PADDING)
    assert site.repository.sent["targets/run/toy/2.edge"] < 12_000


def test_a_job_begins_after_a_random_while_and_a_newer_one_does_not_wait_for_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    site.board.write(update={"jitter_s": 3600})
    label = site.add(version=1)
    site.board.start()
    site.server.desire("pi5", label, 1)
    until(lambda: site.server.states("job-1") == ["received"])
    assert jobs_of(site) == set()
    site.server.desire("pi5", None, 2)
    event = site.server.ended("job-1")
    assert (event["state"], event["reason"]) == ("failed", "superseded")
    assert site.server.ended("job-2")["state"] == "active", "settings ask no server"
    assert jobs_of(site) == set()


def test_a_job_that_lingers_ends_when_its_time_is_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.agent.install._LOOK_S", 0.05)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    site.board.write(update={"jitter_s": 3600})
    site.board.start()
    assert site.run(site.add(version=1), 1, expires=time.time() + 1)["state"] == "expired"


def test_a_job_that_was_begun_does_not_linger_again_after_a_restart(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    site.board.write(update={"jitter_s": 3600})
    label = site.add(version=1)
    site.board.start()
    site.server.desire("pi5", label, 1)
    until(lambda: site.server.states("job-1") == ["received"])
    begun = time.monotonic()
    site.board.stop()
    assert time.monotonic() - begun < 10
    site.board.start()
    assert site.server.ended("job-1")["state"] == "active"


def test_what_a_job_had_fetched_when_its_time_was_over_serves_the_next_one(site: Site) -> None:
    label = site.add(version=1, padding=500_000)
    site.repository.break_after = 300_000
    site.board.start()
    site.server.desire("pi5", label, 1, expires=time.time() + 1.5)
    assert site.server.ended("job-1")["state"] == "expired"
    until(lambda: site.board.state["job"]["reported"])
    (part,) = parts(site)
    have = (site.board.folder / "state/slots" / part / "bundle.edge").stat().st_size
    assert have >= 300_000
    site.board.stop()
    site.repository.break_after = None
    site.board.start()
    assert site.run(label, 2)["state"] == "active"
    assert site.repository.requests[-1] == ("targets/run/toy/1.edge", f"bytes={have}-")
    until(lambda: not parts(site))


def test_a_download_is_given_up_in_the_middle_when_the_jobs_time_is_over(site: Site) -> None:
    site.board.write(update={"rate_kb_s": 20})
    site.board.start()
    label = site.add(version=1, padding=500_000)
    begun = time.monotonic()
    event = site.run(label, 1, expires=time.time() + 1.5)
    assert event["state"] == "expired"
    assert time.monotonic() - begun < 10


# --- patience ---


class Waiting:
    """A repository that fails as told; what was waited for."""

    def __init__(self, *errors: NetworkFailed) -> None:
        self.errors = list(errors)
        self.pauses: list[float] = []
        self.said: list[str | None] = []
        self.wake_at = -1

    def action(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "there"

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return len(self.pauses) == self.wake_at

    def run(self) -> str:
        return patiently(self.action, lambda: None, self.said.append, self.pause)


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.random, "random", lambda: 1.0)  # type: ignore[attr-defined]


def test_each_wait_is_longer_and_a_good_answer_ends_them(no_chance: None) -> None:
    waiting = Waiting(*(NetworkFailed("away", status) for status in (404, 500, 401, None)))
    assert waiting.run() == "there"
    assert waiting.pauses == [0.5, 1.0, 2.0, 4.0]
    assert waiting.said == ["away"] * 4 + [None]


def test_something_that_came_makes_the_next_wait_short(no_chance: None) -> None:
    errors = [NetworkFailed("broken off") for _ in range(4)]
    errors[2].progressed = True
    waiting = Waiting(*errors)
    waiting.run()
    assert waiting.pauses == [0.5, 1.0, 0.5, 1.0]


def test_a_server_that_says_how_long_to_wait_is_heard_and_checks_go_on(no_chance: None) -> None:
    waiting = Waiting(NetworkFailed("busy", 503, 23.0))
    waiting.run()
    assert sum(waiting.pauses) == pytest.approx(25.0, abs=5)
    assert max(waiting.pauses) == 5.0


def test_a_job_whose_time_is_over_does_not_wait_on(no_chance: None) -> None:
    checked = [0]

    def check() -> None:
        checked[0] += 1
        if checked[0] == 3:
            raise Superseded("newer")

    waiting = Waiting(NetworkFailed("busy", 503, 600.0))
    with pytest.raises(Superseded):
        patiently(waiting.action, check, waiting.said.append, waiting.pause)
    assert waiting.pauses == [5.0, 5.0]


def test_a_new_way_is_tried_at_once(no_chance: None) -> None:
    waiting = Waiting(NetworkFailed("busy", 503, 600.0))
    waiting.wake_at = 2
    assert waiting.run() == "there"
    assert len(waiting.pauses) == 2


def test_a_stick_put_in_later_helps_a_job_that_came_over_the_network(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker can be reached, the repository cannot: the job waits, until somebody brings a copy."""
    monkeypatch.setattr(patience, "_FIRST_RETRY_S", 300.0)
    label = site.add(version=1)
    files, site.repository.files = site.repository.files, {}
    site.board.write(update={"sticks": [str(tmp_path / "media/*/edgekit")]})
    site.board.start()
    site.server.desire("pi5", label, 1)
    until(lambda: (r := site.server.last("reported")) and "answered 404" in (r["why"] or ""))
    aside = tmp_path / "media/STICK/aside"
    for name, data in files.items():
        path = aside / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    aside.rename(aside.with_name("edgekit"))
    assert site.server.ended("job-1")["state"] == "active"
    assert not any(path.startswith("targets/") for path, _ in site.repository.requests)


def test_what_is_revoked_while_a_job_waits_for_its_time_serves_no_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    monkeypatch.setattr(install, "_LOOK_S", 0.1)
    site.board.write(update={"jitter_s": 3600})
    first = site.add(version=1)
    site.board.start()
    assert site.run(first, 1)["state"] == "active"
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    site.server.desire("pi5", site.add(version=2), 2)
    until(lambda: site.server.states("job-2") == ["received"])
    site.repository.set_state(first, "revoked")
    site.server.order("pi5", first, action="refresh")
    until(lambda: (said := site.server.last("reported")) and said["bundle"] is None, "nothing serves")
    assert site.server.states("job-2") == ["received"]
