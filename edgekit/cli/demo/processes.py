"""Start the demo's processes and make sure that none outlives it. Knows nothing of edgekit's verbs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.core.errors import WorldFailed

_STOP_S = 10.0
# util-linux: the program is ended by the kernel when the demo dies, however it dies.
_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


def free_port() -> int:
    """A loopback port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float, alive: Sequence[Process] = ()) -> None:
    """Wait until `ready()`; raise WorldFailed when time runs out or one of `alive` ends before."""
    end = time.monotonic() + timeout_s
    while not ready():
        for process in alive:
            process.check()
        if time.monotonic() > end:
            raise WorldFailed(f"demo: {what} did not happen within {timeout_s:g} s")
        time.sleep(0.05)


@dataclass
class Process:
    """One started program; its output goes to a log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise WorldFailed when it has ended, with its last line."""
        code = self.popen.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise WorldFailed(
                f"demo: {self.name} ended with code {code}: {lines[-1] if lines else 'it said nothing'}"
            )

    def end(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, wait, and kill it where it does not. Its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(kind)
            try:
                self.popen.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.popen.pid, signal.SIGKILL)
        code = self.popen.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return code


@dataclass
class Processes:
    """Everything that was started, ended in reverse order."""

    logs: Path
    running: list[Process] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str | Path], output: Path | None = None) -> Process:
        """Start a program in a session of its own. output: where its stdout goes instead of the log."""
        log = self.logs / f"{name}.log"
        with log.open("ab") as errors, (output or log).open("ab") as out:
            popen = subprocess.Popen(
                [*(_WITH_PARENT if shutil.which("setpriv") else ()), *(str(part) for part in command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self.running.append(process)
        return process

    def end(self, process: Process) -> int:
        """End one of them. Its exit code."""
        self.running.remove(process)
        return process.end()

    def end_all(self) -> None:
        """End what is left, last started first."""
        while self.running:
            self.running.pop().end()
