"""Measure generated networks on this machine, through the Session that boards run, for the fit of a profile's costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.core.cost import Work
from edgekit.core.errors import EdgekitError
from edgekit.core.manifest import Input
from edgekit.core.profile import HOST, Backend
from edgekit.host.fit_cost import Sample
from edgekit.host.graph import Graph, tensor_of
from edgekit.host.micro import BLOCKS, Case
from edgekit.host.pack import Draft, draft
from edgekit.host.split import Stage
from edgekit.host.watch import Tick
from edgekit.runtime.backends import Array
from edgekit.runtime.session import Session, open_session

Clock = Callable[[], float]
ROUNDS = 7
_TURN_S = 0.002  # one network's turn in a round, about
_BLOCK_WEIGHT = 3.0  # layers among others, as in real networks, say more than chains of one kind
_TOGETHER = 24  # networks open at once, measured in turns


@dataclass(frozen=True)
class Opened:
    """A network that runs here. clock: CPU time of this thread where it alone computes."""

    name: str
    work: tuple[Work, ...]
    session: Session
    inputs: dict[str, Array]
    weight: float = 1.0


def clock_for(threads: int) -> Clock:
    """CPU time on one thread, where others on the machine do not count; else the wall's."""
    return time.thread_time if threads == 1 else time.perf_counter


def open_draft(name: str, made: Draft, threads: int = 1) -> Opened:
    """Open a lowered network, with random inputs."""
    manifest = made.manifest
    session = open_session(manifest, made.files.__getitem__, threads=threads)
    work = tuple(entry for stage in manifest.stages for entry in stage.work)
    return Opened(name, work, session, {e.tensor.name: random_input(e) for e in manifest.inputs})


def open_case(case: Case, backend: Backend, threads: int = 1) -> Opened:
    """Lower a generated network and open it. Raises EdgekitError where the runtime refuses it."""
    opened = open_draft(
        f"{case.family} {case.index} {case.format}", as_one_stage(case.graph, backend), threads
    )
    return replace(opened, weight=_BLOCK_WEIGHT if case.family in BLOCKS else 1.0)


def as_one_stage(graph: Graph, backend: Backend) -> Draft:
    """The network lowered whole, with all its outputs."""
    model = graph.copy()
    inputs, outputs = (tuple(map(tensor_of, side)) for side in (model.graph.inputs, model.graph.outputs))
    return draft(graph, [Stage(0, graph.exits[-1], model, inputs, outputs)], backend, "network", 1, HOST)


def random_input(entry: Input) -> Array:
    """What an input may look like: normal numbers, or small whole ones; the same each time."""
    random = np.random.default_rng(2)
    if entry.tensor.dtype.startswith("float"):
        return random.normal(size=entry.tensor.shape).astype(entry.tensor.dtype)
    return random.integers(0, 2, entry.tensor.shape).astype(entry.tensor.dtype)


def seconds_per_run(opened: Sequence[Opened], clock: Clock, rounds: int = ROUNDS) -> tuple[list[float], ...]:
    """Each network's seconds per run, one figure a round; the networks take turns."""
    counts = [_runs_a_turn(entry, clock) for entry in opened]
    found: tuple[list[float], ...] = tuple([] for _ in opened)
    for _ in range(rounds):
        for entry, count, mine in zip(opened, counts, found, strict=True):
            mine.append(_turn(entry, count, clock))
    return found


@dataclass
class Skipped:
    """How many networks the backend does not run."""

    count: int = 0


def measure(
    cases: Iterable[Case], backend: Backend, threads: int, tick: Tick, rounds: int, skipped: Skipped
) -> Iterator[Sample]:
    """A sample for each generated network that the backend runs: the median of its rounds. tick: for each one done."""
    clock = clock_for(threads)
    batch: list[Opened] = []
    for case in cases:
        try:
            batch.append(open_case(case, backend, threads))
        except EdgekitError:
            skipped.count += 1
            tick(1)
            continue
        if len(batch) == _TOGETHER:
            yield from _samples(batch, clock, rounds, tick)
            batch = []
    yield from _samples(batch, clock, rounds, tick)


def _samples(batch: Sequence[Opened], clock: Clock, rounds: int, tick: Tick) -> Iterator[Sample]:
    for entry, times in zip(batch, seconds_per_run(batch, clock, rounds), strict=True):
        tick(1)
        yield Sample(entry.name, entry.work, statistics.median(times), entry.weight)


def _runs_a_turn(entry: Opened, clock: Clock) -> int:
    once = min(_turn(entry, 1, clock) for _ in range(2))
    return max(1, min(200, round(_TURN_S / max(once, 1e-6))))


def _turn(entry: Opened, count: int, clock: Clock) -> float:
    """Seconds a run. One before is not counted: it finds the caches as another network left them."""
    _run(entry)
    start = clock()
    for _ in range(count):
        _run(entry)
    return (clock() - start) / count


def _run(entry: Opened) -> None:
    for _ in entry.session.stages(entry.inputs):
        pass
