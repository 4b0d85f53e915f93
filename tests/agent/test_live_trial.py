"""The whole agent while a bundle is on trial: what it says, what a kill, a newer command and the job's end do then."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any

import pytest
from agents import Site, free_port, until
from apis import ask, question

from edgekit.agent import commit
from edgekit.agent.config import Trial
from edgekit.core.manifest import BoardLimits

LONG: dict[str, Any] = {"live_requests": 10**6, "live_seconds": 600.0}


def on_trial(site: Site, bundle: str) -> Mapping[str, Any]:
    """Wait until a bundle serves on trial; what the board reports then."""
    return until(
        lambda: (r := site.server.last("reported")) and (r["bundle"], r["state"]) == (bundle, "trial") and r,
        f"{bundle} on trial",
    )


def in_force(site: Site, bundle: str | None, state: str) -> Mapping[str, Any]:
    return until(
        lambda: (r := site.server.last("reported")) and (r["bundle"], r["state"]) == (bundle, state) and r,
        f"{bundle} in force, {state}",
    )


@pytest.fixture
def trying(site: Site) -> Site:
    """toy/2 serves on a trial without end beside toy/1, under job-2."""
    agent = site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    site.board.write(trial=LONG)
    agent._worker._committer._live = lambda: Trial(**LONG)  # as after a restart, which takes longer
    site.server.desire("pi5", site.add(version=2), 2)
    on_trial(site, "toy/2")
    return site


def test_a_board_says_which_bundle_serves_on_trial_and_which_are_committed(trying: Site) -> None:
    reported = on_trial(trying, "toy/2")
    assert reported["why"] == "toy/2 serves on trial, toy/1 stays ready"
    info = trying.server.last("info")
    assert info is not None
    assert info["slots"] == ["toy/1"]
    assert trying.board.state["active"]["label"] == "toy/1"
    assert trying.server.states("job-2")[-1] == "trial"


def test_a_bundle_that_is_revoked_while_it_is_on_trial_is_not_committed(trying: Site) -> None:
    trying.repository.set_state("toy/2", "revoked")
    trying.server.order("pi5", "toy/2", action="refresh")
    end = trying.server.ended("job-2")
    assert (end["state"], end["reason"]) == ("failed", "revoked")
    in_force(trying, "toy/1", "failed")
    assert trying.board.state["active"]["label"] == "toy/1"


def test_a_newer_command_goes_back_first_and_then_begins(trying: Site) -> None:
    label = trying.add(version=3)
    trying.server.desire("pi5", label, 3)
    assert trying.server.ended("job-2")["reason"] == "superseded"
    assert trying.server.states("job-2")[-3:] == ["trial", "rolling_back", "failed"]
    rollback = until(lambda: trying.server.events("rollback"))[-1]["detail"]
    assert (rollback["from"], rollback["to"], rollback["reason"]) == ("toy/2", "toy/1", "superseded")
    on_trial(trying, "toy/3")
    assert trying.board.state["active"]["label"] == "toy/1"


def test_an_end_leaves_the_bundle_before_in_force_and_the_trial_begins_again(trying: Site) -> None:
    assert trying.board.stop().bundle == "toy/1"
    assert trying.board.state["job"]["state"] == "trial"
    trying.board.write(trial={"live_seconds": 0.1})
    trying.board.start()
    in_force(trying, "toy/2", "active")
    assert trying.board.state["job"]["restarts"] == 1


def test_the_jobs_expiry_does_not_end_a_trial_half_way(site: Site) -> None:
    site.board.write(trial={"live_requests": 10**6, "live_seconds": 1.0})
    site.board.start()
    expires = time.time() + 1e6
    label = site.add(version=1)
    site.server.desire("pi5", label, 1, expires=expires)
    on_trial(site, "toy/1")
    agent, _ = site.board.running[-1]
    agent._worker._now = lambda: expires + 1  # time passes
    agent._state.note(good_time=expires + 1)
    assert site.server.ended("job-1")["state"] == "active"


def test_requests_of_callers_are_answered_through_a_trial_that_passes_and_one_that_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    trial = {"live_requests": 40, "live_seconds": 0.5}
    site.board.write(api={"listen": f"127.0.0.1:{port}"}, trial=trial)
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    stop, answers = threading.Event(), []

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        while not stop.wait(0.005):
            response, body = ask(connection, "POST", "/v2/models/toy/infer", question())
            answers.append((response.status, json.loads(body).get("parameters", {}).get("bundle", body)))
        connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    good = site.run(site.add(version=2), 2)
    monkeypatch.setattr(commit, "private_mb", lambda: 1e4)
    bad = site.run(site.add(version=3, limits=BoardLimits(memory_mb=64.0)), 3)
    until(lambda: answers[-1][1] == "toy/2", "the bundle before")
    stop.set()
    for thread in threads:
        thread.join(20.0)
    assert good["state"] == "active"
    assert "real requests" in good["detail"]
    assert (bad["state"], bad["reason"]) == ("failed", "memory")
    assert {status for status, _ in answers} == {200}
    assert {bundle for _, bundle in answers} == {"toy/1", "toy/2", "toy/3"}


def test_a_kill_during_the_trial_leaves_the_bundle_before_in_force_and_the_job_begins_again(
    trying: Site,
) -> None:
    trying.board.stop()
    process = trying.board.spawn()
    on_trial(trying, "toy/2")
    process.kill()
    process.wait()
    assert trying.board.state["active"]["label"] == "toy/1"
    before = trying.board.state["job"]["restarts"]
    trying.server.heard.clear()
    trying.board.write(trial={"live_seconds": 0.1})
    trying.board.spawn()
    in_force(trying, "toy/2", "active")
    first = next(payload for kind, payload in trying.server.heard if kind == "reported")
    assert (first["bundle"], first["state"]) == ("toy/1", "received")
    assert trying.board.state["job"]["restarts"] == before + 1


@pytest.mark.slow
def test_a_bundle_over_whose_trial_the_agent_keeps_dying_fails_as_a_crash(trying: Site) -> None:
    trying.board.stop()
    for _ in range(2):
        trying.server.heard.clear()
        process = trying.board.spawn()
        on_trial(trying, "toy/2")
        process.kill()
        process.wait()
    trying.board.spawn()
    event = trying.server.ended("job-2")
    assert (event["state"], event["reason"]) == ("failed", "crash")
    in_force(trying, "toy/1", "failed")
