"""Which command is taken, and how a job walks core.jobs' table to an end. Decides; every effect is handed in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgekit.agent.logs import about_job
from edgekit.agent.state import Job, State
from edgekit.core.bench import BenchReport
from edgekit.core.errors import BadInput, EdgekitError, MissingExtra, Refused, WorldFailed, one_line
from edgekit.core.jobs import TRANSITIONS, advance
from edgekit.core.messages import Desired, OneShot

log = logging.getLogger(__name__)
MAX_RESTARTS = 3  # a job whose bundle the agent died over so often is not begun again
MAX_WAITING = 8  # one-shots that wait for their turn
_HARMLESS = ("received", "downloading")  # no content of the bundle is looked at yet


class Superseded(Exception):
    """A newer command is waiting: give this job up."""


class Expired(Exception):
    """The job's time is over; the text says what it was waiting for."""


class Stopping(Exception):
    """The agent is going down: leave the job where it is."""


@dataclass(frozen=True)
class Verdict:
    """What a command comes to. take: a job begins. seen: its numbers count. reason: refused, with core.trust's word."""

    take: bool
    seen: bool
    reason: str | None = None
    detail: str | None = None


def judge(desired: Desired, address: str, state: State) -> Verdict:
    """What to do with a command whose signature held. A command seen before comes to nothing."""
    if desired.to != address:
        return Verdict(take=False, seen=False, reason="wrong-board", detail=f"it is for {desired.to}")
    if desired.n == state.n and desired.rev == state.rev:
        return Verdict(take=False, seen=False)
    if desired.n <= state.n or desired.rev < state.rev:
        detail = f"number {desired.n} of revision {desired.rev} came after {state.n} of {state.rev}"
        return Verdict(take=False, seen=False, reason="replayed", detail=detail)
    if desired.rev == state.rev:
        return Verdict(take=False, seen=True)
    return Verdict(take=True, seen=True)


def judge_shot(shot: OneShot, address: str, state: State) -> Verdict:
    """What to do with a one-shot whose signature held. One that is remembered comes to nothing."""
    if shot.to != address:
        return Verdict(take=False, seen=False, reason="wrong-board", detail=f"it is for {shot.to}")
    if any(job.rev == shot.n for job in state.shots):
        return Verdict(take=False, seen=False)
    if shot.n <= state.shot_n:
        detail = f"number {shot.n} came after {state.shot_n}"
        return Verdict(take=False, seen=False, reason="replayed", detail=detail)
    if sum(not job.ended for job in state.shots) >= MAX_WAITING:
        return Verdict(
            take=False, seen=True, reason="beyond-limits", detail=f"{MAX_WAITING} jobs wait already"
        )
    return Verdict(take=True, seen=True)


def job_of_shot(shot: OneShot) -> Job:
    """The job that a one-shot asks for, at its beginning."""
    return Job(shot.job_id, shot.n, shot.target, None, None, shot.expires, action=shot.action)


def job_of(desired: Desired) -> Job:
    """The job that a command asks for, at its beginning."""
    return Job(
        desired.job_id,
        desired.rev,
        desired.target,
        desired.policy,
        desired.interval_s,
        desired.expires,
        config=desired.config,
    )


@dataclass(frozen=True)
class Outcome:
    """What a step came to: an event of core.jobs' table, and why where it is no success. reports: what was measured."""

    event: str
    reason: str | None = None
    detail: str | None = None
    reports: tuple[BenchReport, ...] = ()


def moved(job: Job, outcome: Outcome) -> Job:
    """The job after `outcome`; the first reason given stays. Raises IllegalTransition."""
    return replace(
        job,
        state=advance(job.state, outcome.event),
        reason=job.reason or outcome.reason,
        detail=job.detail or outcome.detail,
        reports=job.reports or outcome.reports,
    )


def restarted(job: Job) -> Job:
    """The job as the agent finds it when it comes back in the middle of it."""
    return replace(moved(job, Outcome("restart")), restarts=job.restarts + (job.state not in _HARMLESS))


Step = Callable[[Job], Outcome]


def walk(job: Job, steps: Mapping[str, Step], saved: Callable[[Job], None]) -> Job:
    """Take `job` to an end, calling `saved` after every transition. Raises Stopping, and nothing else."""
    with about_job(job.job_id):
        while not job.ended:
            job = moved(job, _attempt(job, steps[job.state]))
            saved(job)
    return job


def _attempt(job: Job, step: Step) -> Outcome:
    if job.restarts >= MAX_RESTARTS and job.state == "received":
        return Outcome("fail", "crash", f"the agent ended {job.restarts} times over it")
    try:
        return step(job)
    except Stopping:
        raise
    except Exception as err:
        if not isinstance(err, (EdgekitError, Superseded, Expired)):
            log.exception("job %s: defect while %s", job.job_id, job.state)
        return failure(err, job.state)


def failure(err: Exception, state: str) -> Outcome:
    """The outcome of a step that raised: refused where the table has that, else failed."""
    table = TRANSITIONS[state]
    ends = "fail" if "fail" in table else "restored"
    if isinstance(err, Refused):
        return Outcome("refuse" if "refuse" in table else ends, err.reason, one_line(err))
    if isinstance(err, Expired) and "expire" in table:
        return Outcome("expire", "download", one_line(err))
    reasons: dict[type[Exception], str] = {
        Superseded: "superseded",
        WorldFailed: "disk",
        MissingExtra: "runtime",
        BadInput: "bad-bundle",
    }
    reason = next((word for kind, word in reasons.items() if isinstance(err, kind)), "crash")
    return Outcome(ends, reason, one_line(err))
