"""Try a bundle in a child process with limits: what crashes, hangs or swallows memory does so there.

Golden cases first; then its golden inputs for a number of requests or a time, in turns under the policy that will be in
force and through all stages, against the limits in its manifest. The child is nice and beside what serves: the time it
waits for a processor does not count, and neither does what the board cannot measure or what others disturb; that is
said instead.

`python -m edgekit.agent.trial BUNDLE` is the child: it prints one JSON line. `try_out` is the parent's side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from edgekit.agent.child import SHOWN, ChildLimits, Ended, child_parser, confine, run_child
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import BadInput, EdgekitError, MissingExtra, WorldFailed, one_line
from edgekit.core.manifest import BoardLimits
from edgekit.core.policy import PolicySpec
from edgekit.runtime import command, heap
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data
from edgekit.runtime.energy import metered, per_unit
from edgekit.runtime.health import read_health
from edgekit.runtime.measure import check_golden, golden_data, stage_costs
from edgekit.runtime.memory import resident, warm_up
from edgekit.runtime.policy import Policy, make_policy
from edgekit.runtime.power import open_sensor
from edgekit.runtime.session import Session, open_session

NICE = 10
_PARTS = 5  # of the requests, of which the quietest counts
_FEWEST = 3
_ENERGY_S = (1.25, 5.0)  # the longer one where the sensor, or a busy board, gave too few figures in the first
_OTHERS = 0.1  # processors' time that others may take while energy is judged
_MB = 2**20


@dataclass(frozen=True)
class TrialResult:
    """reason: None when it passed; else one of REASONS, and `detail` in words. A pass has its figures there."""

    reason: str | None
    detail: str | None
    seconds: float


REASONS = {
    "golden": "a golden case is off by more than its tolerance, or the runtime does not take the bundle",
    "runtime": "the runtime is not installed, or it failed while requests were answered",
    "not-finite": "outputs or confidences that are no numbers",
    "inputs": "the inputs that come in do not fit",
    "latency": "slower on this board than the bundle's limit",
    "memory": "takes more of this board's memory than the bundle's limit",
    "energy": "takes more energy on this board than the bundle's limit",
    "deadline": "misses clearly more deadlines than what served before",
    "crash": "the trial, or the agent, died over it",
    "timeout": "the trial took too long",
}
"""Why a trial fails, in job events."""


class TrialFailed(EdgekitError):
    """The verdict on a bundle. `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class How:
    """requests, seconds: whichever comes first. sensor, sysroot: for the energy of a request."""

    requests: int
    seconds: float
    policy: PolicySpec = field(default_factory=PolicySpec)
    sensor: str = "none"
    sysroot: Path = Path("/")


def try_out(bundle: Path, how: How, limits: ChildLimits, check: Callable[[], None]) -> TrialResult:
    """Run the child to its end or to its limits. Whatever `check` raises (called all the time) ends the child first."""
    arguments = [str(bundle.absolute()), "--requests", str(how.requests), "--seconds", str(how.seconds)]
    arguments += ["--policy", json.dumps(how.policy.to_json())]
    arguments += ["--sensor", how.sensor, "--sysroot", str(how.sysroot.absolute())]
    ended = run_child("edgekit.agent.trial", arguments, limits, check)
    if ended.code is None:
        return TrialResult("timeout", f"the trial took longer than {limits.timeout_s:g} s", ended.seconds)
    return _result(ended)


def _result(ended: Ended) -> TrialResult:
    lines = ended.out.strip().splitlines()
    try:
        verdict = json.loads(lines[-1]) if lines else {}
    except ValueError:
        verdict = {}
    if ended.code != 0 or not isinstance(verdict, dict) or "reason" not in verdict:
        return TrialResult("crash", f"the trial {ended.how}", ended.seconds)
    reason, detail = verdict["reason"], str(verdict.get("detail") or "")[:SHOWN]
    return TrialResult(None if reason is None else str(reason), detail or None, ended.seconds)


# --- the child ---------------------------------------------------------------------------------------------------


def _child(arguments: list[str]) -> int:
    parser = child_parser("edgekit.agent.trial", "Try a bundle on this board.")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--policy", default='{"kind": "full"}')
    parser.add_argument("--sensor", default="none")
    parser.add_argument("--sysroot", type=Path, default=Path("/"))
    options = parser.parse_args(arguments)
    confine(options)
    with contextlib.suppress(OSError):
        os.nice(NICE)  # what serves goes first
    reason: str | None = None
    try:
        detail = _tried(options)
    except TrialFailed as err:
        reason, detail = err.reason, one_line(err)
    except MissingExtra as err:
        reason, detail = "runtime", one_line(err)
    except EdgekitError as err:
        reason, detail = "golden", one_line(err)
    sys.stdout.write(json.dumps({"v": 1, "reason": reason, "detail": detail}) + "\n")
    return 0


def _tried(options: argparse.Namespace) -> str:
    """The figures in words. Raises TrialFailed, MissingExtra where the board lacks the runtime, EdgekitError."""
    bundle = open_bundle(options.path)
    data = golden_data(bundle.manifest, bundle.read)
    session, memory = _opened(bundle, data, options)
    off = check_golden(session, bundle.manifest, bundle.read)
    if off:
        raise TrialFailed("golden", "; ".join(off))
    limits = bundle.manifest.limits
    said = [
        _judged("latency", _latency(session, data, options, limits), limits.latency_ms, "ms"),
        _judged("memory", memory, limits.memory_mb, "MB"),
    ]
    if limits.energy_mj is not None:
        said.append(_judged("energy", _energy(session, data, options, limits), limits.energy_mj, "mJ"))
    return ", ".join(line for line in said if line)


@dataclass(frozen=True)
class Figure:
    """value None: not known, and `why`. why beside a value: it cannot be held against a limit."""

    value: float | None
    why: str | None = None
    more: str = ""


def _judged(name: str, figure: Figure, limit: float | None, unit: str) -> str:
    """What was measured, in words; empty where there is nothing to say. Raises TrialFailed above the limit."""
    if figure.value is None:
        return f"{name} not judged: {figure.why}" if limit is not None else ""
    shown = f"{name} {figure.value:.3g} {unit}{figure.more}"
    if limit is None:
        return shown
    if figure.value <= limit:
        return f"{shown} of {limit:g} {unit}"
    if figure.why is not None:
        return f"{shown} not judged: {figure.why}"
    raise TrialFailed(name, f"{shown}, more than the bundle's limit of {limit:g} {unit}")


def _opened(bundle: Bundle, data: Data, options: argparse.Namespace) -> tuple[Session, Figure]:
    """The bundle as it would be served, and the private memory in MB that it took to open it and run it once."""
    for backend in sorted({part.backend for stage in bundle.manifest.stages for part in stage.parts}):
        warm_up(backend)  # a runtime is no bundle's own memory
    sample = data.inputs(0)
    heap.give_back()
    before = private_mb()
    session = open_session(
        bundle.manifest,
        bundle.read,
        threads=options.threads,
        accepts_code=options.accepts_code,
        providers=tuple(options.providers.split(",")),
    )
    session.run_all(sample)
    after = private_mb()
    if before is None or after is None:
        return session, Figure(None, "this system does not tell it")
    return session, Figure(max(0.0, after - before))


def private_mb() -> float | None:
    """Private memory of this process; None where the system does not tell it."""
    try:
        return resident().private / _MB
    except WorldFailed:
        return None


def _latency(session: Session, data: Data, options: argparse.Namespace, limits: BoardLimits) -> Figure:
    """The median of requests through all stages, of the quietest part of them. Raises TrialFailed: not-finite."""
    policy = _policy(session, data, options.policy)
    whole: list[float] = []
    waited = _waited_ms()
    end, done = time.monotonic() + options.seconds, 0
    while len(whole) < _FEWEST or (done < options.requests and time.monotonic() < end):
        inputs = data.inputs(done % data.count)
        before = next(waited)
        *_, (_, elapsed_ms) = session.stages(inputs)
        whole.append(max(0.0, elapsed_ms - (next(waited) - before)))
        answer = session.run(inputs, policy)
        if answer.nan_confidences or not finite(answer.outputs.values()):
            case = done % data.count
            raise TrialFailed(
                "not-finite", f"exit {answer.exit} gave what is no number for golden case {case}"
            )
        done += 1
    p95 = sorted(whole)[int(0.95 * (len(whole) - 1))]
    median = quietest(whole)
    why = None
    if limits.latency_ms is not None and median > limits.latency_ms and _throttled(options):
        why = "the board is throttled"
    return Figure(median, why, f" (p95 {p95:.3g} ms, {len(whole)} requests)")


def quietest(values_ms: Sequence[float]) -> float:
    """The smallest of the medians of five parts, one after the other: a board that is busy now and then is not judged.

    values_ms: in the order they were measured, at least one.
    """
    size = max(_FEWEST, len(values_ms) // _PARTS)
    parts = [values_ms[at : at + size] for at in range(0, len(values_ms), size)]
    return min(statistics.median(part) for part in parts if len(part) == min(size, len(values_ms)))


def finite(arrays: Iterable[Array]) -> bool:
    """Whether all these values are numbers."""
    return all(bool(np.isfinite(array).all()) for array in arrays if array.dtype.kind == "f")


def _waited_ms() -> Iterator[float]:
    """How long this thread has waited for a processor so far, as often as asked (second figure of schedstat)."""
    try:
        file = Path("/proc/thread-self/schedstat").open("rb", buffering=0)  # noqa: SIM115  (read as long as asked)
    except OSError:
        while True:
            yield 0.0
    with file:
        while True:
            file.seek(0)
            yield int(file.read().split()[1]) / 1e6


def _policy(session: Session, data: Data, text: str) -> Policy:
    spec = PolicySpec.parse(json.loads(text), "--policy")
    try:
        return make_policy(spec, session.manifest, stage_costs(session, data, _FEWEST, 1.0))
    except BadInput:  # as where it serves: the full network then
        return make_policy(PolicySpec(), session.manifest, None)


def _throttled(options: argparse.Namespace) -> bool:
    return bool(read_health(options.sysroot, command.runner(options.sysroot)).throttled)


def _energy(session: Session, data: Data, options: argparse.Namespace, limits: BoardLimits) -> Figure:
    """mJ of a request through all stages. Above the limit it counts only where nobody else was at work meanwhile."""
    try:
        sensor = open_sensor(options.sensor, options.sysroot, command.runner(options.sysroot))
    except BadInput as err:
        return Figure(None, one_line(err))
    why = sensor.read().why
    if why is not None:
        return Figure(None, why)
    for seconds in _ENERGY_S:
        others = _others_s()
        requests, window = metered(sensor, partial(_run_for, seconds, session, data))
        others = _others_s() - others
        energy = per_unit(window, requests)
        if energy.mj is not None:
            disturbed = energy.mj > (limits.energy_mj or 0.0) and others > _OTHERS * window.seconds
            return Figure(
                energy.mj, f"others took {others:.1f} s of processors meanwhile" if disturbed else None
            )
    return Figure(None, energy.why)


def _run_for(seconds: float, session: Session, data: Data) -> int:
    """Run all stages again and again; how often."""
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for _ in session.stages(data.inputs(done % data.count)):
            pass
        done += 1
    return done


def _others_s() -> float:
    """Processor time of everybody but this process since the start, in s; 0 where the system does not tell."""
    try:
        row = Path("/proc/stat").read_text("ascii").splitlines()[0].split()
        busy = sum(map(int, row[1:4])) + sum(map(int, row[6:9]))  # user, nice, system; irq, softirq, steal
    except (OSError, ValueError, IndexError):
        return 0.0
    mine = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - mine.user - mine.system


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
