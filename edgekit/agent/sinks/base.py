"""What a sink is: it takes one line after the other, and says when it cannot. Knows no queue and no thread."""

from __future__ import annotations

import threading
from typing import Protocol

from edgekit.core.errors import EdgekitError


class SinkOver(EdgekitError):
    """This sink takes nothing any more, and never will: its reader is gone."""


class Sink(Protocol):
    """Where answers go. One thread owns it, see outlet.py: it may wait, and what it raises stops nobody.

    A line is one JSON object and its newline. After WorldFailed the same line is given again, or another one if the
    sink was ended in between: what was written of it before must then not show up twice.
    """

    def write(self, line: bytes, stopped: threading.Event) -> None:
        """Take one line. Raises WorldFailed: not now, or `stopped` was set while it waited; SinkOver: never again."""

    def close(self) -> None:
        """Nothing more will come."""
