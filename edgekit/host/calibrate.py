"""See every activation once on calibration data, in bounded memory; say which ranges int8 should cover.

One pass keeps an exact minimum and maximum and a histogram per tensor. The histogram's bins are symmetric around zero,
and its reach doubles when a value falls outside, two bins becoming one: chunks can come in any size, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.core.registry import pick
from edgekit.host.graph import Graph, dtype_name, model_bytes, static_shape, values
from edgekit.host.ort import OpenModel, open_model
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data

BINS = 4096
_CHUNK_BYTES = 32 * 2**20  # activations held at once
_CHUNK_SAMPLES = 64
_TINY = 2.0**-100  # what is smaller counts as zero: a bin's width must be a float32
_PERCENTILE = 99.99
_STEPS = 255  # of an 8-bit range
_CLIPS = np.linspace(0.3, 1.0, 36)  # how far the mse method may pull a range in

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
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadInput("must be finite numbers, got NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest < _TINY:
            largest = 0.0
        if largest > self.reach:
            self._widen(largest)
        if not self.reach:
            self.counts[BINS // 2] += flat.size
            return
        places = ((flat + np.float32(self.reach)) * np.float32(BINS / 2 / self.reach)).astype(np.int32)
        self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

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
    """What the activations looked like: a histogram per tensor, over `count` samples."""

    histograms: Mapping[str, Histogram]
    count: int

    def ranges(self, method: str) -> dict[str, Range]:
        """The range int8 should cover per tensor, always with zero in it. Raises BadInput for an unknown method."""
        rule = pick("calibration method", METHODS, method)
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


METHODS: Mapping[str, Callable[[Histogram], Range]] = {"minmax": minmax, "percentile": percentile, "mse": mse}


def _with_zero(found: Range) -> Range:
    """Padding and ReLU make exact zeros: every range must hold one."""
    return min(found[0], 0.0), max(found[1], 0.0)


def calibrate(graph: Graph, data: Data, tick: Tick = lambda done: None) -> Calibration:
    """Run the graph on every sample once. tick: called with the number of samples just done.

    Raises BadInput where an activation is not finite, or a sample does not fit.
    """
    names = float_activations(graph)
    histograms = {name: Histogram() for name in names}
    inputs = {entry.tensor.name for entry in graph.inputs if entry.tensor.dtype == "float32"}
    histograms.update((name, Histogram()) for name in inputs)
    session = expose(graph, names)
    for chunk in _chunks(session, names, inputs, data, _samples_at_once(graph, names)):
        for name, arrays in chunk.items():
            try:
                histograms[name].add(np.concatenate([array.reshape(-1) for array in arrays]))
            except BadInput as err:
                raise BadInput(f"{data.source}: activations of {name!r} {err}") from err
        tick(len(next(iter(chunk.values()))))
    return Calibration(histograms, data.count)


def float_activations(graph: Graph) -> tuple[str, ...]:
    """Names of the float tensors that nodes of the main graph make."""
    return tuple(
        name
        for name, value in values(graph.model).items()
        if value.producer() is not None and dtype_name(value) == "float32"
    )


def expose(graph: Graph, names: Iterable[str], *, optimize: bool = True) -> OpenModel:
    """A session over the graph that also gives these tensors."""
    model = graph.copy()
    found = values(model)
    present = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(found[name] for name in names if name not in present)
    return open_model(model_bytes(model), optimize=optimize)


def _samples_at_once(graph: Graph, names: Iterable[str]) -> int:
    found = values(graph.model)
    sizes = [4 * int(np.prod(static_shape(found[name]) or (1,))) for name in names]
    return max(1, min(_CHUNK_SAMPLES, _CHUNK_BYTES // max(1, sum(sizes))))


def _chunks(
    session: OpenModel, names: tuple[str, ...], inputs: set[str], data: Data, size: int
) -> Iterator[dict[str, list[Array]]]:
    for start in range(0, data.count, size):
        held: dict[str, list[Array]] = {name: [] for name in (*names, *sorted(inputs))}
        for index in range(start, min(start + size, data.count)):
            sample = data.inputs(index)
            for name, array in zip(names, session.run(list(names), sample), strict=True):
                held[name].append(array)
            for name in inputs:
                held[name].append(sample[name])
        yield held
