"""The steps of a job with their effects: find, fetch, verify, try, commit, switch. One worker thread walks them.

The bundle that serves goes on serving until the new one has passed its trial, is open and stands in the state file; a
power cut at any moment leaves the old one or the new one in force, never neither.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edgekit.agent.clock import trusted
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
from edgekit.agent.patience import MAX_RETRY_S, patiently
from edgekit.agent.remote import Found, Repository
from edgekit.agent.serving import Loaded, Server
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import Job, StateFile
from edgekit.agent.threads import Loop
from edgekit.agent.trial import TrialResult
from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput, EdgekitError, MissingExtra, Refused, one_line
from edgekit.core.policy import PolicySpec
from edgekit.core.target import parse_label
from edgekit.core.trust import REASONS, Board, Running, decide, refusal

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_FAILED_STARTS = 3
_MAX_OWED = 8  # ends of jobs to be reported when the outbox takes something again
_POLICY_ONLY = ("present", "verified", "start", "pass")

TryOut = Callable[[Path, Callable[[], None]], TrialResult]
Tell = Callable[[str, Mapping[str, object]], None]
"""Puts an Event (kind, detail) into the outbox."""


class Worker(Loop):
    """Takes one job after the other to its end. A newer one makes the one at work end as superseded."""

    def __init__(
        self,
        *,
        state: StateFile,
        slots: Slots,
        repository: Callable[[], Repository],
        server: Server,
        try_out: TryOut,
        board: Board,
        limits: Limits,
        policy: PolicySpec,
        report: Callable[[Job], bool],
        tell: Tell,
        changed: Callable[[], None],
        judge: Callable[[Mapping[str, Any] | None], Mapping[str, str]] = lambda _: {},
        now: Callable[[], float] = time.time,
    ) -> None:
        """policy: the configured one. report: puts a JobEvent into the outbox; False: it did not take it.

        changed: called when what is in force, or the job, has changed. judge: which settings of a command the board
        refuses, and why.
        """
        super().__init__("worker")
        self._state = state
        self._slots = slots
        self._repository = repository
        self._server = server
        self._try_out = try_out
        self._board = board
        self._limits = limits
        self._policy = policy
        self._report = report
        self._tell = tell
        self._changed = changed
        self._judge = judge
        self._now = now
        self._saving = threading.Lock()  # a transition and its report are one
        self._found: Found | None = None
        self._bundle: Bundle | None = None
        self._revoked: set[str] = set()
        self.waiting_for: str | None = None  # why the job at work does not get on
        self.unserved: str | None = None  # why the active bundle does not serve, although it is kept
        self._steps: Mapping[str, Step] = {
            "received": self._received,
            "downloading": self._downloading,
            "verifying": self._verifying,
            "installed": self._installed,
            "trial": self._trial,
            "rolling_back": self._rolling_back,
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
        with self._saving:
            while (owed := self._state.current.owed) and self._report(owed[0]):
                self._state.note(owed=owed[1:])
            job = self._state.current.job
            if job is not None and job.ended and not job.reported and self._report(job):
                self._state.note(job=replace(job, reported=True))

    def _owing(self, job: Job) -> tuple[Job, ...]:
        return (*self._state.current.owed, job)[-_MAX_OWED:]

    # --- start ---------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Serve the active slot, else the previous one, else nothing; then pick up an interrupted job."""
        if (
            not self._unfinished()
        ):  # else its slot or what it has fetched is needed again; it cleans up at its end
            self._clean_up()
        self._serve_committed()
        job = self._state.current.job
        if job is not None and not job.ended:
            self._saved(restarted(job))
        self.report_again()
        self._changed()

    def _serve_committed(self) -> None:
        """Serve the first committed slot that can be. What is damaged or kills the agent leaves the state for good."""
        state = self._state.current
        kept = [slot for slot in (state.active, state.previous) if slot is not None]
        if not kept:
            return
        starts, lost = state.failed_starts, state.lost
        if starts >= MAX_FAILED_STARTS:
            lost = self._cannot_serve(kept.pop(0), f"the agent died {starts} times while opening it", "crash")
            starts = 0
        self._keep(kept, lost, starts + 1)
        for slot in tuple(kept):
            try:
                loaded = self._server.open(self._slots.open(slot.content_id))
            except EdgekitError as err:
                if isinstance(err, BadInput) and not isinstance(err, MissingExtra):
                    kept.remove(slot)
                    lost = self._cannot_serve(slot, one_line(err), "damaged")
                else:  # the disk, the config or a runtime: that may be over at the next start
                    self.unserved = self._cannot_serve(slot, one_line(err), "unreadable")
            else:
                self._server.serve(loaded, state.policy or self._policy)
                break
        self._keep(kept, lost, 0)

    def _keep(self, slots: Sequence[Slot], lost: str | None, failed_starts: int) -> None:
        active, previous = (*slots, None, None)[:2]
        self._state.note(active=active, previous=previous, lost=lost, failed_starts=failed_starts)

    def _cannot_serve(self, slot: Slot, why: str, reason: str) -> str:
        """Tell it; the sentence for what is reported from now on."""
        log.error("slot %s cannot serve (%s): %s", slot.label, reason, why)
        self._tell("rollback", {"from": slot.label, "reason": reason, "detail": why})
        return f"{slot.label} cannot serve ({reason}): {why}"

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The thread: the job at work, then the one that waits."""
        while True:
            with self._wake:
                self._wait_for(lambda: self._revoked or self._unfinished())
                if self._stopping:
                    return
            try:
                self._let_go_revoked()
                self._work()
            except Stopping:
                return
            except Exception:
                log.exception("worker met a defect and goes on")
                self._pause(MAX_RETRY_S)

    def _let_go_revoked(self) -> None:
        """Serve a revoked bundle no more; the one before it takes over, if that is not revoked too."""
        with self._wake:
            revoked, self._revoked = self._revoked, set()
        state = self._state.current
        kept = [slot for slot in (state.active, state.previous) if slot is not None]
        left = [slot for slot in kept if slot.label not in revoked]
        if len(left) == len(kept):
            return
        lost = state.lost
        if state.active not in left:
            gone = kept[0]
            lost = self._cannot_serve(gone, REASONS["revoked"], "revoked")
        self._keep(left, lost, 0)
        if state.active not in left:
            self._server.serve(None, state.policy or self._policy)
            self._serve_committed()
        self._clean_up()
        self._changed()

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
        state = self._state.current
        kept = {slot.content_id for slot in (state.active, state.previous) if slot is not None}
        self._slots.keep(kept, parts=state.next is not None)

    def _check(self) -> None:
        """Raise where the job at work must not go on."""
        self.pulse.beat()
        if self._stopping:
            raise Stopping
        waiting = self._state.current.next
        if waiting is not None:
            raise Superseded(f"revision {waiting.rev} came")

    def _expired(self, job: Job) -> bool:
        now = trusted(self._now(), self._state.current.good_time)
        return now is not None and now > job.expires

    def _patiently(self, job: Job, action: Callable[[], T]) -> T:
        """Try until it works, the job's time is over, or it must not go on."""

        def check() -> None:
            self._check()
            if self._expired(job):
                raise Expired(self.waiting_for or "it came too late")

        def waits(why: str | None) -> None:
            if why is not None and self.waiting_for is None:
                log.warning("job %s waits: %s", job.job_id, why)
            self.waiting_for = why
            if why is not None:
                self._changed()

        def pause(seconds: float) -> None:
            self._pause(seconds, lambda: self._state.current.next is not None)

        return patiently(action, check, waits, pause)

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

    def _passed(self, job: Job) -> Outcome:
        """The end of a job that did what it should, but for settings that this board does not take."""
        refused = self._judge(job.config)
        if not refused:
            return Outcome("pass")
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
        found = self._patiently(job, lambda: self._repository().find(name, version))
        active = self._state.current.active
        running = Running(*parse_label(active.label, "active"), active.content_id) if active else None
        decide(found.target, self._board, running).enforce()
        if found.length > self._limits.max_bundle_bytes:
            detail = f"{label} is {found.length} bytes, here at most {self._limits.max_bundle_bytes}"
            raise refusal("beyond-limits", detail)
        self._found = found
        return Outcome("present" if self._slots.holds(found.target.content_id) else "accept")

    def _downloading(self, job: Job) -> Outcome:
        found = _known(self._found)
        part = self._slots.part(found.sha256)
        try:
            self._patiently(job, lambda: self._repository().fetch(found, part, self._check))
        except EdgekitError:
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
        bundle = _known(self._bundle)
        loaded = None
        if self._server.in_force.content_id != bundle.content_id:
            result = self._try_out(bundle.path, self._check)
            if result.reason is not None:
                return Outcome("fail", result.reason, result.detail)
            loaded = self._server.open(bundle)
        self._commit(job, bundle, loaded)
        return self._passed(job)

    def _commit(self, job: Job, bundle: Bundle, loaded: Loaded | None) -> None:
        """On disk first, in one write; then let it serve. Raises WorldFailed, and then all is as it was."""
        state = self._state.current
        active, policy = Slot(bundle.content_id, bundle.label), job.policy or self._policy
        changes: dict[str, object] = {
            "job": moved(job, self._passed(job)),
            "policy": job.policy,
            "interval_s": job.interval_s,
            "config": job.config,
        }
        try:
            if loaded is not None or active != state.active:
                number = state.commits + 1
                self._slots.mark(bundle.content_id, number)
                previous = state.previous if active == state.active else state.active
                changes |= {"active": active, "previous": previous, "commits": number}
            self._state.commit(**changes, lost=None)
        except EdgekitError:
            if loaded is not None:
                loaded.session.close()
            raise
        self.unserved = None
        if loaded is None:
            self._server.want(policy)
        else:
            self._server.serve(loaded, policy)

    def _rolling_back(self, job: Job) -> Outcome:
        """What served before never stopped; the new slot goes, so that a retry does not find it and believe it."""
        state = self._state.current
        self._clean_up()
        detail = {
            "from": job.target,
            "to": state.active.label if state.active else None,
            "reason": job.reason,
        }
        self._tell("rollback", {**detail, "detail": job.detail})
        return Outcome("restored")


def _known(value: T | None) -> T:
    """What an earlier step of the same walk has set: every walk begins at `received`."""
    if value is None:
        raise BadInput("a step of this job was skipped")
    return value
