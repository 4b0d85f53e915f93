"""The line to the broker: birth and will, what is in force, the outbox out and commands in. Never makes anybody wait.

One thread owns paho's client and its socket. Everything it sends is kept by others (the outbox, the state), so a lost
connection loses nothing: a new client begins from what is still held.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgekit.agent.config import Broker
from edgekit.agent.outbox import EVENT, JOB, RECORD, Item, Outbox
from edgekit.agent.sources.envelope import is_id
from edgekit.agent.sources.mqtt import Message, MqttSource
from edgekit.agent.threads import Pulse
from edgekit.agent.tls import Tls
from edgekit.core import messages
from edgekit.core.errors import EdgekitError, WorldFailed, one_line
from edgekit.core.messages import Ack, Status

log = logging.getLogger(__name__)
CONNECT_S = 5.0
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 60.0
STABLE_S = 5.0
WINDOW = 512  # items of one boot on their way, not yet acknowledged
BATCH = 64
MAX_RESEND_S = 120.0
_AGAIN_S = 1.0  # an acknowledgement that gets no further this long after the sending means that it was lost
_TICK_S = 1.0
_GOODBYE_S = 0.3
_UNSUPPORTED_PROTOCOL = 132
_PACKET_HEADER = 2**16  # topic and properties, at most
POSTS, POST_BYTES = 256, 4 * 2**20  # answers that wait here or are on their way to the broker
PROTOCOLS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
_TOPIC_OF = {JOB: "job/event", EVENT: "event"}

Payload = Mapping[str, Any]


@dataclass
class _Boot:
    """How far one boot's items went over this connection. Acknowledgements are per boot, and so is waiting for them.

    acked: what the server said it has. floor: the last one it was told. progress_s: when it last got further, or was
    sent anew. resend_s: all goes again after so long without progress. again_s: the same while the server does answer.
    """

    sent: int
    progress_s: float
    resend_s: float
    again_s: float
    acked: int = 0
    floor: int | None = None


@dataclass(frozen=True)
class _Sent:
    """One message on its way to the broker. seqs: of the boot's items in it."""

    at_s: float
    boot_id: str
    seqs: tuple[int, ...]


@dataclass
class _Link:
    """One connection: a client, and what was sent through it.

    told: the retained payloads. waiting: what the broker has not confirmed, by message number, in the order of sending.
    """

    client: mqtt.Client
    up: bool = False
    refused: str | None = None
    wrong_protocol: bool = False
    boots: dict[str, _Boot] = field(default_factory=dict)
    told: dict[str, Payload] = field(default_factory=dict)
    waiting: dict[int, _Sent] = field(default_factory=dict)
    goodbye: int | None = None  # mid of the offline status
    # answers, and their QoS, by message number
    posted: dict[int, tuple[bytes, int]] = field(default_factory=dict)


class Uplink(threading.Thread):
    """Connects for as long as it takes, with jittered, growing pauses."""

    def __init__(
        self,
        broker: Broker,
        address: str,
        outbox: Outbox,
        *,
        ack: str,
        resend_s: float,
        current: Mapping[str, Callable[[], Payload]],
        on_message: Callable[[str, Payload], None],
        inputs: MqttSource | None = None,
        tls: Tls | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """current: kind of a retained topic -> its payload now. on_message: gets decoded commands, with their kind.

        inputs: gets what comes on the topic `input`, which is asked for only then.
        """
        super().__init__(name="uplink", daemon=True)
        self._broker = broker
        self._address = address
        self._outbox = outbox
        self._ack = ack
        self._resend_s = resend_s
        self._current = current
        self._on_message = on_message
        self._inputs = inputs
        self._tls = tls
        self._anew = False
        self._posts: deque[tuple[bytes, int]] = deque()
        self._posted = self._posted_bytes = 0  # of those that wait and those on their way
        self._answered: deque[tuple[_Link, int]] = deque()  # inputs to acknowledge
        self._clock = clock
        self._jitter = jitter
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._lock = threading.Lock()
        self._stale: set[str] = set()
        self._fresh_items = False
        self._finish_by: float | None = None
        self._finished = threading.Event()
        self._protocol = (
            MQTTProtocolVersion.MQTTv311 if broker.protocol == "3.1.1" else MQTTProtocolVersion.MQTTv5
        )
        self._complaint: str | None = None
        self.connected = threading.Event()
        self.pulse = Pulse()

    def wake(self) -> None:
        """Something new is in the outbox."""
        with self._lock:
            self._fresh_items = True
        self._poke()

    def announce(self, *kinds: str) -> None:
        """These retained topics say something else now."""
        with self._lock:
            self._stale.update(kinds)
        self._poke()

    def reconnect(self) -> None:
        """End the connection and make a new one: the board shows another certificate."""
        self._anew = True
        self._poke()

    def post(self, data: bytes, qos: int) -> bool:
        """Send a message on the topic `answer` soon; False: not connected, or too many are on their way."""
        with self._lock:
            full = self._posted >= POSTS or self._posted_bytes >= POST_BYTES
            if full or not self.connected.is_set():
                return False
            self._posts.append((data, qos))
            self._posted += 1
            self._posted_bytes += len(data)
        self._poke()
        return True

    def finish(self, timeout_s: float) -> bool:
        """Send what is left and wait for its acknowledgement, say goodbye, end. False: not all of it was confirmed."""
        self._finish_by = self._clock() + timeout_s
        self._poke()
        if self.is_alive():
            self._finished.wait(timeout_s + _GOODBYE_S + 0.2)
        return not self._outbox.boots()

    def _poke(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._wake_w.send(b"x")

    def run(self) -> None:
        """The thread: connect, serve until that breaks, wait, again."""
        delay = FIRST_DELAY_S
        while not self._out_of_time():
            link = None
            try:
                link = self._connect()
                begun = self._clock()
                if link is not None and self._serve(link):
                    # A link that breaks at once, over and over (two boards of one name), is no reason to hurry.
                    delay = FIRST_DELAY_S if self._clock() - begun > STABLE_S else delay
                elif link is not None and self._broker.protocol == "auto":
                    self._change_protocol(link)
            except Exception:
                log.exception("uplink met a defect and connects anew")
            self.connected.clear()
            self._outbox.line_is_lost()
            if link is not None:
                self._take_back(link)
            if self._finish_by is not None and (link is None or link.goodbye is not None):
                break
            self._pause(delay * (0.5 + self._jitter() / 2))
            delay = min(delay * 2, MAX_DELAY_S)
        self._finished.set()

    def _out_of_time(self) -> bool:
        return self._finish_by is not None and self._clock() >= self._finish_by

    def _pause(self, seconds: float) -> None:
        until = self._clock() + seconds
        while self._finish_by is None and (left := until - self._clock()) > 0:
            due = self._outbox.step()
            select.select([self._wake_r], [], [], left if due is None else min(left, due))
            self._swallow_pokes()

    def _swallow_pokes(self) -> None:
        with suppress(BlockingIOError):
            while self._wake_r.recv(4096):
                pass

    def _change_protocol(self, link: _Link) -> None:
        """A broker that hangs up on one version may speak the other; one that refuses the password speaks this one."""
        if link.refused is not None and not link.wrong_protocol:
            return
        name, self._protocol = next(entry for entry in PROTOCOLS.items() if entry[1] != self._protocol)
        log.info("trying MQTT %s", name)

    def _say(self, complaint: str | None) -> None:
        """Log what is wrong with the line once, not at every try."""
        if complaint != self._complaint and complaint is not None:
            log.warning("%s; trying again", complaint)
        self._complaint = complaint

    # --- one connection ------------------------------------------------------------------------------------------

    def _connect(self) -> _Link | None:
        self._anew = False  # this one is made with what the board shows now
        try:
            own_ack = self._inputs is not None
            client = new_client(self._broker, self._address, self._protocol, own_ack=own_ack, tls=self._tls)
        except WorldFailed as err:
            self._say(one_line(err))
            return None
        will = messages.encode(Status(online=False, boot_id=self._outbox.boot_id).to_json())
        client.will_set(self._topic("status"), will, qos=1, retain=True)
        link = _Link(client)
        client.on_connect = lambda *given: self._connected(link, given[3])
        client.on_message = lambda _client, _data, message: self._received(link, message)
        client.on_publish = lambda *given: self._published(link, given[2], given[3])
        try:
            connect(client, self._broker, 0 if self._inputs is None else 2 * self._inputs.max_input_bytes)
        except WorldFailed as err:
            self._say(one_line(err))
            return None
        return link

    def _connected(self, link: _Link, code: ReasonCode) -> None:
        if code.is_failure:
            link.refused = str(code)
            link.wrong_protocol = code.value == _UNSUPPORTED_PROTOCOL
            self._say(f"broker {self._broker.host}:{self._broker.port} refuses {self._address}: {code}")
            return
        link.up = True
        self._say(None)
        log.info("connected to broker %s:%d", self._broker.host, self._broker.port)
        kinds = messages.TO_BOARD if self._inputs is None else (*messages.TO_BOARD, messages.INPUT)
        link.client.subscribe([(self._topic(kind), 1) for kind in kinds])
        self._publish(link, "status", Status(online=True, boot_id=self._outbox.boot_id).to_json())
        with self._lock:
            self._stale.update(self._current)
            self._fresh_items = True
        self.connected.set()

    def _serve(self, link: _Link) -> bool:
        """Move bytes until the connection ends. Returns whether it ever was up."""
        client, begun = link.client, self._clock()
        while (sock := client.socket()) is not None:
            self.pulse.beat()
            if not link.up and (link.refused is not None or self._clock() - begun > CONNECT_S):
                break
            if self._finish_by is not None and self._say_goodbye(link):
                break
            if self._anew and self._finish_by is None:
                break
            pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            writers = [sock] if client.want_write() else []
            wait = 0.0 if pending else 0.02 if self._finish_by is not None else _TICK_S
            try:
                readable, writable, _ = select.select([sock, self._wake_r], writers, [], wait)
            except (OSError, ValueError):
                break
            self._swallow_pokes()
            if sock in readable or pending:
                client.loop_read()
            if sock in writable:
                client.loop_write()
            client.loop_misc()
            self._outbox.step()
            if link.up and client.socket() is not None:
                self._send_what_changed(link)
        if link.up and link.goodbye is None:
            log.info("connection to the broker is gone")
        elif not link.up and link.refused is None and client.socket() is None:
            self._say(hung_up(self._broker, self._address))
        if client.socket() is not None:
            client.disconnect()
            client.loop_write()
        return link.up

    def _say_goodbye(self, link: _Link) -> bool:
        """True when there is nothing more to do here."""
        if not link.up:
            return self._out_of_time()
        if link.goodbye is None:
            if (self._outbox.boots() or self._posted or self._answered) and not self._out_of_time():
                return False
            link.goodbye = self._publish(
                link, "status", Status(online=False, boot_id=self._outbox.boot_id).to_json()
            )
            link.waiting[link.goodbye] = _Sent(self._clock(), "", ())
            self._finish_by = self._clock() + _GOODBYE_S
        return link.goodbye not in link.waiting or self._out_of_time()

    def _topic(self, kind: str) -> str:
        fleet, _, device = self._address.partition("/")
        return messages.topic(fleet, device, kind)

    def _publish(self, link: _Link, kind: str, payload: Payload) -> int:
        data = messages.encode(payload)
        return link.client.publish(self._topic(kind), data, qos=1, retain=kind in messages.RETAINED).mid

    # --- out -----------------------------------------------------------------------------------------------------

    def _send_what_changed(self, link: _Link) -> None:
        self._send_posts(link)
        with self._lock:
            stale, self._stale = self._stale, set()
            fresh, self._fresh_items = self._fresh_items, False
        for kind in sorted(stale):
            payload = self._current[kind]()
            if link.told.get(kind) != payload:
                link.told[kind] = payload
                self._publish(link, kind, payload)
        for boot_id, boot in tuple(link.boots.items()):
            if self._clock() - boot.progress_s > boot.resend_s and self._in_flight(boot_id, boot):
                if not self._begin_again(link, boot_id, boot):
                    return
                fresh = True
        if fresh:
            for boot_id in self._outbox.boots():
                self._send_boot(link, boot_id)

    def _send_posts(self, link: _Link) -> None:
        """Answers out, and the acknowledgements of inputs that were answered."""
        while self._answered:
            of, mid = self._answered.popleft()
            if of is link:  # the broker forgot the others with their connection
                link.client.ack(mid, 1)
        while self._posts:
            with self._lock:
                data, qos = self._posts.popleft()
            mid = link.client.publish(self._topic(messages.ANSWER), data, qos=qos).mid
            if qos == 0:
                self._let_post_go(data)
            else:
                link.posted[mid] = (data, qos)

    def _let_post_go(self, data: bytes) -> None:
        with self._lock:
            self._posted -= 1
            self._posted_bytes -= len(data)

    def _take_back(self, link: _Link) -> None:
        """A connection broke: what the broker did not confirm goes again over the next one."""
        with self._lock:
            self._posts.extendleft(reversed(link.posted.values()))
        link.posted.clear()

    def _begin_again(self, link: _Link, boot_id: str, boot: _Boot) -> bool:
        """Send a boot once more, nothing of which was acknowledged for long. False: the broker is silent too."""
        log.info("nothing of boot %s acknowledged for %.1f s: sending again", boot_id, boot.resend_s)
        oldest = next(iter(link.waiting.values()), None)
        if oldest is not None and self._clock() - oldest.at_s > boot.resend_s:
            link.client.disconnect()
            return False
        link.boots[boot_id] = self._unsent(min(boot.resend_s * 2, MAX_RESEND_S), boot.again_s)
        return True

    def _unsent(self, resend_s: float, again_s: float) -> _Boot:
        """A boot of which nothing was sent yet."""
        return _Boot(0, self._clock(), resend_s, again_s)

    def _send_boot(self, link: _Link, boot_id: str) -> None:
        """Send what one boot holds and has not sent, up to the window."""
        floor = self._outbox.floor(boot_id)
        if floor is None:
            return
        if boot_id not in link.boots:
            link.boots[boot_id] = self._unsent(self._resend_s, _AGAIN_S)
        boot = link.boots[boot_id]
        if boot.sent < floor:  # nothing on its way
            boot.progress_s = self._clock()
        boot.sent = max(boot.sent, floor - 1)
        while (room := min(BATCH, floor + WINDOW - 1 - boot.sent)) > 0:
            items = self._outbox.after(boot_id, boot.sent, room)
            if not items:
                break
            self._send_items(link, boot, floor, items)
            boot.sent = items[-1].seq

    def _in_flight(self, boot_id: str, boot: _Boot) -> bool:
        """Whether something of a boot was sent that is still held."""
        floor = self._outbox.floor(boot_id)
        return floor is not None and boot.sent >= floor

    def _send_items(self, link: _Link, boot: _Boot, floor: int, items: Sequence[Item]) -> None:
        records = tuple(item for item in items if item.kind == RECORD)
        if records or (floor > boot.acked + 1 and boot.floor != floor):
            self._send_records(link, boot, items[0].boot_id, floor, records)
        for item in items:
            if item.kind != RECORD:
                mid = self._publish(link, _TOPIC_OF[item.kind], item.payload)
                link.waiting[mid] = _Sent(self._clock(), item.boot_id, (item.seq,))

    def _send_records(
        self, link: _Link, boot: _Boot, boot_id: str, floor: int, records: Sequence[Item]
    ) -> None:
        """Records with the floor; without records only the floor: what is below was let go or dropped."""
        payload = {"boot_id": boot_id, "floor": floor, "records": [item.payload for item in records]}
        mid = self._publish(link, "telemetry", payload)
        link.waiting[mid] = _Sent(self._clock(), boot_id, tuple(item.seq for item in records))
        boot.floor = floor

    def _published(self, link: _Link, mid: int, code: ReasonCode) -> None:
        """The broker has it; that releases something only where the config says so."""
        post = link.posted.pop(mid, None)
        if post is not None:
            self._let_post_go(post[0])
        sent = link.waiting.pop(mid, None)
        if code.is_failure:
            log.warning("the broker refuses a message: %s", code)
        elif self._ack == "broker" and sent is not None and sent.seqs:
            self._outbox.release_these(sent.boot_id, sent.seqs)
            self._progressed(link.boots.get(sent.boot_id))

    def _progressed(self, boot: _Boot | None) -> None:
        """Something of a boot was let go: there is no hurry with the rest of it, and room for more."""
        if boot is not None:
            boot.progress_s, boot.resend_s, boot.again_s = self._clock(), self._resend_s, _AGAIN_S
        with self._lock:
            self._fresh_items = True

    # --- in ------------------------------------------------------------------------------------------------------

    def _received(self, link: _Link, message: mqtt.MQTTMessage) -> None:
        try:
            kind = messages.parse_topic(message.topic)[2]
            if kind == messages.INPUT:
                self._receive_input(link, message)
                return
            if message.payload:
                self._obey(link, kind, messages.decode(bytes(message.payload), kind))
        except EdgekitError as err:
            log.warning("message ignored: %s", one_line(err))
        except Exception:
            log.exception("a message met a defect")
        if self._inputs is not None:
            link.client.ack(message.mid, message.qos)

    def _obey(self, link: _Link, kind: str, payload: Payload) -> None:
        if kind == "ack":
            self._acknowledged(link, Ack.parse(payload))
        else:
            self._on_message(kind, payload)

    def _receive_input(self, link: _Link, message: mqtt.MQTTMessage) -> None:
        """Hand an input over; it is acknowledged when it was answered or refused, not before.

        Commands that came after it are acknowledged at once, though MQTT asks for the order of arrival: brokers find a
        message by its number, and no command may wait for an input.
        """
        qos, mid = message.qos, message.mid

        def acknowledge() -> None:
            if qos:
                self._answered.append((link, mid))
                self._poke()

        if self._inputs is None or message.retain:  # a retained one would be answered at every connection
            acknowledge()
            return
        self._inputs.receive(
            Message(bytes(message.payload), _name_of(message), acknowledge, time.monotonic())
        )

    def _acknowledged(self, link: _Link, ack: Ack) -> None:
        """Let go of what the server has, but of nothing that was not sent over this connection."""
        boot = link.boots.get(ack.boot_id)
        if boot is None:
            return
        boot.acked = max(boot.acked, ack.upto)
        if self._outbox.release(ack.boot_id, min(ack.upto, boot.sent)):
            self._progressed(boot)
        elif boot.sent > ack.upto and self._clock() - boot.progress_s > boot.again_s:
            # The server is there, but what was sent a while ago met nobody: it came back in between. Should there be
            # something that it never takes, it gets it more and more rarely.
            link.boots[ack.boot_id] = self._unsent(boot.resend_s, min(boot.again_s * 2, MAX_RESEND_S))
            with self._lock:
                self._fresh_items = True
            return
        floor = self._outbox.floor(ack.boot_id)
        if floor is not None and floor > boot.acked + 1 and boot.floor != floor:
            # Numbers between were dropped here: the server must hear that it need not wait for them.
            self._send_records(link, boot, ack.boot_id, floor, ())


def _name_of(message: mqtt.MQTTMessage) -> str | None:
    """The id that a message's MQTT 5 properties give its input."""
    properties = message.properties
    named = [value for key, value in getattr(properties, "UserProperty", []) if key == "id"]
    with suppress(UnicodeDecodeError):
        named.append(bytes(getattr(properties, "CorrelationData", b"")).decode())
    return next((name for name in named if is_id(name)), None)


def new_client(
    broker: Broker,
    client_id: str,
    protocol: MQTTProtocolVersion,
    *,
    own_ack: bool = False,
    tls: Tls | None = None,
) -> mqtt.Client:
    """A client with the board's credentials and TLS settings; it reconnects to nothing by itself.

    own_ack: messages are acknowledged by `ack`, not on their own. tls: what the board knows and shows. Raises
    WorldFailed where the certificates cannot be read.
    """
    options: dict[str, Any] = {} if protocol == MQTTProtocolVersion.MQTTv5 else {"clean_session": True}
    options["manual_ack"] = own_ack
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id, protocol=protocol, reconnect_on_failure=False, **options
    )
    client.connect_timeout = CONNECT_S
    client.username_pw_set(broker.username, broker.password)
    if broker.tls:
        client.tls_set_context((tls or Tls()).context(broker.ca, "broker.ca"))
    return client


def hung_up(broker: Broker, address: str) -> str:
    """What to say of a broker that ends the connection before it answers: with TLS 1.3 it refuses certificates so."""
    why = ": was the board's certificate revoked, or is there none?" if broker.tls else ""
    return f"broker {broker.host}:{broker.port} hangs up on {address} before it answers{why}"


def connect(client: mqtt.Client, broker: Broker, max_packet: int = 0) -> None:
    """Open the connection; the answer comes later. Raises WorldFailed.

    max_packet: an MQTT 5 broker is asked to send nothing larger (bytes), but commands always fit. 0: no limit.
    """
    properties = None
    if max_packet and client.protocol == MQTTProtocolVersion.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = max(max_packet, messages.MAX_PAYLOAD) + _PACKET_HEADER
    try:
        client.connect(broker.host, broker.port, broker.keepalive_s, properties=properties)
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or one_line(err)
        raise WorldFailed(f"broker {broker.host}:{broker.port} cannot be reached: {reason}") from err
