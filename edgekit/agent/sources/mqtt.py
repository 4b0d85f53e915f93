"""Inputs from the topic `edgekit/v1/{fleet}/{device}/input`, opt-in: one message, one input.

A payload is a JSON object (see envelope.py; compressed with zlib or not, as all our messages) or the bytes of a PNG or
JPEG file. Such a message is named by the MQTT 5 user property `id`, else by its correlation data, else by a number
that counts from 1 in every run of the agent. The answer goes to the sinks: configure one of kind "mqtt" to send it to
the topic `answer`.

A message is acknowledged once its input was answered or refused, so what an agent held when it died is lost only where
the sender does not wait for the answer; a message sent twice is answered twice, under its own id. Retained messages
are no inputs. At most `max_waiting` inputs wait here; the next one is refused with an answer whose error begins with
"busy", and so is every input while no bundle serves. (In a flood only an id in the message's properties is read.)
A message above `max_input_bytes` is refused unread, and over MQTT 5 the broker is asked not to send one above twice
that, or above 4 MiB where that is more: our own commands may have so much.

`max_waiting` must stay a little below what the broker keeps in flight for one client (Mosquitto: its option
max_inflight_messages, 20 where nothing is said, 1000 in the file that `edgekit fleet serve` writes): commands come over
the same connection.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgekit.agent.sources.base import Input, Taker, broken
from edgekit.agent.sources.envelope import input_from_image, input_from_json
from edgekit.core import messages
from edgekit.core.errors import BadInput, one_line

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
LOOK_S = 0.2  # how often the end is looked for
_EXTRA = 2
_HELD_BYTES = 16 * 2**20  # of all inputs that wait; one alone may be larger


@dataclass(frozen=True)
class Message:
    """One message of the topic.

    name: its id, where the message and not its payload says one. arrived_s: when it came, of time.monotonic.
    """

    payload: bytes
    name: str | None
    acknowledge: Callable[[], None]
    arrived_s: float | None = None


class MqttSource:
    """Between the uplink's thread, which calls `receive` and never waits, and the runner."""

    def __init__(self, max_input_bytes: int, max_waiting: int) -> None:
        self.max_input_bytes = max_input_bytes
        self._max_waiting = max_waiting
        self._lock = threading.Condition()
        self._inbox: deque[tuple[Message, bool]] = deque()
        self._kept = self._held = self._number = 0  # kept: not yet acknowledged
        self._take: Taker | None = None
        self._over = False

    def receive(self, message: Message) -> None:
        """Keep a message for the source's thread, or refuse it. Called by the uplink; never waits."""
        with self._lock:
            take, size = self._take, len(message.payload)
            if self._over:
                why = "the agent takes no more inputs"
            elif size > self.max_input_bytes:
                why = f"an input may have {self.max_input_bytes} bytes, got {size}"
            elif self._kept >= self._max_waiting + _EXTRA or (
                self._held and self._held + size > max(_HELD_BYTES, self.max_input_bytes)
            ):
                why = self._busy()
            else:
                # One too many is still read for its id, in the source's own thread, before it is refused.
                fits = self._kept < self._max_waiting
                self._kept += 1
                self._held += size
                self._inbox.append((message, fits))
                self._lock.notify_all()
                return
        if take is not None:
            take.refuse(message.name, why)
        message.acknowledge()

    def _busy(self) -> str:
        return f"busy: {self._max_waiting} inputs wait already, send it again later"

    def run(self, take: Taker, stopped: threading.Event) -> int:
        handed = 0
        with self._lock:
            self._take = take
        try:
            while not stopped.is_set():
                with self._lock:
                    if not self._lock.wait_for(lambda: self._inbox, LOOK_S):
                        continue
                    message, fits = self._inbox.popleft()
                given = self._input(message)
                if not fits or not take.serves:
                    take.refuse(given.id(), self._busy() if not fits else "busy: no bundle serves yet")
                    self._finish(message)
                elif take(self._with_done(given, message)):
                    handed += 1
        finally:
            with self._lock:
                self._take, self._over = None, True
                self._inbox.clear()
                self._kept = self._held = 0
        return handed

    def _with_done(self, given: Input, message: Message) -> Input:
        return replace(given, done=lambda: self._finish(message), arrived_s=message.arrived_s)

    def _finish(self, message: Message) -> None:
        with self._lock:
            self._kept = max(0, self._kept - 1)
            self._held = max(0, self._held - len(message.payload))
        message.acknowledge()

    def _input(self, message: Message) -> Input:
        self._number += 1
        name, payload = message.name or str(self._number), message.payload
        if payload.startswith(_IMAGES):
            return input_from_image(payload, name)
        try:
            return input_from_json(messages.decode(payload, "input", self.max_input_bytes), name, files=False)
        except BadInput as err:
            return broken(name, one_line(err))
