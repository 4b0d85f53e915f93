"""Run a small program of the board, such as vcgencmd, and give its output. Two seconds at most, never a shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.core.errors import WorldFailed

CommandRunner = Callable[[Sequence[str]], str]
"""Takes a program's name and its arguments, gives its standard output; raises WorldFailed."""

TIMEOUT_S = 2.0
FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin", "opt/vc/bin")


def runner(root: Path = Path("/"), timeout_s: float = TIMEOUT_S) -> CommandRunner:
    """A runner that looks programs up under `root` and nowhere else: a fake tree may hold a script."""

    def run(command: Sequence[str]) -> str:
        name = command[0]
        program = shutil.which(name, path=os.pathsep.join(str(root / folder) for folder in FOLDERS))
        if program is None:
            raise WorldFailed(f"{name}: no such program on this board")
        return _output(name, [program, *command[1:]], timeout_s)

    return run


def _output(name: str, command: list[str], timeout_s: float) -> str:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what it started can be ended with it
        )
    except OSError as err:
        raise WorldFailed(f"{name}: cannot be run: {err.strerror}") from err
    try:
        out, complaint = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as err:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise WorldFailed(f"{name}: no answer within {timeout_s:g} s") from err
    if process.returncode != 0:
        said = " ".join((complaint or out).split())[:200]
        raise WorldFailed(f"{name}: ended with code {process.returncode}" + (f": {said}" if said else ""))
    return out
