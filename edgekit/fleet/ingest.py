"""The process that owns MQTT: what boards say goes into the store, what they should do goes out. Serves no HTTP.

Two threads: paho's reads the socket and fills a bounded queue; this one commits batches, and only then acknowledges,
to the broker and (with Ack) to the boards. The broker is never relied on to keep anything: sessions start clean, boards
send again what no Ack covered, and desired states are published again after every birth.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.core import jobs as job_states
from edgekit.core.errors import EdgekitError, WorldFailed, one_line
from edgekit.core.messages import FROM_BOARD, ROOT, OneShot, encode, topic
from edgekit.fleet import schema as db
from edgekit.fleet import seal
from edgekit.fleet.commit import Outcome, commit_batch, expire_silent_jobs
from edgekit.fleet.config import FleetConfig, read_secret
from edgekit.fleet.intake import Malformed, Received, Unreadable, entries_of, read_message
from edgekit.fleet.memory import Memory
from edgekit.fleet.store import Store, open_store, put_fact
from edgekit.fleet.tls import broker_context
from edgekit.repo.keys import read_key

log = logging.getLogger("edgekit.fleet.ingest")

RECEIVE_MAXIMUM = 1000  # messages the broker may have under way to us
QUEUE_SIZE = 3 * RECEIVE_MAXIMUM  # what is under way, what the connection before left, and QoS 0
BATCH, BATCH_BYTES = 500, 64 * 1024  # others wait for the lock while a batch is stored: some 1,300 Records
GATHER_S = 0.02  # how long the first message of a batch waits for others
BIRTHS = 200  # boards that are told what they should run between two batches
TICK_S = 0.1  # how soon a new desired state is seen
SWEEP_S = 5.0
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 15.0
CONNACK_S = 5.0
KEEPALIVE_S = 30
_ATTEMPTS = 5
_IN_THE_WAY = ("40001", "40P01")  # PostgreSQL: serialization failure, deadlock


@dataclass(frozen=True)
class Arrival:
    """A message as it came. client: the connection it came on; its number means nothing to another one.

    retain: the broker kept it, so its board said it some time ago, and may be dead by now.
    """

    topic: str
    payload: bytes
    qos: int
    mid: int
    client: Client
    retain: bool


class Ingest:
    """One ingester. `run` returns when `stop` is set."""

    def __init__(
        self,
        config: FleetConfig,
        store: Store,
        control_key: Ed25519PrivateKey,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config, self.store, self.control_key = config, store, control_key
        self.stop, self.clock = stop, clock
        self.arrivals: queue.Queue[Arrival] = queue.Queue(QUEUE_SIZE)
        self.confirmed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.client: Client | None = None  # a new one for each connection: none sends what another left
        self.connected = threading.Event()
        self.refused: str | None = None
        self.sent: dict[
            int, tuple[str, int, int]
        ] = {}  # number of a publication -> its topic, device and rev or n
        self.memory = Memory(config.limits)
        self.births: dict[
            str, None
        ] = {}  # in their order: boards that came online and were not told yet what they should run
        self.delay_s = FIRST_DELAY_S
        self.next_attempt = 0.0
        self.next_sweep = 0.0
        self.told: tuple[bool, str | None] | None = None

    def run(self) -> None:
        """Ingest until told to stop. What the world does (broker gone, disk full) is waited out."""
        try:
            while not self.stop.is_set():
                try:
                    self._step()
                except WorldFailed as err:
                    log.warning("%s; trying again", one_line(err))
                    self.stop.wait(1.0)
        finally:
            self._disconnect()
            with contextlib.suppress(WorldFailed):
                self._tell()

    def _step(self) -> None:
        self._tell()
        if not self.connected.is_set() and time.monotonic() >= self.next_attempt:
            self._connect()
        batch = self._gather()
        if batch:
            self._commit(batch)
        if self.connected.is_set():
            self._confirm()
            self._publish_desired(db.desired.c.pending)
            self._publish_one_shots(db.commands.c.pending)
            if self.births:
                self._tell_newborn()
        if time.monotonic() >= self.next_sweep:
            self.next_sweep = time.monotonic() + SWEEP_S
            with self.store.write() as connection:
                expire_silent_jobs(connection, self.clock())

    def _tell_newborn(self) -> None:
        """After a broker's restart all boards are born at once: some at a time, while what is said is let go of."""
        if len(self.sent) >= RECEIVE_MAXIMUM:
            return
        names = list(self.births)[:BIRTHS]
        born = db.devices.c.name.in_(names)
        self._publish_desired(born)
        self._publish_one_shots(born)
        for name in names:
            del self.births[name]

    # --- the connection ---

    def _connect(self) -> None:
        """One attempt; the next is due when this one fails, or has had no answer for a while."""
        self._disconnect()
        self.sent.clear()
        while not self.confirmed.empty():
            self.confirmed.get_nowait()
        broker = self.config.broker
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.username,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.max_inflight_messages_set(RECEIVE_MAXIMUM)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self.client = client
        try:
            client.username_pw_set(broker.username, read_secret(broker.password_file))
            if broker.tls:
                client.tls_set_context(broker_context(self.config))
            client.connect(
                broker.reached_at, broker.port, KEEPALIVE_S, clean_start=True, properties=properties
            )
        except (OSError, ValueError, EdgekitError) as err:
            self._failed(one_line(err))
            return
        self.next_attempt = time.monotonic() + CONNACK_S
        client.loop_start()

    def _disconnect(self) -> None:
        self.connected.clear()
        client, self.client = self.client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _failed(self, why: str) -> None:
        """Wait before the next attempt: each time twice as long, and by chance, so that not all come at once."""
        self.refused = why
        self.next_attempt = time.monotonic() + self.delay_s * random.uniform(0.5, 1.5)
        self.delay_s = min(2 * self.delay_s, MAX_DELAY_S)

    def _on_connect(
        self, client: Client, _data: object, _flags: object, reason: Any, _properties: object
    ) -> None:
        if client is not self.client:
            return
        if reason.is_failure:
            self._failed(f"the broker says: {reason}")
            return
        options = SubscribeOptions(qos=1)
        client.subscribe([(f"{ROOT}/{self.config.fleet}/+/{kind}", options) for kind in FROM_BOARD])
        self.refused = None
        self.delay_s = FIRST_DELAY_S
        self.connected.set()

    def _on_disconnect(
        self, client: Client, _data: object, _flags: object, reason: Any, _properties: object
    ) -> None:
        if client is self.client and self.connected.is_set():
            self._failed(f"connection lost: {reason}")
            self.connected.clear()

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        try:
            name = message.topic
        except UnicodeDecodeError:
            name = "?"
        if message.qos == 0 and self.arrivals.qsize() >= RECEIVE_MAXIMUM:
            return  # nobody was promised a QoS 0 message; those that were find room: the broker stops in time
        payload = bytes(message.payload)
        self.arrivals.put(Arrival(name, payload, message.qos, message.mid, client, message.retain))

    def _on_publish(self, client: Client, _data: object, mid: int, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            log.warning("the broker refused what was published: %s (does its acl_file name ours?)", reason)
        elif client is self.client:
            self.confirmed.put(mid)

    # --- from boards ---

    def _gather(self) -> list[Arrival]:
        """A batch: whatever comes within a moment of its first message."""
        try:
            batch = [self.arrivals.get(timeout=TICK_S)]
        except queue.Empty:
            return []
        deadline = time.monotonic() + GATHER_S
        size = len(batch[0].payload)
        while len(batch) < BATCH and size < BATCH_BYTES:
            try:
                batch.append(self.arrivals.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
            size += len(batch[-1].payload)
        return batch

    def _commit(self, batch: list[Arrival]) -> None:
        """Store, then acknowledge. A full disk keeps the batch waiting; a message that breaks the rest is dropped."""
        try:
            outcome = self._store(batch)
        except WorldFailed:
            self._wait_for_disk(batch)
            return
        except Exception as err:
            if len(batch) > 1:
                for arrival in batch:
                    self._commit([arrival])
                return
            log.exception("a message on %r was dropped", batch[0].topic)
            outcome = self._drop(batch[0], err)
        self._acknowledge(batch, outcome)

    def _wait_for_disk(self, batch: list[Arrival]) -> None:
        """Lose nothing: the same batch is tried until the store takes it."""
        delay = 0.5
        while not self.stop.wait(delay):
            try:
                outcome = self._store(batch)
            except WorldFailed as err:
                log.warning("%d messages wait: %s", len(batch), one_line(err))
                delay = min(2 * delay, 10.0)
                continue
            self._acknowledge(batch, outcome)
            return

    def _store(self, batch: Iterable[Arrival]) -> Outcome:
        received: list[Received] = []
        malformed: list[Malformed] = []
        for arrival in batch:
            try:
                received.append(self._read(arrival))
            except Malformed as err:
                malformed.append(err)
        return self._keep(received, malformed)

    def _keep(self, received: list[Received], malformed: list[Malformed]) -> Outcome:
        """One transaction; again where the database undid it because another ingester's was in its way."""
        for attempt in range(_ATTEMPTS):
            draft = self.memory.draft()
            try:
                with self.store.write() as connection:
                    outcome = commit_batch(connection, received, malformed, self.clock(), draft)
            except WorldFailed as err:
                if attempt == _ATTEMPTS - 1 or not _was_in_the_way(err):
                    raise
                continue
            draft.keep()
            return outcome
        raise AssertionError("the last attempt returns or raises")

    def _read(self, arrival: Arrival) -> Received:
        message = read_message(self.config.fleet, arrival.topic, arrival.payload)
        return replace(message, retained=arrival.retain)

    def _drop(self, arrival: Arrival, err: Exception) -> Outcome:
        """Store what can be of a message that breaks the store, entry by entry, and why in place of what cannot."""
        why = one_line(err)[:200]
        try:
            message = self._read(arrival)
        except Malformed:
            device = arrival.topic.split("/")[3] if arrival.topic.count("/") >= 4 else None
            return self._try([], [Malformed(device, why)]) or Outcome((), frozenset())
        counted = [Malformed(message.device, why)]
        outcome = self._try([], counted) or Outcome((), frozenset())
        for seq, alone in entries_of(message):
            without = replace(alone, records=(), events=(), job_events=(), unreadable=(Unreadable(seq, why),))
            outcome = self._try([alone], []) or self._try([without], []) or outcome
        return outcome

    def _try(self, received: list[Received], malformed: list[Malformed]) -> Outcome | None:
        """Commit; None where the store breaks on it. Raises WorldFailed."""
        try:
            return self._keep(received, malformed)
        except WorldFailed:
            raise
        except Exception:
            log.debug("the store broke on it", exc_info=True)
            return None

    def _acknowledge(self, batch: Iterable[Arrival], outcome: Outcome) -> None:
        for arrival in batch:
            if arrival.qos:
                arrival.client.ack(arrival.mid, arrival.qos)
        for device, ack in outcome.acks:
            self._publish(device, "ack", ack.to_json())
        self.births |= dict.fromkeys(sorted(outcome.births))

    # --- to boards ---

    def _publish(
        self, device: str, kind: str, payload: dict[str, Any], *, retain: bool = False
    ) -> int | None:
        """Hand a message to the connection; its number, None where there is none to hand it to."""
        client = self.client
        if client is None or not self.connected.is_set():
            return None
        sent = client.publish(topic(self.config.fleet, device, kind), encode(payload), 1, retain)
        return sent.mid if sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def _publish_desired(self, which: sa.ColumnElement[bool]) -> None:
        """Sign and publish the desired states that a condition picks, except those that are on their way."""
        with self.store.read() as connection:
            rows = connection.execute(
                sa.select(db.desired, db.devices.c.name)
                .join(db.devices, db.devices.c.id == db.desired.c.device)
                .where(which)
            ).all()
        under_way = set(self.sent.values())
        for row in rows:
            if ("desired", row.device, row.rev) in under_way and row.pending:
                continue
            desired = seal.sealed(seal.desired_of(row, self.config.fleet).to_json(), self.control_key)
            mid = self._publish(row.name, "desired", desired, retain=True)
            if mid is not None:
                self.sent[mid] = ("desired", row.device, row.rev)

    def _publish_one_shots(self, which: sa.ColumnElement[bool]) -> None:
        """Sign and publish what boards should do once and have not ended, of the commands that a condition picks."""
        commands, states = db.commands, db.job_devices
        same = (states.c.job == commands.c.job) & (states.c.device == commands.c.device)
        with self.store.read() as connection:
            rows = connection.execute(
                sa.select(commands, db.devices.c.name, db.jobs.c.job_id, db.jobs.c.target, db.jobs.c.expires)
                .join(db.devices, db.devices.c.id == commands.c.device)
                .join(db.jobs, db.jobs.c.id == commands.c.job)
                .join(states, same)
                .where(which, states.c.state.not_in(job_states.FINAL), db.jobs.c.expires > self.clock())
                .order_by(commands.c.n)
            ).all()
        under_way = set(self.sent.values())
        for row in rows:
            if ("job", row.device, row.n) in under_way and row.pending:
                continue
            to = f"{self.config.fleet}/{row.name}"
            shot = OneShot(to, row.n, row.job_id, row.action, row.target, row.expires)
            mid = self._publish(row.name, "job", seal.sealed(shot.to_json(), self.control_key))
            if mid is not None:
                self.sent[mid] = ("job", row.device, row.n)

    def _confirm(self) -> None:
        """What the broker has is no longer pending, unless a newer revision took its place."""
        done = []
        while not self.confirmed.empty():
            found = self.sent.pop(self.confirmed.get_nowait(), None)
            if found is not None:
                done.append(found)
        if not done:
            return
        with self.store.write() as connection:
            for kind, device, number in done:
                table = db.desired if kind == "desired" else db.commands
                own = table.c.rev if kind == "desired" else table.c.n
                wanted = (table.c.device == device) & (own == number)
                connection.execute(sa.update(table).where(wanted).values(pending=False))

    def _tell(self) -> None:
        """Keep in the store how this process is doing. Without a broker nobody knows who is online: nobody is, then."""
        connected = self.connected.is_set()
        state = (connected, None if connected else self.refused)
        if state == self.told:
            return
        with self.store.write() as connection:
            fact = {"connected": connected, "why": state[1], "since": self.clock()}
            put_fact(connection, "ingest", fact)
            if not connected:
                connection.execute(sa.update(db.presence).values(online=False))
        self.told = state
        log.info("broker %s", "connected" if connected else f"not connected: {state[1] or 'starting'}")


def _was_in_the_way(err: WorldFailed) -> bool:
    cause = err.__cause__
    return getattr(getattr(cause, "orig", cause), "sqlstate", None) in _IN_THE_WAY


def run_ingest(config: FleetConfig, stop: threading.Event) -> None:
    """Open what the process needs and run it. Raises BadInput, WorldFailed."""
    store = open_store(config.database_url)
    try:
        Ingest(config, store, read_key(config.control_key_file), stop).run()
    finally:
        store.close()
