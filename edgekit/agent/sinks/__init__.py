"""Where a source's answers go: a table of kinds, one a file, each behind a thread and a bounded buffer of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.agent import config
from edgekit.agent.sinks.base import Sink, SinkOver
from edgekit.agent.sinks.file import FileSink
from edgekit.agent.sinks.line import line_of
from edgekit.agent.sinks.mqtt import MqttSink, Post
from edgekit.agent.sinks.outlet import Outlet
from edgekit.agent.sinks.stdout import StdoutSink
from edgekit.core import registry
from edgekit.core.errors import BadInput, EdgekitError
from edgekit.core.manifest import Manifest
from edgekit.runtime.session import Answer

__all__ = ["SINKS", "Sink", "SinkOver", "Sinks", "open_sink"]


def _file(sink: config.Sink, uplink: Callable[[], Post]) -> Sink:
    if sink.path is None:
        raise BadInput("sink file needs a path")
    return FileSink(sink.path, sink.max_bytes, sink.keep)


SINKS: Mapping[str, Callable[[config.Sink, Callable[[], Post]], Sink | None]] = {
    "none": lambda sink, uplink: None,
    "stdout": lambda sink, uplink: StdoutSink(),
    "file": _file,
    "mqtt": lambda sink, uplink: MqttSink(uplink, sink.qos),
}


def open_sink(sink: config.Sink, uplink: Callable[[], Post]) -> Sink | None:
    """The sink that the config names; None for `none`. Raises BadInput; an unknown kind lists the known ones."""
    return registry.pick("sink", SINKS, sink.kind)(sink, uplink)


class Sinks:
    """All sinks of a board: every answer goes to each of them."""

    def __init__(
        self,
        sinks: Sequence[config.Sink],
        uplink: Callable[[], Post],
        now: Callable[[], float | None],
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """uplink: gives it, once it is there. now: Unix seconds where trusted. tell: see Outlet. Raises BadInput."""
        opened = [(sink, open_sink(sink, uplink)) for sink in sinks]
        self._now = now
        self._outlets = [
            (given.outputs, Outlet(given.kind, sink, tell=tell)) for given, sink in opened if sink is not None
        ]

    def start(self) -> None:
        """Begin to write."""
        for _, outlet in self._outlets:
            outlet.start()

    def give(self, name: str | None, result: Answer | EdgekitError, served: Manifest | None) -> None:
        """Hand one answer, or what went wrong, to every sink. Never waits."""
        lines: dict[bool, bytes] = {}
        now = self._now() if self._outlets else None
        for outputs, outlet in self._outlets:
            if outputs not in lines:
                lines[outputs] = line_of(name, result, served, now, outputs=outputs)
            outlet.put(lines[outputs])

    @property
    def lost(self) -> int:
        """How many answers a sink could not give so far; one that none of two gave counts twice."""
        return sum(outlet.lost for _, outlet in self._outlets)

    def finish(self, timeout_s: float) -> None:
        """Write what is left within the time, and end."""
        end = time.monotonic() + timeout_s
        for _, outlet in self._outlets:
            outlet.finish(max(0.0, end - time.monotonic()))
