"""Answers as JSON lines on standard output; the log goes to standard error. A reader that is gone ends the sink."""

from __future__ import annotations

import os
import select
import threading

from edgekit.agent.sinks.base import SinkOver
from edgekit.core.errors import WorldFailed

_CHUNK = 4096  # PIPE_BUF: what a pipe that is ready takes without blocking
_WAIT_MS = 200


class StdoutSink:
    """Waits for a slow reader, and goes on inside a line where it stopped."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)
        self._rest = b""
        self._line: bytes | None = None

    def write(self, line: bytes, stopped: threading.Event) -> None:
        if line is not self._line:
            self._line, self._rest = line, self._rest + line
        while self._rest:
            if not self._ready.poll(_WAIT_MS):
                if stopped.is_set():
                    raise WorldFailed("standard output: nobody reads it")
                continue
            try:
                written = os.write(self._descriptor, self._rest[:_CHUNK])
            except BlockingIOError:
                continue
            except BrokenPipeError as err:
                raise SinkOver("standard output: its reader is gone") from err
            except OSError as err:
                raise WorldFailed(f"standard output cannot be written: {err.strerror}") from err
            self._rest = self._rest[written:]
        self._line = None

    def close(self) -> None:
        pass
