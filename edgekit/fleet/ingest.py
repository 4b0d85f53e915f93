"""A process that speaks MQTT: what boards say goes into the store, what they should do goes out. Serves no HTTP.

Several share what boards send. One of them leads: it hears of births and deaths, which the broker keeps and gives to no
shared subscription, and tells boards what to do (telling.py).

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.core.errors import EdgekitError, WorldFailed, one_line
from edgekit.core.messages import FROM_BOARD, ROOT, encode, topic
from edgekit.fleet import schema as db
from edgekit.fleet.commit import Outcome, commit_batch, expire_silent_jobs
from edgekit.fleet.config import FleetConfig, read_secret
from edgekit.fleet.intake import Malformed, Received, Unreadable, entries_of, read_message
from edgekit.fleet.memory import Memory
from edgekit.fleet.pace import EVERY_S, Pace
from edgekit.fleet.store import Store, open_store, put_fact
from edgekit.fleet.telling import Teller
from edgekit.fleet.tls import broker_context
from edgekit.repo.keys import read_key

log = logging.getLogger("edgekit.fleet.ingest")

RECEIVE_MAXIMUM = 1000  # messages the broker may have under way to us
QUEUE_SIZE = 3 * RECEIVE_MAXIMUM  # what is under way, what the connection before left, and QoS 0
BATCH, BATCH_BYTES = 500, 64 * 1024  # others wait for the lock while a batch is stored: some 1,300 Records
GATHER_S = 0.02  # how long the first message of a batch waits for others
TICK_S = 0.1  # how soon a new desired state is seen
SWEEP_S = 5.0
SWEPT_S, FULL_SWEEP_S = (
    600.0,
    3600.0,
)  # which expired jobs a sweep looks at, and how soon at all of them again
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 15.0
CONNACK_S = 5.0
KEEPALIVE_S = 30
FACT = "ingest"  # the leader's connection; "ingest:N" is how each does
RETAINED = ("status", "info", "reported")
GROUP = "edgekit-ingest"
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
    at: float  # monotonic


class Ingest:
    """One ingester. `run` returns when `stop` is set. control_key: None for one that does not lead."""

    def __init__(
        self,
        config: FleetConfig,
        store: Store,
        control_key: Ed25519PrivateKey | None,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
        number: int = 1,
    ) -> None:
        self.config, self.store, self.number = config, store, number
        self.stop, self.clock = stop, clock
        self.teller: Teller | None = None
        if control_key is not None:
            self.teller = Teller(store, config.fleet, control_key, clock, self._publish)
        self.arrivals: queue.Queue[Arrival] = queue.Queue(QUEUE_SIZE)
        self.confirmed: queue.SimpleQueue[tuple[int, bool]] = (
            queue.SimpleQueue()
        )  # a publication, and if it was taken
        self.client: Client | None = None  # a new one for each connection: none sends what another left
        self.connected = threading.Event()
        self.refused: str | None = None
        self.memory = Memory(config.limits)
        self.pace = Pace(time.monotonic())
        self.next_pace = 0.0
        self.since = 0.0
        self.more_to_tell = False
        self.delay_s = FIRST_DELAY_S
        self.next_attempt = 0.0
        self.next_sweep = 0.0
        self.next_full_sweep = 0.0
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
        answers = self._confirm()
        if self.teller is None:
            return
        if self.connected.is_set():
            self.teller.confirm(answers)
            self.more_to_tell = self.teller.step()
        if time.monotonic() >= self.next_sweep:
            self.next_sweep = time.monotonic() + SWEEP_S
            every_one = time.monotonic() >= self.next_full_sweep
            if every_one:
                self.next_full_sweep = time.monotonic() + FULL_SWEEP_S
            with self.store.write() as connection:
                within_s = None if every_one else SWEPT_S
                expire_silent_jobs(connection, self.clock(), within_s=within_s)

    # --- the connection ---

    def _connect(self) -> None:
        """One attempt; the next is due when this one fails, or has had no answer for a while."""
        self._disconnect()
        self.more_to_tell = False
        self._confirm()
        if self.teller is not None:
            self.teller.forget()
        broker = self.config.broker
        account = broker.account(self.number)
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=account,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.max_inflight_messages_set(RECEIVE_MAXIMUM)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self.client = client
        try:
            client.username_pw_set(account, read_secret(broker.password_file))
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
        client.subscribe([(subscription, options) for subscription in self._subscriptions()])
        self.refused = None
        self.delay_s = FIRST_DELAY_S
        self.connected.set()

    def _subscriptions(self) -> list[str]:
        """What boards send is shared by all; what the broker keeps is heard by the leader alone."""
        base = f"{ROOT}/{self.config.fleet}/+"
        shared = [f"$share/{GROUP}/{base}/{kind}" for kind in FROM_BOARD if kind not in RETAINED]
        return shared if self.teller is None else shared + [f"{base}/{kind}" for kind in RETAINED]

    def _on_subscribe(
        self, client: Client, _data: object, _mid: int, reasons: list[Any], _properties: object
    ) -> None:
        if client is self.client and any(reason.is_failure for reason in reasons):
            log.warning(
                "the broker refused a subscription: %s (does it know shared ones?)",
                ", ".join(sorted({str(reason) for reason in reasons if reason.is_failure})),
            )

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
        now = time.monotonic()
        self.arrivals.put(Arrival(name, payload, message.qos, message.mid, client, message.retain, now))

    def _on_publish(self, client: Client, _data: object, mid: int, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            log.warning("the broker refused what was published: %s (does its acl_file name ours?)", reason)
        if client is self.client:
            self.confirmed.put((mid, not reason.is_failure))

    # --- from boards ---

    def _gather(self) -> list[Arrival]:
        """A batch: whatever comes within a moment of its first message."""
        try:
            batch = [self.arrivals.get(timeout=0.001 if self.more_to_tell else TICK_S)]
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
        began = time.monotonic()
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
        self._done(batch, outcome, began)

    def _done(self, batch: Sequence[Arrival], outcome: Outcome, began: float) -> None:
        counts = outcome.counts
        arrived = [arrival.at for arrival in batch]
        self.pace.committed(arrived, (counts.records, counts.events, counts.dropped), began, time.monotonic())
        self._acknowledge(batch, outcome)

    def _wait_for_disk(self, batch: list[Arrival]) -> None:
        """Lose nothing: the same batch is tried until the store takes it."""
        delay, began = 0.5, time.monotonic()
        while not self.stop.wait(delay):
            try:
                outcome = self._store(batch)
            except WorldFailed as err:
                log.warning("%d messages wait: %s", len(batch), one_line(err))
                delay = min(2 * delay, 10.0)
                continue
            self._done(batch, outcome, began)
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
        if self.teller is not None:
            self.teller.born(outcome.births)

    # --- to boards ---

    def _publish(self, device: str, kind: str, payload: dict[str, Any], retain: bool = False) -> int | None:
        """Hand a message to the connection; its number, None where there is none to hand it to."""
        client = self.client
        if client is None or not self.connected.is_set():
            return None
        sent = client.publish(topic(self.config.fleet, device, kind), encode(payload), 1, retain)
        return sent.mid if sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def _confirm(self) -> list[tuple[int, bool]]:
        """What the broker has said of publications."""
        answers = []
        while not self.confirmed.empty():
            answers.append(self.confirmed.get_nowait())
        return answers

    def _tell(self) -> None:
        """Keep in the store how this process is doing, when that changes and each few seconds."""
        connected, now = self.connected.is_set(), time.monotonic()
        state = (connected, None if connected else self.refused)
        changed = state != self.told
        if not changed and now < self.next_pace:
            return
        if changed:
            self.since = self.clock()
        fact = {"at": self.clock(), "since": self.since, "connected": connected, **self.pace.told(now)}
        with self.store.write() as connection:
            put_fact(connection, f"{FACT}:{self.number}", fact)
            if changed and self.teller is not None:
                self._tell_fleet(connection, state)
        self.next_pace = now + EVERY_S
        self.told = state
        if changed:
            log.info("broker %s", "connected" if connected else f"not connected: {state[1] or 'starting'}")

    def _tell_fleet(self, connection: sa.Connection, state: tuple[bool, str | None]) -> None:
        """The leader's: without a broker nobody knows who is online: nobody is, then."""
        put_fact(connection, FACT, {"connected": state[0], "why": state[1], "since": self.since})
        if not state[0]:
            connection.execute(sa.update(db.presence).values(online=False))


def _was_in_the_way(err: WorldFailed) -> bool:
    cause = err.__cause__
    return getattr(getattr(cause, "orig", cause), "sqlstate", None) in _IN_THE_WAY


def run_ingest(config: FleetConfig, stop: threading.Event, number: int = 1) -> None:
    """Open what the process needs and run it. Raises BadInput, WorldFailed."""
    store = open_store(config.database_url)
    try:
        key = read_key(config.control_key_file) if config.ingest.leads(number) else None
        Ingest(config, store, key, stop, number=number).run()
    finally:
        store.close()
