"""The steps of `measure`: fetch a round of candidates, time them in a child, report. Touches no slot.

What serves goes on serving: nothing here reaches the runner, and what it fetches is gone when the job has ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.agent.bench import RoundFailed
from edgekit.agent.jobs import Expired, Outcome
from edgekit.agent.repository.base import Found, Repository
from edgekit.agent.shots import Step, Turn, begun_again
from edgekit.agent.state import Job
from edgekit.core.bench import BenchReport
from edgekit.core.candidates import target_of_candidates, unpack_candidates
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.target import parse_label
from edgekit.core.trust import Board, decide, refusal

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


class Measurer:
    """A shots.Action."""

    def __init__(
        self,
        *,
        folder: Path,
        repository: Callable[[], Repository],
        time_candidates: TimeCandidates,
        board: Callable[[], Board],
        machine: Machine,
        max_bytes: int,
    ) -> None:
        """folder: for what is fetched, beside the slots."""
        self._folder = folder
        self._repository = repository
        self._time_candidates = time_candidates
        self._board = board
        self._machine = machine
        self._max_bytes = max_bytes
        self._found: Found | None = None
        self.steps: Mapping[str, Step] = {
            "received": self._received,
            "downloading": self._downloading,
            "verifying": self._verifying,
            "measuring": self._measuring,
        }

    def resumed(self, job: Job) -> Job:
        """See shots.Action."""
        return begun_again(job)

    def clean_up(self) -> None:
        """See shots.Action."""
        self._found = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _received(self, job: Job, turn: Turn) -> Outcome:
        label = job.target or ""
        if not self._board().accepts_measure:
            raise refusal("measure-not-accepted", "limits.accepts_measure is false")
        name, version = parse_label(label, "target")
        found = turn.patiently(job, lambda: self._repository().find(name, version, "measure"))
        decide(found.target, self._board(), None, "measure").enforce()
        if found.length > self._max_bytes:
            raise refusal("beyond-limits", f"{label} is {found.length} bytes, here at most {self._max_bytes}")
        self._found = found
        return Outcome("accept")

    def _downloading(self, job: Job, turn: Turn) -> Outcome:
        found = self._known()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as err:
            raise WorldFailed(f"{self._folder}: could not be made: {err.strerror}") from err
        turn.patiently(job, lambda: self._repository().fetch(found, self._part, lambda: turn.check(job)))
        return Outcome("fetched")

    def _verifying(self, job: Job, turn: Turn) -> Outcome:
        turn.check(job)
        target = self._known().target
        try:
            shutil.rmtree(self._unpacked, ignore_errors=True)
            self._unpacked.mkdir(mode=0o700)
            bundles = unpack_candidates(self._part, self._unpacked, self._max_bytes)
            if any(bundle.manifest.executes_code for bundle in bundles) and not self._board().accepts_code:
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

    def _measuring(self, job: Job, turn: Turn) -> Outcome:
        try:
            reports = self._time_candidates(self._unpacked, lambda: turn.check(job))
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
