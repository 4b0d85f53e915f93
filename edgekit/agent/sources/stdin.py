"""Inputs from standard input, one a line: a JSON object (see envelope.py) or the path of a file.

A line that begins with `{` is an object; any other is the path of an image, or of an .npz with one sample, and its
input's id. A line above `max_input_bytes` is skipped and counted as broken. The end of the input ends the source, and
with `exit_at_end` the agent.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

from edgekit.agent.sources.base import MAX_ID, Input, Taker, broken, read_file
from edgekit.agent.sources.envelope import input_from_json
from edgekit.core import checks
from edgekit.core.errors import BadInput, one_line

_CHUNK = 2**16
LOOK_MS = 200  # how often the end is looked for


class StdinSource:
    """Reads no further than the runner takes: a writer that is faster waits in its pipe."""

    def __init__(self, max_line_bytes: int, descriptor: int = 0) -> None:
        self._max = max_line_bytes
        self._descriptor = descriptor

    def run(self, take: Taker, stopped: threading.Event) -> int:
        handed = 0
        for number, line in enumerate(self._lines(stopped), 1):
            if line is not None and not line.strip():
                continue
            if not take(self._input(line, number)):
                break
            handed += 1
        return handed

    def _lines(self, stopped: threading.Event) -> Iterator[bytes | None]:
        """Line after line without its end; None for one that is too long."""
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        pending, skipping = b"", False
        while not stopped.is_set():
            if not ready.poll(LOOK_MS):
                continue
            try:
                chunk = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:  # somebody else was faster
                continue
            except OSError:  # closed, or the other end is gone
                chunk = b""
            *whole, rest = (pending + chunk).split(b"\n")
            for line in whole:
                yield None if skipping or len(line) > self._max else line
                skipping = False
            if len(rest) > self._max:
                rest, skipping = b"", True
            pending = rest
            if not chunk:
                if pending or skipping:
                    yield None if skipping else pending
                return

    def _input(self, line: bytes | None, number: int) -> Input:
        if line is None:
            return broken(str(number), f"line {number}: an input may have {self._max} bytes, got more")
        if line.lstrip()[:1] == b"{":
            try:
                payload = checks.table(checks.parse_json(line, f"line {number}"), f"line {number}")
            except BadInput as err:
                return broken(str(number), one_line(err))
            return input_from_json(payload, str(number), files=True)
        text = os.fsdecode(line.rstrip(b"\r"))
        name = text.encode("utf-8", "replace").decode()[-MAX_ID:]
        return Input(lambda: name, lambda manifest: read_file(Path(text), manifest))
