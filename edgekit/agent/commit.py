"""A job's last steps: trial in a child, trial with real requests, commit, or back. Fetches nothing.

While the new bundle answers on trial the one before stays open beside it, and the state file still names that one:
going back takes no loading, and a power cut leaves it in force.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.agent.config import Trial
from edgekit.agent.jobs import Outcome, moved
from edgekit.agent.live import Before, Watch, judge
from edgekit.agent.restore import Committed, Tell
from edgekit.agent.serving import Loaded, Server
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import Job, StateFile
from edgekit.agent.trial import TrialFailed, TrialResult, private_mb
from edgekit.core.bundle import Bundle
from edgekit.core.errors import one_line
from edgekit.core.policy import PolicySpec

log = logging.getLogger(__name__)
_LOOK_S = 0.1  # how often a live trial is looked at

TryOut = Callable[[Path, PolicySpec, Callable[[], None]], TrialResult]


@dataclass(frozen=True)
class Surroundings:
    """What the worker gives a step. check: raises where the job must not go on. pause: waits, or less.

    says: what is reported while it lasts. passed: the end of a job that did what it should, given its figures in words.
    """

    check: Callable[[], None]
    pause: Callable[[float], None]
    says: Callable[[str | None], None]
    passed: Callable[[Job, str | None], Outcome]


class Committer:
    """Puts a verified bundle into force, or leaves everything as it was."""

    def __init__(
        self,
        *,
        state: StateFile,
        slots: Slots,
        server: Server,
        committed: Committed,
        try_out: TryOut,
        live: Callable[[], Trial],
        policy: PolicySpec,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """policy: the configured one. live: how long the trial with real requests lasts. clock: seconds, monotonic."""
        self._state = state
        self._slots = slots
        self._server = server
        self._committed = committed
        self._try_out = try_out
        self._live = live
        self._policy = policy
        self._tell = tell
        self._clock = clock

    def try_and_commit(self, job: Job, bundle: Bundle, around: Surroundings) -> Outcome:
        """The step `trial`. Its expiry does not end it half-way: a trial that has begun comes to its own end."""
        policy = job.policy or self._policy
        if self._server.in_force.content_id == bundle.content_id:
            outcome = around.passed(job, None)
            self._commit(job, bundle, outcome)
            self._server.want(policy)
            self._committed.committed()
            return outcome
        result = self._try_out(bundle.path, policy, around.check)
        if result.reason is not None:
            return Outcome("fail", result.reason, result.detail)
        loaded = self._server.open(bundle)
        try:
            seen = self._try_live(loaded, policy, around)
            outcome = around.passed(job, "; ".join(filter(None, (result.detail, seen))) or None)
            self._commit(job, bundle, outcome)
        except TrialFailed as err:
            self._server.go_back()
            return Outcome("fail", err.reason, f"with real requests: {one_line(err)}")
        except BaseException:
            self._server.go_back()
            raise
        finally:
            around.says(None)
        self._server.keep()
        self._committed.committed()
        return outcome

    def _try_live(self, loaded: Loaded, policy: PolicySpec, around: Surroundings) -> str | None:
        """Let it answer, and look at what comes of that; in words. Raises TrialFailed."""
        trial, watch = self._live(), Watch(on_trial=True)
        before = self._server.try_live(loaded, policy, watch)
        if not (trial.live_requests and trial.live_seconds):
            return None
        old = self._state.current.active
        beside = f", {old.label} stays ready" if old is not None else ""
        said = f"{loaded.label} serves on trial{beside}"
        log.info("%s, for %d requests or %g s", said, trial.live_requests, trial.live_seconds)
        around.says(said)
        end = self._clock() + trial.live_seconds
        while True:
            around.check()
            now = self._clock()
            over = watch.requests >= trial.live_requests or now >= end
            self._judge(loaded, watch, before, over=over)
            if over:
                return watch.words
            around.pause(min(_LOOK_S, end - now))

    def _judge(self, loaded: Loaded, watch: Watch, before: Before | None, *, over: bool) -> None:
        limits, grown_mb = loaded.bundle.manifest.limits, None
        if over and limits.memory_mb is not None and loaded.before_mb is not None:
            now_mb = private_mb()
            grown_mb = None if now_mb is None else now_mb - loaded.before_mb
        judge(watch, before, limits, grown_mb, throttled=self._server.throttled)

    def _commit(self, job: Job, bundle: Bundle, outcome: Outcome) -> None:
        """On disk in one write. Raises WorldFailed, and then nothing has changed."""
        state = self._state.current
        active = Slot(bundle.content_id, bundle.label)
        changes: dict[str, object] = {
            "job": moved(job, outcome),
            "policy": job.policy,
            "interval_s": job.interval_s,
            "config": job.config,
        }
        if active != state.active or not self._slots.is_marked(bundle.content_id):
            number = state.commits + 1
            self._slots.mark(bundle.content_id, number)
            changes |= {"active": active, "commits": number, "short_runs": 0}
        if active != state.active:
            changes |= {"previous": state.active}
        self._state.commit(**changes, lost=None)

    def rolled_back(self, job: Job) -> Outcome:
        """The step `rolling_back`: what served before does so; the new slot goes, so that no retry believes it."""
        active = self._state.current.active
        self._slots.keep(self.kept, parts=self._state.current.next is not None)
        detail = {"from": job.target, "to": active.label if active else None, "reason": job.reason}
        self._tell("rollback", {**detail, "detail": job.detail})
        return Outcome("restored")

    @property
    def kept(self) -> set[str]:
        """Contents of the slots that are committed, or that a state file which could not be written still names."""
        states = (self._state.current, self._state.saved)
        slots = [slot for state in states for slot in (state.active, state.previous)]
        return {slot.content_id for slot in slots if slot is not None}
