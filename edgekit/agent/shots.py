"""Walk one-shot jobs to their end, one after the other. What an action does stands elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from edgekit.agent.clock import late
from edgekit.agent.jobs import Expired, Outcome, Stopping, restarted, walk
from edgekit.agent.repository.patience import MAX_RETRY_S, patiently
from edgekit.agent.state import Job, StateFile
from edgekit.agent.threads import Loop
from edgekit.core.jobs import TRANSITIONS

log = logging.getLogger(__name__)
T = TypeVar("T")
KEPT = 8  # jobs that are remembered, ended ones too: a command that comes again meets its own


class Turn(Protocol):
    """What a step may ask of the thread that walks it."""

    def check(self, job: Job) -> None:
        """Raise where the job must not go on: Stopping, Expired."""

    def patiently(self, job: Job, action: Callable[[], T]) -> T:
        """Try until it works; raises as `check` does, and what is no failure of the network."""
        raise NotImplementedError

    def pause(self, seconds: float) -> None:
        """Do nothing for a while; returns at once where the agent goes down."""


Step = Callable[[Job, Turn], Outcome]


class Action(Protocol):
    """A kind of one-shot: its steps by state, and what is left to do around them."""

    @property
    def steps(self) -> Mapping[str, Step]:
        """State of core.jobs -> what is done in it."""

    def resumed(self, job: Job) -> Job:
        """The job as it goes on after the agent has ended in the middle of it."""

    def clean_up(self) -> None:
        """No job of this kind is under way: remove what is not needed."""


def begun_again(job: Job) -> Job:
    """What most actions do with an interrupted job: from the beginning, counted where that may be the job's fault."""
    return restarted(job) if job.state != "received" or job.restarts else job


class Shots(Loop):
    """One job after the other, in the order of their numbers."""

    def __init__(
        self,
        *,
        state: StateFile,
        actions: Mapping[str, Action],
        report: Callable[[Job], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        """actions: by core.messages.ACTIONS. report: puts a JobEvent into the outbox; False: not taken."""
        super().__init__("shots")
        self._state = state
        self._actions = actions
        self._report = report
        self._now = now
        self._saving = threading.RLock()
        self._waiting_for: str | None = None
        self._begun_s = time.monotonic()  # with the job at work

    # --- from other threads --------------------------------------------------------------------------------------

    def take(self, job: Job) -> None:
        """A command was accepted: remember it, then work on it."""
        with self._saving:
            shots = (*self._state.current.shots, job)
            ended = [shot for shot in shots if shot.ended and shot.reported]
            gone = ended[: max(0, len(shots) - KEPT)]
            self._state.note(shots=tuple(shot for shot in shots if shot not in gone), shot_n=job.rev)
            self._tell(job)
        with self._wake:
            self._wake.notify_all()

    def restore(self) -> None:
        """Pick up what was interrupted; remove what was left behind."""
        job = self._next()
        for name, action in self._actions.items():
            if job is None or job.action != name:
                self._clean_up(action)
        if job is not None and job.action in self._actions:
            resumed = self._actions[job.action].resumed(job)
            if resumed != job:
                self._saved(resumed)
        self.report_again()

    def report_again(self) -> None:
        """Report ends that have not reached the outbox yet."""
        if not self._saving.acquire(blocking=False):
            return  # a transition is on its way to a disk that may take its time; this is called again
        try:
            for job in self._state.current.shots:
                if job.ended and not job.reported:
                    self._tell(job)
        finally:
            self._saving.release()

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The thread: every job in turn."""
        while True:
            with self._wake:
                self._wait_for(lambda: self._next() is not None)
            job = self._next()
            if self._stopping or job is None:
                return
            action = self._actions.get(job.action)
            self._begun_s = time.monotonic()
            try:
                walk(job, self._bound(action), self._saved)
            except Stopping:
                return
            except Exception:
                log.exception("%s met a defect and goes on", job.action)
                self._pause(MAX_RETRY_S)
            self._clean_up(action)

    def _clean_up(self, action: Action | None) -> None:
        """What is left behind must not end the thread, nor the agent at every start."""
        try:
            if action is not None:
                action.clean_up()
        except Exception:
            log.exception("cleaning up met a defect")

    def _bound(self, action: Action | None) -> Mapping[str, Callable[[Job], Outcome]]:
        if action is None:  # a newer agent took it, and was taken back
            return dict.fromkeys(TRANSITIONS, _unknown)
        return {state: partial(_taken, step, self) for state, step in action.steps.items()}

    def _next(self) -> Job | None:
        return next((job for job in self._state.current.shots if not job.ended), None)

    def _saved(self, job: Job) -> None:
        """Persist a transition, then report it."""
        why = f" ({job.reason}: {job.detail})" if job.reason else ""
        log.info("job %s: %s%s", job.job_id, job.state, why)
        with self._saving:
            self._replace(job)
            self._tell(job)

    def _tell(self, job: Job) -> None:
        """Report; once the outbox has an end, its reports are kept there alone."""
        if self._report(job) and job.ended:
            self._replace(replace(job, reported=True, reports=()))

    def _replace(self, job: Job) -> None:
        shots = self._state.current.shots
        self._state.note(shots=tuple(job if shot.rev == job.rev else shot for shot in shots))

    # --- what steps ask ------------------------------------------------------------------------------------------

    def check(self, job: Job) -> None:
        """See Turn."""
        self.pulse.beat()
        if self._stopping:
            raise Stopping
        waited_s = time.monotonic() - self._begun_s
        if late(job.expires, self._now(), self._state.current.good_time, job.rev, waited_s):
            raise Expired(self._waiting_for or "it came too late")

    def patiently(self, job: Job, action: Callable[[], T]) -> T:
        """See Turn."""

        def waits(why: str | None) -> None:
            if why is not None and self._waiting_for is None:
                log.warning("job %s waits: %s", job.job_id, why)
            self._waiting_for = why

        return patiently(action, lambda: self.check(job), waits, self.pause)

    def pause(self, seconds: float) -> None:
        """See Turn."""
        self._pause(seconds)


def _taken(step: Step, turn: Turn, job: Job) -> Outcome:
    return step(job, turn)


def _unknown(job: Job) -> Outcome:
    event = "fail" if "fail" in TRANSITIONS[job.state] else "restored"
    return Outcome(event, "runtime", f"this agent does not know the action {job.action}")
