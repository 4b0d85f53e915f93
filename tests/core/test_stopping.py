"""A signal that comes at the worst moment still ends the program."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, signal, threading
from edgekit.core.stopping import call_on_signal

stop = threading.Event()
call_on_signal(stop.set, signal.SIGTERM, signal.SIGINT)
with stop._cond:  # as inside Event.wait or Event.set, when the signals come
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
assert stop.wait(30)
print("ended")
"""


def test_signals_while_the_main_thread_holds_the_events_lock_end_the_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "ended\n", done.stderr
