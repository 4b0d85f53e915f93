"""Look at the signed metadata without a job: what was revoked since, and what is about to expire. Fetches no bundle."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

from edgekit.agent.clock import trusted
from edgekit.agent.jobs import Outcome
from edgekit.agent.repository.base import NetworkFailed, Repository
from edgekit.agent.shots import Step, Turn, begun_again
from edgekit.agent.state import Job, StateFile
from edgekit.agent.threads import Loop
from edgekit.core.errors import Refused, WorldFailed, one_line
from edgekit.core.trust import LIVES_S, near_expiry

log = logging.getLogger(__name__)
FIRST_S = (60.0, 600.0)  # after a start; boards that start together do not ask together
_RETRY_S = 900.0
_SPREAD = 0.1
EXPIRING, REFUSED = "metadata-expiring", "metadata-refused"


class Refresher(Loop):
    """Asks now and then for as long as the agent runs."""

    def __init__(
        self,
        *,
        state: StateFile,
        repository: Callable[[], Repository],
        every_s: Callable[[], float],
        withdraw: Callable[[Sequence[str]], None],
        tell: Callable[[str, Mapping[str, object]], None],
        changed: Callable[[], None],
        now: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """withdraw: gets the bundles here that were revoked. tell: puts an Event into the outbox.

        changed: called when the dates of expiry may be others.
        """
        super().__init__("refresher")
        self._state = state
        self._repository = repository
        self._every_s = every_s
        self._withdraw = withdraw
        self._tell = tell
        self._changed = changed
        self._now = now
        self._draw = draw
        self._told: set[tuple[str, float]] = set()  # alarms: role and date
        self._refused: str | None = None

    def run(self) -> None:
        """The thread."""
        first, last = FIRST_S
        wait = first + (last - first) * self._draw()
        while True:
            self._pause(wait)
            if self._stopping:
                return
            try:
                wait = self.look()
            except Exception:
                log.exception("refresher met a defect and goes on")
                wait = _RETRY_S

    def refresh(self) -> None:
        """Look at the metadata now. Raises Refused, NetworkFailed, WorldFailed."""
        state = self._state.current
        labels = [slot.label for slot in (state.active, state.previous) if slot is not None]
        job = state.job
        if job is not None and job.target is not None and not job.ended and job.target not in labels:
            labels.append(job.target)  # it may be on trial
        standing = self._repository().standing(labels)
        self._refused = None
        revoked = [label for label, state in standing.items() if state == "revoked"]
        if revoked:
            self._withdraw(revoked)
        self._warn()
        self._changed()

    def look(self) -> float:
        """Refresh once, whatever comes of it; the seconds to the next time."""
        try:
            self.refresh()
        except NetworkFailed as err:
            log.info("metadata not refreshed: %s", one_line(err))
            self._warn()
            return _RETRY_S
        except Refused as err:
            if err.reason != self._refused:
                log.warning("metadata refused: %s", one_line(err))
                self._tell(REFUSED, {"reason": err.reason, "detail": one_line(err)})
            self._refused = err.reason
            self._warn()
            return _RETRY_S
        except WorldFailed as err:
            log.warning("metadata not refreshed: %s", one_line(err))
            return _RETRY_S
        return self._every_s() * (1 - _SPREAD + 2 * _SPREAD * self._draw())

    def _warn(self) -> None:
        """Once for each role and date of which less than a third of its life is left."""
        state = self._state.current
        now = trusted(self._now(), state.good_time)
        if now is None:
            return
        for role, expires in state.metadata_expires.items():
            alarm = (role, expires)
            if role not in LIVES_S or not near_expiry(role, expires, now) or alarm in self._told:
                continue
            self._told.add(alarm)
            at = datetime.fromtimestamp(expires, timezone.utc).isoformat()
            log.warning("metadata: %s expires %s: after that this board takes no update", role, at)
            self._tell(
                EXPIRING, {"role": role, "expires": at, "days_left": round((expires - now) / 86_400, 1)}
            )


class Refresh:
    """A shots.Action: the server asks for a look now, since something was revoked."""

    def __init__(self, refresher: Refresher) -> None:
        self._refresher = refresher

    @property
    def steps(self) -> Mapping[str, Step]:
        return {"received": self._received}

    def resumed(self, job: Job) -> Job:
        return begun_again(job)

    def clean_up(self) -> None:
        """Nothing is left behind."""

    def _received(self, job: Job, turn: Turn) -> Outcome:
        turn.patiently(job, self._refresher.refresh)
        return Outcome("looked")
