"""Convert: load, add confidences, fold, quantize if it does no harm, split, lower, find thresholds, judge, pack."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgekit.core.errors import BadInput
from edgekit.core.profile import HOST, Backend, Profile
from edgekit.core.report import Dropped, Report
from edgekit.host.bench import interleaved
from edgekit.host.calibrate import METHODS
from edgekit.host.choose import POINTS, operating_points
from edgekit.host.datasets import VALIDATION_FRACTION, Datasets, read_datasets
from edgekit.host.graph import Graph, tensor_of
from edgekit.host.judge import Judged, judge
from edgekit.host.limits import DEFAULT_MAX_DISAGREEMENT, DEFAULT_MAX_DROP, Limits
from edgekit.host.load import InputSpec, Shapes, load
from edgekit.host.lower import backend_for
from edgekit.host.pack import GOLDEN, Draft, Finished, draft, finish, golden_cases
from edgekit.host.passes import Context, Step, run_steps, step
from edgekit.host.passes.quantize_static import Int8, is_quantized
from edgekit.host.recipe import Recipe, TakenBack
from edgekit.host.split import Stage, split
from edgekit.host.sqnr import answers_sqnr
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.measure import ExitTable, exit_table

SEED = 1
BEFORE = tuple(step(name) for name in ("opset", "confidence", "fold"))  # what every network goes through
_INT8 = "quantize_static"
MIN_SQNR_DB = 20.0  # how close answers that are no classes must stay to the float network's
_TRIAL_SAMPLES = 256  # on which the calibration methods are compared
_VNNI = ("avx512vnni", "avxvnni", "amx_int8")


@dataclass(frozen=True)
class Request:
    """What the user wants. recipe: make it exactly so, deciding nothing."""

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

    @property
    def on_this_machine(self) -> bool:
        """Whether times measured here are the target's."""
        return self.profile.name == HOST


@dataclass(frozen=True)
class Conversion:
    """The bundle and what is known of it."""

    finished: Finished
    report: Report
    content: bytes  # the .edge file


def convert(request: Request, watch: Watch = unwatched) -> Conversion:
    """Fit a model to a board. The same request on the same versions gives the same content_id.

    Raises BadInput for a model, data or profile that cannot be used, WorldFailed when the disk fails.
    """
    backend = backend_for(request.profile)
    loaded = load(request.model, request.shapes, request.input_spec)
    seed, fraction = _split_of(request.recipe)
    data = read_datasets(loaded.graph, request.calib, request.val, request.evaluation, fraction, seed)

    plain = run_steps(loaded.graph, BEFORE, Context())
    context = Context(data.calibration, plain, seed, watch)
    chosen = choose_format(request, backend, plain, data, context)
    dropped = [*(Dropped(name, "output", "no exit names it") for name in loaded.left_out), *chosen.dropped]
    recipe = request.recipe or Recipe(
        profile=request.profile.name,
        backend=backend.name,
        steps=(*BEFORE, *chosen.steps),
        taken_back=tuple(TakenBack(entry.layer, entry.step) for entry in chosen.dropped),
        seed=seed,
        validation_fraction=fraction,
        points=POINTS,
        golden=GOLDEN,
    )

    shares = [leaving.cost_share for leaving in chosen.made.manifest.exits]
    points = operating_points(chosen.validated, shares, recipe.points)
    metric = "top1" if chosen.validated.correct is not None else "agreement"
    golden = golden_cases(chosen.made, data.calibration, recipe.golden)
    finished = finish(chosen.made, points, metric, golden, recipe)

    whole = draft(loaded.graph, [whole_stage(loaded.graph)], backend, request.name, request.version, HOST)
    judged = Judged(
        profile=request.profile,
        on_this_machine=request.on_this_machine,
        whole=whole,
        size_before=loaded.size_bytes,
        plain=plain,
        graph=chosen.graph,
        made=chosen.made,
        finished=finished,
        data=data,
        dropped=tuple(dropped),
        limits=request.limits,
    )
    report = judge(judged, watch)
    return Conversion(finished, report, finished.pack(report))


def whole_stage(graph: Graph) -> Stage:
    """The network as one stage that gives all its outputs: what a bundle's stages are compared with."""
    model = graph.copy()
    inputs, outputs = (tuple(map(tensor_of, side)) for side in (model.graph.inputs, model.graph.outputs))
    return Stage(0, graph.exits[-1], model, inputs, outputs)


# --- which number format ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The graph that is lowered, the steps that made it, how it validated, and what was taken back on the way."""

    graph: Graph
    made: Draft
    validated: ExitTable
    steps: tuple[Step, ...]
    dropped: tuple[Dropped, ...]


def choose_format(
    request: Request, backend: Backend, plain: Graph, data: Datasets, context: Context
) -> Chosen:
    """int8 where the board runs it fast and it does no harm, else float. A recipe says which and is followed."""
    given = request.recipe
    if given is not None:
        steps = given.steps[len(BEFORE) :]
        taken_back = tuple(Dropped(back.layer, back.step, "the recipe says so") for back in given.taken_back)
        return _chosen(request, backend, run_steps(plain, steps, context), data, context, steps, taken_back)
    why_not = why_not_int8(plain, request.profile, backend)
    if why_not is not None:
        return _chosen(request, backend, plain, data, context, (), (Dropped("*", _INT8, why_not),))
    try:
        taken, quantized = best_int8(plain, context, request.profile, backend)
        tried = _chosen(request, backend, quantized, data, context, (taken,), ())
    except BadInput as err:  # int8 is an offer: what it cannot do, float can
        return _chosen(request, backend, plain, data, context, (), (Dropped("*", _INT8, str(err)),))
    stayed = _chosen(request, backend, plain, data, context, (), ())
    harm = harm_of(stayed, tried, data, request.limits.max_drop, timed=request.on_this_machine)
    if harm is None:
        return tried
    return replace(stayed, dropped=(Dropped("*", _INT8, harm),))


def _chosen(
    request: Request,
    backend: Backend,
    graph: Graph,
    data: Datasets,
    context: Context,
    steps: tuple[Step, ...],
    dropped: tuple[Dropped, ...],
) -> Chosen:
    """Lower the graph and run it on the validation data."""
    made = draft(graph, split(graph), backend, request.name, request.version, request.profile.name)
    with context.watch(f"validate {'int8' if steps else 'float'}", data.validation.count) as tick:
        validated = exit_table(made.open(), data.validation, tick)
    return Chosen(graph, made, validated, steps, dropped)


def why_not_int8(graph: Graph, profile: Profile, backend: Backend) -> str | None:
    """A reason to leave int8 alone that needs no trial; None where there is none."""
    if is_quantized(graph):
        return "the model that came in is quantized already"
    if "int8" not in backend.fast_formats or backend.int8_activation is None:
        return f"int8 is not faster than float32 on {profile.name} with {backend.name}"
    if not any(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in graph.model.graph):
        return "the network multiplies nothing"
    return None


def best_int8(graph: Graph, context: Context, profile: Profile, backend: Backend) -> tuple[Step, Graph]:
    """The calibration method whose answers stay closest to the float network's on calibration samples, and its graph.

    Raises BadInput where the network cannot be written in int8.
    """
    activation = backend.int8_activation or "uint8"
    reduce_range = activation == "uint8" and not set(_VNNI) & set(profile.cpu.features)
    tried = []
    for method in METHODS:
        taken = Step(_INT8, Int8(activation, reduce_range, method))
        quantized = run_steps(graph, (taken,), context)
        tried.append(
            (answers_sqnr(graph, quantized, context.samples(_INT8), _TRIAL_SAMPLES), taken, quantized)
        )
    _, taken, quantized = max(tried, key=lambda each: each[0])
    return taken, quantized


def harm_of(
    stayed: Chosen, tried: Chosen, data: Datasets, max_drop: float | None, *, timed: bool
) -> str | None:
    """Why int8 must be taken back; None where it does no harm. Judged on validation data, never on evaluation data."""
    drop, limit, what = _drop(stayed.validated, tried.validated, max_drop)
    if drop is None:
        sqnr = answers_sqnr(stayed.graph, tried.graph, data.validation, _TRIAL_SAMPLES)
        if sqnr < MIN_SQNR_DB:
            return f"its answers are off by {sqnr:.1f} dB on the validation data, {MIN_SQNR_DB:g} are wanted"
    elif drop > limit + 1e-9:
        return f"it costs {drop:.2f} points of {what} on the validation data, more than {limit:g}"
    if timed:
        times = interleaved((stayed.made.open(), tried.made.open()), data.validation)
        float_ms, int8_ms = (float(np.median(mine[:, -1])) for mine in times)
        if int8_ms > float_ms:
            return f"it is slower here: {int8_ms:.4g} ms against {float_ms:.4g} ms in float32 (interleaved medians)"
    return None


def _drop(stayed: ExitTable, tried: ExitTable, max_drop: float | None) -> tuple[float | None, float, str]:
    """Points lost at the last exit, how many may be, and of what."""
    if stayed.correct is not None and tried.correct is not None:
        lost = 100 * float(stayed.correct[:, -1].mean() - tried.correct[:, -1].mean())
        return lost, DEFAULT_MAX_DROP if max_drop is None else max_drop, "accuracy"
    before, after = stayed.predicted[:, -1], tried.predicted[:, -1]
    limit = DEFAULT_MAX_DISAGREEMENT if max_drop is None else max_drop
    if (before < 0).any():
        return None, limit, "agreement"
    return 100 * float((before != after).mean()), limit, "agreement"


def _split_of(recipe: Recipe | None) -> tuple[int, float]:
    return (SEED, VALIDATION_FRACTION) if recipe is None else (recipe.seed, recipe.validation_fraction)


def check_recipe(recipe: Recipe, profile: Profile) -> None:
    """A recipe is for one board. Raises BadInput for another."""
    if recipe.profile != profile.name:
        raise BadInput(f"--recipe is for the profile {recipe.profile}, got --profile {profile.name}")
    if recipe.steps[: len(BEFORE)] != BEFORE:
        first = ", ".join(entry.name for entry in BEFORE)
        raise BadInput(f"--recipe must begin with the steps {first}")
