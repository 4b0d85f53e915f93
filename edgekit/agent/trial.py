"""Try a bundle's golden cases in a child process with limits: what crashes, hangs or swallows memory does so there.

`python -m edgekit.agent.trial BUNDLE` is the child: it prints one JSON line. `try_out` is the parent's side.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.core.bundle import open_bundle
from edgekit.core.errors import EdgekitError, MissingExtra, WorldFailed, one_line

_POLL_S = 0.02
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_SHOWN = 300


@dataclass(frozen=True)
class TrialLimits:
    """threads, providers, accepts_code: as the bundle would be served. memory_mb: data the child may take."""

    timeout_s: float
    memory_mb: int
    threads: int
    providers: tuple[str, ...]
    accepts_code: bool


@dataclass(frozen=True)
class TrialResult:
    """reason: None when it passed; else golden, runtime (not installed), crash or timeout, and `detail` in words."""

    reason: str | None
    detail: str | None
    seconds: float


def try_out(bundle: Path, limits: TrialLimits, check: Callable[[], None]) -> TrialResult:
    """Run the child to its end or to its limits. Whatever `check` raises (called all the time) ends the child first."""
    command = [sys.executable, "-m", "edgekit.agent.trial", str(bundle)]
    command += ["--timeout", str(limits.timeout_s), "--memory-mb", str(limits.memory_mb)]
    command += ["--threads", str(limits.threads), "--providers", ",".join(limits.providers)]
    command += ["--accepts-code"] if limits.accepts_code else []
    begun = time.monotonic()
    with _memory_file() as out, _memory_file() as complaints:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=complaints, start_new_session=True
            )
        except OSError as err:
            raise WorldFailed(f"trial: the child could not be started: {err.strerror}") from err
        try:
            ended = _wait(child, begun + limits.timeout_s, check)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        seconds = time.monotonic() - begun
        if not ended or child.returncode == -signal.SIGALRM:
            return TrialResult("timeout", f"the trial took longer than {limits.timeout_s:g} s", seconds)
        for file in (out, complaints):
            file.seek(0)
        return _result(
            child.returncode, out.read().decode(errors="replace"), complaints.read()[-4096:], seconds
        )


def _memory_file() -> BinaryIO:
    """A file that needs no disk: a trial must not fail for a full one."""
    return os.fdopen(os.memfd_create("edgekit-trial"), "w+b")


def _wait(child: subprocess.Popen[bytes], until: float, check: Callable[[], None]) -> bool:
    while child.poll() is None:
        check()
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def _result(code: int, out: str, complaints: bytes, seconds: float) -> TrialResult:
    lines = out.strip().splitlines()
    try:
        verdict = json.loads(lines[-1]) if lines else {}
    except ValueError:
        verdict = {}
    if code == 0 and verdict.get("ok") is True:
        return TrialResult(None, None, seconds)
    if code == 0 and verdict.get("ok") is False:
        reason = "runtime" if verdict.get("runtime") is False else "golden"
        return TrialResult(reason, "; ".join(verdict.get("failures", []))[:_SHOWN], seconds)
    said = " ".join(complaints.decode(errors="replace").split())[-_SHOWN:]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
    return TrialResult("crash", f"the trial ended with {how}" + (f": {said}" if said else ""), seconds)


def _child(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="edgekit.agent.trial", description="Try a bundle's golden cases.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--providers", default="CPUExecutionProvider")
    parser.add_argument("--accepts-code", action="store_true")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    signal.setitimer(
        signal.ITIMER_REAL, options.timeout + 1
    )  # should the parent be gone before that took effect
    resource.setrlimit(resource.RLIMIT_DATA, (options.memory_mb << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    runtime = True
    try:
        failures = _failures(options)
    except MissingExtra as err:
        runtime, failures = False, [one_line(err)]
    verdict = {"v": 1, "ok": not failures, "runtime": runtime, "failures": failures}
    sys.stdout.write(json.dumps(verdict) + "\n")
    return 0


def _failures(options: argparse.Namespace) -> list[str]:
    """One line for each. Raises MissingExtra where the board lacks the runtime."""
    from edgekit.runtime.measure import check_golden
    from edgekit.runtime.session import open_session

    try:
        bundle = open_bundle(options.bundle)
        session = open_session(
            bundle.manifest,
            bundle.read,
            threads=options.threads,
            accepts_code=options.accepts_code,
            providers=tuple(options.providers.split(",")),
        )
        return list(check_golden(session, bundle.manifest, bundle.read))
    except MissingExtra:
        raise
    except EdgekitError as err:
        return [one_line(err)]


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
