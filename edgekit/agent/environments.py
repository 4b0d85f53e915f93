"""The steps of `update-agent`: fetch and install an environment beside the running one, and stand its trial.

The supervisor (supervisor.py) starts agents and says which environment is confirmed; here is the agent's side of the
files between them. The job is walked by two agents: the old one, up to its order to try the new environment and, where
that failed, to the job's end; and the new one, on trial, from there to the job's end where it passed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.agent import supervisor as files
from edgekit.agent.jobs import Expired, Outcome, Stopping
from edgekit.agent.repository.base import Found, Repository
from edgekit.agent.shots import Step, Turn, begun_again
from edgekit.agent.slots import check_room
from edgekit.agent.state import Job
from edgekit.core import checks
from edgekit.core.environment import AGENT, Environment, target_of_environment
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.files import sync_folder, write_atomic
from edgekit.core.target import parse_label
from edgekit.core.trust import Board, Running, decide, refusal

log = logging.getLogger(__name__)
BEFORE = "before.json"  # what the old agent did when it gave way
STATE_COPY = "state.before.json"  # the agent's own state then, beside its state file
_PART, _NEW = ".part-", ".new-"
_POLL_S = 0.1

Install = Callable[[Path, Path, Callable[[], None]], None]
"""wheels.install without its limits: file, folder, check."""


@dataclass(frozen=True)
class Service:
    """What an agent does for the board. bundle: content_id of what serves. connected: to the broker."""

    bundle: str | None
    connected: bool

    def missing(self, wanted: Service) -> str | None:
        """What of `wanted` it does not do."""
        if wanted.bundle is not None and self.bundle is None:
            return "nothing serves, and a bundle served before"
        if wanted.connected and not self.connected:
            return "not connected to the broker, and it was before"
        return None


class Supervised:
    """The supervisor's folder as the agent that it started sees it."""

    def __init__(self, root: Path, name: str, job: str | None) -> None:
        """name: of this agent's environment. job: the one it stands its trial for; None: it is confirmed."""
        self.root, self.name, self.job = root, name, job
        self.folder = root / files.FOLDER
        self.environment = self.read(name)

    def read(self, name: str) -> Environment | None:
        """What an installed environment is; None where it is not there, or did not come by an update."""
        try:
            data = (self.folder / name / files.MANIFEST).read_bytes()
            return Environment.parse(checks.parse_json(data, name), name)
        except (OSError, BadInput):
            return None

    @property
    def label(self) -> str | None:
        """`name/version` of this agent's environment."""
        return self.environment.label if self.environment else None

    @property
    def running(self) -> Running | None:
        """The same, for core.trust."""
        own = self.environment
        return Running(own.name, own.version, own.content_id) if own else None

    def holds(self, content_id: str) -> bool:
        """Whether that environment is installed, whole."""
        found = self.read(content_id)
        return (
            found is not None
            and found.content_id == content_id
            and bool(files.command(self.root, content_id))
        )

    def verdict(self, job_id: str) -> tuple[bool, str, str] | None:
        """What the supervisor says of a job's trial: passed, reason, detail. None: nothing yet."""
        last = files.read(self.root / files.STATE).get("last")
        if not isinstance(last, dict) or last.get("job") != job_id:
            return None
        return last.get("passed") is True, str(last.get("reason")), str(last.get("detail"))

    def order(self, content_id: str, job_id: str) -> None:
        """Have the supervisor try that environment once this agent has ended with SWITCH. Raises WorldFailed."""
        self.write(files.ORDER, {"id": content_id, "job": job_id})

    def confirm(self) -> None:
        """Have the supervisor keep this environment. Raises WorldFailed."""
        self.write(files.CONFIRMED, {"id": self.name, "job": self.job})

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """One file of the folder. Raises WorldFailed."""
        write_atomic(self.root / name, checks.canonical_json(value), 0o600)

    def before(self) -> Service:
        """What the old agent did when it gave way."""
        found = files.read(self.root / BEFORE)
        bundle = found.get("bundle")
        return Service(bundle if isinstance(bundle, str) else None, found.get("connected") is True)

    def kept(self) -> set[str] | None:
        """The environments that must stay; None where nobody knows, for the supervisor's state cannot be read."""
        state = files.read(self.root / files.STATE)
        if not state:
            return None
        trial = state.get("trial")
        on_trial = trial.get("id") if isinstance(trial, dict) else None
        named = (self.name, state.get("current"), state.get("previous"), on_trial)
        return {name for name in named if isinstance(name, str)}


def supervised(environ: Mapping[str, str]) -> Supervised | None:
    """The supervisor that started this process; None where there is none."""
    root, name = environ.get(files.ROOT_KEY), environ.get(files.ID_KEY)
    return Supervised(Path(root), name, environ.get(files.JOB_KEY) or None) if root and name else None


def board_of(profile: str) -> Board:
    """What an environment for this very Python and machine must be made for."""
    kind, version = platform.libc_ver()
    return Board(
        profile,
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        machine=platform.machine(),
        glibc=version if kind == "glibc" else None,
    )


class Environments:
    """A shots.Action."""

    def __init__(
        self,
        *,
        site: Supervised | None,
        repository: Callable[[], Repository],
        install: Install,
        board: Board,
        max_bytes: int,
        state_file: Path,
        idle: Callable[[], bool],
        service: Callable[[], Service],
        unhealthy: Callable[[], str | None],
        steady_s: float,
        leave: Callable[[], None],
        passed: Callable[[], None],
        tell: Callable[[str, Mapping[str, object]], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """site: None where no supervisor started this agent. idle: no bundle job is under way.

        unhealthy: why some thread of this agent does not get on. steady_s: how long a new agent must do well. leave:
        end this agent for the supervisor to start another. passed: called once this agent is confirmed. say: a status.
        """
        self._site = site
        self._repository = repository
        self._install = install
        self._board = board
        self._max_bytes = max_bytes
        self._state_file = state_file
        self._idle = idle
        self._service = service
        self._unhealthy = unhealthy
        self._steady_s = steady_s
        self._leave = leave
        self._passed = passed
        self._tell = tell
        self._say = say
        self._clock = clock
        self._found: Found | None = None
        self.steps: Mapping[str, Step] = {
            "received": self._received,
            "downloading": self._downloading,
            "verifying": self._verifying,
            "installed": self._installed,
            "trial": self._trial,
            "rolling_back": self._rolling_back,
        }

    def resumed(self, job: Job) -> Job:
        """See shots.Action. A trial goes on, or has come to an end: the supervisor knows."""
        site = self._site
        tried = site is not None and (site.job == job.job_id or site.verdict(job.job_id) is not None)
        return job if job.state == "rolling_back" or (tried and job.state == "trial") else begun_again(job)

    def clean_up(self) -> None:
        """See shots.Action."""
        self._found = None
        if self._site is None or self._site.job is not None:
            return
        self._keep_what_is_needed(self._site)
        for file in (self._site.root / BEFORE, self._copy):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    @property
    def _copy(self) -> Path:
        return self._state_file.with_name(STATE_COPY)

    # --- steps of the old agent ----------------------------------------------------------------------------------

    def _received(self, job: Job, turn: Turn) -> Outcome:
        site, label = self._known_site(), job.target or ""
        name, version = parse_label(label, "target")
        found = turn.patiently(job, lambda: self._repository().find(name, version, AGENT))
        decide(found.target, self._board, site.running, AGENT).enforce()
        if found.length > self._max_bytes:
            raise refusal("beyond-limits", f"{label} is {found.length} bytes, here at most {self._max_bytes}")
        self._found = found
        if site.holds(found.target.content_id):
            return Outcome("present")
        check_room(site.folder, found.length)  # what it unpacks to is known once it is here (wheels.py)
        return Outcome("accept")

    def _downloading(self, job: Job, turn: Turn) -> Outcome:
        found = self._known()
        part = self._part(found)
        try:
            part.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as err:
            raise WorldFailed(f"{part.parent}: could not be made: {err.strerror}") from err
        try:
            turn.patiently(job, lambda: self._repository().fetch(found, part, lambda: turn.check(job)))
        except EdgekitError:
            self._remove(part.parent)
            raise
        return Outcome("fetched")

    def _verifying(self, job: Job, turn: Turn) -> Outcome:
        turn.check(job)
        site, found = self._known_site(), self._known()
        content_id = found.target.content_id
        if site.holds(content_id):
            return Outcome("verified")
        part, new, final = self._part(found), site.folder / f"{_NEW}{content_id}", site.folder / content_id
        self._remove(new)
        try:
            self._install(part, new, lambda: turn.check(job))
            self._fits(new, found)
            if final.exists():
                self._remove(final)
            new.rename(final)
            sync_folder(site.folder)
        except BadInput as err:
            raise refusal("bad-bundle", one_line(err)) from err
        except OSError as err:
            raise WorldFailed(f"{final}: could not be installed: {err.strerror or err}") from err
        finally:
            self._remove(new)
        self._remove(part.parent)
        return Outcome("verified")

    def _fits(self, folder: Path, found: Found) -> None:
        """The file says of itself what the signed entry says of it."""
        installed = self._known_site().read(folder.name)
        if (
            installed is None
            or replace(target_of_environment(installed), state=found.target.state) != found.target
        ):
            raise BadInput(f"{found.target.label} is not the environment that was signed")

    def _installed(self, job: Job, turn: Turn) -> Outcome:
        """What is under way with bundles is finished first: one of them at a time stands its trial."""
        try:
            while not self._idle():
                turn.check(job)
                turn.pause(_POLL_S)
            turn.check(job)
        except Expired:
            return Outcome("expire", None, "its time was over before the board was ready to try it")
        return Outcome("start")

    def _trial(self, job: Job, turn: Turn) -> Outcome:
        site = self._known_site()
        verdict = site.verdict(job.job_id)
        if verdict is not None:
            return self._ended(verdict)
        if site.job == job.job_id:
            return self._stand(job, turn)
        content_id = self._known().target.content_id
        if content_id == site.name:
            return Outcome("pass")
        self._give_way(site, content_id, job.job_id)
        raise Stopping

    def _give_way(self, site: Supervised, content_id: str, job_id: str) -> None:
        """Keep what the next agent may need to come back to, say what is to be tried, and end. Raises WorldFailed."""
        now = self._service()
        site.write(BEFORE, {"bundle": now.bundle, "connected": now.connected})
        try:
            write_atomic(self._copy, self._state_file.read_bytes(), 0o600)
        except OSError as err:
            raise WorldFailed(f"{self._state_file}: could not be copied: {err.strerror or err}") from err
        site.order(content_id, job_id)
        log.info("environment %s goes on trial, this agent gives way", content_id[:12])
        self._leave()

    def _rolling_back(self, job: Job, turn: Turn) -> Outcome:
        site = self._known_site()
        self._keep_what_is_needed(site)  # so that a retry does not find it and believe it
        self._tell(
            "rollback", {"from": job.target, "to": site.label, "reason": job.reason, "detail": job.detail}
        )
        return Outcome("restored")

    # --- steps of the new one ------------------------------------------------------------------------------------

    def _stand(self, job: Job, turn: Turn) -> Outcome:
        """Do well for a while, confirm that, and wait until the supervisor has taken note."""
        site, since, confirmed = self._known_site(), self._clock(), False
        before = site.before()
        while (verdict := site.verdict(job.job_id)) is None:
            with contextlib.suppress(Expired):  # a trial that began is ended by its own limits
                turn.check(job)
            why = self._unhealthy() or self._service().missing(before)
            if why is not None:
                self._say(f"on trial: {why}")
                since = self._clock()
            elif not confirmed and self._clock() - since >= self._steady_s:
                try:
                    site.confirm()
                    confirmed = True
                except WorldFailed as err:
                    self._say(f"on trial: {one_line(err)}")
            turn.pause(_POLL_S)
        return self._ended(verdict)

    def _ended(self, verdict: tuple[bool, str, str]) -> Outcome:
        passed, reason, detail = verdict
        if not passed:
            return Outcome("fail", reason, detail)
        site = self._known_site()
        site.job = None
        self._passed()
        return Outcome("pass")

    # --- small ---------------------------------------------------------------------------------------------------

    def _part(self, found: Found) -> Path:
        return self._known_site().folder / f"{_PART}{found.sha256}" / "environment.env"

    def _known_site(self) -> Supervised:
        if self._site is None:
            raise refusal("no-supervisor")
        return self._site

    def _known(self) -> Found:
        if self._found is None:  # every walk of the old agent begins at `received`
            raise BadInput("a step of this job was skipped")
        return self._found

    def _keep_what_is_needed(self, site: Supervised) -> None:
        """Remove every other environment and what interrupted work left behind."""
        kept = site.kept()
        try:
            folders = sorted(site.folder.iterdir())
        except OSError as err:
            log.warning("%s: could not be looked through: %s", site.folder, err.strerror)
            return
        for folder in folders:
            unneeded = kept is not None and folder.name not in kept and checks.SHA256.fullmatch(folder.name)
            if unneeded or folder.name.startswith((_PART, _NEW)):
                self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Take the name away first, so that half an environment is never taken for one."""
        if not folder.exists():
            return
        try:
            gone = folder.with_name(f"{_NEW}gone-{os.getpid()}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        except OSError as err:
            log.warning("%s: could not be removed: %s", folder, err.strerror)
