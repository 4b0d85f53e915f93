"""No source: a board whose requests come another way."""

from __future__ import annotations

import threading

from edgekit.agent.sources.base import Taker


class NoSource:
    """Waits for the end."""

    def run(self, take: Taker, stopped: threading.Event) -> int:
        stopped.wait()
        return 0
