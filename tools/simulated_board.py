"""One simulated board: its outbox, its connection and its jobs, as the agent has them, without a network to run.

What was made is kept until the server's `ack` covers it, and sent again after a new connection or a while without one.
Thousands live in one process, so a board holds little: a Record waits as four numbers and is put together when it goes.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import InvalidSignature

from edgekit.core import jobs, messages
from edgekit.core.errors import BadInput
from edgekit.core.messages import Ack, Desired, Info, JobEvent, OneShot, Reported, Status

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    import ssl

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from tools import mqtt_packets as mqtt
    from tools.simulated_behaviour import FRESH, VARIANTS, Intervals, Scenario, draw
else:
    import mqtt_packets as mqtt
    from simulated_behaviour import FRESH, VARIANTS, Intervals, Scenario, draw

CONNECT_S = 5.0
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 60.0
STABLE_S = 5.0
WINDOW, BATCH = 512, 64
AGAIN_S, MAX_RESEND_S = 1.0, 120.0
RECORD, JOB, EVENT = "telemetry", "job/event", "event"
_SHOT_PATHS = {
    "refresh": ("looked",),
    "measure": ("accept", "fetched", "prepared", "measured"),
    "update-agent": FRESH,
}


class Item(NamedTuple):
    """Something that waits for its ack. made: on the loop's clock. data: of a Record (template, time, uptime)."""

    seq: int
    kind: str
    made: float
    data: Any


@dataclass(slots=True)
class Boot:
    """What one start of a board made: how many of each kind, what is not acknowledged, and how far it was sent."""

    id: str
    begun: float
    last: int = 0
    made: Counter[str] = field(default_factory=Counter)
    held: deque[Item] = field(default_factory=deque)
    sent: int = 0  # over this connection
    acked: int = 0
    progress: float = 0.0
    resend_s: float = 0.0
    again_s: float = AGAIN_S


@dataclass(slots=True)
class Job:
    """A job at work. path: the events still to come."""

    id: str
    target: str | None
    path: deque[str]
    why: str | None
    desired: Desired | None  # None: a one-shot
    state: str = "received"


@dataclass
class World:
    """What all boards share. pulse: called with the lag of each acknowledged item in seconds."""

    fleet: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    control_key: Ed25519PublicKey | None
    scenario: Scenario
    intervals: Intervals
    interval_s: float
    batch: int
    keepalive_s: int
    resend_s: float
    rng: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    lag: Callable[[float, str], None]
    counts: Counter[str] = field(default_factory=Counter)
    job_states: Counter[str] = field(default_factory=Counter)
    making: bool = True


class Board(asyncio.Protocol):
    """A board; `start` connects it and lets it make Records."""

    __slots__ = (
        "_boot", "_boots", "_connecting", "_delay", "_heard", "_in", "_job", "_maker", "_n", "_number", "_password",
        "_queue", "_receive_maximum", "_retry", "_rev", "_shots", "_since", "_slots", "_transport", "_unacked",
        "_wanted", "_world", "_wrote", "bundle", "interval_s", "name", "past", "profile", "up",
    )  # fmt: skip

    def __init__(self, world: World, name: str, password: str, profile: str) -> None:
        self._world = world
        self.name, self._password, self.profile = name, password, profile
        self.bundle = world.scenario.bundle
        self._slots = {self.bundle}
        self.interval_s = world.interval_s
        self.past: list[Boot] = []  # starts that were, also those of which nothing is held
        self._boots: dict[str, Boot] = {}  # of which something is held, and the present one
        self._boot = self._new_boot()
        self._rev = self._n = 0
        self._job: Job | None = None
        self._shots: set[int] = set()
        self._delay = FIRST_DELAY_S
        self._maker: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._wanted = False
        self._forget_connection()

    def _forget_connection(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.up = False
        self._since = self._wrote = self._heard = 0.0
        self._number, self._receive_maximum = 0, 65_535
        self._unacked: set[int] = set()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._in = mqtt.Incoming()

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self, delay_s: float) -> None:
        """Connect after a while; the first Record comes at a moment of the interval that chance picks."""
        self._wanted = True
        self._retry = self._world.loop.call_later(delay_s, self._connect)
        self._maker = self._world.loop.call_later(delay_s + self._world.rng() * self.interval_s, self._make)

    def stop(self) -> None:
        """Say goodbye and come back no more."""
        self._end_timers()
        if self.up:
            self._publish("status", Status(online=False, boot_id=self._boot.id).to_json())
            self._write(mqtt.DISCONNECT_PACKET)
        if self._transport is not None:
            self._transport.close()

    def hang_up(self, *, for_good: bool = False) -> None:
        """Lose the connection without a word; the broker sends the will. for_good: as a board that is bricked."""
        if for_good:
            self._end_timers()
        if self._transport is not None:
            self._transport.abort()

    def reboot(self) -> None:
        """Start anew: another boot id, what the outbox holds is kept, a job at work begins again."""
        self._boot = self._new_boot()
        if self._job is not None:
            self._job = None
            self._rev = (
                0 if self._rev == 0 else self._rev - 1
            )  # the desired state is obeyed when it comes again
        self.hang_up()

    def _end_timers(self) -> None:
        self._wanted = False
        for timer in (self._maker, self._retry):
            if timer is not None:
                timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()

    def _new_boot(self) -> Boot:
        drawn = int(self._world.rng() * 2**48)
        boot = Boot(f"{drawn:012x}", self._world.loop.time(), resend_s=self._world.resend_s)
        self._boots[boot.id] = boot
        self.past.append(boot)
        return boot

    # --- what is made --------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """A batch of Records, sent at once where there is a connection."""
        world = self._world
        self._maker = world.loop.call_later(self.interval_s, self._make)
        if not world.making:
            return
        boot, now, clock = self._boot, time.time(), world.loop.time()
        made = world.intervals.of(self.profile, self.bundle, self.interval_s / world.batch)
        for step in range(world.batch):
            at = now - (world.batch - 1 - step) * self.interval_s / world.batch
            template = made[draw(world.scenario.seed, boot.id, boot.last + 1) % VARIANTS]
            self._keep(RECORD, (template, at, max(0.0, clock - boot.begun)))
        self._send(boot)

    def event(self, kind: str, detail: Mapping[str, Any]) -> None:
        """An event, such as `throttle`."""
        self._keep(EVENT, {"kind": kind, "time": time.time(), "detail": dict(detail)})
        self._send(self._boot)

    def _keep(self, kind: str, data: Any) -> int:
        boot = self._boot
        boot.last += 1
        boot.made[kind] += 1
        boot.held.append(Item(boot.last, kind, self._world.loop.time(), data))
        self._world.counts["made"] += 1
        self._world.counts[f"made {kind}"] += 1
        return boot.last

    @property
    def held(self) -> int:
        """How much waits for an ack."""
        return sum(len(boot.held) for boot in self._boots.values())

    # --- the connection ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._retry = None
        if self._connecting is None:
            self._connecting = self._world.loop.create_task(self._open())

    async def _open(self) -> None:
        world = self._world
        try:
            made = world.loop.create_connection(lambda: self, world.host, world.port, ssl=world.tls)
            await asyncio.wait_for(made, CONNECT_S)
        except (OSError, asyncio.TimeoutError):
            world.counts["refused"] += 1
            self._lost()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport) or not self._wanted:
            transport.close()
            return
        self._transport = transport
        self._since = self._heard = self._world.loop.time()
        will = messages.encode(Status(online=False, boot_id=self._boot.id).to_json())
        address = f"{self._world.fleet}/{self.name}"
        self._write(
            mqtt.connect(address, self._password, self._world.keepalive_s, self._topic("status"), will)
        )

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost()

    def _lost(self) -> None:
        """Begin again after a pause that doubles, and that chance shortens by up to a half."""
        world = self._world
        if self.up:
            world.counts["connected"] -= 1
            world.counts["lost"] += 1
            if world.loop.time() - self._since > STABLE_S:
                self._delay = FIRST_DELAY_S
        self._forget_connection()
        if self._wanted and self._retry is None:  # an attempt given up in the middle may end twice
            self._retry = world.loop.call_later(self._delay * (0.5 + world.rng() / 2), self._connect)
            self._delay = min(2 * self._delay, MAX_DELAY_S)

    def data_received(self, data: bytes) -> None:
        self._heard = self._world.loop.time()
        try:
            for first, body in self._in.feed(data):
                self._packet(first, body)
        except mqtt.ProtocolError:
            self._world.counts["protocol errors"] += 1
            self.hang_up()

    def _packet(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == mqtt.PUBACK:
            number, reason = mqtt.read_puback(body)
            self._unacked.discard(number)
            if reason >= mqtt.FAILURE:
                self._world.counts["refused messages"] += 1
            while self._queue and len(self._unacked) < self._receive_maximum:
                self._publish_bytes(*self._queue.popleft())
        elif kind == mqtt.PUBLISH:
            topic, payload, ack = mqtt.read_publish(first, body)
            if ack is not None:
                self._write(mqtt.puback(ack))
            if payload:
                self._received(topic.rpartition(f"/{self.name}/")[2], payload)
        elif kind == mqtt.CONNACK:
            reason, self._receive_maximum = mqtt.read_connack(body)
            if reason:
                self._world.counts["refused"] += 1
                self.hang_up()
            else:
                self._connected()
        elif kind == mqtt.DISCONNECT:
            self.hang_up()

    def _connected(self) -> None:
        world = self._world
        self.up = True
        world.counts["connected"] += 1
        world.counts["connections"] += 1
        self._number += 1
        self._write(mqtt.subscribe(self._number, [self._topic(kind) for kind in messages.TO_BOARD]))
        self._publish("status", Status(online=True, boot_id=self._boot.id).to_json())
        info = Info(
            self.profile,
            "simulated",
            self._boot.id,
            {"onnxruntime": "0"},
            simulated=True,
            slots=tuple(sorted(slot for slot in self._slots if slot)),
            accepts_measure=True,
        )
        self._publish("info", info.to_json())
        self._report()
        for boot in list(self._boots.values()):
            self._send_anew(boot)

    def look(self, now: float) -> None:
        """Now and then: what was not acknowledged for long goes again; a silent connection is given up."""
        transport, keepalive = self._transport, self._world.keepalive_s
        if transport is None:
            return
        if not self.up:
            if now - self._since > CONNECT_S:
                transport.abort()
            return
        if now - self._heard > 1.5 * keepalive:
            transport.abort()
            return
        if now - max(self._wrote, self._heard) > keepalive / 2 or now - self._wrote > 0.8 * keepalive:
            self._write(mqtt.PINGREQ_PACKET)
        for boot in list(self._boots.values()):
            if boot.held and boot.sent >= boot.held[0].seq and now - boot.progress > boot.resend_s:
                boot.resend_s = min(2 * boot.resend_s, MAX_RESEND_S)
                self._world.counts["sent again"] += 1
                self._send_anew(boot)

    def _topic(self, kind: str) -> str:
        return messages.topic(self._world.fleet, self.name, kind)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._wrote = self._world.loop.time()
            self._transport.write(data)

    def _publish(self, kind: str, payload: Mapping[str, Any]) -> None:
        data = messages.encode(payload)
        if len(self._unacked) < self._receive_maximum:
            self._publish_bytes(kind, data)
        else:
            self._queue.append((kind, data))

    def _publish_bytes(self, kind: str, data: bytes) -> None:
        while True:
            self._number = self._number % 65_535 + 1
            if self._number not in self._unacked:
                break
        self._unacked.add(self._number)
        self._world.counts["sent"] += 1
        self._world.counts["sent bytes"] += len(data)
        retain = kind in messages.RETAINED
        self._write(mqtt.publish(self._topic(kind), data, self._number, retain=retain))

    # --- the outbox ----------------------------------------------------------------------------------------------

    def _send_anew(self, boot: Boot) -> None:
        boot.sent = 0
        self._send(boot)

    def _send(self, boot: Boot) -> None:
        """What one start holds and has not sent, up to the window: Records together, events one by one."""
        if not self.up or not boot.held:
            return
        floor = boot.held[0].seq
        if boot.sent < floor:  # nothing on its way
            boot.progress, boot.sent = self._world.loop.time(), floor - 1
        while boot.sent < boot.last and boot.sent < floor + WINDOW - 1:
            first = boot.sent + 1 - floor  # numbers are held without gaps
            until = min(first + BATCH, len(boot.held), WINDOW)
            items = [boot.held[place] for place in range(first, until)]
            records = [_record(item) for item in items if item.kind == RECORD]
            if records:
                self._publish(RECORD, {"boot_id": boot.id, "floor": floor, "records": records})
            for item in items:
                if item.kind != RECORD:
                    self._publish(item.kind, {**item.data, "boot_id": boot.id, "seq": item.seq})
            boot.sent = items[-1].seq

    def _acknowledged(self, ack: Ack) -> None:
        """Let go of what the server has, but of nothing that was not sent over this connection."""
        boot = self._boots.get(ack.boot_id)
        if boot is None:
            return
        world, now = self._world, self._world.loop.time()
        upto, got = min(ack.upto, boot.sent), 0
        while boot.held and boot.held[0].seq <= upto:
            item = boot.held.popleft()
            world.lag(now - item.made, item.kind)
            got += 1
        boot.acked = max(boot.acked, upto)
        world.counts["acked"] += got
        if got:
            boot.progress, boot.resend_s, boot.again_s = now, world.resend_s, AGAIN_S
            self._send(boot)
        elif boot.sent > ack.upto and now - boot.progress > boot.again_s:
            boot.again_s = min(2 * boot.again_s, MAX_RESEND_S)
            world.counts["sent again"] += 1
            self._send_anew(boot)
        if not boot.held and boot is not self._boot:
            del self._boots[boot.id]

    # --- what it is told -----------------------------------------------------------------------------------------

    def _received(self, kind: str, data: bytes) -> None:
        try:
            payload = messages.decode(data, kind)
            if kind == "ack":
                self._acknowledged(Ack.parse(payload))
                return
            if self._world.control_key is not None:
                signature = base64.b64decode(str(payload.get("sig")))
                self._world.control_key.verify(signature, messages.signed_bytes(payload))
            if kind == "desired":
                self._obey(Desired.parse(payload))
            elif kind == "job":
                self._obey_shot(OneShot.parse(payload))
        except (BadInput, InvalidSignature, ValueError):
            self._world.counts["bad messages"] += 1

    def _obey(self, desired: Desired) -> None:
        if (
            desired.to != f"{self._world.fleet}/{self.name}"
            or desired.rev <= self._rev
            or desired.n < self._n
        ):
            return
        self._rev, self._n = desired.rev, desired.n
        if self._job is not None and "fail" in jobs.TRANSITIONS[self._job.state]:
            self._job.path, self._job.why = deque(["fail"]), "superseded"
            self._step(self._job)
        present = desired.target is None or desired.target in self._slots
        path = self._world.scenario.path_of(self.name, desired.target, present=present)
        if path is None:
            self._world.counts["gone silent"] += 1
            self.hang_up(for_good=True)
        elif path[0]:
            self._begin(
                Job(desired.job_id, desired.target, deque(path[0]), path[1], desired), desired.expires
            )

    def _obey_shot(self, shot: OneShot) -> None:
        if shot.to != f"{self._world.fleet}/{self.name}" or shot.n in self._shots:
            return
        self._shots.add(shot.n)
        path = deque(_SHOT_PATHS[shot.action])
        self._begin(Job(shot.job_id, shot.target, path, None, None), shot.expires)

    def _begin(self, job: Job, expires: float) -> None:
        if job.desired is not None:
            self._job = job
        if expires < time.time():
            job.path, job.why = deque(["expire"]), "download"
        self._say(job)
        self._next(job)

    def _next(self, job: Job) -> None:
        pause = self._world.scenario.step_s * (0.5 + self._world.rng())
        boot = self._boot
        self._world.loop.call_later(pause, lambda: self._step(job) if boot is self._boot else None)

    def _step(self, job: Job) -> None:
        if not self._wanted or not job.path:
            return
        job.state = jobs.advance(job.state, job.path.popleft())
        self._say(job)
        if job.state not in jobs.FINAL:
            self._next(job)
        elif job.desired is not None:
            self._end(job, job.desired)

    def _say(self, job: Job) -> None:
        last = job.state in jobs.FINAL
        if last:
            self._world.job_states[job.state] += 1
        event = JobEvent(
            self._boot.id, 1, job.id, job.state, job.target, time.time(), job.why if last else None
        ).to_json()
        self._keep(JOB, {key: event[key] for key in event if key not in {"event_id", "boot_id", "seq"}})
        self._send(self._boot)

    def _end(self, job: Job, desired: Desired) -> None:
        """The job's outcome is in force, and said."""
        if self._job is job:
            self._job = None
        if job.state == jobs.DONE:
            self.bundle = desired.target or self.bundle
            self._slots.add(self.bundle)
            self.interval_s = desired.interval_s or self.interval_s
        self._report(job, desired.rev)

    def _report(self, job: Job | None = None, rev: int = 0) -> None:
        if self.up:
            reported = Reported(
                rev=rev or self._rev,
                job_id=job.id if job else None,
                state=job.state if job else None,
                bundle=self.bundle,
                content_id=None,
                policy=None,
                interval_s=self.interval_s,
                why=job.why if job else None,
            )
            self._publish("reported", reported.to_json())


def _record(item: Item) -> dict[str, Any]:
    template, at, uptime = item.data
    return {**template, "seq": item.seq, "time": round(at, 3), "uptime": round(uptime, 3)}
