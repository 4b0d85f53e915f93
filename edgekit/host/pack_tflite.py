"""A .tflite file as a bundle: packed as it is, one stage, one part. Nothing is converted, accuracy stays what it was.

What a user says of its inputs (`--input-spec`) is in real numbers: pixels are scaled, mean and deviation taken off.
Where the file's input takes codes, that becomes a rule for codes here, by the input's scale and zero point.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from edgekit.core import bundle
from edgekit.core.cost import Work, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure, Provenance, unknown
from edgekit.core.manifest import Exit, Golden, Input, Manifest, OperatingPoint, Part, Preprocess, Stage
from edgekit.core.profile import Backend, Profile
from edgekit.core.report import Change, ExitReport, Latency, LayerReport, Report
from edgekit.host.bench import timed_there
from edgekit.host.choose import POINTS
from edgekit.host.convert import SEED, Conversion, Request
from edgekit.host.datasets import VALIDATION_FRACTION, Datasets, read_datasets
from edgekit.host.graph import GraphExit
from edgekit.host.load import InputSpec, usual_layout
from edgekit.host.memory import memory_mb
from edgekit.host.pack import GOLDEN, Answers, Draft, Finished, finish, golden_cases
from edgekit.host.recipe import MEMBER, Recipe
from edgekit.host.tflite_model import BorderTensor, TfliteModel, check_runs, open_interpreter, read_tflite
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.backends import Array
from edgekit.runtime.measure import ExitTable, exit_table, latency_of, machine_name

BACKENDS = ("litert", "tflite-runtime")
_FILE = "stages/0.tflite"
_PACKAGES = ("edgekit", "numpy", "ai-edge-litert")
_EXACT = 1e-4  # of a code: what preprocessing may be off a pixel and still be none


@dataclass(frozen=True)
class Described:
    """What a manifest says of the model besides its file."""

    inputs: tuple[Input, ...]
    labels: tuple[str, ...] | None
    exit: GraphExit


def pack_tflite(request: Request, watch: Watch = unwatched) -> Conversion:
    """Pack the file. The same file, data and request give the same content_id.

    Raises BadInput for a file LiteRT does not run, a profile without a runtime for it, or an input spec that does not
    fit; MissingExtra without ai-edge-litert.
    """
    backend = tflite_backend(request.profile, request.recipe.backend if request.recipe else request.backend)
    if request.base or (request.recipe is not None and request.recipe.steps):
        raise BadInput(f"{request.model}: a .tflite file is packed as it is: no passes can be applied to it")
    if request.exits is not None:
        raise BadInput(
            f"{request.model}: a .tflite file is packed as it is: it cannot get --exits, an ONNX file can"
        )
    model = read_tflite(request.model)
    check_runs(request.model)
    described = describe(model, request.input_spec, str(request.model))
    if request.shapes:
        raise BadInput(f"{request.model}: the shapes of a .tflite file are fixed: --shape cannot change them")
    given = request.recipe
    seed, fraction = (SEED, VALIDATION_FRACTION) if given is None else (given.seed, given.validation_fraction)
    data = read_datasets(described, request.calib, request.val, request.evaluation, fraction, seed)
    recipe = given or Recipe(
        request.profile.name, backend.name, (), (), seed, fraction, points=POINTS, golden=GOLDEN
    )
    recipe = recipe.limited(request.limits.on_board)
    made = _draft(model, described, request, backend)
    with watch("validate", data.validation.count) as tick:
        validated = exit_table(made.open(), data.validation, tick)
    metric, quality = _quality(validated)
    points = (OperatingPoint((), 1.0, (1.0,), quality),)

    def plain_kernels(samples: Sequence[Mapping[str, Array]]) -> Answers:
        return _by_reference(model, samples, str(request.model))

    golden = golden_cases(made, data.calibration, recipe.golden, plain_kernels)
    finished = finish(made, points, metric, golden, recipe)
    report = _report(request, model, finished, data, watch)
    return Conversion(finished, report, finished.pack(report))


def tflite_backend(profile: Profile, name: str | None = None) -> Backend:
    """The profile's runtime for .tflite files, or the one called `name`. Raises BadInput where there is none."""
    for backend in profile.backends:
        if backend.name in BACKENDS and name in (None, backend.name):
            return backend
    has = ", ".join(backend.name for backend in profile.backends)
    wanted = f"the backend {name}" if name is not None else f"one of the backends {', '.join(BACKENDS)}"
    raise BadInput(f"profile {profile.name}: a .tflite file needs {wanted}, this board has {has}")


def describe(model: TfliteModel, spec: InputSpec, where: str) -> Described:
    """Inputs, labels and the exit, as the spec says or as the file shows: all outputs are one. Raises BadInput."""
    known = [entry.tensor.name for entry in model.inputs]
    for name in spec.inputs:
        if name not in known:
            raise BadInput(f"{where}: no input is called {name!r}; the inputs are {', '.join(known)}")
    inputs = tuple(_input(entry, spec.inputs.get(entry.tensor.name, {}), where) for entry in model.inputs)
    outputs = [entry.tensor.name for entry in model.outputs]
    exits = spec.exits
    leaving = exits[0] if exits else GraphExit("final", outputs[0], also=tuple(outputs[1:]))
    if len(exits or ()) > 1:
        raise BadInput(f"{where}: a .tflite file runs whole: it can have one exit, got {len(exits or ())}")
    for name in leaving.outputs:
        if name not in outputs:
            raise BadInput(
                f"{where}: exit {leaving.name!r} wants the output {name!r}; there are {', '.join(outputs)}"
            )
    also = leaving.also or tuple(name for name in outputs if name != leaving.output)
    described = Described(inputs, spec.labels, replace(leaving, also=also))
    size = max(next(e.tensor.shape for e in model.outputs if e.tensor.name == leaving.output), default=1)
    if spec.labels is not None and size != len(spec.labels):
        raise BadInput(f"{where}: {len(spec.labels)} labels do not fit an output of {size} values")
    return described


def _input(entry: BorderTensor, table: Mapping[str, Any], where: str) -> Input:
    shape = table.get("shape")
    if shape is not None and tuple(shape) != entry.tensor.shape:
        raise BadInput(f"{where}: input {entry.tensor.name!r} has the fixed shape {list(entry.tensor.shape)}")
    described = {"layout": usual_layout(entry.tensor.shape), **table, **entry.tensor.to_json()}
    made = Input.parse(described, f"{where}: input {entry.tensor.name!r}")
    if made.preprocess is None or entry.scale is None or entry.zero is None:
        return made
    return replace(made, preprocess=in_codes(made.preprocess, entry, f"{where}: input {entry.tensor.name!r}"))


def in_codes(how: Preprocess, entry: BorderTensor, where: str) -> Preprocess:
    """Preprocessing that gives codes where `how` gives the real numbers they stand for.

    code = real / q + z with real = (pixel * scale - mean) / std is (pixel * scale - (mean - z q std)) / (q std).
    """
    q, z = float(entry.scale or 1.0), float(entry.zero or 0)
    std = tuple(q * value for value in how.std)
    wide = max(len(how.mean), len(how.std))
    means, stds = ((*values, *values[-1:] * (wide - len(values))) for values in (how.mean, how.std))
    mean = tuple(m - z * q * s for m, s in zip(means, stds, strict=True))
    if entry.tensor.dtype != "uint8":
        return replace(how, mean=mean, std=std)
    pixels = np.arange(256)[:, None]
    codes = (pixels * how.scale - np.array(mean)) / np.array(stds) / q
    if np.abs(codes - pixels).max() > _EXACT:
        raise BadInput(
            f"{where} takes uint8 codes of scale {q:.6g} and zero point {z:g}: pixels go in as they are, and this "
            "preprocessing asks for something else; leave scale, mean and std out"
        )
    return replace(how, scale=1.0, mean=(0.0,), std=(1.0,))


def _draft(model: TfliteModel, described: Described, request: Request, backend: Backend) -> Draft:
    inputs = tuple(entry.tensor for entry in model.inputs)
    outputs = tuple(entry.tensor for entry in model.outputs)
    files = {_FILE: model.content}
    part = Part(backend.name, _FILE, hashlib.sha256(model.content).hexdigest(), inputs, outputs)
    leaving = described.exit
    manifest = Manifest(
        name=request.name,
        version=request.version,
        profiles=(request.profile.name,),
        inputs=described.inputs,
        labels=described.labels,
        stages=(Stage((part,), _added_up(model)),),
        exits=(Exit(leaving.name, 0, leaving.output, None, 1.0, leaving.also),),
        quality_metric="top1",
        operating_points=(),
        golden=Golden(1, {}, ()),
        recipe=MEMBER,
        files=bundle.members_of(files),
    )
    return Draft(manifest, files, ())


def _added_up(model: TfliteModel) -> tuple[Work, ...]:
    """Operators of one kind together."""
    sums: dict[tuple[str, str], tuple[int, int, int]] = {}
    for operator in model.operators:
        mine = operator.work
        macs, moved, calls = sums.get((mine.op, mine.format), (0, 0, 0))
        sums[mine.op, mine.format] = (macs + mine.macs, moved + mine.bytes, calls + mine.calls)
    return tuple(Work(op, fmt, *sums[op, fmt]) for op, fmt in sorted(sums))


def _by_reference(model: TfliteModel, samples: Sequence[Mapping[str, Array]], where: str) -> Answers:
    """What LiteRT's plain kernels make of the samples."""
    interpreter = open_interpreter(model.content, where, reference=True)
    answers = []
    for sample in samples:
        for row in interpreter.get_input_details():
            interpreter.set_tensor(row["index"], sample[row["name"]])
        interpreter.invoke()
        answers.append(
            {row["name"]: interpreter.get_tensor(row["index"]) for row in interpreter.get_output_details()}
        )
    return answers


def _quality(table: ExitTable) -> tuple[str, float]:
    """What the one operating point promises: accuracy, or agreement with itself."""
    if table.correct is None:
        return "agreement", 1.0
    return "top1", float(table.correct[:, -1].mean())


def _report(request: Request, model: TfliteModel, finished: Finished, data: Datasets, watch: Watch) -> Report:
    manifest = finished.manifest
    with watch("judge the bundle", data.evaluation.count) as tick:
        table = exit_table(finished.open(), data.evaluation, tick)
    accuracy = None if table.correct is None else float(table.correct[:, -1].mean())
    if table.correct is None and (table.predicted >= 0).all():
        accuracy = 1.0  # agreement with the model that came in, which it is
    energy = unknown("mJ")
    if request.bench is not None:
        there = timed_there(request.bench, (finished,), data.validation)[0]
        latency, provenance, on = there.latency, there.provenance, f"{there.device}, {there.on}"
        if there.energy_mj is not None:
            energy = Figure(there.energy_mj, "mJ", cast("Provenance", provenance), None, on)
    elif request.on_this_machine:
        latency, provenance, on = latency_of(table.latency_ms[:, -1]), "measured", machine_name()
    else:
        mean = predict(request.profile, [entry for stage in manifest.stages for entry in stage.work]).value
        latency, provenance, on = Latency(mean=mean), "estimated", f"profile {request.profile.name}"
    size = float(len(model.content))
    same = Change(accuracy, accuracy)
    known = latency.mean is not None
    return Report(
        bundle=f"{manifest.name}/{manifest.version}",
        profile=request.profile.name,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        metric="top1" if table.correct is not None else "agreement",
        accuracy=same,
        size_bytes=Change(size, size),
        latency_before=latency,
        latency_after=latency,
        latency_provenance=provenance if known else None,
        latency_on=on if known else None,
        exits=(ExitReport(manifest.exits[0].name, accuracy, 1.0, latency.mean),),
        policies=(),
        operating_points=manifest.operating_points,
        layers=tuple(
            LayerReport(row.output, row.work.op, row.work.format, 0, float(row.work.macs), None)
            for row in model.operators
        ),
        dropped=(),
        limits_missed=request.limits.missed(
            same, latency.mean, energy, size, memory_mb(finished, request.limits)
        ),
        data=data.uses(),
    )
