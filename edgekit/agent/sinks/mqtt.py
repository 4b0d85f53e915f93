"""Answers as messages of the topic `edgekit/v1/{fleet}/{device}/answer`, opt-in, over the board's one connection.

A message is what a line of the other sinks is, compressed above 1 KiB as all our messages are. Answers never go through
the outbox of records: while the broker is away they wait in memory, and the oldest are dropped and counted. With
`qos` 1 what the broker had not confirmed when a connection broke is sent again over the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from edgekit.core import messages
from edgekit.core.errors import WorldFailed

_WAIT_S = 0.02


class Post(Protocol):
    """The uplink, as this sink sees it."""

    connected: threading.Event

    def post(self, data: bytes, qos: int) -> bool:
        """Send an answer soon; False: not connected, or too many are on their way."""


class MqttSink:
    """Waits while too many are on their way, and fails while there is no broker."""

    def __init__(self, uplink: Callable[[], Post], qos: int) -> None:
        """uplink: gives it, once it is there."""
        self._uplink = uplink
        self._qos = qos

    def write(self, line: bytes, stopped: threading.Event) -> None:
        uplink, data = self._uplink(), messages.compressed(line.rstrip(b"\n"))
        while not uplink.post(data, self._qos):
            if not uplink.connected.is_set():
                raise WorldFailed("answers: the broker is not connected")
            if stopped.wait(_WAIT_S):
                raise WorldFailed("answers: the broker takes no more")

    def close(self) -> None:
        pass
