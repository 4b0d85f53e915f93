"""Convert: load, add confidences, fold, search for formats that do no harm, split, lower, thresholds, judge, pack."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.core.errors import BadInput
from edgekit.core.profile import HOST, Backend, Profile
from edgekit.core.report import Dropped, Report
from edgekit.host.bench import Bench, local_bench
from edgekit.host.cache import Cache, content_key
from edgekit.host.choose import POINTS, operating_points
from edgekit.host.datasets import VALIDATION_FRACTION, Datasets, read_datasets
from edgekit.host.effort import DEFAULT, Effort
from edgekit.host.exits.plan import NOTHING, Planned, Wanted, plan_exits, target_times
from edgekit.host.graph import Graph, model_bytes, tensor_of
from edgekit.host.judge import Judged, judge
from edgekit.host.limits import Limits
from edgekit.host.load import InputSpec, Loaded, Shapes, load
from edgekit.host.lower import LOWERINGS, backend_for, check_holds, problems
from edgekit.host.ort import open_model
from edgekit.host.pack import GOLDEN, Finished, draft, finish, golden_cases
from edgekit.host.passes import Context, Step, run_steps, step, unrounded
from edgekit.host.recipe import Recipe, TakenBack
from edgekit.host.search import Found, follow, search
from edgekit.host.split import Stage
from edgekit.host.sqnr import spread
from edgekit.host.tflite_model import is_tflite
from edgekit.host.tried import Setting
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.backends import is_installed
from edgekit.runtime.data import Data
from edgekit.runtime.measure import exit_table
from edgekit.runtime.overlay.design import Design

SEED = 1
_TRIAL_SHARE = 0.03  # of the time a search has, that one candidate's answers may take
_FEWEST_SAMPLES = 100
BEFORE = tuple(step(name) for name in ("opset", "confidence", "fold"))  # what every network goes through
EXITS = "exits"


@dataclass(frozen=True)
class Request:
    """What the user wants. recipe: make it exactly so, deciding nothing. base: steps to take before formats are chosen.

    exits: early exits that a network without any shall get. backend: by name, the profile's first where None. bench:
    where candidates are timed; None: here, if this machine is the target, else nowhere. images_s: throughput that an
    FPGA overlay is folded for; None: the fastest that fits. bitstream: the overlay's .bit and .hwh, to be packed.
    """

    model: Path
    profile: Profile
    calib: Path
    val: Path | None = None
    evaluation: Path | None = None
    name: str = "model"
    version: int = 1
    shapes: Shapes = field(default_factory=dict)
    input_spec: InputSpec = field(default_factory=InputSpec)
    recipe: Recipe | None = None
    limits: Limits = field(default_factory=Limits)
    effort: Effort = DEFAULT
    base: tuple[Step, ...] = ()
    exits: Wanted | None = None
    backend: str | None = None
    bench: Bench | None = None
    cache: Cache = field(default_factory=Cache)
    images_s: float | None = None
    bitstream: tuple[Path, Path] | None = None

    @property
    def on_this_machine(self) -> bool:
        """Whether times measured here are the target's."""
        return self.profile.name == HOST


@dataclass(frozen=True)
class Conversion:
    """The bundle and what is known of it. overlay: of a binary network for a board with programmable logic."""

    finished: Finished
    report: Report
    content: bytes  # the .edge file
    overlay: Design | None = None


def convert(request: Request, watch: Watch = unwatched) -> Conversion:
    """Fit a model to a board. The same recipe, model and data on the same versions give the same content_id.

    Raises BadInput for a model, data or profile that cannot be used, WorldFailed when the disk fails.
    """
    if is_tflite(request.model):
        from edgekit.host.pack_tflite import pack_tflite  # it knows Request

        return pack_tflite(request, watch)
    loaded = load(request.model, request.shapes, request.input_spec)
    from edgekit.host.pack_plan import pack_plans, plan_backend  # it knows Request

    asked = request.recipe.backend if request.recipe else request.backend
    for_plans = plan_backend(request.profile, asked, loaded.graph)
    if for_plans is not None:
        return pack_plans(request, loaded, for_plans, watch)
    if request.images_s is not None or request.bitstream is not None:
        raise BadInput("--throughput, --bit and --hwh are for binary networks on a board with an FPGA")
    backend = backend_for(request.profile, asked)
    seed, fraction = _split_of(request.recipe)
    data = read_datasets(loaded.graph, request.calib, request.val, request.evaluation, fraction, seed)

    bare = run_steps(loaded.graph, BEFORE, Context())
    check_holds(bare, backend)
    context = _context(request, bare, data, watch, fraction, seed)
    planned = _exits(request, bare, data, context)
    before = BEFORE if planned.step is None else (*BEFORE, planned.step)
    plain = run_steps(bare, before[len(BEFORE) :], context)
    setting = _setting(request, backend, plain, data, replace(context, reference=plain))
    if request.recipe is None:
        found = search(setting, request.base)
    else:
        followed = follow(setting, request.recipe.steps[len(before) :])
        found = Found(followed, (followed.attempt(chosen=True, why="the recipe says so"),), ())
    chosen = found.chosen
    dropped = (
        *(Dropped(name, "output", _why_left_out(loaded, name)) for name in loaded.left_out),
        *planned.dropped,
        *found.dropped,
    )
    recipe = request.recipe or Recipe(
        profile=request.profile.name,
        backend=chosen.backend,
        steps=(*before, *chosen.steps),
        taken_back=tuple(TakenBack(entry.layer, entry.step) for entry in (*planned.dropped, *found.dropped)),
        seed=seed,
        validation_fraction=fraction,
        points=POINTS,
        golden=GOLDEN,
    )
    recipe = recipe.limited(request.limits.on_board)
    validated = chosen.validated
    if setting.samples.count < data.validation.count:
        with watch("validate", data.validation.count) as tick:
            validated = exit_table(chosen.made.open(), data.validation, tick)
    shares = [leaving.cost_share for leaving in chosen.made.manifest.exits]
    points = operating_points(validated, shares, recipe.points)
    metric = "top1" if validated.correct is not None else "agreement"
    golden = golden_cases(chosen.made, data.calibration, recipe.golden)
    finished = finish(chosen.made, points, metric, golden, recipe)
    found = replace(found, notes=(*planned.notes, *found.notes))
    source = bare if problems(loaded.graph, backend) else loaded.graph  # folding can make it fit
    report = judge(
        _judged(request, backend, source, loaded.size_bytes, setting, found, finished, dropped), watch
    )
    return Conversion(finished, report, finished.pack(report))


def _why_left_out(loaded: Loaded, name: str) -> str:
    is_input = any(entry.tensor.name == name for entry in loaded.graph.inputs)
    return "it is an input of the network" if is_input else "no exit names it"


def whole_stage(graph: Graph) -> Stage:
    """The network as one stage that gives all its outputs: what a bundle's stages are compared with."""
    model = graph.copy()
    inputs, outputs = (tuple(map(tensor_of, side)) for side in (model.graph.inputs, model.graph.outputs))
    return Stage(0, graph.exits[-1], model, inputs, outputs)


def _context(
    request: Request, plain: Graph, data: Datasets, watch: Watch, fraction: float, seed: int
) -> Context:
    """What passes may know."""
    data_key = _data_key(request, plain, f"{fraction} {seed}") if request.cache.folder is not None else ""
    return Context(
        data.calibration,
        plain,
        seed,
        watch,
        hurried=len(request.effort.methods) == 1,
        cache=request.cache,
        data_key=data_key,
    )


def _exits(request: Request, plain: Graph, data: Datasets, context: Context) -> Planned:
    """Where the network gets early exits: as the recipe says, or where they pay, if they are wanted at all."""
    if request.recipe is not None:
        return Planned(next((entry for entry in request.recipe.steps if entry.name == EXITS), None), (), ())
    if request.exits is None:
        return NOTHING
    times, border_ms = target_times(request.profile, data.validation, here=request.on_this_machine)
    cuts, epochs = request.effort.cuts, request.effort.head_epochs
    return plan_exits(
        plain, request.exits, context, times, border_ms, data.validation, candidates=cuts, epochs=epochs
    )


def _setting(request: Request, backend: Backend, plain: Graph, data: Datasets, context: Context) -> Setting:
    """What the search works with."""
    effort, validation = request.effort, data.validation
    followed = request.recipe is not None  # then nothing is compared, and all samples are needed once
    count = validation.count if followed else _affordable(plain, validation, effort)
    bench = request.bench
    if bench is None and request.on_this_machine:
        bench = local_bench(effort.rounds)
    return Setting(
        profile=request.profile,
        backend=backend,
        plain=plain,
        data=data,
        samples=validation.subset(spread(validation.count, count)).held(),
        until=time.monotonic() + effort.limit_s,
        context=context,
        limits=request.limits,
        effort=effort,
        bench=bench,
        others=_others(request, backend),
        here=request.on_this_machine,
        name=request.name,
        version=request.version,
    )


def _data_key(request: Request, plain: Graph, split: str) -> str:
    """What the calibration samples are: the files, how they become inputs, and which of them are set aside."""
    aside = "all" if request.val is not None else split
    return f"{content_key(request.calib)} {aside} {plain.inputs}"


def _affordable(plain: Graph, data: Data, effort: Effort) -> int:
    """Samples that candidates are compared on: as many as the effort wants, fewer for a slow network."""
    session, sample = open_model(model_bytes(plain.model)), data.inputs(0)
    start = time.perf_counter()
    session.run(None, sample)
    once_s = time.perf_counter() - start
    return max(
        min(effort.samples, _FEWEST_SAMPLES), min(effort.samples, int(_TRIAL_SHARE * effort.limit_s / once_s))
    )


def _others(request: Request, backend: Backend) -> tuple[Backend, ...]:
    """Runtimes of the board that are installed here, too, and that nobody ruled out by naming one."""
    if request.backend is not None or request.recipe is not None or not request.effort.improve:
        return ()
    return tuple(
        other
        for other in request.profile.backends
        if other.name in LOWERINGS and other.name != backend.name and is_installed(other.name)
    )


def _judged(
    request: Request,
    backend: Backend,
    source: Graph,
    size_before: int,
    setting: Setting,
    found: Found,
    finished: Finished,
    dropped: tuple[Dropped, ...],
) -> Judged:
    """All that the judge compares. source: the network that came in, as the board's runtime can run it."""
    whole = draft(source, [whole_stage(source)], backend, request.name, request.version, HOST)
    return Judged(
        profile=request.profile,
        on_this_machine=request.on_this_machine,
        whole=whole,
        size_before=size_before,
        plain=run_steps(setting.plain, unrounded(found.chosen.steps), setting.context),
        graph=found.chosen.graph,
        made=found.chosen.made,
        finished=finished,
        data=setting.data,
        dropped=dropped,
        limits=request.limits,
        tried=found.attempts,
        notes=found.notes,
        why=found.chosen.why,
        rounds=request.effort.rounds,
        hurried=not request.effort.improve,
        bench=request.bench,
    )


def _split_of(recipe: Recipe | None) -> tuple[int, float]:
    return (SEED, VALIDATION_FRACTION) if recipe is None else (recipe.seed, recipe.validation_fraction)


def check_recipe(recipe: Recipe, profile: Profile) -> None:
    """A recipe is for one board, and its first steps stand fixed. Raises BadInput for another, or another order."""
    if recipe.profile != profile.name:
        raise BadInput(f"--recipe is for the profile {recipe.profile}, got --profile {profile.name}")
    if recipe.backend not in LOWERINGS:  # what goes there checks it
        return
    if recipe.steps and recipe.steps[: len(BEFORE)] != BEFORE:  # none: a .tflite file was packed
        first = ", ".join(entry.name for entry in BEFORE)
        raise BadInput(f"--recipe must begin with the steps {first}")
    if any(entry.name == EXITS for entry in recipe.steps[len(BEFORE) + 1 :]):
        raise BadInput(f"--recipe may have the step {EXITS} once, right after {BEFORE[-1].name}")
