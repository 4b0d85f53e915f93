from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.agent.clock import late
from edgekit.agent.jobs import (
    MAX_RESTARTS,
    Expired,
    Outcome,
    Step,
    Stopping,
    Superseded,
    failure,
    job_of,
    judge,
    moved,
    restarted,
    walk,
)
from edgekit.agent.state import Job, State
from edgekit.core import jobs
from edgekit.core.errors import BadBundle, BadInput, MissingExtra, WorldFailed
from edgekit.core.jobs import IllegalTransition
from edgekit.core.messages import Desired
from edgekit.core.trust import refusal

JOB = Job("job-5", 5, "toy/2", None, None, 2e9)
DESIRED = Desired("demo/pi5", 5, 7, "job-5", "toy/2", None, None, 2e9)
GOOD: dict[str, Step] = {
    "received": lambda job: Outcome("accept"),
    "downloading": lambda job: Outcome("fetched"),
    "verifying": lambda job: Outcome("verified"),
    "installed": lambda job: Outcome("start"),
    "trial": lambda job: Outcome("pass"),
    "rolling_back": lambda job: Outcome("restored"),
    "measuring": lambda job: Outcome("measured"),
}
# What an Exception in each state ends as.
ERRORS: list[tuple[Exception, str]] = [
    (refusal("tampered"), "tampered"),
    (WorldFailed("disk full"), "disk"),
    (BadBundle("torn"), "bad-bundle"),
    (MissingExtra("no runtime"), "runtime"),
    (Superseded("newer"), "superseded"),
    (KeyError("defect"), "crash"),
]


def raising(err: Exception) -> Step:
    def step(job: Job) -> Outcome:
        raise err

    return step


@pytest.mark.parametrize("state", jobs.STATES)
@pytest.mark.parametrize("event", jobs.EVENTS)
def test_a_job_moves_exactly_as_the_table_says(state: str, event: str) -> None:
    job = replace(JOB, state=state)
    if event in jobs.TRANSITIONS[state]:
        assert moved(job, Outcome(event)).state == jobs.TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition):
            moved(job, Outcome(event))


def test_a_good_job_passes_every_state_and_each_is_saved() -> None:
    saved: list[str] = []
    assert walk(JOB, GOOD, lambda job: saved.append(job.state)).state == "active"
    assert saved == ["downloading", "verifying", "installed", "trial", "active"]


@pytest.mark.parametrize("state", [state for state in jobs.STATES if state not in jobs.FINAL])
@pytest.mark.parametrize(("err", "reason"), ERRORS, ids=[reason for _, reason in ERRORS])
def test_whatever_a_step_raises_the_job_ends_with_a_reason(state: str, err: Exception, reason: str) -> None:
    ended = walk(replace(JOB, state=state), {**GOOD, state: raising(err)}, lambda job: None)
    assert ended.ended
    assert ended.state not in jobs.GOOD
    assert ended.reason == reason


def test_a_failed_trial_goes_through_rolling_back_and_keeps_its_first_reason() -> None:
    saved: list[str] = []
    steps = {**GOOD, "trial": lambda job: Outcome("fail", "golden", "off by 3")}
    ended = walk(JOB, steps, lambda job: saved.append(job.state))
    assert saved[-3:] == ["trial", "rolling_back", "failed"]
    assert (ended.reason, ended.detail) == ("golden", "off by 3")


def test_stopping_leaves_the_job_where_it_is() -> None:
    saved: list[str] = []
    with pytest.raises(Stopping):
        walk(JOB, {**GOOD, "downloading": raising(Stopping())}, lambda job: saved.append(job.state))
    assert saved == ["downloading"]


def test_time_that_ran_out_while_waiting_is_expired_with_what_it_waited_for() -> None:
    assert failure(Expired("server gone"), "downloading") == Outcome("expire", "download", "server gone")


def test_a_job_over_whose_bundle_the_agent_keeps_dying_fails() -> None:
    job = replace(JOB, state="trial")
    for _ in range(MAX_RESTARTS):
        job = replace(restarted(job), state="trial")
    ended = walk(replace(job, state="received"), GOOD, lambda job: None)
    assert (ended.state, ended.reason) == ("failed", "crash")


def test_power_cuts_during_a_download_never_count_against_the_job() -> None:
    job = replace(JOB, state="downloading")
    for _ in range(10 * MAX_RESTARTS):
        job = replace(restarted(job), state="downloading")
    assert walk(job, GOOD, lambda job: None).state == "active"


def test_a_restart_during_roll_back_goes_on_rolling_back() -> None:
    assert restarted(replace(JOB, state="rolling_back")).state == "rolling_back"
    assert restarted(replace(JOB, state="trial")).state == "received"


SEEN = State(rev=5, n=7, job=JOB)


@pytest.mark.parametrize(
    ("changes", "take", "seen", "reason"),
    [
        ({}, False, False, None),  # the same command again
        ({"n": 8}, False, True, None),  # the same revision, signed again
        ({"n": 8, "rev": 6}, True, True, None),
        ({"n": 6, "rev": 6}, False, False, "replayed"),
        ({"n": 7, "rev": 6}, False, False, "replayed"),
        ({"n": 8, "rev": 4}, False, False, "replayed"),
        ({"n": 8, "rev": 6, "to": "demo/other"}, False, False, "wrong-board"),
    ],
)
def test_a_command_is_taken_once_and_only_when_it_is_newer_and_for_this_board(
    changes: dict[str, object], take: bool, seen: bool, reason: str | None
) -> None:
    verdict = judge(replace(DESIRED, **changes), "demo/pi5", SEEN)  # type: ignore[arg-type]
    assert (verdict.take, verdict.seen, verdict.reason) == (take, seen, reason)


def test_the_first_command_is_taken() -> None:
    assert judge(DESIRED, "demo/pi5", State()).take
    assert job_of(DESIRED) == JOB


MOST = 2**53


def test_the_largest_number_is_taken_and_what_comes_after_it_is_refused_and_said() -> None:
    """Who has the control key can use up the numbers: the board goes on serving, and says why it obeys no more."""
    assert judge(replace(DESIRED, n=MOST, rev=MOST), "demo/pi5", SEEN).take
    spent = replace(SEEN, n=MOST, rev=MOST)
    again = judge(replace(DESIRED, n=MOST, rev=MOST), "demo/pi5", spent)
    assert (again.take, again.reason) == (False, None)
    later = judge(replace(DESIRED, n=8, rev=8), "demo/pi5", spent)
    assert (later.take, later.reason) == (False, "replayed")
    assert str(MOST) in (later.detail or "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", MOST + 1),
        ("rev", MOST + 1),
        ("expires", 1e12),
        ("expires", 10**400),
        ("interval", 1e9),
        ("n", 0),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_it_is_remembered(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=field):
        Desired.parse({**DESIRED.to_json(), field: value})


def test_no_number_that_is_taken_breaks_the_reckoning_of_time() -> None:
    assert late(1e11, 42.0, 0.0, MOST, 0.0), "without a clock the number counts as the time"
    assert not late(1e11, 1.8e9, 1.8e9, MOST, 1e9), "with one it does not"
