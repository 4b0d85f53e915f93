"""Measure a bundle through the Session that production runs. Thresholds are never found here, only judged."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadBundle
from edgekit.core.manifest import Manifest
from edgekit.core.policy import PolicySpec
from edgekit.core.report import Latency, PolicyReport
from edgekit.runtime.data import Data
from edgekit.runtime.policy import StageCosts, make_policy
from edgekit.runtime.session import Session, class_of, is_class_vector

Tick = Callable[[int], None]  # called with the number of samples just done
_COSTS_ROUNDS, _COSTS_S = 64, 2.0
_WARM_UP, _FEWEST_ROUNDS = 8, 3


@dataclass(frozen=True)
class ExitTable:
    """Every exit's answer to every sample; arrays of shape (samples, exits).

    confidence: NaN where an exit has none. predicted: largest output, -1 where it is no classifier. correct: None
    without labels. latency_ms: from request to that exit.
    """

    confidence: NDArray[np.float64]
    predicted: NDArray[np.int64]
    correct: NDArray[np.bool_] | None
    latency_ms: NDArray[np.float64]

    @property
    def agreement(self) -> NDArray[np.bool_]:
        """Whether each exit predicts what the last one does."""
        agrees: NDArray[np.bool_] = self.predicted == self.predicted[:, -1:]
        return agrees


def _nothing(done: int) -> None:
    del done


def exit_table(session: Session, data: Data, tick: Tick = _nothing) -> ExitTable:
    """Run all stages for every sample. Labels are compared afterwards; nothing here decides."""
    shape = (data.count, len(session.exits))
    confidence, latency = np.full(shape, np.nan), np.zeros(shape)
    predicted = np.full(shape, -1, np.int64)
    for row in range(data.count):
        for index, elapsed in session.stages(data.inputs(row)):
            latency[row, index] = elapsed
            value = session.confidence(index)
            if value is not None:
                confidence[row, index] = value
            found = None if session.exits[index].also else class_of(session.output(index))
            if found is not None:
                predicted[row, index] = found
        tick(1)
    correct = None if data.labels is None else predicted == data.labels[:, None]
    return ExitTable(confidence, predicted, correct, latency)


def stage_costs(
    session: Session, data: Data, rounds: int = _COSTS_ROUNDS, limit_s: float = _COSTS_S
) -> StageCosts:
    """Mean and p95 of each stage's time in ms, after a warm-up. Energy stays unknown.

    `rounds` runs, or fewer (at least three) where `limit_s` seconds are over before: a slow network opens soon, too.
    """
    end = time.perf_counter() + limit_s
    times: list[list[float]] = []
    for row in range(_WARM_UP + rounds):
        reached = [elapsed for _, elapsed in session.stages(data.inputs(row % data.count))]
        times.append(np.diff(reached, prepend=0.0).tolist())
        if len(times) > _FEWEST_ROUNDS and time.perf_counter() > end:
            break
    warm = np.array(times[min(_WARM_UP, len(times) - _FEWEST_ROUNDS) :])
    mean, p95 = warm.mean(axis=0), np.percentile(warm, 95, axis=0)
    return StageCosts(tuple(mean.tolist()), tuple(p95.tolist()))


def latency_of(values_ms: NDArray[np.float64]) -> Latency:
    """mean, p50, p95, p99 of samples in ms; all None of nothing."""
    if not values_ms.size:
        return Latency()
    p50, p95, p99 = np.percentile(values_ms, [50, 95, 99]).tolist()
    return Latency(float(values_ms.mean()), p50, p95, p99)


def measure_policy(
    session: Session, data: Data, spec: PolicySpec, costs: StageCosts | None = None, tick: Tick = _nothing
) -> PolicyReport:
    """Run every sample once under `spec`, in order, as one stream.

    costs: this machine's stage times, measured here when None and the policy needs them. Raises BadInput where the
    bundle or this machine cannot serve the policy.
    """
    if costs is None and spec.kind in ("anytime", "budget"):
        costs = stage_costs(session, data)
    policy = make_policy(spec, session.manifest, costs)
    latency = np.zeros(data.count)
    counts = {leaving.name: 0 for leaving in session.exits}
    correct = labelled = missed = 0
    for row in range(data.count):
        answer = session.run(data.inputs(row), policy)
        missed += answer.deadline_missed
        latency[row] = answer.latency_ms
        counts[answer.exit] += 1
        if data.labels is not None and answer.label is not None:
            labelled += 1
            correct += answer.label == int(data.labels[row])
        tick(1)
    accuracy = correct / labelled if labelled else None
    late = None if spec.deadline_ms is None else missed
    return PolicyReport(str(spec), data.count, accuracy, counts, latency_of(latency), late)


def check_golden(session: Session, manifest: Manifest, read: Callable[[str], bytes]) -> tuple[str, ...]:
    """Run the golden cases; one line per tensor that is off, none when all hold.

    A tensor passes when no value is further off than its tolerance; an exit's top-1 must also be the same wherever its
    margin is above twice the tolerance. Raises BadBundle where the golden files do not fit the manifest.
    """
    golden = manifest.golden
    inputs = {name: load_array(read(file), file) for name, file in golden.inputs.items()}
    wanted = {output.tensor: load_array(read(output.file), output.file) for output in golden.outputs}
    for name, array in {**inputs, **wanted}.items():
        if array.shape[:1] != (golden.count,):
            raise BadBundle(f"golden cases of {name!r} must be {golden.count}, got shape {list(array.shape)}")
    worst = {output.tensor: 0.0 for output in golden.outputs}
    flipped: set[str] = set()
    exits = {leaving.output for leaving in manifest.exits}
    for case in range(golden.count):
        made = session.run_all({name: array[case] for name, array in inputs.items()})
        for output in golden.outputs:
            want, got = wanted[output.tensor][case], made[output.tensor]
            if want.shape != got.shape:
                raise BadBundle(
                    f"golden cases of {output.tensor!r} have shape {list(want.shape)}, not {list(got.shape)}"
                )
            off = np.abs(want.astype(np.float64) - got.astype(np.float64)).max(initial=0.0)
            worst[output.tensor] = max(worst[output.tensor], float(off) if np.isfinite(off) else np.inf)
            if output.tensor in exits and is_class_vector(want):
                top = np.sort(want.ravel().astype(np.float64))[-2:]
                if top[1] - top[0] > 2 * output.tolerance and want.argmax() != got.argmax():
                    flipped.add(output.tensor)
    failures = [
        f"{output.tensor} is off by {worst[output.tensor]:.4g}, more than {output.tolerance:.4g}"
        for output in golden.outputs
        if worst[output.tensor] > output.tolerance
    ]
    failures += [f"{name} has another top-1 on a clear case" for name in sorted(flipped)]
    return tuple(failures)


def golden_data(manifest: Manifest, read: Callable[[str], bytes]) -> Data:
    """The golden inputs as data without labels, for measuring on a board that has no other."""
    inputs = {name: load_array(read(file), file) for name, file in manifest.golden.inputs.items()}

    def sample(index: int) -> dict[str, NDArray[Any]]:
        return {name: np.ascontiguousarray(array[index]) for name, array in inputs.items()}

    return Data("golden cases", range(manifest.golden.count), None, sample, lambda index: f"golden[{index}]")


def load_array(data: bytes, where: str) -> NDArray[Any]:
    """A .npy member as an array. Raises BadBundle."""
    try:
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as err:
        raise BadBundle(f"{where}: not a .npy array: {err}") from err
    return array


def machine_name() -> str:
    """What measured figures say they were measured on: CPU model and architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    model = next(
        (value.strip() for key, value in fields.items() if key.strip() in ("model name", "Model")), ""
    )
    return f"{model or 'unknown CPU'} ({platform.machine()})"
