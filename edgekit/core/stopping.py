"""Signals that ask a program to end. Nothing else."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable


def call_on_signal(action: Callable[[], object], *kinds: signal.Signals) -> None:
    """Call `action` in a thread of its own whenever one of these signals comes. From the main thread only.

    A handler runs wherever the main thread happens to be, also while that holds the lock `action` wants (an Event's),
    and inside another handler: called there, it would wait for ever. Starting a bare thread takes no lock.
    """
    for kind in kinds:
        signal.signal(kind, lambda *_: _thread.start_new_thread(action, ()))
