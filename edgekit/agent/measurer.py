"""Walk `measure` jobs to their end: fetch a round of candidates, time them in a child, report. Touches no slot.

What serves goes on serving: nothing here reaches the runner, and what it fetches is gone when the job has ended.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edgekit.agent.bench import RoundFailed
from edgekit.agent.clock import trusted
from edgekit.agent.jobs import Expired, Outcome, Step, Stopping, restarted, walk
from edgekit.agent.patience import MAX_RETRY_S, patiently
from edgekit.agent.remote import Found, Repository
from edgekit.agent.state import Job, StateFile
from edgekit.core.bench import BenchReport
from edgekit.core.candidates import target_of_candidates, unpack_candidates
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.target import parse_label
from edgekit.core.trust import Board, decide, refusal

log = logging.getLogger(__name__)
T = TypeVar("T")
KEPT = 8  # jobs that are remembered, ended ones too: a command that comes again meets its own

TimeCandidates = Callable[[Path, Callable[[], None]], tuple[BenchReport, ...]]


@dataclass(frozen=True)
class Machine:
    """What the figures say about where they come from. busy: whether a bundle serves meanwhile."""

    device: str
    profile: str
    provenance: str
    on: str
    busy: Callable[[], bool]

    def label(self, report: BenchReport) -> BenchReport:
        """The report as this board's."""
        return replace(
            report,
            device=self.device,
            profile=self.profile,
            provenance=self.provenance,
            on=self.on,
            busy=self.busy(),
        )


class Measurer(threading.Thread):
    """One job after the other, in the order of their numbers."""

    def __init__(
        self,
        *,
        folder: Path,
        state: StateFile,
        repository: Callable[[], Repository],
        time_candidates: TimeCandidates,
        board: Board,
        machine: Machine,
        max_bytes: int,
        report: Callable[[Job], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        """folder: for what is fetched, beside the slots. report: puts a JobEvent into the outbox; False: not taken."""
        super().__init__(name="measurer", daemon=True)
        self._folder = folder
        self._state = state
        self._repository = repository
        self._time_candidates = time_candidates
        self._board = board
        self._machine = machine
        self._max_bytes = max_bytes
        self._report = report
        self._now = now
        self._wake = threading.Condition()
        self._saving = threading.RLock()
        self._stopping = False
        self._waiting_for: str | None = None
        self._found: Found | None = None
        self._steps: Mapping[str, Step] = {
            "received": self._received,
            "downloading": self._downloading,
            "verifying": self._verifying,
            "measuring": self._measuring,
        }

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

    def stop(self, timeout_s: float) -> None:
        """Leave the job where it is and end; the child goes first."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self.is_alive():
            self.join(timeout_s)

    def restore(self) -> None:
        """Pick up what was interrupted; remove what was left behind."""
        job = self._next()
        if job is None:
            self._clean_up()
        elif job.state != "received" or job.restarts:
            self._saved(restarted(job))
        self.report_again()

    def report_again(self) -> None:
        """Report ends that have not reached the outbox yet."""
        with self._saving:
            for job in self._state.current.shots:
                if job.ended and not job.reported:
                    self._tell(job)

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The thread: every job in turn."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._next() is not None)
            job = self._next()
            if self._stopping or job is None:
                return
            try:
                walk(job, self._steps, self._saved)
            except Stopping:
                return
            except Exception:
                log.exception("measurer met a defect and goes on")
                with self._wake:
                    self._wake.wait(MAX_RETRY_S)
            self._found = None
            self._clean_up()

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

    def _check(self) -> None:
        if self._stopping:
            raise Stopping

    def _check_time(self, job: Job) -> None:
        """Raise where the job must not go on."""
        self._check()
        now = trusted(self._now(), self._state.current.good_time)
        if now is not None and now > job.expires:
            raise Expired(self._waiting_for or "it came too late")

    def _patiently(self, job: Job, action: Callable[[], T]) -> T:
        def waits(why: str | None) -> None:
            if why is not None and self._waiting_for is None:
                log.warning("job %s waits: %s", job.job_id, why)
            self._waiting_for = why

        def pause(seconds: float) -> None:
            with self._wake:
                if not self._stopping:
                    self._wake.wait(seconds)

        return patiently(action, lambda: self._check_time(job), waits, pause)

    def _clean_up(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- steps ---------------------------------------------------------------------------------------------------

    def _received(self, job: Job) -> Outcome:
        label = job.target or ""
        if not self._board.accepts_measure:
            raise refusal("measure-not-accepted", "limits.accepts_measure is false")
        name, version = parse_label(label, "target")
        found = self._patiently(job, lambda: self._repository().find(name, version, "measure"))
        decide(found.target, self._board, None, "measure").enforce()
        if found.length > self._max_bytes:
            raise refusal("beyond-limits", f"{label} is {found.length} bytes, here at most {self._max_bytes}")
        self._found = found
        return Outcome("accept")

    def _downloading(self, job: Job) -> Outcome:
        found = self._known()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as err:
            raise WorldFailed(f"{self._folder}: could not be made: {err.strerror}") from err
        self._patiently(
            job, lambda: self._repository().fetch(found, self._part, lambda: self._check_time(job))
        )
        return Outcome("fetched")

    def _verifying(self, job: Job) -> Outcome:
        self._check()
        target = self._known().target
        try:
            shutil.rmtree(self._unpacked, ignore_errors=True)
            self._unpacked.mkdir(mode=0o700)
            bundles = unpack_candidates(self._part, self._unpacked, self._max_bytes)
            if any(bundle.manifest.executes_code for bundle in bundles) and not self._board.accepts_code:
                raise refusal("code-not-accepted", target.label)
            if (
                replace(target_of_candidates(target.name, target.version, bundles), state=target.state)
                != target
            ):
                raise BadInput(f"{target.label} does not hold the candidates that were signed")
        except BadInput as err:
            raise refusal("bad-bundle", one_line(err)) from err
        except OSError as err:
            raise WorldFailed(f"{self._unpacked}: could not be made: {err.strerror}") from err
        self._part.unlink(missing_ok=True)
        return Outcome("prepared")

    def _measuring(self, job: Job) -> Outcome:
        try:
            reports = self._time_candidates(self._unpacked, lambda: self._check_time(job))
        except RoundFailed as err:
            return Outcome("fail", err.reason, one_line(err))
        except Expired:
            return Outcome("expire", "late", "its time was over while it was measured")
        return Outcome("measured", reports=tuple(self._machine.label(report) for report in reports))

    @property
    def _part(self) -> Path:
        return self._folder / "round.edge"

    @property
    def _unpacked(self) -> Path:
        return self._folder / "candidates"

    def _known(self) -> Found:
        if self._found is None:  # every walk begins at `received`
            raise BadInput("a step of this job was skipped")
        return self._found
