"""Compose a bundle: stages lowered to part files, golden cases, operating points, recipe, report. Decides nothing."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core import bundle
from edgekit.core.errors import BadInput
from edgekit.core.manifest import (
    Exit,
    Golden,
    GoldenOutput,
    Manifest,
    OperatingPoint,
    Part,
)
from edgekit.core.manifest import (
    Stage as ManifestStage,
)
from edgekit.core.profile import Backend
from edgekit.core.report import Report
from edgekit.host.graph import Graph, model_bytes, values
from edgekit.host.lower import LOWERINGS
from edgekit.host.ort import open_model
from edgekit.host.recipe import MEMBER, Recipe
from edgekit.host.repeats import Computation, names_when_run_by
from edgekit.host.split import Stage
from edgekit.host.sqnr import spread
from edgekit.host.work import layers, work
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data
from edgekit.runtime.session import Session, open_session

GOLDEN = 16
_INT8_STEPS = 3  # other processors round sums otherwise: a step or two is no error
_FLOAT_STEPS = 0.25
_STEPS = 255  # of an 8-bit range: the unit of tolerances, for float outputs too
_SAME = {
    "tflite-runtime": "litert",  # the older wants a numpy below 2, which converting does not
    "overlay": "native",  # a plan's answers are the same bits on all of them
    "overlay-sim": "native",
}
_SHIFT = 128  # from uint8 codes to int8 codes
NO_GOLDEN = Golden(1, {}, ())
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Draft:
    """A network that runs, not yet a bundle: no operating points, golden cases, recipe or report.

    orders: of tensors that a part holds with their axes in another order than its stage (see LoweredPart).
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    stages: tuple[Stage, ...]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of all part files together."""
        return sum(map(len, self.files.values()))

    def open(self) -> Session:
        """The Session that boards run, over the files in memory, on one thread."""
        return open_session(here(self.manifest), self.files.__getitem__)


def here(manifest: Manifest) -> Manifest:
    """The manifest with runtimes that this machine has in place of those only some boards have, for the same files."""
    stages = tuple(
        replace(stage, parts=tuple(_part_here(part) for part in stage.parts)) for stage in manifest.stages
    )
    return replace(manifest, stages=stages)


def _part_here(part: Part) -> Part:
    same = _SAME.get(part.backend)
    return part if same is None else replace(part, backend=same, executes_code=False)


def draft(
    graph: Graph, stages: Sequence[Stage], backend: Backend, name: str, version: int, profile: str
) -> Draft:
    """Lower the stages and describe them. Raises BadInput where the board's runtime is too old for the model."""
    files: dict[str, bytes] = {}
    orders: dict[str, tuple[int, ...]] = {}
    described = []
    made: list[tuple[Computation, Part]] = []
    for stage in stages:
        mine = Computation(stage)
        parts = _repeated(mine, made, orders)
        if parts is None:
            parts = _lowered(stage, backend, files, orders)
            if len(parts) == 1:
                made.append((mine, parts[0]))
        described.append(ManifestStage(tuple(parts), work(layers(stage.model))))
    manifest = Manifest(
        name=name,
        version=version,
        profiles=(profile,),
        inputs=graph.inputs,
        labels=graph.labels,
        stages=tuple(described),
        exits=exits_of(stages, described),
        quality_metric="top1",
        operating_points=(),
        golden=NO_GOLDEN,
        recipe=MEMBER,
        files=bundle.members_of(files),
    )
    return Draft(manifest, files, tuple(stages), orders)


def _lowered(
    stage: Stage, backend: Backend, files: dict[str, bytes], orders: dict[str, tuple[int, ...]]
) -> list[Part]:
    """The parts of a stage; their files and orders are put to the others."""
    lowered = LOWERINGS[backend.name](stage, backend)
    parts = []
    for index, part in enumerate(lowered):
        number = f"{stage.index}" if len(lowered) == 1 else f"{stage.index}.{index}"
        file = f"stages/{number}.{part.suffix}"
        files[file] = part.content
        orders.update(part.orders)
        digest = hashlib.sha256(part.content).hexdigest()
        parts.append(Part(part.backend, file, digest, part.inputs, part.outputs))
    return parts


def _repeated(
    mine: Computation, made: Sequence[tuple[Computation, Part]], orders: dict[str, tuple[int, ...]]
) -> list[Part] | None:
    """The one part of a stage that an earlier one's file computes; None where none does."""
    found = ((names_when_run_by(earlier, mine), part) for earlier, part in made)
    names, part = next(((names, part) for names, part in found if names is not None), (None, None))
    if names is None or part is None:
        return None
    mine_of = {theirs: name for name, theirs in names.items()}
    inputs = tuple(replace(tensor, name=mine_of[tensor.name]) for tensor in part.inputs)
    outputs = tuple(
        replace(tensor, name=mine_of.setdefault(tensor.name, f"{tensor.name}/stage{mine.stage.index}"))
        for tensor in part.outputs
    )
    orders.update({mine_of[name]: order for name, order in orders.items() if name in mine_of})
    differ = {name: theirs for theirs, name in mine_of.items() if name != theirs}
    return [replace(part, inputs=inputs, outputs=outputs, names=differ)]


def exits_of(stages: Sequence[Stage], described: Sequence[ManifestStage]) -> tuple[Exit, ...]:
    """Cost shares are cumulative MACs over all; bytes moved where a network multiplies nothing."""
    costs: list[float] = [stage.macs for stage in described]
    if not sum(costs):
        costs = [float(sum(entry.bytes for entry in stage.work)) or 1.0 for stage in described]
    total = sum(costs)
    return tuple(
        Exit(
            stage.exit.name,
            stage.index,
            stage.exit.output,
            stage.exit.confidence,
            min(1.0, spent / total),
            stage.exit.also,
        )
        for stage, spent in zip(stages, itertools.accumulate(costs), strict=True)
    )


# --- golden cases -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoldenCases:
    """What goes into the manifest, and its files."""

    golden: Golden
    files: Mapping[str, bytes]


Answers = list[dict[str, Array]]  # per sample every tensor that the stages make, by name


def golden_cases(
    made: Draft,
    data: Data,
    count: int,
    rounded_otherwise: Callable[[Sequence[Mapping[str, Array]]], Answers] | None = None,
    *,
    exact: bool = False,
) -> GoldenCases:
    """Inputs spread over `data`, with what every stage makes of them here, and how far a board may be off.

    The unit of a tolerance is the tensor's quantization step: 1 for codes, 1/255 of what these cases span for floats.
    An int8 tensor may be off by three steps, or by twice what the same graph differs when its codes are computed in
    float: other processors round elsewhere (rounded_otherwise: how else to find that out). exact: no processor does.
    Samples repeat where `data` has fewer than `count`.
    """
    picked = spread(data.count, count)
    chosen = [picked[index % len(picked)] for index in range(count)]
    samples = [data.inputs(index) for index in chosen]
    session = made.open()
    answers = [session.run_all(sample) for sample in samples]
    quantized = not exact and any(
        entry.format in ("int8", "float16") for stage in made.manifest.stages for entry in stage.work
    )
    plain = answers
    if quantized:
        plain = _as_parts(made, samples) if rounded_otherwise is None else rounded_otherwise(samples)
    files: dict[str, bytes] = {}
    inputs = {}
    for entry in made.manifest.inputs:
        name = entry.tensor.name
        inputs[name] = _member(files, f"golden/in.{_plain(name)}")
        files[inputs[name]] = _npy(np.stack([sample[name] for sample in samples]))
    outputs = []
    confidences = {
        e.confidence: e.output for stage in made.stages for e in [stage.exit] if _is_softmax(stage)
    }
    tolerances: dict[str, float] = {}
    told = {tensor.name for stage in made.stages for tensor in stage.outputs}  # a repeated file may give more
    for index, stage in enumerate(made.manifest.stages):
        for tensor in (tensor for part in stage.parts for tensor in part.outputs if tensor.name in told):
            want = np.stack([answer[tensor.name] for answer in answers])
            if not np.isfinite(want).all():
                raise BadInput(f"{data.source}: {tensor.name!r} is not finite for some of the samples")
            other = np.stack([answer[tensor.name] for answer in plain])
            if tensor.name in confidences:  # the largest softmax moves by at most half of what the logits do
                tolerance = min(1.0, 0.5 * tolerances[confidences[tensor.name]] + 1e-5)
            else:
                tolerance = _tolerance(want, other, quantized=quantized)
            tolerances[tensor.name] = tolerance
            file = _member(files, f"golden/{index}.{_plain(tensor.name)}")
            files[file] = _npy(_compact(want, tolerance))
            outputs.append(GoldenOutput(tensor.name, index, file, tolerance))
    return GoldenCases(Golden(count, inputs, tuple(outputs)), files)


def _is_softmax(stage: Stage) -> bool:
    """Whether the exit's confidence is the largest softmax of its answer, and none that the network brought itself."""
    name = stage.exit.confidence
    node = None if name is None else values(stage.model)[name].producer()
    return node is not None and node.op_type == "ReduceMax"


def _tolerance(want: Array, other: Array, *, quantized: bool) -> float:
    if want.dtype.kind in "iu":
        step = 1.0
    else:
        low, high = float(want.min(initial=0.0)), float(want.max(initial=0.0))
        step = max(high - low, 1e-6) / _STEPS
    if not quantized:
        return _FLOAT_STEPS * step
    off = float(np.abs(want.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))
    return max(_INT8_STEPS, math.ceil(2 * off / step)) * step


def _compact(want: Array, tolerance: float) -> Array:
    """In 16 bits where that rounds by less than a sixteenth of the tolerance: golden cases can outweigh a network."""
    if want.dtype != np.float32:
        return want
    with np.errstate(over="ignore"):
        half = want.astype(np.float16)
    off = np.abs(half.astype(np.float32) - want).max(initial=0.0)
    return half if off < tolerance / 16 else want


def _as_parts(made: Draft, samples: Sequence[Mapping[str, Array]]) -> Answers:
    """What the stages make without any rewriting, laid out as their parts hold it."""
    parts = (part for stage in made.manifest.stages for part in stage.parts)
    dtypes = {tensor.name: np.dtype(tensor.dtype) for part in parts for tensor in part.outputs}
    return [
        {
            name: _as_lowered(array, made.orders.get(name), dtypes[name])
            for name, array in answer.items()
            if name in dtypes
        }
        for answer in _run_unfused(made.stages, samples)
    ]


def _run_unfused(stages: Sequence[Stage], samples: Sequence[Mapping[str, Array]]) -> Answers:
    """The stages without any rewriting: codes are dequantized, computed in float and rounded again."""
    known = [dict(sample) for sample in samples]
    for stage in stages:
        session = open_model(model_bytes(stage.model), optimize=False)
        names = [tensor.name for tensor in stage.outputs]
        for sample in known:
            made = session.run(names, {tensor.name: sample[tensor.name] for tensor in stage.inputs})
            sample.update(zip(names, made, strict=True))
    return known


def _as_lowered(array: Array, order: tuple[int, ...] | None, dtype: np.dtype[Any]) -> Array:
    """What a stage makes, as its part holds it."""
    if order is not None:
        array = array.transpose(order)
    return array.astype(np.int16) - _SHIFT if array.dtype == np.uint8 and dtype == np.int8 else array


def _plain(name: str) -> str:
    return _UNSAFE.sub("_", name)[:80] or "_"


def _member(files: Mapping[str, bytes], stem: str) -> str:
    """A member's name that no other has: tensors may differ only in characters that file names cannot hold."""
    names = itertools.chain([f"{stem}.npy"], (f"{stem}.{index}.npy" for index in itertools.count(2)))
    return next(name for name in names if name not in files)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


# --- the bundle ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """Everything of a bundle but its report, which needs the bundle to be measured first."""

    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def content_id(self) -> str:
        """The bundle's identity."""
        return bundle.content_id(self.manifest)

    def open(self) -> Session:
        """The Session that boards run."""
        return open_session(here(self.manifest), self.files.__getitem__)

    def pack(self, report: Report) -> bytes:
        """The `.edge` file."""
        return bundle.pack(self.manifest, self.files, report.to_json())


def finish(
    made: Draft, points: Sequence[OperatingPoint], metric: str, golden: GoldenCases, recipe: Recipe
) -> Finished:
    """Put the parts together and check them as every reader will. Raises BadBundle.

    Boards get the recipe's limits to keep.
    """
    files = {**made.files, **golden.files, MEMBER: recipe.to_toml().encode()}
    manifest = replace(
        made.manifest,
        quality_metric=metric,
        operating_points=tuple(points),
        golden=golden.golden,
        files=bundle.members_of(files),
        limits=recipe.limits,
    )
    return Finished(Manifest.parse(manifest.to_json()), files)
