"""Measure jobs on a real agent: what it times, what it refuses, what ends them, and that serving never notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from agents import Site, until
from bundles import null_bundle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.agent.jobs import MAX_WAITING, judge_shot
from edgekit.agent.state import Job, State
from edgekit.core.bench import BenchReport, parse_reports
from edgekit.core.bundle import open_bundle
from edgekit.core.candidates import pack_candidates
from edgekit.core.messages import OneShot

FOR = ("raspberrypi5",)
SLOW = null_bundle(name="slow", profiles=FOR, delay_ms=3.0)
FAST = null_bundle(name="fast", profiles=FOR)
STUCK = null_bundle(name="stuck", profiles=FOR, delay_ms=20_000.0)
ALL_STATES = ["received", "downloading", "verifying", "measuring", "done"]


@pytest.fixture
def willing(site: Site) -> Site:
    """A board that accepts measuring, not yet started."""
    site.board.write(limits={"accepts_measure": True})
    return site


def started(site: Site) -> Site:
    """Its agent runs and hears: one-shots are not retained."""
    before = boot(site)
    site.board.start()
    until(lambda: boot(site) != before, "the birth")
    return site


def boot(site: Site) -> str | None:
    info = site.server.last("info")
    return None if info is None else str(info["boot_id"])


def measured(site: Site, label: str, **changes: Any) -> Mapping[str, Any]:
    """Order it and wait for the end of the job; its last event."""
    return site.server.ended(site.server.order(site.board.name, label, **changes).job_id)


def reports(event: Mapping[str, Any]) -> tuple[BenchReport, ...]:
    return parse_reports(event["reports"], "reports")


def left_behind(site: Site) -> bool:
    return (site.board.folder / "state/measure").exists()


def children(site: Site) -> list[int]:
    """Process ids of what times candidates of this board."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "edgekit.agent.bench" in words and any(str(site.board.folder) in word for word in words):
            found.append(int(path.parent.name))
    return found


def test_candidates_are_timed_side_by_side_and_reported_in_their_order(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    end = measured(site, site.repository.add_round(tmp_path, [SLOW, FAST]))
    assert site.server.states(end["job_id"]) == ALL_STATES
    slow, fast = reports(end)
    for report, data in ((slow, SLOW), (fast, FAST)):
        (tmp_path / "one.edge").write_bytes(data)
        assert report.content_id == open_bundle(tmp_path / "one.edge").content_id
        assert len(report.exits) == len(report.stages) == 3
        assert report.problems == ()
        assert (report.device, report.profile, report.provenance) == ("pi5", "raspberrypi5", "measured")
        assert report.on
        assert (report.energy_mj, report.busy) == (None, False)
        assert report.energy_why
    assert slow.latency.p50 is not None
    assert fast.latency.p50 is not None
    assert slow.latency.p50 >= 9.0 > fast.latency.p50  # three stages of 3 ms
    until(lambda: not left_behind(site), "the cleaning up")
    assert site.board.slots == set()


def test_a_simulated_board_says_so_on_every_figure(willing: Site, tmp_path: Path) -> None:
    willing.board.write(sensors={"simulated": True})
    end = measured(started(willing), willing.repository.add_round(tmp_path, [FAST]))
    (report,) = reports(end)
    assert (report.provenance, report.on) == ("simulated", "raspberrypi5")


def test_what_serves_goes_on_serving_while_candidates_are_timed(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    assert site.run(site.add(version=1), 1)["state"] == "active"
    slots = site.board.slots
    end = measured(site, site.repository.add_round(tmp_path, [SLOW]))
    assert reports(end)[0].busy
    reported = site.server.last("reported")
    assert reported is not None
    assert (reported["bundle"], reported["job_id"]) == ("toy/1", "job-1")
    assert site.board.slots == slots
    assert site.run(site.add(version=2), 2)["state"] == "active"


def test_a_candidate_whose_golden_cases_fail_is_a_problem_and_the_others_are_timed(
    willing: Site, tmp_path: Path
) -> None:
    wrong = null_bundle(profiles=FOR, golden_error=0.5)
    end = measured(started(willing), willing.repository.add_round(tmp_path, [wrong, FAST]))
    bad, good = reports(end)
    assert "exit1 is off by 0.5" in bad.problems[0]
    assert bad.exits == ()
    assert good.problems == ()
    assert good.exits


def test_a_board_measures_only_where_its_config_says_so(site: Site, tmp_path: Path) -> None:
    end = measured(started(site), site.repository.add_round(tmp_path, [FAST]))
    assert (end["state"], end["reason"]) == ("refused", "measure-not-accepted")
    assert not any("measure" in path for path, _ in site.repository.requests)


def test_a_round_for_another_board_or_profile_is_refused(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    other = measured(site, site.repository.add_round(tmp_path, [FAST], board="pi4"))
    assert (other["state"], other["reason"]) == ("refused", "other-board")
    foreign = null_bundle(profiles=("jetson-nano",))
    end = measured(site, site.repository.add_round(tmp_path, [foreign]))
    assert (end["state"], end["reason"]) == ("refused", "wrong-profile")


def test_a_bundle_to_run_is_not_measured_and_a_round_never_enters_a_slot(
    willing: Site, tmp_path: Path
) -> None:
    site = started(willing)
    end = measured(site, site.add(version=1))
    assert (end["state"], end["reason"]) == ("refused", "unknown-target")
    label = site.repository.add_round(tmp_path, [FAST])
    event = site.run(label, 1)
    assert (event["state"], event["reason"]) == ("refused", "unknown-target")
    assert site.board.slots == set()


@pytest.mark.parametrize("how", ["changed on the way", "signed, but no round", "signed, but another round"])
def test_a_file_that_is_not_what_was_signed_is_refused(willing: Site, tmp_path: Path, how: str) -> None:
    site = started(willing)
    if how == "changed on the way":
        label, reason = site.repository.add_round(tmp_path, [FAST]), "tampered"
        path = next(path for path in site.repository.files if path.startswith("targets/measure/"))
        data = bytearray(site.repository.files[path])
        data[len(data) // 2] ^= 1
        site.repository.files[path] = bytes(data)
    elif how == "signed, but no round":
        label, reason = site.repository.add_round(tmp_path, [FAST], data=FAST), "bad-bundle"
    else:
        label = site.repository.add_round(tmp_path, [FAST], data=pack_candidates([SLOW]))
        reason = "bad-bundle"
    end = measured(site, label)
    assert (end["state"], end["reason"]) == ("refused", reason)
    until(lambda: not left_behind(site), "the cleaning up")


def test_a_killed_child_fails_the_job_and_nothing_else(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    assert site.run(site.add(version=1), 1)["state"] == "active"
    shot = site.server.order("pi5", site.repository.add_round(tmp_path, [STUCK]))
    (child,) = until(lambda: children(site), "the child")
    os.kill(child, signal.SIGKILL)
    end = site.server.ended(shot.job_id)
    assert (end["state"], end["reason"]) == ("failed", "crash")
    assert "SIGKILL" in end["detail"]
    reported = site.server.last("reported")
    assert reported is not None
    assert reported["bundle"] == "toy/1"
    assert measured(site, site.repository.add_round(tmp_path, [FAST]))["state"] == "done"


def test_measuring_has_a_time_limit(willing: Site, tmp_path: Path) -> None:
    willing.board.write(limits={"measure_timeout_s": 2.0})
    end = measured(started(willing), willing.repository.add_round(tmp_path, [STUCK]))
    assert (end["state"], end["reason"]) == ("failed", "timeout")
    assert children(willing) == []


def test_a_job_whose_time_is_over_ends_as_expired_wherever_it_is(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    label = site.repository.add_round(tmp_path, [STUCK])
    assert measured(site, label, expires=time.time() - 5)["state"] == "expired"
    end = measured(site, label, expires=time.time() + 3)
    assert (end["state"], end["reason"]) == ("expired", "late")
    assert "measuring" in site.server.states(end["job_id"])
    assert children(site) == []


def test_a_restart_in_the_middle_of_measuring_begins_the_job_again(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    label = site.repository.add_round(tmp_path, [STUCK])
    shot = site.server.order("pi5", label)
    until(lambda: children(site), "the child")
    site.board.stop()
    assert children(site) == []
    assert site.board.state["shots"][0]["state"] == "measuring"
    site.board.write(limits={"measure_timeout_s": 1.5})
    site.board.start()
    end = site.server.ended(shot.job_id)
    assert (end["state"], end["reason"]) == ("failed", "timeout")
    states = site.server.states(shot.job_id)
    assert states.count("received") == 2
    until(lambda: not left_behind(site), "the cleaning up")


def test_an_agent_that_is_killed_takes_its_child_along_and_ends_the_job_when_it_is_back(
    willing: Site, tmp_path: Path
) -> None:
    process = willing.board.spawn()
    until(lambda: willing.server.last("info"), "the birth")
    shot = willing.server.order("pi5", willing.repository.add_round(tmp_path, [STUCK]))
    until(lambda: children(willing), "the child")
    process.kill()
    process.wait()
    until(lambda: not children(willing), "the child's end with its parent")
    willing.board.write(limits={"measure_timeout_s": 1.5})
    willing.board.start()
    end = willing.server.ended(shot.job_id)
    assert (end["state"], end["reason"]) == ("failed", "timeout")
    until(lambda: not left_behind(willing), "the cleaning up")


def test_a_command_that_comes_again_does_nothing_twice(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    label = site.repository.add_round(tmp_path, [FAST])
    first = site.server.order("pi5", label)
    site.server.order("pi5", label, n=first.n, job_id=first.job_id, expires=first.expires)
    site.server.ended(first.job_id)
    site.server.order("pi5", label, n=first.n, job_id=first.job_id, expires=first.expires)
    site.board.stop()
    started(site)
    site.server.order("pi5", label, n=first.n, job_id=first.job_id, expires=first.expires)
    assert measured(site, label, job_id="later")["state"] == "done"
    assert site.server.states(first.job_id) == ALL_STATES


def test_a_desired_state_that_is_handed_out_again_is_no_replay_after_a_one_shot(
    willing: Site, tmp_path: Path
) -> None:
    """One key and one number for both topics: the retained desired state comes back with a lower one."""
    site = started(willing)
    assert site.run(site.add(version=1), 1)["state"] == "active"
    assert measured(site, site.repository.add_round(tmp_path, [FAST]))["state"] == "done"
    site.board.stop()
    site.board.start()
    assert site.run(site.add(version=2), 2)["state"] == "active"
    assert [event["state"] for event in site.server.job_events("job-1")][-1] == "active"


def test_a_forged_one_or_an_unknown_action_is_refused(willing: Site, tmp_path: Path) -> None:
    site = started(willing)
    label = site.repository.add_round(tmp_path, [FAST])
    forged = measured(site, label, key=Ed25519PrivateKey.generate())
    assert (forged["state"], forged["reason"]) == ("refused", "bad-signature")
    unknown = measured(site, label, payload={"action": "explode"})
    assert (unknown["state"], unknown["reason"]) == ("refused", "beyond-limits")
    foreign = measured(site, label, to="demo/other")
    assert (foreign["state"], foreign["reason"]) == ("refused", "wrong-board")


def shot(n: int, to: str = "demo/pi5") -> OneShot:
    return OneShot(to, n, f"job-{n}", "measure", "pi5/1", 2e9)


WAITING = State(shot_n=5, shots=(Job("job-5", 5, "pi5/1", None, None, 2e9),))


@pytest.mark.parametrize(
    ("order", "state", "take", "reason"),
    [
        (shot(6), WAITING, True, None),
        (shot(5), WAITING, False, None),
        (shot(4), WAITING, False, "replayed"),
        (shot(6, "demo/other"), WAITING, False, "wrong-board"),
        (
            shot(20),
            State(
                shot_n=10,
                shots=tuple(Job("j", n, "pi5/1", None, None, 2e9) for n in range(1, MAX_WAITING + 1)),
            ),
            False,
            "beyond-limits",
        ),
    ],
)
def test_a_one_shot_is_taken_once_and_only_when_it_is_newer_and_for_this_board(
    order: OneShot, state: State, take: bool, reason: str | None
) -> None:
    verdict = judge_shot(order, "demo/pi5", state)
    assert (verdict.take, verdict.reason) == (take, reason)
