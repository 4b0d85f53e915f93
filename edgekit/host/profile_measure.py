"""Make the profile of this machine: what it is, which int8 it runs well, what work costs. Writes no file."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend, Profile
from edgekit.host.fit_cost import Sample, errors, fit
from edgekit.host.lower import LOWERINGS
from edgekit.host.measure_costs import ROUNDS, Skipped, measure
from edgekit.host.micro import FAMILIES, Case, cases, count_cases
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.detect import detect_host
from edgekit.runtime.measure import machine_name

ACTIVATIONS = ("uint8", "int8")
LIMIT_S = 150.0  # after which no more networks are begun
_TRIAL = (
    "Conv.kxk",
    "Conv.1x1",
    "Conv.depthwise",
    "residual",
    "separable",
    "inverted",
)  # what int8 is judged on
_TRIAL_EACH = 3
_WORTH_IT = 0.95  # int8 is fast where it takes no more than this share of float32's time
_FEWEST = 8


@dataclass(frozen=True)
class Grid:
    """How much is measured. families: which networks, all if none is named. most: of each. limit_s: see LIMIT_S."""

    families: tuple[str, ...] = ()
    most: int | None = None
    rounds: int = ROUNDS
    limit_s: float = LIMIT_S


@dataclass(frozen=True)
class Measured:
    """The profile, and how it came about.

    over_float: by type of activation, the geometric mean of int8's time over float32's. median_error, worst_error: of
    the fit on its own networks, relative. left_out: networks that time did not allow.
    """

    profile: Profile
    backend: str
    networks: int
    skipped: int
    left_out: int
    over_float: dict[str, float]
    median_error: float
    worst_error: float
    seconds: float


def measure_profile(
    name: str,
    backend_name: str = "onnxruntime",
    threads: int = 1,
    grid: Grid | None = None,
    watch: Watch = unwatched,
    host: Callable[[], Profile] = detect_host,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Measure this machine. Raises BadInput: a backend it has not, or too few networks that the backend runs."""
    grid = grid or Grid()
    begun = clock()
    found = host()
    backend = found.backend(backend_name)
    if backend_name not in LOWERINGS:
        raise BadInput(f"profile measure knows the backends {', '.join(LOWERINGS)}, got {backend_name}")
    unknown = [family for family in grid.families if family not in FAMILIES]
    if unknown:
        raise BadInput(f"unknown kind of network {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    over_float = _compare_int8(backend, threads, grid, watch)
    activation = min(over_float, key=lambda kind: over_float[kind]) if over_float else None
    fast = activation is not None and over_float[activation] <= _WORTH_IT

    skipped = Skipped()
    formats = ("float32", *(() if activation is None else (activation,)))
    total = count_cases(formats, grid.families, grid.most)
    samples: list[Sample] = []
    with watch("time networks", total) as tick:
        grid_cases = cases(formats, grid.families, grid.most)
        timely = _until(grid_cases, lambda: clock() - begun > grid.limit_s)
        samples += measure(timely, backend, threads, tick, grid.rounds, skipped)
    if len(samples) < _FEWEST:
        raise BadInput(
            f"{backend_name} here runs {len(samples)} of the networks, at least {_FEWEST} are needed"
        )
    fitted = fit(samples)
    missed = [abs(error) for error in errors(fitted, samples).values()]
    on = f"{machine_name()}, {backend_name} {backend.version or ''}".strip()
    today = date.today().isoformat()  # noqa: DTZ011  (the user's own day)
    formats_now = tuple(fmt for fmt in backend.fast_formats if fmt != "int8") + (("int8",) if fast else ())
    measured = replace(backend, fast_formats=formats_now, int8_activation=activation)
    profile = replace(
        found,
        name=name,
        backends=(measured, *(entry for entry in found.backends if entry.name != backend_name)),
        cost=fitted.costs(threads, on, today),
    )
    return Measured(
        profile=profile,
        backend=backend_name,
        networks=len(samples),
        skipped=skipped.count,
        left_out=total - len(samples) - skipped.count,
        over_float=over_float,
        median_error=statistics.median(missed),
        worst_error=max(missed),
        seconds=clock() - begun,
    )


def _compare_int8(backend: Backend, threads: int, grid: Grid, watch: Watch) -> dict[str, float]:
    """Int8's time over float32's for either type of activation, on networks both run; nothing where none does."""
    each = min(_TRIAL_EACH, grid.most or _TRIAL_EACH)
    chosen = tuple(f for f in _TRIAL if not grid.families or f in grid.families) or grid.families[:2]
    formats = ("float32", *ACTIVATIONS)
    times: dict[str, dict[str, float]] = {}
    with watch("compare int8 with float32", count_cases(formats, chosen, each)) as tick:
        made = cases(formats, chosen, each)
        for sample in measure(made, backend, threads, tick, grid.rounds, Skipped()):
            what, _, fmt = sample.name.rpartition(" ")
            times.setdefault(what, {})[fmt] = sample.seconds
    found = {}
    for kind in ACTIVATIONS:
        ratios = [
            known[kind] / known["float32"] for known in times.values() if {kind, "float32"} <= set(known)
        ]
        if ratios:
            found[kind] = math.exp(statistics.fmean(map(math.log, ratios)))
    return found


def _until(made: Iterator[Case], late: Callable[[], bool]) -> Iterator[Case]:
    """The networks until it is late: at least one of each kind, since those come first."""
    seen: set[tuple[str, str]] = set()
    for case in made:
        if (case.family, case.format) in seen and late():
            return
        seen.add((case.family, case.format))
        yield case


def describe(measured: Measured, names: Sequence[str] = ACTIVATIONS) -> str:
    """A few lines for people, as the file's head has them."""
    ratios = ", ".join(
        f"{kind} {measured.over_float[kind]:.2f}" for kind in names if kind in measured.over_float
    )
    return (
        f"Measured with `edgekit profile measure`: {measured.networks} generated networks on {measured.backend},\n"
        f"{measured.profile.cost.threads} thread(s). The fit misses them by {100 * measured.median_error:.1f} % "
        "(median).\n"
        f"int8's time over float32's, by type of activation: {ratios or 'unknown'}."
    )
