"""What the agent must remember over a power cut: one file, the old one or the new one. Never fatal to read."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgekit.agent.slots import Slot
from edgekit.core import checks, jobs
from edgekit.core.bench import BenchReport, parse_reports, reports_json
from edgekit.core.checks import integer, name, number, optional, table, text
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.files import write_atomic
from edgekit.core.policy import PolicySpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What was commanded, and how far it came: the one job that makes a bundle run, or a one-shot.

    rev: of the desired state; a one-shot's number. restarts: how often the agent ended over its bundle. reported: its
    end stands in the outbox. reports: what was measured, until they are there. config: settings commanded with it.
    action: of a one-shot.
    """

    job_id: str
    rev: int
    target: str | None  # name/version; None: policy and interval only
    policy: PolicySpec | None
    interval_s: float | None
    expires: float
    state: str = "received"
    reason: str | None = None
    detail: str | None = None
    restarts: int = 0
    reported: bool = False
    reports: tuple[BenchReport, ...] = ()
    config: Mapping[str, Any] | None = None
    action: str = "measure"
    extra: Mapping[str, Any] = field(default_factory=dict)  # what a newer agent wrote, kept for it

    @property
    def ended(self) -> bool:
        """Whether no event can move it any more."""
        return self.state in jobs.FINAL

    @classmethod
    def parse(cls, value: object, where: str) -> Job:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            job_id=name(data.get("job_id"), f"{where}.job_id"),
            rev=integer(data.get("rev"), f"{where}.rev"),
            target=optional(data.get("target"), f"{where}.target", text),
            policy=optional(data.get("policy"), f"{where}.policy", PolicySpec.parse),
            interval_s=optional(data.get("interval_s"), f"{where}.interval_s", number),
            expires=number(data.get("expires"), f"{where}.expires"),
            state=checks.choice(data.get("state"), f"{where}.state", jobs.STATES),
            reason=optional(data.get("reason"), f"{where}.reason", text),
            detail=optional(data.get("detail"), f"{where}.detail", text),
            restarts=integer(data.get("restarts"), f"{where}.restarts"),
            reported=checks.flag(data.get("reported"), f"{where}.reported"),
            reports=parse_reports(data.get("reports", []), f"{where}.reports"),
            config=optional(data.get("config"), f"{where}.config", table),
            action=text(data.get("action", "measure"), f"{where}.action"),
            extra=_unknown(cls, data),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            **self.extra,
            "job_id": self.job_id,
            "rev": self.rev,
            "target": self.target,
            "policy": self.policy.to_json() if self.policy else None,
            "interval_s": self.interval_s,
            "expires": self.expires,
            "state": self.state,
            "reason": self.reason,
            "detail": self.detail,
            "restarts": self.restarts,
            "reported": self.reported,
            "config": None if self.config is None else dict(self.config),
            "action": self.action,
            **({"reports": reports_json(self.reports)} if self.reports else {}),
        }


@dataclass(frozen=True)
class State:
    """rev, n: of the last command. policy, interval_s, config: what it commanded; None: as configured.

    job: the one at work or the last one. next: commanded meanwhile, waits until that one has ended.
    owed: earlier jobs whose end the outbox did not take. shots: one-shots, the oldest first, ended ones too; shot_n:
    the number of the last one. lost: why the last committed bundle serves no more.
    commits: how many bundles were ever committed. failed_starts: starts in a row that died before the active bundle was
    open; short_runs: that died soon after, where it never served for long; proven: the content that did. metadata:
    highest TUF version seen, by role; metadata_keys: under which keys; metadata_expires: Unix time.
    good_time: the latest Unix time at which fresh metadata was valid; the clock is never believed to be before it.
    """

    rev: int = 0
    n: int = 0
    job: Job | None = None
    next: Job | None = None
    active: Slot | None = None
    previous: Slot | None = None
    commits: int = 0
    failed_starts: int = 0
    policy: PolicySpec | None = None
    interval_s: float | None = None
    metadata: Mapping[str, int] = field(default_factory=dict)
    good_time: float = 0.0
    owed: tuple[Job, ...] = ()
    lost: str | None = None
    shots: tuple[Job, ...] = ()
    shot_n: int = 0
    config: Mapping[str, Any] | None = None
    metadata_keys: Mapping[str, str] = field(default_factory=dict)
    metadata_expires: Mapping[str, float] = field(default_factory=dict)
    short_runs: int = 0
    proven: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # as a Job's

    @classmethod
    def parse(cls, value: object, where: str) -> State:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        if data.get("v") != 1:
            raise checks.wrong(f"{where}: v", "1", data.get("v"))
        metadata = table(data.get("metadata"), f"{where}: metadata")
        keys = table(data.get("metadata_keys", {}), f"{where}: metadata_keys")
        expires = table(data.get("metadata_expires", {}), f"{where}: metadata_expires")
        return cls(
            rev=integer(data.get("rev"), f"{where}: rev"),
            n=integer(data.get("n"), f"{where}: n"),
            job=optional(data.get("job"), f"{where}: job", Job.parse),
            next=optional(data.get("next"), f"{where}: next", Job.parse),
            active=optional(data.get("active"), f"{where}: active", Slot.parse),
            previous=optional(data.get("previous"), f"{where}: previous", Slot.parse),
            commits=integer(data.get("commits"), f"{where}: commits"),
            failed_starts=integer(data.get("failed_starts"), f"{where}: failed_starts"),
            policy=optional(data.get("policy"), f"{where}: policy", PolicySpec.parse),
            interval_s=optional(data.get("interval_s"), f"{where}: interval_s", number),
            config=optional(data.get("config"), f"{where}: config", table),
            metadata_keys={role: text(key, f"{where}: metadata_keys.{role}") for role, key in keys.items()},
            metadata_expires={
                role: number(time, f"{where}: metadata_expires.{role}") for role, time in expires.items()
            },
            metadata={
                role: integer(version, f"{where}: metadata.{role}") for role, version in metadata.items()
            },
            good_time=number(data.get("good_time"), f"{where}: good_time", 0.0),
            owed=checks.rows(data.get("owed", []), f"{where}: owed", Job.parse),
            lost=optional(data.get("lost"), f"{where}: lost", text),
            shots=checks.rows(data.get("shots", []), f"{where}: shots", Job.parse),
            shot_n=integer(data.get("shot_n", 0), f"{where}: shot_n"),
            short_runs=integer(data.get("short_runs", 0), f"{where}: short_runs"),
            proven=optional(data.get("proven"), f"{where}: proven", checks.sha256),
            extra=_unknown(cls, data),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            **self.extra,
            "v": 1,
            "rev": self.rev,
            "n": self.n,
            "job": self.job.to_json() if self.job else None,
            "next": self.next.to_json() if self.next else None,
            "active": self.active.to_json() if self.active else None,
            "previous": self.previous.to_json() if self.previous else None,
            "commits": self.commits,
            "failed_starts": self.failed_starts,
            "policy": self.policy.to_json() if self.policy else None,
            "interval_s": self.interval_s,
            "config": None if self.config is None else dict(self.config),
            "metadata": dict(self.metadata),
            "metadata_keys": dict(self.metadata_keys),
            "metadata_expires": dict(self.metadata_expires),
            "good_time": self.good_time,
            "owed": [job.to_json() for job in self.owed],
            "lost": self.lost,
            "shots": [job.to_json() for job in self.shots],
            "shot_n": self.shot_n,
            "short_runs": self.short_runs,
            "proven": self.proven,
        }


def _unknown(kind: type[Job | State], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that this version does not know: a newer agent wrote them, and may come again."""
    known = {"v", *(entry.name for entry in fields(kind))}
    return {key: value for key, value in data.items() if key not in known}


def _set_aside(path: Path) -> None:
    """What is no file, and no link to one, cannot be replaced by one: it gives up the name."""
    if path.is_file() or not os.path.lexists(path):
        return
    aside = path.with_name(f"{path.name}.damaged")
    log.error("%s is no file: set aside as %s", path, aside.name)
    try:
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        path.replace(aside)
    except OSError as err:
        log.error("%s: could not be set aside: %s", path, err.strerror)  # noqa: TRY400  (the line says it all)


class StateFile:
    """The state in memory and on disk. Safe from several threads; a reader takes `current` once and keeps it."""

    def __init__(self, path: Path, repair: Callable[[], State]) -> None:
        """Load `path`; no file is the first start. An unreadable one is replaced by what `repair` finds.

        repaired: why it had to be repaired, None when it had not. saved: what is on disk, as far as it is known.
        """
        self._path = path
        self._lock = threading.Lock()
        self._unsaved = False
        self.saved = State()
        self.repaired: str | None = None
        _set_aside(path)
        try:
            self.current = State.parse(checks.parse_json(path.read_bytes(), str(path)), str(path))
        except FileNotFoundError:
            self.current = repair()
            if self.current != State():
                self.repaired = "the file was gone"
        except (BadInput, OSError) as err:
            self.repaired = one_line(err)
            self.current = repair()
        else:
            self.saved = self.current
        if self.repaired is not None:
            log.warning("state repaired: %s", self.repaired)
            self._unsaved = True
            self.note()

    def commit(self, **changes: object) -> State:
        """Change fields; on disk before this returns. Raises WorldFailed, and then nothing has changed."""
        with self._lock:
            wanted = replace(self.current, **changes)  # type: ignore[arg-type]  # field names are the caller's
            if wanted != self.current or self._unsaved:
                write_atomic(self._path, checks.canonical_json(wanted.to_json()), 0o600)
                self._unsaved = False
                self.saved = wanted
            self.current = wanted
            return wanted

    def note(self, **changes: object) -> State:
        """Change fields; a disk that fails is logged, and the next change writes all of it."""
        try:
            return self.commit(**changes)
        except WorldFailed as err:
            log.error("state kept in memory only: %s", one_line(err))  # noqa: TRY400  (the line says it all)
            with self._lock:
                self.current = replace(self.current, **changes)  # type: ignore[arg-type]  # as above
                self._unsaved = True
                return self.current
