"""A binary network as a bundle of plans: nothing is searched, its formats were trained.

Every stage is a plan file for our own kernels (backend native) or for an FPGA overlay; thresholds are read off the
graph by trying every sum (host/lower/native). The float network that came in runs beside it, to judge both.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgekit.core import bundle
from edgekit.core.cost import Work
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.manifest import Manifest, Part
from edgekit.core.manifest import Stage as ManifestStage
from edgekit.core.profile import HOST, Backend, Profile
from edgekit.core.report import Dropped, LayerReport
from edgekit.host.choose import POINTS, operating_points
from edgekit.host.convert import SEED, Conversion, Request, whole_stage
from edgekit.host.datasets import VALIDATION_FRACTION, read_datasets
from edgekit.host.graph import Graph
from edgekit.host.judge import Judged, Modelled, judge
from edgekit.host.load import Loaded
from edgekit.host.lower import LOWERINGS, native
from edgekit.host.lower.native.drafts import Todo
from edgekit.host.lower.native.geometry import coding_of
from edgekit.host.lower.overlay import OverlayStage, for_overlay
from edgekit.host.overlay.bitfile import check_design
from edgekit.host.overlay.plan_design import PROVENANCE, describe
from edgekit.host.pack import GOLDEN, NO_GOLDEN, Draft, draft, exits_of, finish, golden_cases
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.recipe import MEMBER, Recipe
from edgekit.host.split import live_nodes, split
from edgekit.host.watch import Watch
from edgekit.native import plan
from edgekit.runtime.measure import exit_table
from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, latency_cycles
from edgekit.runtime.overlay.design import Design

NATIVE, OVERLAY, SIMULATED = "native", "overlay", "overlay-sim"
BACKENDS = (NATIVE, OVERLAY, SIMULATED)
BEFORE = tuple(step(name) for name in ("opset", "confidence", "constants"))
_REFERENCE = Backend("onnxruntime")  # where the network that came in runs, to be compared with
_FEW_BITS = (plan.BIPOLAR, plan.TERNARY, plan.SIGNED2)
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_CODE = {plan.BITS: "bits", plan.U8: "uint8", plan.I8: "int8", plan.I32: "int32", plan.F32: "float32"}


def plan_backend(profile: Profile, asked: str | None, graph: Graph) -> Backend | None:
    """The board's backend for plans, where this network goes there; None: it goes the other way.

    asked: a backend's name. It goes there where that is asked for, where the board has no other that can be converted
    for, and where the network was trained for it: a layer has weights of 1 or 2 bits, and a plan holds all of it.
    """
    offered = [backend for backend in profile.backends if backend.name in BACKENDS]
    if asked is not None:
        if asked in BACKENDS and not offered:
            has = ", ".join(backend.name for backend in profile.backends)
            raise BadInput(f"profile {profile.name}: this board has no backend {asked}, it has {has}")
        return next((backend for backend in offered if backend.name == asked), None)
    if not offered:
        return None
    if not any(backend.name in LOWERINGS for backend in profile.backends):
        return next((backend for backend in offered if backend.name == NATIVE), offered[0])
    return offered[0] if is_binary(graph) and not native.read(as_plan_source(graph)).refused else None


def why_refused(profile: Profile, why: str) -> str:
    """The refusal of a network; on a board where no other runtime could take it, that is said as well."""
    if any(backend.name in LOWERINGS for backend in profile.backends):
        return why
    return f"profile {profile.name} runs binary networks only: {why}"


def is_binary(graph: Graph) -> bool:
    """Whether it was trained for few bits: half of its layers or more have weights of 1 or 2."""
    products = [node for node in graph.model.graph if node.op_type in _PRODUCTS]
    live = live_nodes(graph.model)
    makers = [node.inputs[1].producer() for node in products if node.inputs[1] is not None]
    if any(maker is not None and maker not in live for maker in makers):  # weights that are computed
        products = [node for node in as_plan_source(graph).model.graph if node.op_type in _PRODUCTS]
    layers = [coding for node in products if (coding := coding_of(node)) is not None or _is_weighted(node)]
    return 0 < len(layers) <= 2 * sum(coding in _FEW_BITS for coding in layers)


def _is_weighted(node: ir.Node) -> bool:
    return node.inputs[1] is not None and node.inputs[1].const_value is not None


def as_plan_source(graph: Graph) -> Graph:
    """The graph as the lowering reads it. Raises BadInput where a step cannot be taken."""
    return run_steps(graph, BEFORE, Context())


def pack_plans(request: Request, loaded: Loaded, backend: Backend, watch: Watch) -> Conversion:
    """Make the bundle. The same model, data and request give the same content_id.

    Raises BadInput for a network that no plan holds, naming its layers, for steps that cannot be taken, and for what no
    overlay of this board holds.
    """
    _check(request)
    source = as_plan_source(loaded.graph)
    reading = native.read(source)
    try:
        stages = native.plans(source, reading)
    except BadInput as err:
        raise BadInput(why_refused(request.profile, str(err))) from err
    given = request.recipe
    images_s = request.images_s if given is None else given.images_s
    designed, why_not = _designed(stages, request.profile, backend, images_s)
    seed, fraction = (SEED, VALIDATION_FRACTION) if given is None else (given.seed, given.validation_fraction)
    data = read_datasets(source, request.calib, request.val, request.evaluation, fraction, seed)
    if backend.name == NATIVE or designed is None:
        parts = tuple(Parts(stage, ((NATIVE, stage),)) for stage in stages)
    else:
        front = () if designed.front is None else ((NATIVE, designed.front),)
        parts = (Parts(stages[0], (*front, (backend.name, designed.overlay), (NATIVE, designed.cpu))),)
    made = plan_draft(source, parts, request)
    recipe = given or Recipe(
        *(request.profile.name, backend.name, BEFORE, (), seed, fraction),
        points=POINTS,
        golden=GOLDEN,
        images_s=images_s,
    )
    recipe = recipe.limited(request.limits.on_board)
    with watch("validate", data.validation.count) as tick:
        validated = exit_table(made.open(), data.validation, tick)
    shares = [leaving.cost_share for leaving in made.manifest.exits]
    points = operating_points(validated, shares, recipe.points)
    metric = "top1" if validated.correct is not None else "agreement"
    golden = golden_cases(made, data.calibration, recipe.golden, exact=True)
    finished = finish(made, points, metric, golden, recipe)
    left_out = tuple(Dropped(name, "output", "no exit names it") for name in loaded.left_out)
    reference = draft(
        loaded.graph, [whole_stage(loaded.graph)], _REFERENCE, request.name, request.version, HOST
    )
    subject = Judged(
        profile=request.profile,
        on_this_machine=request.on_this_machine,
        whole=reference,
        size_before=loaded.size_bytes,
        plain=source,
        graph=source,
        made=made,
        finished=finished,
        data=data,
        dropped=(*left_out, *why_not),
        limits=request.limits,
        rounds=request.effort.rounds,
        hurried=True,
        bench=request.bench,
        layers=tuple(_layer_reports(source, stages, reading.formats)),
        modelled=_modelled(designed, backend),
        notes=() if designed is None else tuple(_notes(designed.design, request, backend)),
    )
    report = judge(subject, watch)
    return Conversion(finished, report, finished.pack(report), None if designed is None else designed.design)


def _designed(
    stages: Sequence[native.StagePlan], profile: Profile, backend: Backend, images_s: float | None
) -> tuple[OverlayStage | None, tuple[Dropped, ...]]:
    """The network's overlay for a board with programmable logic; why there is none, where nobody asked for one."""
    if profile.fpga is None:
        if images_s is not None:
            raise BadInput(
                f"--throughput folds an FPGA overlay: profile {profile.name} has no programmable logic"
            )
        return None, ()
    try:
        return for_overlay(stages, profile, images_s), ()
    except BadInput as err:
        if backend.name != NATIVE or images_s is not None:
            raise
        return None, (Dropped("*", OVERLAY, str(err)),)


def _notes(design: Design, request: Request, backend: Backend) -> Iterator[str]:
    """What the report says of the overlay, and of a bundle that needs a bitstream and has none."""
    *_, total = describe(design)
    cycles, clock = interval_cycles(design), design.clock_mhz
    yield (
        f"overlay {design.design_id}: {cycles:,} cycles from image to image, {images_per_second(cycles, clock):,.0f} "
        f"images/s at {clock:g} MHz, which is assumed; {total.luts:,} LUTs, {total.ffs:,} flip-flops, {total.bram36:g} "
        f"block RAMs ({PROVENANCE})"
    )
    if backend.name == OVERLAY and request.bitstream is None:
        yield (
            "no bitstream is in the bundle: give --bit and --hwh once Vivado has built them, or name the .bit on the "
            "board in $EDGEKIT_OVERLAY_BIT"
        )


def _modelled(designed: OverlayStage | None, backend: Backend) -> Modelled | None:
    """How long an image takes by the cycle model, where the overlay runs it."""
    if designed is None or backend.name == NATIVE:
        return None
    clock = designed.design.clock_mhz
    return Modelled(latency_cycles(designed.design) / (1e3 * clock), f"cycle model at {clock:g} MHz, assumed")


def _check(request: Request) -> None:
    """Raises BadInput for what can only be asked of a float network."""
    if request.exits is not None:
        raise BadInput("--exits: a binary network gets its exits when it is trained; leave --exits out")
    if request.base:
        raise BadInput("--prune and --recover work on float networks; leave them out for a binary one")
    if request.recipe is not None and request.images_s is not None:
        raise BadInput("--recipe says all that is done: --throughput cannot be given with it")
    if request.recipe is not None and request.recipe.steps != BEFORE:
        wanted = ", ".join(entry.name for entry in BEFORE)
        raise BadInput(f"--recipe for backend {request.recipe.backend} must have the steps {wanted}")


@dataclass(frozen=True)
class Parts:
    """A stage as its parts: the backend of each, and its plan."""

    stage: native.StagePlan
    plans: tuple[tuple[str, native.StagePlan], ...]


def plan_draft(graph: Graph, stages: Sequence[Parts], request: Request) -> Draft:
    """The plans as a network that runs."""
    files: dict[str, bytes] = {}
    described, cut = [], []
    for whole, parts in zip(split(graph), stages, strict=True):
        made = []
        for index, (backend, half) in enumerate(parts.plans):
            number = f"{whole.index}" if len(parts.plans) == 1 else f"{whole.index}.{index}"
            file = f"stages/{number}.plan"
            files[file] = plan.encode(half.plan)
            digest = hashlib.sha256(files[file]).hexdigest()
            made.append(_part(backend, file, digest, half))
        described.append(ManifestStage(tuple(made), work_of_plan(parts.stage.steps)))
        outputs = tuple(tensor for _, half in parts.plans for tensor in half.outputs)
        cut.append(replace(whole, inputs=parts.stage.inputs, outputs=outputs))
        files.update(_bitstream(request, described[-1].parts))
    manifest = Manifest(
        name=request.name,
        version=request.version,
        profiles=(request.profile.name,),
        inputs=graph.inputs,
        labels=graph.labels,
        stages=tuple(described),
        exits=exits_of(cut, described),
        quality_metric="top1",
        operating_points=(),
        golden=NO_GOLDEN,
        recipe=MEMBER,
        files=bundle.members_of(files),
    )
    return Draft(manifest, files, tuple(cut))


def _bitstream(request: Request, parts: Sequence[Part]) -> dict[str, bytes]:
    """The owner's .bit and .hwh as members, where there are any. Raises BadInput for those of another design."""
    design_id = next((part.design_id for part in parts if part.backend == OVERLAY), None)
    if request.bitstream is None:
        return {}
    if design_id is None:
        raise BadInput("--bit and --hwh are for --backend overlay")
    bit, hwh = map(_content, request.bitstream)
    check_design(bit, design_id, str(request.bitstream[0]))
    return {f"overlay/{design_id}.bit": bit, f"overlay/{design_id}.hwh": hwh}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err


def _part(backend: str, file: str, digest: str, half: native.StagePlan) -> Part:
    if backend == NATIVE:
        return Part(backend, file, digest, half.inputs, half.outputs)
    design = Design.parse(half.plan.design)
    return Part(
        *(backend, file, digest, half.inputs, half.outputs),
        executes_code=backend == OVERLAY,
        design_id=design.design_id,
    )


# --- what it does --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Amount:
    """Of one step. format: "binary" where bits meet bits, "int8" where bytes come in."""

    op: str
    format: str
    macs: int
    bytes: int


def bytes_of_layers(steps: Sequence[Todo]) -> Mapping[str, int]:
    """Node -> bytes that its step reads and writes: weights in the bits they have, and activations."""
    return {todo.layer: _amount(todo).bytes for todo in steps if todo.layer}


def work_of_plan(steps: Sequence[Todo]) -> tuple[Work, ...]:
    """What the steps do, by operator and format."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for todo in steps:
        amount = _amount(todo)
        total = sums[amount.op, amount.format]
        for index, value in enumerate((amount.macs, amount.bytes, 1)):
            total[index] += value
    return tuple(Work(op, fmt, *sums[op, fmt]) for op, fmt in sorted(sums))


def _amount(todo: Todo) -> _Amount:
    moved = sum(_stored(held) for held in (*todo.inputs, todo.output))
    of = todo.of
    if not isinstance(of, plan.Linear):
        return _Amount(plan.KIND_NAMES[todo.kind].capitalize(), "binary", 0, moved)
    weights = len(plan.pack_weights(of.weights, of.coding))
    held = todo.inputs[0]
    macs = todo.output.h * todo.output.w * of.weights.size
    name = "Dense" if of.kernel == (held.h, held.w) and not any(of.pads) else "Conv"
    return _Amount(name, "binary" if held.type == plan.BITS else "int8", macs, moved + weights)


def _stored(held: native.Held) -> int:
    if held.type == plan.BITS:
        return held.h * held.w * plan.PLANES[held.coding] * ((held.c + 7) // 8)
    return held.count * (4 if held.type in (plan.I32, plan.F32) else 1)


def _layer_reports(
    graph: Graph, stages: Sequence[native.StagePlan], formats: Mapping[str, str]
) -> Iterator[LayerReport]:
    """A row for each step that came of a node."""
    operators: Mapping[str, str] = {node.name or "": node.op_type for node in graph.model.graph}
    for index, stage in enumerate(stages):
        for todo in stage.steps:
            if not todo.layer:
                continue
            amount = _amount(todo)
            format_ = formats.get(todo.layer, _CODE[todo.output.type])
            op = operators.get(todo.layer, amount.op)
            yield LayerReport(todo.layer, op, format_, index, float(amount.macs), None)
