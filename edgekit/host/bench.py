"""Time candidates: here, in interleaved turns, or wherever else a `Bench` does it. Chooses none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgekit.core import bundle
from edgekit.core.bench import BenchReport
from edgekit.core.errors import BadInput, EdgekitError, one_line
from edgekit.core.manifest import Manifest
from edgekit.host.pack import GOLDEN, Draft, Finished, golden_cases
from edgekit.runtime.data import Data
from edgekit.runtime.interleave import (
    ROUNDS,
    exit_latencies,
    in_turns,
    stage_latencies,
    turn_medians,
)
from edgekit.runtime.measure import check_golden, machine_name
from edgekit.runtime.session import Session

Candidate = Draft | Finished
Bench = Callable[[Sequence[Candidate], Data], tuple[BenchReport, ...]]
"""`bench(candidates, data)`: one round. All candidates are timed side by side on one machine, on inputs out of `data`
(any of the user's inputs: only their shapes and sparsity matter, labels are not read). One report for each, in their
order; a candidate that cannot be used there says so in its `problems` and has no latencies. Raises EdgekitError where
the whole round came to nothing (no answer, refused, crashed, expired). Here: `local_bench`; on a board:
cli/remote_bench.py's."""
_UNTOLD = "# a candidate that is only measured has no recipe yet\n"


def local_bench(rounds: int = ROUNDS) -> Bench:
    """Times on this machine, one thread, `rounds` turns each. Golden cases are checked where a candidate has some."""

    def bench(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        reports = [
            BenchReport(bundle.content_id(candidate.manifest), on=machine_name()) for candidate in candidates
        ]
        opened: dict[int, Session] = {}
        for index, candidate in enumerate(candidates):
            try:
                opened[index] = candidate.open()
                problems = _golden(opened[index], candidate.manifest, candidate.files)
            except EdgekitError as err:
                problems = (one_line(err),)
            if problems:
                opened.pop(index, None)
                reports[index] = replace(reports[index], problems=problems)
        turns = in_turns(tuple(opened.values()), [data] * len(opened), rounds)
        for (index, session), mine in zip(opened.items(), turns, strict=True):
            reports[index] = replace(
                reports[index],
                exits=exit_latencies(mine),
                stages=stage_latencies(mine),
                turns_ms=turn_medians(mine),
                requests=sum(map(len, mine)),
                providers=session.providers,
            )
        return tuple(reports)

    return bench


def _golden(session: Session, manifest: Manifest, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """What is off; nothing where there are no cases yet."""
    return check_golden(session, manifest, files.__getitem__) if manifest.golden.outputs else ()


def as_bundle(candidate: Candidate, data: Data, profile: str) -> bytes:
    """The `.edge` file of a candidate for a board of `profile`.

    A draft gets golden cases out of `data`, as boards want them, and no recipe.
    """
    made = candidate
    if isinstance(made, Draft):
        golden = golden_cases(made, data, GOLDEN)
        files = {**made.files, **golden.files, made.manifest.recipe: _UNTOLD.encode()}
        manifest = replace(made.manifest, golden=golden.golden, files=bundle.members_of(files))
        made = Finished(Manifest.parse(manifest.to_json()), files)
    return bundle.pack(replace(made.manifest, profiles=(profile,)), made.files, {"v": 1})


def timed_there(bench: Bench, candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
    """One round whose last candidate is what was made. Raises BadInput where that cannot be used on the board."""
    reports = bench(candidates, data)
    if reports[-1].problems:
        raise BadInput(
            f"the bundle cannot be used on {reports[-1].device}: {'; '.join(reports[-1].problems)}"
        )
    return reports


def interleaved(
    sessions: Sequence[Session], data: Data, rounds: int = ROUNDS
) -> tuple[NDArray[np.float64], ...]:
    """Per network the ms from request to each exit, shape (requests, exits), run to the last: `rounds` turns each."""
    turns = in_turns(sessions, [data] * len(sessions), rounds)
    return tuple(np.concatenate(mine) for mine in turns)
