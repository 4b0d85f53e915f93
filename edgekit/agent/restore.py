"""Which committed bundle serves: at the start, and when it turns out that one cannot. Installs nothing.

A slot gives way to the one before it when it is damaged, when the agent died three times in a row while opening it, and
when it died three times in a row within a minute of serving it and it has never served for longer. Counts stand in the
state file; a clean end counts as none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from edgekit.agent.serving import Server
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import StateFile
from edgekit.core.errors import BadInput, EdgekitError, MissingExtra, one_line
from edgekit.core.policy import PolicySpec
from edgekit.core.trust import REASONS

log = logging.getLogger(__name__)
MAX_FAILED_STARTS = 3
HEALTHY_S = 60.0  # who has served for so long has started well
LOOK_S = 3600.0  # how often the slots are verified while they are not opened

Tell = Callable[[str, Mapping[str, object]], None]
"""Puts an Event (kind, detail) into the outbox."""


class Committed:
    """The committed slots and what serves of them. Called from the worker's thread, and before that starts."""

    def __init__(
        self,
        state: StateFile,
        slots: Slots,
        server: Server,
        policy: PolicySpec,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """policy: the configured one. clock: seconds, monotonic."""
        self._state = state
        self._slots = slots
        self._server = server
        self._policy = policy
        self._tell = tell
        self._clock = clock
        self._healthy_at: float | None = None
        self._look_at = clock() + LOOK_S
        self._told_damaged: set[str] = set()
        self.unserved: str | None = None  # why the active bundle does not serve, although it is kept
        self.damaged: str | None = None  # why it will not at the next start

    # --- what serves ---------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve the first committed slot that can be. What is damaged or kills the agent leaves the state for good."""
        state = self._state.current
        kept = [slot for slot in (state.active, state.previous) if slot is not None]
        if not kept:
            return
        starts, runs, lost = state.failed_starts, state.short_runs, state.lost
        if starts >= MAX_FAILED_STARTS:
            lost = self._cannot_serve(kept.pop(0), f"the agent died {starts} times while opening it", "crash")
            starts = runs = 0
        elif runs >= MAX_FAILED_STARTS and len(kept) > 1:  # with none before it, it is the best there is
            why = f"the agent died {runs} times within {HEALTHY_S:g} s of serving it"
            lost = self._cannot_serve(kept.pop(0), why, "crash")
            runs = 0
        runs += bool(kept) and kept[0].content_id != state.proven
        self._keep(kept, lost, starts + 1, runs)
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
        self._keep(kept, lost, 0, runs)
        self.began()

    def let_go(self, revoked: Collection[str]) -> bool:
        """Serve these labels no more; the one before takes over, if that is not revoked too. False: none is here."""
        state = self._state.current
        kept = [slot for slot in (state.active, state.previous) if slot is not None]
        left = [slot for slot in kept if slot.label not in revoked]
        if len(left) == len(kept):
            return False
        lost = state.lost
        if state.active not in left:
            lost = self._cannot_serve(kept[0], REASONS["revoked"], "revoked")
        self._keep(left, lost, 0, 0)
        if state.active not in left:
            self._server.serve(None, state.policy or self._policy)
            self.serve()
        return True

    def _keep(self, slots: Sequence[Slot], lost: str | None, failed_starts: int, short_runs: int) -> None:
        active, previous = (*slots, None, None)[:2]
        self._state.note(
            active=active, previous=previous, lost=lost, failed_starts=failed_starts, short_runs=short_runs
        )

    def _cannot_serve(self, slot: Slot, why: str, reason: str) -> str:
        """Tell it; the sentence for what is reported from now on."""
        log.error("slot %s cannot serve (%s): %s", slot.label, reason, why)
        self._tell("rollback", {"from": slot.label, "reason": reason, "detail": why})
        return f"{slot.label} cannot serve ({reason}): {why}"

    # --- how it fares --------------------------------------------------------------------------------------------

    def began(self) -> None:
        """Something serves from now on: whether it does so well shows in a minute."""
        state = self._state.current
        is_new = state.active is not None and state.active.content_id != state.proven
        self._healthy_at = self._clock() + HEALTHY_S if is_new or state.short_runs else None

    def committed(self) -> None:
        """A bundle was committed, whole, and serves."""
        self.unserved = self.damaged = None
        self._told_damaged.clear()
        self.began()

    def ended(self) -> None:
        """The agent ends because it was told to: that is no failed start."""
        if self._state.current.short_runs:
            self._state.note(short_runs=0)

    @property
    def due_s(self) -> float:
        """How long until `look` has something to do."""
        return max(0.0, min(self._look_at, self._healthy_at or self._look_at) - self._clock())

    def look(self) -> bool:
        """What is due: note that a bundle has served long enough, verify the slots. True: there is something new."""
        now = self._clock()
        if self._healthy_at is not None and now >= self._healthy_at:
            self._healthy_at = None
            active, serves = self._state.current.active, self._server.in_force.content_id
            held = active is not None and active.content_id == serves
            self._state.note(short_runs=0, proven=serves if held else self._state.current.proven)
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        return self._verify()

    def _verify(self) -> bool:
        """Verify both slots' files. What serves goes on: it was verified when it was opened, and is held in memory."""
        state, found = self._state.current, False
        for slot in (state.active, state.previous):
            if slot is None or slot.content_id in self._told_damaged:
                continue
            try:
                self._slots.open(slot.content_id)
            except BadInput as err:
                found = True
                self._told_damaged.add(slot.content_id)
                log.error("slot %s is damaged: %s", slot.label, one_line(err))  # noqa: TRY400  (the line says it all)
                self._tell("slot-damaged", {"bundle": slot.label, "detail": one_line(err)})
                if slot == state.active:
                    self.damaged = f"{slot.label} serves from memory, its slot is damaged: {one_line(err)}"
            except EdgekitError as err:
                log.warning("slot %s could not be verified: %s", slot.label, one_line(err))
        return found
