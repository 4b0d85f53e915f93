"""What the agent's long-lived threads have in common: one way to end, and a pulse that shows that they get on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pulse:
    """When a thread last showed that it gets on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_s = clock()

    def beat(self) -> None:
        """It gets on."""
        self._beat_s = self._clock()

    @property
    def silent_s(self) -> float:
        """How long it has shown nothing."""
        return self._clock() - self._beat_s


class Loop(threading.Thread):
    """A thread that waits on `_wake` for work, and ends where it stands once `_stopping` is set.

    Who guards a waiting thread pokes it: it looks whether there is work, and beats.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._wake = threading.Condition()
        self._stopping = False
        self.pulse = Pulse()

    def stop(self, timeout_s: float) -> None:
        """Have it end where it stands, and wait for that; no longer, though a hung disk may hold what it waits on."""
        end = time.monotonic() + timeout_s
        self._stopping = True
        if self._wake.acquire(timeout=timeout_s):
            self._wake.notify_all()
            self._wake.release()
        if self.is_alive():
            self.join(max(0.0, end - time.monotonic()))

    def poke(self) -> None:
        """Have it show that it gets on, if it can; never waits."""
        if self._wake.acquire(blocking=False):
            try:
                self._wake.notify_all()
            finally:
                self._wake.release()

    def _wait_for(self, ready: Callable[[], object], timeout_s: float | None = None) -> None:
        """Wait with `_wake` held, from the thread itself, until `ready`, told to stop, or time is up."""

        def look() -> object:
            self.pulse.beat()
            return self._stopping or ready()

        self._wake.wait_for(look, timeout_s)

    def _pause(self, seconds: float, ready: Callable[[], object] = lambda: False) -> None:
        """Do nothing for a while, or until `ready`."""
        with self._wake:
            self._wait_for(ready, seconds)
