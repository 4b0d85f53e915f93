"""What a model is made of, what a board can do with it, and where its time would go. Converts and measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.core.cost import estimate_layers, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.profile import Backend, Profile
from edgekit.host.convert import BEFORE
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.lower import backend_for, native, problems
from edgekit.host.ort import open_model
from edgekit.host.pack_plan import (
    as_plan_source,
    bytes_of_layers,
    is_binary,
    plan_backend,
    why_refused,
    work_of_plan,
)
from edgekit.host.passes import Context, run_steps
from edgekit.host.passes.quantize_static import OPS, float_nodes, is_quantized
from edgekit.host.split import split
from edgekit.host.work import Layer, layers

_SLOW_SHARE = 0.1  # of the whole estimate: below it a layer in float is no reason to worry
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class LayerOnBoard:
    """One layer, and what it would be on the board. slow: its share of the estimate and why, None: small.

    not_binary: in a network that has layers of 1 or 2 bits, why this one cannot run on bits and small integers.
    """

    layer: Layer
    stage: int
    format: str
    estimate: Figure  # ms
    slow: str | None
    not_binary: str | None = None


@dataclass(frozen=True)
class Inspection:
    """problems: why this board cannot run the model, one line each. estimate: ms of one request to the last exit."""

    layers: tuple[LayerOnBoard, ...]
    backend: str | None
    problems: tuple[str, ...]
    estimate: Figure | None


def inspect(graph: Graph, profile: Profile | None, backend_name: str | None = None) -> Inspection:
    """Look at every layer. Without a profile the formats are those of the model and there are no estimates.

    backend_name: None lets the profile choose, as convert does.
    """
    binary = _binary(graph, profile, backend_name)
    if binary is not None:
        return binary
    placed = [(stage.index, layer) for stage in split(graph) for layer in layers(stage.model)]
    if profile is None:
        nowhere = Figure(None, "ms")
        rows = tuple(LayerOnBoard(layer, stage, layer.format, nowhere, None) for stage, layer in placed)
        return Inspection(rows, None, (), None)
    try:
        backend = backend_for(profile, backend_name)
    except BadInput as err:
        rows = tuple(
            LayerOnBoard(layer, stage, layer.format, Figure(None, "ms"), None) for stage, layer in placed
        )
        return Inspection(rows, None, (str(err),), None)
    int8 = "int8" in backend.fast_formats and backend.int8_activation is not None and not is_quantized(graph)
    stays = set(float_nodes(graph))
    there = [_there(layer, int8=int8 and layer.op in OPS and layer.name not in stays) for _, layer in placed]
    whole = predict(profile, [entry for layer in there for entry in layer.work])
    found = tuple(
        LayerOnBoard(layer, stage, on_board.format, mine, _slow(on_board, mine, whole, profile, int8=int8))
        for (stage, layer), on_board, mine in zip(placed, there, estimate_layers(profile, there), strict=True)
    )
    return Inspection(found, backend.name, _problems(graph, backend), whole)


def _binary(graph: Graph, profile: Profile | None, backend_name: str | None) -> Inspection | None:
    """A network as our own kernels run it, where it was trained for bits or goes there anyhow; None: another way."""
    backend = None if profile is None else plan_backend(profile, backend_name, graph)
    if backend is None and (profile is not None or not is_binary(graph)):
        return None
    reading = native.read(as_plan_source(graph))
    unknown = Figure(None, "ms")
    packed = bytes_of_layers(reading.draft.todos)
    rows = [
        LayerOnBoard(
            *(
                replace(layer, bytes=packed.get(layer.name, layer.bytes)),
                stage.index,
                reading.formats.get(layer.name, layer.format),
                unknown,
                None,
            ),
            reading.refused.get(layer.name),
        )
        for stage in split(graph)
        for layer in layers(stage.model)
        if layer.macs or layer.name in reading.refused
    ]
    problems: tuple[str, ...] = ()
    if reading.refused and profile is not None:
        problems = (why_refused(profile, native.refusal(reading.refused)),)
    estimate_ms = None
    if backend is not None and profile is not None and not reading.refused:
        estimate_ms = predict(profile, work_of_plan(reading.draft.todos))
    runs = None if backend is None or reading.refused else backend.name
    return Inspection(tuple(rows), runs, problems, estimate_ms)


def _there(layer: Layer, *, int8: bool) -> Layer:
    """The layer as the board would run it."""
    if layer.format != "float32" or not int8:
        return layer
    work = tuple(
        replace(entry, format="int8", bytes=entry.bytes // _FLOAT_BYTES)
        if entry.format == "float32"
        else entry
        for entry in layer.work
    )
    return replace(layer, format="int8", work=work)


def _slow(layer: Layer, mine: Figure, whole: Figure, profile: Profile, *, int8: bool) -> str | None:
    """Why this layer would be slow on the board."""
    if mine.value is None or not whole.value or mine.value < _SLOW_SHARE * whole.value:
        return None
    share = f"{100 * mine.value / whole.value:.0f} %"
    if int8 and layer.format == "float32":
        return f"{share}, stays float32"
    products = [replace(entry, bytes=0, calls=0) for entry in layer.work if entry.macs]
    compute = predict(profile, products).value if products else 0.0
    return f"{share}, bound by memory" if compute is not None and compute < mine.value / 2 else share


def _problems(graph: Graph, backend: Backend) -> tuple[str, ...]:
    try:
        plain = run_steps(graph, BEFORE, Context())
        found = problems(plain, backend)
        if not found:
            for stage in split(plain):
                open_model(model_bytes(stage.model))
    except BadInput as err:  # what convert would stop with
        found = (str(err),)
    if backend.max_opset is None or graph.opset <= backend.max_opset:
        return found
    loads = f"{backend.name} there loads {backend.max_opset} at most"
    return (f"the model uses opset {graph.opset}, {loads}: convert tries to lower it", *found)
