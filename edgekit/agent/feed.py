"""Carries the source's inputs to the runner and their answers to the sinks. Counts what never became a request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from edgekit.agent.runner import Request, Runner, Sample
from edgekit.agent.sinks import Sinks
from edgekit.agent.sources import Input, Source
from edgekit.core.errors import BadInput, EdgekitError
from edgekit.core.manifest import Manifest
from edgekit.runtime.session import Answer

log = logging.getLogger(__name__)
MOST = 8  # inputs of the source on their way: enough to keep the runner busy, few enough to hold in memory
_LOOK_S = 0.2


class Feed(threading.Thread):
    """The source's thread; a sources.Taker to it."""

    def __init__(
        self,
        source: Source,
        sinks: Sinks,
        runner: Runner,
        *,
        ended: Callable[[int], None],
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """ended: called with the number of inputs once the source has no more and all of them are answered."""
        super().__init__(name="source", daemon=True)
        self._source = source
        self._sinks = sinks
        self._runner = runner
        self._ended = ended
        self._stopped = threading.Event()
        self._change = threading.Condition()
        self._under_way = 0
        self._dropped = self._taken_dropped = self._taken_lost = 0
        self.tell = tell

    def stop(self) -> None:
        """Take no more inputs; those under way are still answered."""
        self._stopped.set()
        with self._change:
            self._change.notify_all()

    def run(self) -> None:
        """The thread."""
        handed = 0
        try:
            handed = self._source.run(self, self._stopped)
        except Exception:
            log.exception("source met a defect and is over")
        with self._change:
            self._change.wait_for(lambda: self._stopped.is_set() or not self._under_way)
        if not self._stopped.is_set():
            self._ended(handed)

    def take_counts(self) -> tuple[int, int]:
        """Inputs dropped, and answers lost, since the last time."""
        with self._change:
            dropped, lost = self._dropped, self._sinks.lost
            new = dropped - self._taken_dropped, lost - self._taken_lost
            self._taken_dropped, self._taken_lost = dropped, lost
        return new

    # --- what the source calls -----------------------------------------------------------------------------------

    def __call__(self, given: Input, /) -> bool:
        """See sources.Taker."""
        with self._change:
            self._change.wait_for(lambda: self._stopped.is_set() or self._under_way < MOST)
            if self._stopped.is_set():
                return False
            self._under_way += 1
        request = self._request(given)
        while not self._stopped.is_set():
            if self._runner.submit(request, _LOOK_S):
                return True
        self._left()
        return False

    def refuse(self, name: str | None, why: str) -> None:
        """See sources.Taker."""
        self.let_go(1)
        self._sinks.give(name, BadInput(why), None)

    def let_go(self, count: int) -> None:
        """See sources.Taker."""
        with self._change:
            self._dropped += count

    @property
    def serves(self) -> bool:
        """See sources.Taker."""
        return self._runner.serving is not None

    def _left(self) -> None:
        with self._change:
            self._under_way -= 1
            self._change.notify_all()

    def _request(self, given: Input) -> Request:
        served: list[Manifest] = []

        def read(manifest: Manifest) -> Sample:
            served[:] = [manifest]
            return given.read(manifest)

        return Request(
            read, partial(self._answered, given, served), policy=given.policy, arrived_s=given.arrived_s
        )

    def _answered(self, given: Input, served: list[Manifest], result: Answer | EdgekitError) -> None:
        try:
            self._sinks.give(given.id(), result, served[0] if served else None)
        except Exception:
            log.exception("an answer met a defect on its way out")
        try:
            if given.done is not None:
                given.done()
        except Exception:
            log.exception("an answered input met a defect")
        self._left()
