"""Heads that answer at a cut: how they look, what they read, how they are fitted to the network's own answers.

A head is "linear" (average over positions, one linear layer) or "convN" (a 3x3 convolution of stride 2 to N channels,
ReLU, average and maximum over positions, one linear layer). No label is read: heads learn the probabilities that the
last exit gives. Linear ones by logistic regression here, convolutions by gradient in host/train/heads.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import expose
from edgekit.host.graph import Graph, static_shape, values
from edgekit.host.sqnr import spread
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.data import Data

LINEAR = "linear"
KERNEL, STRIDE = 3, 2
MOST_POSITIONS = 1024  # a convolution reads: larger maps are averaged down first
MOST_SAMPLES = 8192
_FEWEST_SAMPLES = 64
_MOST_BYTES, _MOST_BYTES_ALL = 2**27, 2**30  # of one cut's maps, of those of all cuts together
_CONV = re.compile(r"conv(\d{1,4})")
_STEPS, _FEWEST_STEPS = 200, 20
_WORK = 1e12  # operations, about, after which a regression with many classes ends
_MOST_DOUBLES = 5e9  # operations of a step: above, it is done in single precision
_WINDOW, _STILL = 10, 3e-6  # steps in which the loss must fall by that share
_TINY = 1e-12
_CHANNELS_FIRST = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace"),
)
_CHANNELS_LAST = ("MatMul", "Gemm", "LayerNormalization")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What a cut's tensor was on some samples, and what the network answered to them.

    averages: over positions, float32 [samples, channels]. wanted: the last exit's probabilities, float32 [samples,
    classes]. maps: what a convolution reads, float16 [samples, channels, height, width] times `unit` (height is 1 for
    lines); None where none is tried. not_finite: the first sample for which the tensor was infinite or no number.
    """

    averages: Floats
    wanted: Floats
    maps: NDArray[np.float16] | None = None
    unit: float = 1.0
    not_finite: str | None = None

    def part(self, chosen: Sequence[int]) -> Seen:
        """Only these samples."""
        rows = list(chosen)
        maps = None if self.maps is None else self.maps[rows]
        return replace(self, averages=self.averages[rows], wanted=self.wanted[rows], maps=maps)


@dataclass(frozen=True)
class Head:
    """A fitted head. kernel: float32 [hidden, channels, *window] and bias [hidden], None for a linear one.

    weight: float32 [features, classes]; offset: float32 [classes].
    """

    weight: Floats
    offset: Floats
    kernel: Floats | None = None
    bias: Floats | None = None

    def answer(self, seen: Seen) -> Floats:
        """What it answers, as probabilities: float32 [samples, classes]."""
        logits = features(self, seen) @ self.weight + self.offset
        return softmax(logits)


def hidden_of(kind: str) -> int:
    """Channels of the head's convolution; 0 for a linear one. Raises BadInput for an unknown kind."""
    found = _CONV.fullmatch(kind)
    if kind == LINEAR:
        return 0
    if found is None or int(found[1]) < 1:
        raise BadInput(f"a head must be linear or convN (N channels, such as conv32), got {kind!r}")
    return int(found[1])


# --- what a head reads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """How a head reads its tensor.

    axes: of the positions, in the tensor. pool: positions averaged along each of them before a convolution.
    """

    tensor: str
    channels: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    pool: tuple[int, ...]

    @property
    def pooled(self) -> tuple[int, ...]:
        """Positions along each axis once they are averaged."""
        return tuple(size // by for size, by in zip(self.sizes, self.pool, strict=True))

    @property
    def window(self) -> tuple[int, ...]:
        """A convolution's kernel."""
        return tuple(KERNEL if size >= KERNEL else 1 for size in self.pooled)

    @property
    def strides(self) -> tuple[int, ...]:
        """A convolution's steps."""
        return tuple(STRIDE if size >= KERNEL else 1 for size in self.pooled)

    @property
    def takes_convolution(self) -> bool:
        """Whether there are positions whose neighbours say something."""
        return bool(self.axes) and self.axes[0] == 2 and max(self.pooled) >= KERNEL

    @property
    def values(self) -> int:
        """Numbers in what a convolution reads of a sample."""
        return self.channels * math.prod(self.pooled)

    def macs(self, kind: str, classes: int) -> int:
        """Multiply-accumulates of a head of this kind."""
        hidden = hidden_of(kind)
        if not hidden:
            return self.channels * classes
        outputs = math.prod(-(-size // step) for size, step in zip(self.pooled, self.strides, strict=True))
        return outputs * hidden * self.channels * math.prod(self.window) + 2 * hidden * classes


def place_of(graph: Graph, tensor: str) -> Place:
    """How a head reads the tensor: where its channels are follows from what made it."""
    value = values(graph.model)[tensor]
    shape = static_shape(value) or ()
    if len(shape) == 2:
        return Place(tensor, shape[1], (), (), ())
    if channel_axis(value) != 1:
        return Place(tensor, shape[-1], tuple(range(1, len(shape) - 1)), shape[1:-1], (1,) * (len(shape) - 2))
    sizes = shape[2:]
    pool = [1] * len(sizes)
    while math.prod(s // p for s, p in zip(sizes, pool, strict=True)) > MOST_POSITIONS:
        longest = max(range(len(sizes)), key=lambda axis: sizes[axis] // pool[axis])
        pool[longest] *= 2
    return Place(tensor, shape[1], tuple(range(2, len(shape))), sizes, tuple(pool))


def channel_axis(value: ir.Value) -> int:
    """Where a tensor's channels are: 1, or its last axis.

    As far as what made it tells; else as usual: first for images, last for lines (tokens).
    """
    rank = len(value.shape or ())
    at = value
    turns: list[Sequence[int]] = []  # how axes were turned on the way, the last turn first
    while True:
        node = at.producer()
        source = None if node is None else _same_rank(node, rank)
        if node is not None and node.op_type in (*_CHANNELS_FIRST, *_CHANNELS_LAST):
            axis = 1 if node.op_type in _CHANNELS_FIRST else rank - 1
            break
        if node is None or source is None or (node.op_type == "Reshape" and source.shape != at.shape):
            axis = 1 if rank != 3 else 2
            turns = []
            break
        if node.op_type == "Transpose":
            turns.append(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
        at = source
    for perm in reversed(turns):
        axis = list(perm).index(axis)
    return axis if axis == 1 else rank - 1


def _same_rank(node: ir.Node, rank: int) -> ir.Value | None:
    """The first data that a node reads of that rank."""
    for entry in node.inputs:
        if entry is not None and entry.const_value is None and len(entry.shape or ()) == rank:
            return entry
    return None


def see(
    graph: Graph,
    places: Sequence[Place],
    data: Data,
    tick: Callable[[int], None],
    *,
    samples: int = MOST_SAMPLES,
    maps: Sequence[bool] | None = None,
) -> list[Seen]:
    """Run the network over at most `samples` samples and keep what the places read; fewer where memory asks for it.

    maps: at which places a convolution is tried; None: wherever one can be. Raises BadInput where an answer is infinite
    or no number.
    """
    maps = maps or [place.takes_convolution for place in places]
    count = samples_seen(data, places, samples, maps)
    last = graph.exits[-1].output
    names = list(dict.fromkeys((*(place.tensor for place in places), last)))
    session = expose(graph, names)
    averages = [np.empty((count, place.channels), np.float32) for place in places]
    kept = [
        np.empty((count, place.channels, *_height_width(place)), np.float16) if wants else None
        for place, wants in zip(places, maps, strict=True)
    ]
    units, broken = [0.0] * len(places), [None] * len(places)  # type: list[float], list[str | None]
    answers: list[Floats] = []
    for row, index in enumerate(spread(data.count, count)):
        made = dict(zip(names, session.run(names, data.inputs(index)), strict=True))
        answers.append(made[last].reshape(-1))
        if not np.isfinite(answers[-1]).all():
            raise BadInput(
                f"{data.source}: the network's answer to {data.name(index)} is not finite: no exit can learn it"
            )
        for at, place in enumerate(places):
            array, into = made[place.tensor], kept[at]
            average = array.mean(axis=place.axes, dtype=np.float64).reshape(-1)
            if not np.isfinite(average).all():
                broken[at] = broken[at] or data.name(index)
                continue
            averages[at][row] = average
            if into is not None:
                units[at] = units[at] or _unit(array)
                into[row] = _read(array, place, units[at])
        tick(1)
    wanted = probabilities(np.stack(answers).astype(np.float32))
    return [
        Seen(average, wanted, into, unit or 1.0, bad)
        for average, into, unit, bad in zip(averages, kept, units, broken, strict=True)
    ]


def samples_seen(
    data: Data, places: Sequence[Place], samples: int, maps: Sequence[bool] | None = None
) -> int:
    """How many samples `see` runs."""
    maps = maps or [place.takes_convolution for place in places]
    sizes = [2 * place.values for place, wants in zip(places, maps, strict=True) if wants]
    most = min(_MOST_BYTES, _MOST_BYTES_ALL // max(1, len(sizes))) // max(sizes, default=1)
    return min(data.count, samples, max(_FEWEST_SAMPLES, most))


def _unit(array: NDArray[np.float32]) -> float:
    """A power of two of about the tensor's size: float16 reaches far less than float32."""
    size = float(np.abs(array).max())
    return 2.0 ** round(math.log2(size)) if 2.0**-100 < size < 2.0**100 else 0.0


def _height_width(place: Place) -> tuple[int, ...]:
    return (*((1,) * (2 - len(place.pooled))), *place.pooled)


def _read(array: NDArray[np.float32], place: Place, unit: float) -> NDArray[np.float16]:
    """One sample's tensor as [channels, height, width] in its unit, averaged down (clipped to float16's range)."""
    array = array[0].reshape(place.channels, *((1,) * (2 - len(place.sizes))), *place.sizes)
    by = (1,) * (2 - len(place.pool)) + place.pool
    if max(by) > 1:
        height, width = (size // step for size, step in zip(array.shape[1:], by, strict=True))
        array = array[:, : height * by[0], : width * by[1]]
        array = array.reshape(place.channels, height, by[0], width, by[1]).mean(axis=(2, 4))
    most = float(np.finfo(np.float16).max)
    found: NDArray[np.float16] = np.clip(array / (unit or 1.0), -most, most).astype(np.float16)
    return found


def probabilities(answers: Floats) -> Floats:
    """The answers themselves where they are probabilities already, else their softmax: [samples, classes] both."""
    are = bool((answers >= 0).all()) and bool(np.abs(answers.sum(axis=1) - 1).max() < 1e-3)
    return answers if are else softmax(answers)


def softmax(logits: Floats) -> Floats:
    """Along the last axis."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def blank(place: Place, kind: str, classes: int) -> Head:
    """A head that says nothing, to be timed."""
    hidden = hidden_of(kind)
    offset = np.zeros(classes, np.float32)
    if not hidden:
        return Head(np.zeros((place.channels, classes), np.float32), offset)
    kernel = np.zeros((hidden, place.channels, *(1,) * (2 - len(place.window)), *place.window), np.float32)
    return Head(np.zeros((2 * hidden, classes), np.float32), offset, kernel, np.zeros(hidden, np.float32))


# --- fitting ----------------------------------------------------------------------------------------------------------


def fit_linear(seen: Seen, l2: float, watch: Watch = unwatched) -> Head:
    """Multinomial logistic regression on the average over positions, towards the network's probabilities.

    Newton steps with Böhning's fixed bound on the Hessian (1992, Annals of the Institute of Statistical Mathematics
    44), Nesterov's momentum, restarted where the loss rises; until it falls no more, at most _STEPS, fewer where there
    are so many samples, features and classes that they would take minutes. l2: penalty on weights of standardised
    features.
    """
    weight, offset = _logistic(seen.averages.astype(np.float64), seen.wanted, l2, watch)
    return Head(weight.astype(np.float32), offset.astype(np.float32))


def _logistic(
    found: NDArray[np.float64], answers: Floats, l2: float, watch: Watch
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count, classes = answers.shape
    centre, scale = found.mean(axis=0), found.std(axis=0)
    scale = np.maximum(scale, 1e-6 * max(float(scale.max()), _TINY))
    rows = np.hstack([(found - centre) / scale, np.ones((count, 1))])
    penalty = np.full((rows.shape[1], 1), l2)
    penalty[-1] = _TINY**0.5
    bound = np.linalg.inv(0.5 * rows.T @ rows / count + np.diag(penalty[:, 0]))
    operations = 4.0 * rows.size * classes
    single = operations > _MOST_DOUBLES
    kind: type[np.floating[Any]] = np.float32 if single else np.float64
    rows, bound, penalty, wanted = (array.astype(kind) for array in (rows, bound, penalty, answers))
    steps = int(min(_STEPS, max(_FEWEST_STEPS, _WORK / operations)))
    weights = ahead = np.zeros((rows.shape[1], classes), kind)
    pace, losses = 1.0, [math.inf]
    with watch("fit a head", steps) as tick:
        for _ in range(steps):
            logits = rows @ ahead
            logits -= logits.max(axis=1, keepdims=True)
            made = np.exp(logits)
            made /= made.sum(axis=1, keepdims=True)
            loss = float(-(wanted * np.log(made + kind(_TINY))).sum(dtype=np.float64) / count)
            made -= wanted
            stepped = ahead - bound @ (rows.T @ made / kind(count) + penalty * ahead)
            pace = 1.0 if loss > losses[-1] else pace
            faster = (1 + math.sqrt(1 + 4 * pace * pace)) / 2
            weights, ahead = stepped, stepped + kind((pace - 1) / faster) * (stepped - weights)
            pace = faster
            losses.append(loss)
            tick(1)
            if len(losses) > 2 * _WINDOW and min(losses[:-_WINDOW]) - min(losses) <= _STILL * abs(loss):
                break
    weight = weights[:-1].astype(np.float64) / scale[:, None]
    return weight, weights[-1] - centre @ weight


def features(head: Head, seen: Seen) -> Floats:
    """What the head's linear layer reads: float32 [samples, features]."""
    if head.kernel is None or head.bias is None or seen.maps is None:
        return seen.averages
    found = []
    for start in range(0, len(seen.maps), 256):
        some = seen.maps[start : start + 256].astype(np.float32) * np.float32(seen.unit)
        maps = _convolved(some, head.kernel, head.bias)
        found.append(np.hstack([maps.mean(axis=(2, 3)), maps.max(axis=(2, 3))]))
    return np.concatenate(found)


def _convolved(tensors: Floats, kernel: Floats, bias: Floats) -> Floats:
    """ReLU of the convolution with zeros around it; [samples, hidden, height, width]."""
    window = kernel.shape[2:]
    padded = np.pad(tensors, ((0, 0), (0, 0), *((size // 2, size // 2) for size in window)))
    steps = tuple(STRIDE if size > 1 else 1 for size in window)
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))[
        :, :, :: steps[0], :: steps[1]
    ]
    maps = np.tensordot(views, kernel, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    made: Floats = np.maximum(maps + bias[:, None, None], 0).astype(np.float32)
    return made
