"""The steps of a job with their effects: find, fetch, verify, then commit.py's. One worker thread walks them.

The bundle that serves goes on serving until the new one has passed its trial, is open and stands in the state file; a
power cut at any moment leaves the old one or the new one in force, never neither.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from edgekit.agent.clock import late
from edgekit.agent.commit import Committer, Surroundings
from edgekit.agent.config import Limits
from edgekit.agent.jobs import (
    Expired,
    Outcome,
    Step,
    Stopping,
    Superseded,
    moved,
    restarted,
    walk,
)
from edgekit.agent.repository.base import Found, Repository
from edgekit.agent.repository.patience import MAX_RETRY_S, patiently
from edgekit.agent.restore import Committed
from edgekit.agent.serving import Server
from edgekit.agent.slots import Slots
from edgekit.agent.state import Job, StateFile
from edgekit.agent.threads import Loop
from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput, EdgekitError, Refused, one_line
from edgekit.core.policy import PolicySpec
from edgekit.core.target import parse_label
from edgekit.core.trust import Board, Running, decide, refusal

log = logging.getLogger(__name__)
T = TypeVar("T")
_MAX_OWED = 8  # ends of jobs to be reported when the outbox takes something again
_LOOK_S = 5.0  # how long a job that begins later does not look whether it should
_POLICY_ONLY = ("present", "verified", "start", "pass")


class Worker(Loop):
    """Takes one job after the other to its end. A newer one makes the one at work end as superseded."""

    def __init__(
        self,
        *,
        state: StateFile,
        slots: Slots,
        repository: Callable[[], Repository],
        server: Server,
        committed: Committed,
        committer: Committer,
        board: Board,
        limits: Limits,
        policy: PolicySpec,
        report: Callable[[Job], bool],
        changed: Callable[[], None],
        judge: Callable[[Mapping[str, Any] | None], Mapping[str, str]] = lambda _: {},
        jitter: Callable[[Job], float] = lambda _: 0.0,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """policy: the configured one. report: puts a JobEvent into the outbox; False: it did not take it.

        changed: called when what is in force, or the job, has changed. judge: which settings of a command the board
        refuses, and why. jitter: how many seconds a new job waits before its first request.
        """
        super().__init__("worker")
        self._state = state
        self._slots = slots
        self._repository = repository
        self._server = server
        self._board = board
        self._limits = limits
        self._policy = policy
        self._report = report
        self._changed = changed
        self._judge = judge
        self._jitter = jitter
        self._now = now
        self._clock = clock
        self._picked_up: str | None = None  # a job that a start found begun
        self._new_way = False
        self._saving = threading.Lock()  # a transition and its report are one
        self._found: Found | None = None
        self._bundle: Bundle | None = None
        self._revoked: set[str] = set()
        self._begun_s = time.monotonic()  # with the job at work
        self.waiting_for: str | None = None  # why the job at work does not get on
        self.committed = committed
        self._committer = committer
        self._steps: Mapping[str, Step] = {
            "received": self._received,
            "downloading": self._downloading,
            "verifying": self._verifying,
            "installed": self._installed,
            "trial": self._trial,
            "rolling_back": self._committer.rolled_back,
        }

    # --- from other threads --------------------------------------------------------------------------------------

    def take(self, job: Job, n: int) -> None:
        """A command was accepted: remember it, then work on it."""
        with self._wake:
            waiting = self._state.current.next
            if waiting is not None:
                ended = moved(waiting, Outcome("fail", "superseded", f"revision {job.rev} came"))
                with self._saving:
                    if not self._report(ended):
                        self._state.note(owed=self._owing(ended))
            self._state.note(n=n, rev=job.rev, next=job)
            self._wake.notify_all()
        self._changed()

    def withdraw(self, labels: Collection[str]) -> None:
        """These bundles were revoked: what serves of them stops soon."""
        with self._wake:
            self._revoked |= set(labels)
            self._wake.notify_all()

    def report_again(self) -> None:
        """Report the ends of jobs that have not reached the outbox yet, in their order."""
        if not self._saving.acquire(blocking=False):
            return  # a transition is on its way to a disk that may take its time; this is called again
        try:
            while (owed := self._state.current.owed) and self._report(owed[0]):
                self._state.note(owed=owed[1:])
            job = self._state.current.job
            if job is not None and job.ended and not job.reported and self._report(job):
                self._state.note(job=replace(job, reported=True))
        finally:
            self._saving.release()

    def _owing(self, job: Job) -> tuple[Job, ...]:
        return (*self._state.current.owed, job)[-_MAX_OWED:]

    # --- start ---------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Serve the active slot, else the previous one, else nothing; then pick up an interrupted job."""
        if (
            not self._unfinished()
        ):  # else its slot or what it has fetched is needed again; it cleans up at its end
            self._clean_up()
        self.committed.serve()
        job = self._state.current.job
        if job is not None and not job.ended:
            self._picked_up = job.job_id
            self._saved(restarted(job))
        self.report_again()
        self._changed()

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The thread: the job at work, then the one that waits."""
        while True:
            with self._wake:
                self._wait_for(lambda: self._revoked or self._unfinished(), self.committed.due_s)
                if self._stopping:
                    return
            try:
                self._look()
                self._let_go_revoked()
                self._work()
            except Stopping:
                return
            except Exception:
                log.exception("worker met a defect and goes on")
                self._pause(MAX_RETRY_S)

    def stop(self, timeout_s: float) -> None:
        """Leave the job where it is and end, which is no failed start."""
        super().stop(timeout_s)
        self.committed.ended()

    def _look(self) -> None:
        if self.committed.look():
            self._changed()

    def _let_go_revoked(self) -> None:
        """Serve a revoked bundle no more; the one before it takes over, if that is not revoked too."""
        with self._wake:
            revoked, self._revoked = self._revoked, set()
        if revoked and self.committed.let_go(revoked):
            self._clean_up()
            self._changed()

    @property
    def idle(self) -> bool:
        """Whether no job is under way, and none waits."""
        return not self._unfinished()

    def _unfinished(self) -> bool:
        state = self._state.current
        return state.next is not None or (state.job is not None and not state.job.ended)

    def _work(self) -> None:
        with self._wake:
            job = self._state.current.job
            if job is None or job.ended:
                job = self._next()
                if job is None:
                    return
                self._saved(job)
        self._begun_s = time.monotonic()
        if job.target is None:
            self._saved(self._change_policy(job))
        else:
            walk(job, self._steps, self._saved)
        self._found = self._bundle = None
        self.waiting_for = None
        self._clean_up()

    def _next(self) -> Job | None:
        """Make the waiting job the one at work; what is still to be said of the last one is kept."""
        with self._saving:
            state = self._state.current
            if state.next is not None:
                owed = state.owed if state.job is None or state.job.reported else self._owing(state.job)
                self._state.note(job=state.next, next=None, owed=owed)
            return state.next

    def _saved(self, job: Job) -> None:
        """Persist a transition, then report it."""
        why = f" ({job.reason}: {job.detail})" if job.reason else ""
        log.info("job %s: %s%s", job.job_id, job.state, why)
        with self._saving:
            self._state.note(job=job)
            if self._report(job) and job.ended:
                self._state.note(job=replace(job, reported=True))
        self._changed()

    def _clean_up(self) -> None:
        """Remove what nothing needs. What was fetched for a job that expired stays until the next one has ended."""
        state = self._state.current
        expired = state.job is not None and state.job.state == "expired"
        self._slots.keep(self._committer.kept, parts=expired or state.next is not None)

    def _check(self) -> None:
        """Raise where the job at work must not go on."""
        self.pulse.beat()
        self._look()
        if self._stopping:
            raise Stopping
        waiting = self._state.current.next
        if waiting is not None:
            raise Superseded(f"revision {waiting.rev} came")
        if self._revoked:
            self._heed_revoked(self._state.current.job)

    def _heed_revoked(self, job: Job | None) -> None:
        """A job may last for days: what was revoked meanwhile does not wait for its end.

        During a trial what served before does not serve, and stays as it is to go back to.
        """
        if job is not None and job.target in self._revoked:
            raise refusal("revoked", job.target)
        if (job is None or job.state != "trial") and self.committed.let_go(self._revoked):
            self._changed()

    def _expired(self, job: Job) -> bool:
        state, waited_s = self._state.current, time.monotonic() - self._begun_s
        return late(job.expires, self._now(), state.good_time, state.n, waited_s)

    def _patiently(self, job: Job, action: Callable[[], T]) -> T:
        """Try until it works, the job's time is over, or it must not go on."""

        def waits(why: str | None) -> None:
            if why is not None and self.waiting_for is None:
                log.warning("job %s waits: %s", job.job_id, why)
            self.waiting_for = why
            if why is not None:
                self._changed()

        def attempt() -> T:
            self._new_way = False
            return action()

        return patiently(attempt, lambda: self._check_time(job), waits, self._wait)

    def _check_time(self, job: Job) -> None:
        """Raise where the job at work must not go on, or its time is over."""
        self._check()
        if self._expired(job):
            raise Expired(self.waiting_for or "it came too late")

    def _wait(self, seconds: float) -> bool:
        """Wait; whether it ended early, for something is new."""
        self._pause(seconds, lambda: self._new_way or self._state.current.next is not None)
        return self._new_way

    def try_now(self) -> None:
        """There may be a new way to what the job at work waits for: a stick was put in."""
        with self._wake:
            self._new_way = True
            self._wake.notify_all()

    def _linger(self, job: Job) -> None:
        """Begin a new job after a random while, so that a fleet does not ask its server all at once."""
        if job.job_id == self._picked_up:
            return
        left = self._jitter(job)
        if left > 0:
            log.info("job %s: begins in %.1f s", job.job_id, left)
        end = self._clock() + left
        while (left := end - self._clock()) > 0:
            self._check_time(job)
            self._pause(min(left, _LOOK_S), lambda: self._state.current.next is not None)

    # --- steps ---------------------------------------------------------------------------------------------------

    def _change_policy(self, job: Job) -> Job:
        """A command without a target: policy and interval only."""
        if self._expired(job):
            return moved(job, Outcome("expire", None, "it came too late"))
        try:
            self._within_limits(job)
        except Refused as err:
            return moved(job, Outcome("refuse", err.reason, one_line(err)))
        for event in _POLICY_ONLY:
            job = moved(job, self._passed(job) if event == "pass" else Outcome(event))
        self._state.note(policy=job.policy, interval_s=job.interval_s, config=job.config)
        self._server.want(job.policy or self._policy)
        return job

    def _passed(self, job: Job, figures: str | None = None) -> Outcome:
        """The end of a job that did what it should, but for settings that it brings and this board does not take."""
        state, refused, wanted = self._state.current, dict(self._judge(job.config)), job.config or {}
        before, serves = state.config or {}, state.active.label if state.active else None
        new = {key for key in wanted if key not in before or before[key] != wanted[key]}
        asked_again = not new and job.target in {None, serves}
        if not asked_again:  # what was refused before stands in `reported`
            refused = {key: why for key, why in refused.items() if key in new}
        if not refused:
            return Outcome("pass", None, figures)
        return Outcome("pass", "settings-refused", "; ".join(refused.values()))

    def obey(self, limits: Limits, board: Board) -> None:
        """Other limits, and what the board accepts, from now on."""
        self._limits, self._board = limits, board

    def _within_limits(self, job: Job) -> None:
        lowest = self._limits.min_interval_s
        if job.interval_s is not None and job.interval_s < lowest:
            raise refusal("beyond-limits", f"interval {job.interval_s:g} s, here at least {lowest:g} s")

    def _received(self, job: Job) -> Outcome:
        self._within_limits(job)
        label = job.target or ""
        name, version = parse_label(label, "target")
        self._linger(job)
        found = self._patiently(job, lambda: self._repository().find(name, version))
        active = self._state.current.active
        running = Running(*parse_label(active.label, "active"), active.content_id) if active else None
        decide(found.target, self._board, running).enforce()
        if found.length > self._limits.max_bundle_bytes:
            detail = f"{label} is {found.length} bytes, here at most {self._limits.max_bundle_bytes}"
            raise refusal("beyond-limits", detail)
        self._found = found
        if self._slots.holds(found.target.content_id):
            return Outcome("present")
        self._slots.check_room(found.sha256, found.length)
        return Outcome("accept")

    def _downloading(self, job: Job) -> Outcome:
        found = _known(self._found)
        part = self._slots.part(found.sha256)
        try:
            self._patiently(job, lambda: self._repository().fetch(found, part, lambda: self._check_time(job)))
        except (
            EdgekitError
        ):  # a full disk must not stay full; who expired or was superseded may go on from it
            self._slots.discard_part(part)
            raise
        return Outcome("fetched")

    def _verifying(self, job: Job) -> Outcome:
        self._check()
        found = _known(self._found)
        content_id = found.target.content_id
        if not self._slots.holds(content_id):
            part = self._slots.part(found.sha256)
            try:
                self._fits(self._slots.check(part, content_id), found)
            except BadInput as err:
                self._slots.discard_part(part)
                raise refusal("bad-bundle", one_line(err)) from err
            self._slots.install(part, content_id)
        self._bundle = self._slots.open(content_id)
        return Outcome("verified")

    def _fits(self, bundle: Bundle, found: Found) -> None:
        """The file says of itself what the signed entry says of it."""
        if bundle.label != found.target.label:
            raise BadInput(f"{found.target.label} holds {bundle.label}")
        if bundle.manifest.executes_code and not self._board.accepts_code:
            raise refusal("code-not-accepted", bundle.label)

    def _installed(self, job: Job) -> Outcome:
        self._check()
        return Outcome("expire", None, "its time was over") if self._expired(job) else Outcome("start")

    def _trial(self, job: Job) -> Outcome:
        def says(what: str | None) -> None:
            self.waiting_for = what
            self._changed()

        def pause(seconds: float) -> None:
            self._pause(seconds, lambda: self._state.current.next is not None)

        around = Surroundings(self._check, pause, says, self._passed)
        return self._committer.try_and_commit(job, _known(self._bundle), around)


def _known(value: T | None) -> T:
    """What an earlier step of the same walk has set: every walk begins at `received`."""
    if value is None:
        raise BadInput("a step of this job was skipped")
    return value
