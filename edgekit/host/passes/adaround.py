"""AdaRound: choose for every weight whether it goes up or down by what that does to the layer's outputs.

Runs on the float network and writes float weights on the integer grid, which a later pass finds again. Per layer the
error of the outputs on calibration inputs is minimised (Nagel et al. 2020, "Up or Down?", arXiv 2004.10568), also with
the error compensation of GPTQ (Frantar et al. 2023, arXiv 2210.17323); the best of all is kept per output channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, model_bytes, static_shape, values
from edgekit.host.options import option
from edgekit.host.ort import OpenModel, open_model
from edgekit.host.passes._grid import GRIDS, Grid, Product, dequantize, products, quantize, rows
from edgekit.host.passes._patches import columns, matrix_of, positions, weight_of
from edgekit.host.passes._rounding import Array, Problem, best_rounding
from edgekit.host.passes.base import Context, Pass
from edgekit.host.sqnr import spread
from edgekit.runtime.data import Data

_SEARCHED = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the largest weight: further grids that "search" tries
_FEWEST_SAMPLES = 48
_FEWEST_POSITIONS, _MOST_POSITIONS, _POSITIONS_PER_INPUT = 4096, 16384, 4
_MOST_INPUTS = 4608  # of one output; more are rounded in parts
_EXACT_INPUTS = 1024  # up to which H is kept in float64
_RIDGE = 0.01  # of the mean of H's diagonal, where a target is fitted
_REDUCED = 64  # the largest code of weights in 7 bits
_POSITIONS_AT_ONCE = 256
_HELD = 2**28  # bytes of moments held at once


@dataclass(frozen=True)
class Options:
    """How to round. format, reduce_range, block: the grid that the later pass will use, see _grid.

    clip: "max" and "mse" as in _grid; "search" takes the best of these and of smaller scales by the outputs' error.
    asymmetric: each layer sees its inputs as the layers rounded before it make them, and so undoes a part of their
    error; stages: for that the network is run anew so many times at most, with some layers each time. samples: at
    most, where a sample has few positions. iterations: of soft rounding; 0: none. min_size: weights with fewer
    numbers are left. layers: names of the nodes to round; none: all. keep_float: names of nodes to leave.
    """

    format: str = option("int8", choices=("int8", "int4"))
    reduce_range: bool = False
    block: int = option(0, min=0)
    clip: str = option("search", choices=("max", "mse", "search"))
    asymmetric: bool = True
    stages: int = option(24, min=1)
    samples: int = option(512, min=1)
    iterations: int = option(300, min=0)
    min_size: int = option(1, min=1)
    layers: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()


@dataclass
class _Layer:
    """A weight, the products it serves, and the moments of what it meets: E[x xᵀ], E[(wanted x - x) xᵀ]."""

    value: ir.Value
    uses: list[Product]
    moments: Array = field(default_factory=lambda: np.zeros(0))
    missing: Array | None = None
    held: list[tuple[Array, Array | None]] = field(default_factory=list)
    count: int = 0

    def add(self, x: Array, d: Array | None) -> None:
        """Take in some positions: the inputs, (groups, positions, inputs), and what they miss."""
        self.held.append((x, d))
        self.count += x.shape[1]
        if sum(each.shape[1] for each, _ in self.held) >= _POSITIONS_AT_ONCE:
            self.sum_up()

    def sum_up(self) -> None:
        """Add what is held to the moments: products of large matrices are the quick ones."""
        if not self.held:
            return
        x = np.concatenate([each for each, _ in self.held], axis=1)
        missing = [each for _, each in self.held if each is not None]
        self.held = []
        if not self.moments.size:
            groups, _, inputs = x.shape
            dtype = np.float64 if inputs <= _EXACT_INPUTS else np.float32
            self.moments = np.zeros((groups, inputs, inputs), dtype)
            self.missing = np.zeros_like(self.moments) if missing else None
        self.moments += np.swapaxes(x, 1, 2) @ x
        if self.missing is not None and any(each.any() for each in missing):
            self.missing += np.swapaxes(np.concatenate(missing, axis=1), 1, 2) @ x

    def finish(self) -> None:
        """From sums to means, and towards what is expected of inputs that few samples tell little about.

        H is shrunk towards a multiple of the unit matrix (Ledoit and Wolf 2004), the more the fewer positions were seen
        for each input: a direction that calibration never showed must not be where errors are hidden.
        """
        self.sum_up()
        self.moments /= max(1, self.count)
        inputs = self.moments.shape[-1]
        share = inputs / (inputs + self.count)
        if self.missing is not None:
            self.missing *= (1 - share) / max(1, self.count)
        mean = np.trace(self.moments, axis1=1, axis2=2)[:, None, None] / inputs
        unit = np.eye(inputs, dtype=self.moments.dtype)
        self.moments *= 1 - share
        self.moments += (share * mean).astype(self.moments.dtype) * unit

    @property
    def source(self) -> str:
        """The tensor it multiplies, of its first use."""
        return _source(self.uses[0])


def apply(graph: Graph, options: Options, context: Context) -> Graph:
    """The graph with weights on the grid. Raises BadInput without calibration data, or for unknown layers."""
    data = context.samples("adaround")
    grid = GRIDS[options.format]
    if options.reduce_range:
        grid = replace(grid, qmax=min(grid.qmax, _REDUCED))
    model = graph.copy()
    rounded = replace(graph, model=model)
    todo = _layers(rounded, options)
    with context.watch("adaround", len(todo)) as tick:
        for batch in _batches(todo, options):
            _gather(graph, rounded, batch, data, options, context.seed)
            for layer in batch:
                _round(layer, grid, options)
                tick(1)
    return graph.with_model(model)


def _layers(graph: Graph, options: Options) -> list[_Layer]:
    """The weights to round, in the graph's order. One that something besides these products reads stays as it is."""
    found: dict[str, _Layer] = {}
    for product in products(graph):
        found.setdefault(product.value.name or "", _Layer(product.value, [])).uses.append(product)
    for key, known in (
        ("layers", {product.name for layer in found.values() for product in layer.uses}),
        ("keep_float", {node.name for node in graph.model.graph}),
    ):
        unknown = sorted(set(getattr(options, key)) - known)
        if unknown:
            what = "product with a constant weight" if key == "layers" else "node"
            raise BadInput(f"adaround: {key} names no {what} of the model: {', '.join(unknown)}")
    big = (layer for layer in found.values() if layer.uses[0].array.size >= options.min_size)
    return [layer for layer in big if _is_plain(layer, options)]


def _is_plain(layer: _Layer, options: Options) -> bool:
    names = {use.name for use in layer.uses}
    wanted = not (names & set(options.keep_float)) and (not options.layers or names <= set(options.layers))
    first = layer.uses[0]
    alike = all(use.axes == first.axes and use.node.op_type == first.node.op_type for use in layer.uses)
    known = all(
        use.index == 1
        and (use.node.op_type != "MatMul" or use.array.ndim == 2)
        and use.node.inputs[0] is not None
        and static_shape(use.node.inputs[0]) is not None
        and positions(use.node, static_shape(use.node.inputs[0]) or (), use.array.shape) > 0
        for use in layer.uses
    )
    same_groups = len({matrix_of(use.node, use.array).shape for use in layer.uses if known}) == 1
    return wanted and alike and known and same_groups and len(layer.value.uses()) == len(layer.uses)


def _source(use: Product) -> str:
    value = use.node.inputs[0]
    return (value.name if value is not None else None) or ""


def _batches(todo: Sequence[_Layer], options: Options) -> Iterator[list[_Layer]]:
    """Layers whose moments are gathered in one run: as many as memory holds and a stage may have."""
    batch: list[_Layer] = []
    held, most = 0.0, -(-len(todo) // options.stages)
    for layer in todo:
        groups, _, inputs = matrix_of(layer.uses[0].node, layer.uses[0].array).shape
        size = 8.0 * groups * inputs * min(inputs, _MOST_INPUTS)
        other = len({each.source for each in (*batch, layer)}) > most
        if batch and ((options.asymmetric and other) or held + size > _HELD):
            yield batch
            batch, held = [], 0.0
        batch.append(layer)
        held += size
    if batch:
        yield batch


# --- what the layers meet ---------------------------------------------------------------------------------------------


def _gather(
    plain: Graph, rounded: Graph, batch: Sequence[_Layer], data: Data, options: Options, seed: int
) -> None:
    """Fill in the moments of some layers from calibration data, sample by sample."""
    uses = [(layer, use) for layer in batch for use in layer.uses]
    names = list(dict.fromkeys(_source(use) for _, use in uses))
    wanted = _Inputs(plain, names)
    came = _Inputs(rounded, names) if options.asymmetric else wanted
    plans = [_Plan.of(use, options, data.count) for _, use in uses]
    random = np.random.default_rng(seed)
    for index in sorted({index for plan in plans for index in plan.indices}):
        sample = data.inputs(index)
        got = came.of(sample)
        want = wanted.of(sample) if options.asymmetric else got
        for (layer, use), plan in zip(uses, plans, strict=True):
            if index not in plan.indices:
                continue
            name, shape = _source(use), use.array.shape
            chosen = random.permutation(plan.positions)[: plan.each]
            x = columns(use.node, got[name], shape, chosen)
            d = columns(use.node, want[name], shape, chosen) - x if options.asymmetric else None
            layer.add(x, d)
    for layer in batch:
        layer.finish()


@dataclass(frozen=True)
class _Plan:
    """Which samples serve one product, and at how many of its positions it is looked at in each."""

    indices: frozenset[int]
    positions: int
    each: int

    @classmethod
    def of(cls, use: Product, options: Options, count: int) -> _Plan:
        source = use.node.inputs[0]
        shape = (static_shape(source) if source is not None else None) or ()
        here = positions(use.node, shape, use.array.shape)
        inputs = matrix_of(use.node, use.array).shape[-1]
        total = int(np.clip(_POSITIONS_PER_INPUT * inputs, _FEWEST_POSITIONS, _MOST_POSITIONS))
        samples = min(count, options.samples, max(_FEWEST_SAMPLES, -(-total // here)))
        return cls(frozenset(spread(count, samples)), here, min(here, -(-total // samples)))


class _Inputs:
    """Some tensors of a graph for a sample, computing no more than they need."""

    def __init__(self, graph: Graph, names: Iterable[str]) -> None:
        entries = {value.name for value in graph.model.graph.inputs}
        self._given = [name for name in names if name in entries]
        self._made = [name for name in names if name not in entries]
        self._session: OpenModel | None = _upto(graph, self._made) if self._made else None

    def of(self, sample: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The tensors by name."""
        made = (
            {}
            if self._session is None
            else dict(zip(self._made, self._session.run(self._made, sample), strict=True))
        )
        return {**made, **{name: sample[name] for name in self._given}}


def _upto(graph: Graph, names: Sequence[str]) -> OpenModel:
    """A session over the nodes that these tensors need."""
    model = graph.copy()
    found = values(model)
    model.graph.outputs[:] = [found[name] for name in names]
    RemoveUnusedNodesPass()(model)
    return open_model(model_bytes(model))


# --- rounding one layer -----------------------------------------------------------------------------------------------


def _round(layer: _Layer, grid: Grid, options: Options) -> None:
    """Write the layer's weights on the grid."""
    use, weight = layer.uses[0], layer.uses[0].array
    if not np.isfinite(weight).all():
        raise BadInput(f"{use.name}: weights must be finite numbers, got NaN or infinity")
    dtype = layer.moments.dtype
    plain = matrix_of(use.node, weight).astype(dtype)
    target = _target(plain, layer)
    shared = use.node.op_type == "ConvTranspose" and use.axes == (1,)  # one scale for output m of every group
    grids = [*_grids(weight_of(use.node, target, weight.shape).astype(np.float32), use, grid, options)]
    if layer.missing is not None:
        grids += _grids(weight, use, grid, replace(options, clip="max" if options.clip == "max" else "mse"))
    made = np.empty_like(plain)
    count = plain.shape[-1]
    parts = -(-count // _MOST_INPUTS)
    for part in np.array_split(np.arange(count), parts):
        here = slice(int(part[0]), int(part[-1]) + 1)
        problems = [
            Problem(
                np.ascontiguousarray(target[..., here]),
                np.ascontiguousarray(matrix_of(use.node, steps)[..., here], dtype),
                np.ascontiguousarray(layer.moments[:, here, here]),
                grid.qmax,
                np.ascontiguousarray(matrix_of(use.node, pinned)[..., here]),
            )
            for steps, pinned in (grids if parts == 1 else grids[:1])
        ]
        codes, steps = best_rounding(problems, shared, options.iterations)
        made[..., here] = codes * steps
    array = np.ascontiguousarray(weight_of(use.node, made.astype(np.float32), weight.shape))
    layer.value.const_value = ir.tensor(array, name=layer.value.name)
    layer.moments, layer.missing = np.zeros(0), None


def _target(plain: Array, layer: _Layer) -> Array:
    """The weights that best give the wanted outputs from the inputs that come: W + W E[d xᵀ] (H + ridge)^-1."""
    if layer.missing is None or not layer.missing.any():
        return plain
    count = plain.shape[-1]
    mean = np.trace(layer.moments, axis1=1, axis2=2)[:, None, None] / count
    ridge = _RIDGE * np.where(mean > 0, mean, 1.0)  # a channel may be dead
    ridged = layer.moments + ridge.astype(plain.dtype) * np.eye(count, dtype=plain.dtype)
    shift = np.swapaxes(np.linalg.solve(ridged, np.swapaxes(plain @ layer.missing, 1, 2)), 1, 2)
    return np.asarray(plain + shift, plain.dtype)


def _grids(
    weight: NDArray[np.float32], use: Product, grid: Grid, options: Options
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """(step under each weight, where a group's largest weight is) for each scale that is tried."""
    layout = rows(weight.shape, use.axes, options.block)
    matrix = layout.take(weight)
    size = np.abs(matrix)
    pinned = np.zeros(matrix.shape, np.bool_)
    largest = size.max(axis=1, keepdims=True)
    pinned[np.arange(len(matrix)), size.argmax(axis=1)] = largest[:, 0] > 0
    tried = [quantize(matrix, grid, clip, layout.used)[1] for clip in _clips(options.clip)]
    if options.clip == "search":
        tried += [
            quantize(np.clip(matrix, -share * largest, share * largest), grid)[1] for share in _SEARCHED
        ]
    for scale in tried:
        yield layout.give(dequantize(np.ones(matrix.shape, np.int8), scale)), layout.give(pinned)


def _clips(clip: str) -> tuple[str, ...]:
    return ("max", "mse") if clip == "search" else (clip,)


PASS = Pass("adaround", apply, min_sqnr_db=25.0, options=Options, rounds=True, costly=True)
