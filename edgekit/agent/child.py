"""A child process with limits: what crashes, hangs or swallows memory does so there. Knows nothing of what it does."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.core.errors import WorldFailed

SHOWN = 300
_POLL_S = 0.02
_MAX_OUT = 4 * 2**20
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class ChildLimits:
    """threads, providers, accepts_code: as a bundle would be served. memory_mb: data the child may take."""

    timeout_s: float
    memory_mb: int
    threads: int
    providers: tuple[str, ...]
    accepts_code: bool


@dataclass(frozen=True)
class Ended:
    """code: the exit code, a signal as a negative number; None: its time was over. out: what it printed."""

    code: int | None
    out: str
    complaints: str
    seconds: float

    @property
    def how(self) -> str:
        """In words, with the end of what it complained."""
        if self.code is None:
            return "ran out of time"
        how = f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"code {self.code}"
        return f"ended with {how}" + (f": {self.complaints}" if self.complaints else "")


def run_child(module: str, arguments: Sequence[str], limits: ChildLimits, check: Callable[[], None]) -> Ended:
    """Run `python -m module` to its end or to its limits. Whatever `check` raises (called all the time) ends it first.

    arguments: paths must be absolute. `-m` imports from the current folder first, and in the agent's own others may be
    able to write: the child's is /. Raises WorldFailed where it could not be started.
    """
    command = [sys.executable, "-m", module, *arguments, "--parent", str(os.getpid())]
    command += ["--timeout", str(limits.timeout_s), "--memory-mb", str(limits.memory_mb)]
    command += ["--threads", str(limits.threads), "--providers", ",".join(limits.providers)]
    command += ["--accepts-code"] if limits.accepts_code else []
    begun = time.monotonic()
    with _memory_file() as out, _memory_file() as complaints:
        try:
            child = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=complaints,
                start_new_session=True,
            )
        except OSError as err:
            raise WorldFailed(f"{module}: the child could not be started: {err.strerror}") from err
        try:
            in_time = _wait(child, begun + limits.timeout_s, check)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        for file in (out, complaints):
            file.seek(0)
        code = child.returncode if in_time and child.returncode != -signal.SIGALRM else None
        said = " ".join(complaints.read()[-4096:].decode(errors="replace").split())[-SHOWN:]
        return Ended(code, out.read(_MAX_OUT).decode(errors="replace"), said, time.monotonic() - begun)


def _memory_file() -> BinaryIO:
    """A file that needs no disk: a trial must not fail for a full one."""
    return os.fdopen(os.memfd_create("edgekit-child"), "w+b")


def _wait(child: subprocess.Popen[bytes], until: float, check: Callable[[], None]) -> bool:
    while child.poll() is None:
        check()
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


# --- the child's own side ------------------------------------------------------------------------------------------


def child_parser(prog: str, description: str) -> ArgumentParser:
    """A parser of what `run_child` hands over; the child adds its own arguments."""
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("path", type=Path)
    parser.add_argument("--parent", type=int, help="End where this process is not the parent any more.")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--providers", default="CPUExecutionProvider")
    parser.add_argument("--accepts-code", action="store_true")
    return parser


def confine(options: Namespace) -> None:
    """End with the parent, and at the limits."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if options.parent is not None and os.getppid() != options.parent:
        sys.exit(1)  # it was gone before that took effect
    signal.setitimer(signal.ITIMER_REAL, options.timeout + 1)
    resource.setrlimit(resource.RLIMIT_DATA, (options.memory_mb << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
