"""One thread owns the Session; everybody else hands it requests and orders through bounded queues.

Sources wait for room and callers (the local API) are refused at once: each kind has a queue of its own, and while both
wait they take turns. A switch brings a session that is already open: requests wait in their queue for no longer than
the one that is running. Labels are compared after the answer, for counting; no policy ever sees one. Opens no file and
sends nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgekit.agent.live import Watch
from edgekit.agent.threads import Loop
from edgekit.core.errors import BadBundle, BadInput, EdgekitError, one_line
from edgekit.core.histogram import Histogram, bucket_of
from edgekit.core.manifest import Manifest
from edgekit.core.policy import PolicySpec
from edgekit.runtime.backends import Array
from edgekit.runtime.policy import Policy, StageCosts, make_policy
from edgekit.runtime.session import Answer, Session

log = logging.getLogger(__name__)
CAPACITY = 32
_OWN_POLICIES = 16  # controllers kept for requests that bring their policy
_RECENT = 1 / 16  # weight of one request in the mean time of a request

Sample = tuple[Mapping[str, Array], int | None]
"""The inputs, and the label where the source knows it."""


class NothingServes(EdgekitError):
    """No bundle is there to answer; the request was not kept."""

    exit_code = 3


class RequestDefect(BadInput):
    """A request met a defect of ours, not one of its own."""


@dataclass(frozen=True)
class Request:
    """read: gives the inputs when its turn has come, for the bundle that serves then. done: gets the answer.

    policy: this request's own, instead of the board's. arrived_s: when it came, of the runner's clock, where the time
    it waited counts. cancelled: whether nobody waits for the answer any more; then it is dropped and `done` not called.
    begun: told the bundle and the policy that answer.
    """

    read: Callable[[Manifest], Sample]
    done: Callable[[Answer | EdgekitError], None] | None = None
    policy: PolicySpec | None = None
    arrived_s: float | None = None
    cancelled: Callable[[], bool] | None = None
    begun: Callable[[Manifest, str], None] | None = None


def unlimited(spec: PolicySpec) -> PolicySpec:
    """A request's own policy on a board that sets it no limit."""
    return spec


@dataclass(frozen=True)
class Serving:
    """What answers requests: an open session, its label, the controller, and the controller's name in records.

    costs: of its stages on this board, None where nobody measured them. limit: what becomes of a request's own policy.
    watch: told what came of every request.
    """

    session: Session
    label: str
    policy: Policy
    policy_name: str
    costs: StageCosts | None = None
    limit: Callable[[PolicySpec], PolicySpec] = unlimited
    watch: Watch = field(default_factory=Watch)


@dataclass
class Interval:
    """What one stretch of time under one bundle and policy brought. started_s, ended_s: of the runner's clock."""

    bundle: str | None
    policy: str | None
    started_s: float
    ended_s: float = 0.0
    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    deadline_missed: int = 0
    labelled: int = 0
    correct: int = 0
    nan_confidences: int = 0
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
        self.nan_confidences += answer.nan_confidences
        self.exit_counts[answer.exit] = self.exit_counts.get(answer.exit, 0) + 1
        bucket = bucket_of(answer.latency_ms)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.sum_ms += answer.latency_ms
        if label is not None and answer.label is not None:
            self.labelled += 1
            self.correct += answer.label == label


class Runner(Loop):
    """Answers each kind of requests in order. With nothing installed a source's wait, and a caller's are refused."""

    def __init__(
        self,
        on_closed: Callable[[], None] = lambda: None,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_closed: called when a switch or another policy has closed an interval. capacity: of each queue."""
        super().__init__("runner")
        self._on_closed = on_closed
        self.capacity = capacity
        self.clock = clock
        self._requests: deque[Request] = deque()  # of sources
        self._calls: deque[Request] = deque()
        self._call_next = True
        self._orders: deque[Callable[[], None]] = deque()
        self._serving: Serving | None = None
        self._own: dict[PolicySpec, tuple[Policy, str]] = {}
        self._mean_s = 0.0
        self.activity = 0  # odd while a request is answered, and grows with each
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
        return self._stopping or len(self._requests) < self.capacity

    def call(self, request: Request) -> bool:
        """Queue a caller's request without waiting. False: no room, or the runner has stopped.

        While nothing serves it is not kept: raises NothingServes, or `done` gets one where that begins later.
        """
        with self._wake:
            if len(self._calls) >= self.capacity:
                self._drop_cancelled()
            if self._stopping or len(self._calls) >= self.capacity:
                return False
            if self._serving is None:
                raise NothingServes("nothing is installed on this board yet")
            self._calls.append(request)
            self._wake.notify_all()
            return True

    def _drop_cancelled(self) -> None:
        """Free the places of calls whose callers are gone."""
        kept = [request for request in self._calls if request.cancelled is None or not request.cancelled()]
        with self._counting:
            self._interval.cancelled += len(self._calls) - len(kept)
        self._calls = deque(kept)

    @property
    def serving(self) -> Serving | None:
        """What answers at the moment; a switch may come at any time."""
        return self._serving

    @property
    def wait_s(self) -> float:
        """About how long a call that came now would wait: those before it, at the recent mean time of a request."""
        return len(self._calls) * self._mean_s

    def swap(self, serving: Serving | None, *, keep: bool = False) -> None:
        """Let the next request be answered by `serving` (None: by nothing, see Runner). Returns when that is so.

        keep: the session that served before stays open, and is the caller's from then on.
        """
        self._order(lambda: self._exchange(serving, keep=keep))

    def set_policy(self, policy: Policy, name: str, costs: StageCosts | None = None) -> None:
        """Let the next request run under another controller. costs: of the stages, where they are newly known."""

        def change() -> None:
            if self._serving is not None:
                now = self._serving
                if costs is not None and costs != now.costs:
                    now = replace(now, costs=costs)
                    self._own.clear()
                self._exchange(replace(now, policy=policy, policy_name=name))

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

    def _exchange(self, serving: Serving | None, *, keep: bool = False) -> None:
        with self._wake:
            before, self._serving = self._serving, serving
            calls = [self._calls.popleft() for _ in range(len(self._calls))] if serving is None else []
        for request in calls:
            _tell(request, NothingServes("the bundle was taken out of service while the request waited"))
        with self._counting:
            self._close_interval()
        if before is not None and (serving is None or before.session is not serving.session):
            self._own.clear()
            if not keep:
                before.session.close()
        self._on_closed()

    def _close_interval(self) -> None:
        now, serving = self.clock(), self._serving
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
            return self._wake.wait_for(
                lambda: not (self._requests or self._calls) or self._serving is None, timeout_s
            )

    def run(self) -> None:
        """The thread: orders first, then the next request. Told to stop, it leaves unanswered what is queued."""
        while True:
            with self._wake:
                self._wait_for(self._has_work)
                if self._stopping:
                    break
                order = self._orders.popleft() if self._orders else None
                request = None if order else self._next()
                self._wake.notify_all()
            if order is not None:
                self._obey(order)
            elif request is not None and self._serving is not None:
                self.activity += 1
                self._answer(request, self._serving)
                self.activity += 1
        for order in self._orders:
            self._obey(order)

    def _next(self) -> Request:
        """A source's request and a call in turns, where both wait."""
        queue = self._calls if self._calls and (self._call_next or not self._requests) else self._requests
        self._call_next = queue is self._requests
        return queue.popleft()

    def _obey(self, order: Callable[[], None]) -> None:
        try:
            order()
        except Exception:
            log.exception("a switch met a defect")

    def _has_work(self) -> bool:
        waits = bool(self._requests or self._calls)
        return bool(self._orders) or (waits and self._serving is not None)

    def _answer(self, request: Request, serving: Serving) -> None:
        if request.cancelled is not None and request.cancelled():
            with self._counting:
                self._interval.cancelled += 1
            return
        result: Answer | EdgekitError
        inputs: Mapping[str, Array] | None = None
        took_s = 0.0
        try:
            manifest = serving.session.manifest
            given, label = request.read(manifest)
            policy, name = serving.policy, serving.policy_name
            if request.policy is not None:
                policy, name = self._own_policy(request.policy, serving)
            if request.begun is not None:
                request.begun(manifest, name)
            inputs, begun = given, self.clock()
            waited_ms = 0.0 if request.arrived_s is None else (begun - request.arrived_s) * 1e3
            result = serving.session.run(inputs, policy, waited_ms)
            took_s = self.clock() - begun
            with self._counting:
                self._interval.count(result, label)
                self._interval.busy_s += took_s
            self._mean_s += (took_s - self._mean_s) * (_RECENT if self._mean_s else 1.0)
        except EdgekitError as err:
            result = err
            self._count_error(err)
        except Exception as err:
            log.exception("a request met a defect")
            result = RequestDefect(f"request failed: {one_line(err)}")
            self._count_error(result)
        _tell(request, result)
        if isinstance(result, EdgekitError):
            serving.watch.error(one_line(result), ours=inputs is not None and _is_ours(result))
        elif inputs is not None:
            whole = result.exit_index + 1 == len(serving.session.exits)
            serving.watch.answer(inputs, result, took_s * 1e3, whole=whole)

    def _own_policy(self, wanted: PolicySpec, serving: Serving) -> tuple[Policy, str]:
        """The controller of requests that bring the policy `wanted`, and its name.

        One for all that bring the same, so that a mean budget is held over them. Raises BadInput.
        """
        spec = serving.limit(wanted)
        found = self._own.get(spec)
        if found is None:
            manifest, costs = serving.session.manifest, serving.costs
            try:
                found = make_policy(spec, manifest, costs), str(spec)
            except BadInput:
                if spec == wanted:
                    raise
                # As for the board's own policy: a limit that this bundle cannot keep does not stop it from answering.
                found = make_policy(wanted, manifest, costs), str(wanted)
            if spec.kind != "anytime":  # deadlines are drawn, and remember nothing
                if len(self._own) >= _OWN_POLICIES:
                    del self._own[next(iter(self._own))]
                self._own[spec] = found
        return found

    def _count_error(self, err: EdgekitError) -> None:
        with self._counting:
            self._interval.errors += 1
            first = self._interval.errors == 1
        if first:
            log.warning("a request failed: %s", one_line(err))


def _is_ours(err: EdgekitError) -> bool:
    """Whether the bundle or the agent is to blame, not what the caller gave."""
    return isinstance(err, (BadBundle, RequestDefect)) or not isinstance(err, BadInput)


def _tell(request: Request, result: Answer | EdgekitError) -> None:
    if request.done is None:
        return
    try:
        request.done(result)
    except Exception:
        log.exception("who asked met a defect when the answer came")
