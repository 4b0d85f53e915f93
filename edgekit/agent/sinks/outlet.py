"""One sink's thread and its bounded buffer: whoever answers never waits for it, and its failures stop nobody."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from edgekit.agent.sinks.base import Sink, SinkOver
from edgekit.core.errors import EdgekitError, WorldFailed, one_line

log = logging.getLogger(__name__)
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 5.0
HELD_BYTES = 4 * 2**20
_STOP_S = 0.5


class Outlet(threading.Thread):
    """Writes what is put, in order. A sink that fails is tried again; what does not fit meanwhile is lost, and counted.

    lost: answers that never went out, so far.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        *,
        tell: Callable[[str, dict[str, Any]], None] = lambda kind, detail: None,
        held_bytes: int = HELD_BYTES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """tell: gets an event when the sink begins to fail, works again, or is over."""
        super().__init__(name=f"sink-{name}", daemon=True)
        self._kind = name
        self._sink = sink
        self._tell = tell
        self._held_bytes = held_bytes
        self._jitter = jitter
        self._change = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._held = 0
        self._failing = self._over = False
        self._finishing, self._stopped = threading.Event(), threading.Event()
        self.lost = 0

    def put(self, line: bytes) -> None:
        """Take a line; never waits. The oldest ones make room for it."""
        with self._change:
            if self._over or self._finishing.is_set():
                self.lost += 1
                return
            self._lines.append(line)
            self._held += len(line)
            while self._held > self._held_bytes and len(self._lines) > 1:
                self._held -= len(self._lines.popleft())
                self.lost += 1
            self._change.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Write what is left, as far as that goes within the time, and end the thread."""
        with self._change:
            self._finishing.set()
            self._change.notify_all()
        if self.is_alive():
            self.join(timeout_s)
            self._stopped.set()
            self.join(_STOP_S)

    def run(self) -> None:
        """The thread."""
        while (line := self._next()) is not None:
            if not self._deliver(line):
                with self._change:
                    self.lost += 1
        self._sink.close()

    def _next(self) -> bytes | None:
        with self._change:
            self._change.wait_for(lambda: self._lines or self._finishing.is_set())
            if not self._lines:
                return None
            line = self._lines.popleft()
            self._held -= len(line)
            return line

    def _deliver(self, line: bytes) -> bool:
        """Try until it works, the sink is over, or the end has come: then once."""
        delay = FIRST_DELAY_S
        while not self._over and not self._stopped.is_set():
            last = self._finishing.is_set()
            try:
                self._sink.write(line, self._stopped)
            except WorldFailed as err:
                self._failed(err)
                if last:
                    return False
                self._finishing.wait(delay * (0.5 + self._jitter() / 2))
                delay = min(2 * delay, MAX_DELAY_S)
            except SinkOver as err:
                self._end(err)
            except Exception as err:
                log.exception("sink %s met a defect and is over", self._kind)
                self._end(err)
            else:
                self._worked()
                return True
        return False

    def _failed(self, err: EdgekitError) -> None:
        """Say it once, not at every try."""
        if not self._failing:
            self._failing = True
            log.warning("sink %s: %s; trying again", self._kind, one_line(err))
            self._tell("sink-failing", {"sink": self._kind, "why": one_line(err)})

    def _worked(self) -> None:
        if self._failing:
            self._failing = False
            log.info("sink %s works again; %d answers were lost so far", self._kind, self.lost)
            self._tell("sink-works", {"sink": self._kind, "lost": self.lost})

    def _end(self, err: Exception) -> None:
        with self._change:
            self._over = True
            self.lost += len(self._lines)
            self._lines.clear()
            self._held = 0
        log.warning("sink %s is over: %s", self._kind, one_line(err))
        self._tell("sink-over", {"sink": self._kind, "why": one_line(err)})
