"""See every activation once on calibration data, in bounded memory; say which ranges int8 should cover.

One pass keeps an exact minimum and maximum per tensor, and a histogram where a method asks for one. The histogram's
bins are symmetric around zero, and its reach doubles when a value falls outside, two bins becoming one: chunks can come
in any size, nothing is kept. Histograms are of at most `HISTOGRAM_SAMPLES` samples and some thousand values of each:
the shape of a distribution is known from millions of values, only its extremes need them all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.core.registry import pick
from edgekit.host.graph import Graph, dtype_name, model_bytes, static_shape, values
from edgekit.host.ort import OpenModel, open_model
from edgekit.host.stored import constant_nodes, folded
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data

BINS = 4096
_CHUNK_BYTES = 32 * 2**20  # activations held at once
_PART_BYTES = 192 * 2**20  # activations of one sample that one session gives
_CHUNK_SAMPLES = 64
_TINY = 2.0**-100  # what is smaller counts as zero: a bin's width must be a float32
_PERCENTILE = 99.99
_STEPS = 255  # of an 8-bit range
_CLIPS = np.linspace(0.3, 1.0, 36)  # how far the mse method may pull a range in
_THRESHOLDS = 96  # that the entropy method tries
HISTOGRAM_SAMPLES = 512
_MOST_VALUES = 2**16  # that a histogram takes of one tensor of one sample
_VIEWS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")  # give the values they get

Range = tuple[float, float]
Tick = Callable[[int], None]


@dataclass
class Histogram:
    """Values of one tensor: exact extremes, and counts over [-reach, reach]."""

    low: float = np.inf
    high: float = -np.inf
    reach: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, chunk: Array) -> None:
        """Take in some values. Raises BadInput for NaN or infinity."""
        flat = chunk.reshape(-1)
        if not flat.size:
            return
        largest = max(map(abs, self.see(flat)))
        if largest < _TINY:
            largest = 0.0
        if largest > self.reach:
            self._widen(largest)
        if not self.reach:
            self.counts[BINS // 2] += flat.size
            return
        places = ((flat + np.float32(self.reach)) * np.float32(BINS / 2 / self.reach)).astype(np.int32)
        self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

    def see(self, chunk: Array) -> Range:
        """Take in the extremes of some values (at least one), and give them. Raises BadInput for NaN or infinity."""
        low, high = float(chunk.min()), float(chunk.max())  # both are NaN where one value is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadInput("must be finite numbers, got NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        return low, high

    def _widen(self, largest: float) -> None:
        if not self.reach:  # so far nothing but zeros
            zeros = int(self.counts.sum())
            self.reach = float(2.0 ** np.ceil(np.log2(largest)))
            self.counts[:] = 0
            self.counts[BINS // 2] = zeros
            return
        while largest > self.reach:
            pairs = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[BINS // 4 : 3 * BINS // 4] = pairs
            self.reach *= 2

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach, np.float64)


@dataclass(frozen=True)
class Calibration:
    """What the activations looked like: a histogram per tensor, over `count` samples.

    methods: what `ranges` can be asked for; without histograms that is minmax alone.
    """

    histograms: Mapping[str, Histogram]
    count: int
    methods: tuple[str, ...] = ()  # none named: all

    def ranges(self, method: str) -> dict[str, Range]:
        """The range int8 should cover per tensor, always with zero in it.

        Raises BadInput for an unknown method, and for one that the calibration kept no histograms for.
        """
        rule = pick("calibration method", METHODS, method)
        if self.methods and method not in self.methods:
            raise BadInput(
                f"calibration method {method!r} needs histograms: calibrate for it, not only minmax"
            )
        return {name: _with_zero(rule(histogram)) for name, histogram in self.histograms.items()}


def minmax(histogram: Histogram) -> Range:
    """Everything that was seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> Range:
    """All but one in ten thousand values on either side."""
    total = int(histogram.counts.sum())
    if not total or not histogram.reach:
        return minmax(histogram)
    seen = np.cumsum(histogram.counts) / total
    tail = 1 - _PERCENTILE / 100
    low, high = int(np.searchsorted(seen, tail)), int(np.searchsorted(seen, 1 - tail))
    centres = histogram.centres
    return max(histogram.low, float(centres[low])), min(histogram.high, float(centres[min(high, BINS - 1)]))


def mse(histogram: Histogram) -> Range:
    """The range with the least mean squared error: rounding inside it, clipping outside."""
    if not histogram.reach:
        return minmax(histogram)
    used = np.flatnonzero(histogram.counts)
    centres, weights = histogram.centres[used], histogram.counts[used].astype(np.float64)
    best, least = minmax(histogram), np.inf
    for clip in _CLIPS[::-1]:
        low, high = _with_zero((histogram.low * clip, histogram.high * clip))
        step = (high - low) / _STEPS
        if step <= 0:
            continue
        rounded = np.clip(np.round((centres - low) / step), 0, _STEPS) * step + low
        error = float(weights @ (rounded - centres) ** 2)
        if error < least:
            best, least = (low, high), error
    return best


def entropy(histogram: Histogram) -> Range:
    """The range whose 8-bit distribution tells the float one with the least Kullback-Leibler divergence.

    As in TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017): what lies beyond a threshold counts at its edge,
    and a step's mass spreads evenly over those of its bins that hold something. The bin of zero weighs no more than its
    neighbours: zeros are exact in every range, and after a ReLU they would drown all else.
    """
    if not histogram.reach:
        return minmax(histogram)
    counts = histogram.counts.astype(np.float64)
    zero, width = BINS // 2, 2 * histogram.reach / BINS
    counts[zero] = min(counts[zero], max(counts[zero - 1], counts[zero + 1]))
    first, end = (int(edge) for edge in (np.flatnonzero(counts)[[0, -1]] + (0, 1)))
    bins = np.arange(BINS)
    best, least = minmax(histogram), np.inf
    furthest = max(zero - first, end - zero)
    for reach in np.unique(np.linspace(min(_STEPS, furthest), furthest, _THRESHOLDS).astype(np.int64))[
        ::-1
    ].tolist():
        start, stop = max(first, zero - reach), min(end, zero + reach)
        if stop - start < min(_STEPS, end - first):
            continue
        seen = counts[start:stop].copy()
        holds = seen > 0
        seen[0] += counts[:start].sum()
        seen[-1] += counts[stop:].sum()
        step = (bins[: stop - start] * _STEPS) // (stop - start)
        mass = np.bincount(step, counts[start:stop], _STEPS)
        spread = np.where(holds, mass[step] / np.maximum(1, np.bincount(step, holds, _STEPS))[step], 0.0)
        divergence = _divergence(seen, spread)
        if divergence < least:
            least = divergence
            best = max(histogram.low, (start - zero) * width), min(histogram.high, (stop - zero) * width)
    return best


def _divergence(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """sum p log(p/q) of two histograms; a bin that only `wanted` fills counts as nearly empty in `got`."""
    p, q = wanted / wanted.sum(), got / max(got.sum(), 1e-300)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-9))))


METHODS: Mapping[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def _with_zero(found: Range) -> Range:
    """Padding and ReLU make exact zeros: every range must hold one."""
    return float(min(found[0], 0.0)), float(max(found[1], 0.0))


def calibrate(
    graph: Graph,
    data: Data,
    tick: Tick = lambda done: None,
    methods: Collection[str] = (),
    names: Collection[str] | None = None,
) -> Calibration:
    """Run the graph on every sample once, more often where its activations are large (in_parts).

    tick: called with the number of samples just done.

    methods: those whose ranges will be asked for (none named: all). For minmax alone no histogram is made, and the pass
    costs little more than running the network. names: the tensors to look at; None: all float tensors.

    Raises BadInput where an activation is not finite, a sample does not fit, or a method is unknown.
    """
    for method in methods:
        pick("calibration method", METHODS, method)
    wanted = [name for name in float_activations(graph) if names is None or name in names]
    inputs = [
        entry.tensor.name
        for entry in graph.inputs
        if entry.tensor.dtype == "float32" and (names is None or entry.tensor.name in names)
    ]
    histograms = {name: Histogram() for name in (*wanted, *inputs)}
    derived = _derived(graph, wanted)
    extremes_only = set(methods) == {"minmax"}
    every = -(-data.count // HISTOGRAM_SAMPLES)  # one in so many samples goes into the histograms
    parts = in_parts(graph, wanted) or [[]]
    for number, part in enumerate(parts):
        last = number + 1 == len(parts)
        watched = _Watched(expose(graph, part), data, inputs if last else [], histograms)
        if extremes_only or every > 1:
            direct = [name for name in part if name not in derived]
            for index in range(data.count):
                if extremes_only or index % every:
                    watched.see(direct, index)
                    tick(int(last))
        if not extremes_only:
            chosen, size = range(0, data.count, every), _samples_at_once(graph, part)
            for start in range(0, len(chosen), size):
                watched.add(part, chosen[start : start + size])
                tick(len(chosen[start : start + size]) * last)
    for name, (source, clips) in derived.items():
        mine, its = histograms[name], histograms[source]
        mine.low, mine.high = (max(0.0, edge) if clips else edge for edge in (its.low, its.high))
    return Calibration(histograms, data.count, tuple(methods))


@dataclass(frozen=True)
class _Watched:
    """A network that gives all its activations, and where what is seen of them goes."""

    session: OpenModel
    data: Data
    inputs: list[str]
    histograms: dict[str, Histogram]

    def see(self, names: list[str], index: int) -> None:
        """The extremes of one sample."""
        for name, array in self._run(names, index):
            with self._blamed(name):
                if array.size:
                    self.histograms[name].see(array)

    def add(self, names: list[str], indices: Iterable[int]) -> None:
        """The extremes and the histograms of some samples, held at once."""
        held: dict[str, list[Array]] = {name: [] for name in (*names, *self.inputs)}
        for index in indices:
            for name, array in self._run(names, index):
                flat = array.reshape(-1)
                stride = -(-flat.size // _MOST_VALUES) | 1  # odd: no layout has a period of it
                if stride > 1:
                    with self._blamed(name):
                        self.histograms[name].see(flat)
                held[name].append(flat[index % stride :: stride])
        for name, arrays in held.items():
            with self._blamed(name):
                self.histograms[name].add(np.concatenate(arrays))

    def _run(self, names: list[str], index: int) -> Iterator[tuple[str, Array]]:
        sample = self.data.inputs(index)
        yield from zip(names, self.session.run(names, sample) if names else [], strict=True)
        yield from ((name, sample[name]) for name in self.inputs)

    @contextlib.contextmanager
    def _blamed(self, name: str) -> Iterator[None]:
        try:
            yield
        except BadInput as err:
            raise BadInput(f"{self.data.source}: activations of {name!r} {err}") from err


def _derived(graph: Graph, names: Collection[str]) -> dict[str, tuple[str, bool]]:
    """Tensors whose extremes follow from another one's: name -> (that tensor's name, whether a ReLU lies between)."""
    found: dict[str, tuple[str, bool]] = {}
    wanted = set(names)
    for node in graph.model.graph:
        source = node.inputs[0] if node.inputs else None
        name = node.outputs[0].name or ""
        if (
            source is not None
            and source.name in wanted
            and name in wanted
            and node.op_type in ("Relu", *_VIEWS)
        ):
            root, clips = found.get(source.name or "", (source.name or "", False))
            found[name] = (root, clips or node.op_type == "Relu")
    return found


def float_activations(graph: Graph) -> tuple[str, ...]:
    """Names of the float tensors that nodes of the main graph make and somebody reads.

    Without those that are the same for every input.
    """
    once = constant_nodes(graph.model)
    return tuple(
        name
        for name, value in values(graph.model).items()
        if (node := value.producer()) is not None
        and node not in once
        and dtype_name(value) == "float32"
        and (value.uses() or value.is_graph_output())
    )


def expose(graph: Graph, names: Iterable[str], *, optimize: bool = True) -> OpenModel:
    """A session over the graph that also gives these tensors."""
    model = folded(graph.model)
    found = values(model)
    present = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(found[name] for name in names if name not in present)
    return open_model(model_bytes(model), optimize=optimize)


def in_parts(graph: Graph, names: Iterable[str], most_bytes: int = _PART_BYTES) -> list[list[str]]:
    """The tensors in their order, in as few parts as it takes for none to be larger than `most_bytes` at once.

    onnxruntime holds all that a session gives until the run ends: each part has to be a session of its own.
    """
    found = values(graph.model)
    parts: list[list[str]] = []
    held = 0
    for name in names:
        size = _float_bytes(found[name])
        if not parts or held + size > most_bytes:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts


def _samples_at_once(graph: Graph, names: Iterable[str]) -> int:
    found = values(graph.model)
    sizes = [_float_bytes(found[name]) for name in names]
    return max(1, min(_CHUNK_SAMPLES, _CHUNK_BYTES // max(1, sum(sizes))))


def _float_bytes(value: ir.Value) -> int:
    return 4 * math.prod(static_shape(value) or (1,))
