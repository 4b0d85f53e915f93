"""One thread owns the Session; everybody else hands it requests and orders through one bounded queue.

A switch brings a session that is already open: requests wait in the queue for no longer than the one that is running.
Labels are compared after the answer, for counting; no policy ever sees one. Opens no file and sends nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgekit.core.errors import BadInput, EdgekitError, one_line
from edgekit.core.histogram import Histogram, bucket_of
from edgekit.core.manifest import Manifest
from edgekit.runtime.backends import Array
from edgekit.runtime.policy import Policy
from edgekit.runtime.session import Answer, Session

log = logging.getLogger(__name__)
CAPACITY = 32

Sample = tuple[Mapping[str, Array], int | None]
"""The inputs, and the label where the source knows it."""


@dataclass(frozen=True)
class Request:
    """read: gives the inputs when its turn has come, for the bundle that serves then. done: gets the answer."""

    read: Callable[[Manifest], Sample]
    done: Callable[[Answer | EdgekitError], None] | None = None


@dataclass(frozen=True)
class Serving:
    """What answers requests: an open session, its label, the controller, and the controller's name in records."""

    session: Session
    label: str
    policy: Policy
    policy_name: str


@dataclass
class Interval:
    """What one stretch of time under one bundle and policy brought. started_s, ended_s: of the runner's clock."""

    bundle: str | None
    policy: str | None
    started_s: float
    ended_s: float = 0.0
    requests: int = 0
    errors: int = 0
    deadline_missed: int = 0
    labelled: int = 0
    correct: int = 0
    exit_counts: dict[str, int] = field(default_factory=dict)
    buckets: dict[int, int] = field(default_factory=dict)
    sum_ms: float = 0.0
    busy_s: float = 0.0

    @property
    def latency(self) -> Histogram:
        """Latencies of the answered requests."""
        return Histogram(dict(self.buckets), self.sum_ms)

    def count(self, answer: Answer, label: int | None) -> None:
        """Add one answered request."""
        self.requests += 1
        self.deadline_missed += answer.deadline_missed
        self.exit_counts[answer.exit] = self.exit_counts.get(answer.exit, 0) + 1
        bucket = bucket_of(answer.latency_ms)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.sum_ms += answer.latency_ms
        if label is not None and answer.label is not None:
            self.labelled += 1
            self.correct += answer.label == label


class Runner(threading.Thread):
    """Answers requests in order. With nothing installed they wait in the queue, and a full queue makes sources wait."""

    def __init__(
        self,
        on_closed: Callable[[], None] = lambda: None,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_closed: called when a switch or another policy has closed an interval."""
        super().__init__(name="runner", daemon=True)
        self._on_closed = on_closed
        self._capacity = capacity
        self._clock = clock
        self._wake = threading.Condition()
        self._requests: deque[Request] = deque()
        self._orders: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._serving: Serving | None = None
        self._counting = threading.Lock()
        self._closed: list[Interval] = []
        self._interval = Interval(None, None, clock())

    def submit(self, request: Request, timeout_s: float) -> bool:
        """Queue a request, waiting for room at most `timeout_s`. False: no room, or the runner has stopped."""
        with self._wake:
            if not self._wake.wait_for(self._has_room, timeout_s) or self._stopping:
                return False
            self._requests.append(request)
            self._wake.notify_all()
            return True

    def _has_room(self) -> bool:
        return self._stopping or len(self._requests) < self._capacity

    def swap(self, serving: Serving | None) -> None:
        """Let the next request be answered by `serving` (None: by nothing, they wait). Returns when that is so."""
        self._order(lambda: self._exchange(serving))

    def set_policy(self, policy: Policy, name: str) -> None:
        """Let the next request run under another controller."""

        def change() -> None:
            if self._serving is not None:
                now = self._serving
                self._exchange(Serving(now.session, now.label, policy, name))

        self._order(change)

    def _order(self, action: Callable[[], None]) -> None:
        done = threading.Event()

        def act() -> None:
            try:
                action()
            finally:
                done.set()

        with self._wake:
            if self._stopping:
                return
            self._orders.append(act)
            self._wake.notify_all()
        done.wait()

    def _exchange(self, serving: Serving | None) -> None:
        before, self._serving = self._serving, serving
        with self._counting:
            self._close_interval()
        if before is not None and (serving is None or before.session is not serving.session):
            before.session.close()
        self._on_closed()

    def _close_interval(self) -> None:
        now, serving = self._clock(), self._serving
        self._interval.ended_s = now
        self._closed.append(self._interval)
        if serving is None:
            self._interval = Interval(None, None, now)
            return
        # An exit nobody took stands there with 0: who reads the mix must not take the next one for it.
        exits = {leaving.name: 0 for leaving in serving.session.exits}
        self._interval = Interval(serving.label, serving.policy_name, now, exit_counts=exits)

    def collect(self) -> list[Interval]:
        """Close the running interval and hand over all closed ones, the oldest first."""
        with self._counting:
            self._close_interval()
            return self._take_closed()

    def collect_closed(self) -> list[Interval]:
        """Hand over the intervals that switches have closed; the running one goes on."""
        with self._counting:
            return self._take_closed()

    def _take_closed(self) -> list[Interval]:
        closed, self._closed = self._closed, []
        return closed

    def drain(self, timeout_s: float) -> bool:
        """Wait until no request is queued; False when that takes longer, or nothing is there to answer."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._requests or self._serving is None, timeout_s)

    def stop(self, timeout_s: float) -> None:
        """End after the request that is running; what is queued is not answered."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self.is_alive():
            self.join(timeout_s)

    def run(self) -> None:
        """The thread: orders first, then the next request."""
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work)
                if self._stopping:
                    break
                order = self._orders.popleft() if self._orders else None
                request = None if order else self._requests.popleft()
                self._wake.notify_all()
            if order is not None:
                self._obey(order)
            elif request is not None and self._serving is not None:
                self._answer(request, self._serving)
        for order in self._orders:
            self._obey(order)

    def _obey(self, order: Callable[[], None]) -> None:
        try:
            order()
        except Exception:
            log.exception("a switch met a defect")

    def _has_work(self) -> bool:
        return self._stopping or bool(self._orders) or bool(self._requests and self._serving)

    def _answer(self, request: Request, serving: Serving) -> None:
        result: Answer | EdgekitError
        try:
            inputs, label = request.read(serving.session.manifest)
            begun = self._clock()
            result = serving.session.run(inputs, serving.policy)
            with self._counting:
                self._interval.count(result, label)
                self._interval.busy_s += self._clock() - begun
        except EdgekitError as err:
            result = err
            self._count_error(err)
        except Exception as err:
            log.exception("a request met a defect")
            result = BadInput(f"request failed: {one_line(err)}")
            self._count_error(result)
        if request.done is not None:
            request.done(result)

    def _count_error(self, err: EdgekitError) -> None:
        with self._counting:
            self._interval.errors += 1
            first = self._interval.errors == 1
        if first:
            log.warning("a request failed: %s", one_line(err))
