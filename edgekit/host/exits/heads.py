"""Heads that answer at a cut: how they look, what they read, how they are fitted to the network's own answers.

A head is "linear" (average over positions, one linear layer) or "convN" (a 3x3 convolution of stride 2 to N channels,
ReLU, average and maximum over positions, one linear layer). No label is read: heads learn the probabilities that the
last exit gives. Linear ones by logistic regression here, convolutions by gradient in host/train/heads.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import expose
from edgekit.host.graph import Graph, static_shape, values
from edgekit.host.sqnr import spread
from edgekit.runtime.data import Data

LINEAR = "linear"
KERNEL, STRIDE = 3, 2
MOST_POSITIONS = 1024  # a convolution reads: larger maps are averaged down first
_MOST_SAMPLES = 8192
_MOST_BYTES = 128 * 2**20  # of one cut's tensors
_CONV = re.compile(r"conv(\d{1,4})")
_STEPS = 200
_TINY = 1e-12

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What a cut's tensor was on some samples, and what the network answered to them.

    tensors: float16 [samples, channels, height, width]; height is 1 for lines, both are 1 for vectors. wanted: the last
    exit's probabilities, float32 [samples, classes].
    """

    tensors: NDArray[np.float16]
    wanted: Floats

    def part(self, chosen: Sequence[int]) -> Seen:
        """Only these samples."""
        return Seen(self.tensors[list(chosen)], self.wanted[list(chosen)])


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
        logits = features(self, seen.tensors) @ self.weight + self.offset
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

    def macs(self, kind: str, classes: int) -> int:
        """Multiply-accumulates of a head of this kind."""
        hidden = hidden_of(kind)
        if not hidden:
            return self.channels * classes
        outputs = math.prod(-(-size // step) for size, step in zip(self.pooled, self.strides, strict=True))
        return outputs * hidden * self.channels * math.prod(self.window) + 2 * hidden * classes


def place_of(graph: Graph, tensor: str) -> Place:
    """How a head reads the tensor: channels first for images and what convolutions make of lines, last for tokens."""
    value = values(graph.model)[tensor]
    shape = static_shape(value) or ()
    if len(shape) == 2:
        return Place(tensor, shape[1], (), (), ())
    if len(shape) == 3 and not _made_by_convolution(value):
        return Place(tensor, shape[2], (1,), (shape[1],), (1,))
    sizes = shape[2:]
    pool = [1] * len(sizes)
    while math.prod(s // p for s, p in zip(sizes, pool, strict=True)) > MOST_POSITIONS:
        longest = max(range(len(sizes)), key=lambda axis: sizes[axis] // pool[axis])
        pool[longest] *= 2
    return Place(tensor, shape[1], tuple(range(2, len(shape))), sizes, tuple(pool))


def _made_by_convolution(value: ir.Value) -> bool:
    """Whether channels come first in a tensor of rank 3: a convolution, and what keeps its layout, made it."""
    node = value.producer()
    while node is not None and node.op_type != "Conv":
        if node.op_type in ("MatMul", "Gemm", "LayerNormalization", "Transpose", "Reshape", "LSTM", "GRU"):
            return False
        source = next(
            (entry for entry in node.inputs if entry is not None and entry.const_value is None), None
        )
        node = None if source is None else source.producer()
    return node is not None


def see(graph: Graph, places: Sequence[Place], data: Data, tick: Callable[[int], None]) -> list[Seen]:
    """Run the network once over the samples and keep what the places read, as few samples as memory asks for."""
    last = graph.exits[-1].output
    sizes = [2 * place.channels * math.prod(place.pooled) for place in places]
    count = min(data.count, _MOST_SAMPLES, max(64, _MOST_BYTES // max(sizes)))
    names = list(dict.fromkeys((*(place.tensor for place in places), last)))
    session = expose(graph, names)
    kept: list[list[NDArray[np.float16]]] = [[] for _ in places]
    answers = []
    for index in spread(data.count, count):
        made = dict(zip(names, session.run(names, data.inputs(index)), strict=True))
        answers.append(made[last].reshape(-1))
        for rows, place in zip(kept, places, strict=True):
            rows.append(_read(made[place.tensor], place))
        tick(1)
    wanted = probabilities(np.stack(answers).astype(np.float32))
    return [Seen(np.stack(rows), wanted) for rows in kept]


def samples_seen(data: Data) -> int:
    """At most so many samples does `see` run."""
    return min(data.count, _MOST_SAMPLES)


def _read(array: NDArray[np.float32], place: Place) -> NDArray[np.float16]:
    """One sample's tensor as [channels, height, width], averaged down, in float16 (clipped to its range)."""
    array = array[0]
    if place.axes == (1,):  # tokens: channels last
        array = array.T
    array = array.reshape(place.channels, *((1,) * (2 - len(place.sizes))), *place.sizes)
    by = (1,) * (2 - len(place.pool)) + place.pool
    if max(by) > 1:
        height, width = (size // step for size, step in zip(array.shape[1:], by, strict=True))
        array = array[:, : height * by[0], : width * by[1]]
        array = array.reshape(place.channels, height, by[0], width, by[1]).mean(axis=(2, 4))
    most = float(np.finfo(np.float16).max)
    return np.clip(array, -most, most).astype(np.float16)


def probabilities(answers: Floats) -> Floats:
    """The answers themselves where they are probabilities already, else their softmax: [samples, classes] both."""
    are = bool((answers >= 0).all()) and bool(np.abs(answers.sum(axis=1) - 1).max() < 1e-3)
    return answers if are else softmax(answers)


def softmax(logits: Floats) -> Floats:
    """Along the last axis."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


# --- fitting ----------------------------------------------------------------------------------------------------------


def fit_linear(seen: Seen, l2: float) -> Head:
    """Multinomial logistic regression on the average over positions, towards the network's probabilities.

    Newton steps with Böhning's fixed bound on the Hessian (1992, Annals of the Institute of Statistical Mathematics
    44), Nesterov's momentum, restarted where the loss rises. l2: penalty on weights of standardised features.
    """
    averages = seen.tensors.mean(axis=(2, 3), dtype=np.float64)
    weight, offset = _logistic(averages, seen.wanted.astype(np.float64), l2)
    return Head(weight.astype(np.float32), offset.astype(np.float32))


def _logistic(
    found: NDArray[np.float64], wanted: NDArray[np.float64], l2: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count = len(found)
    centre, scale = found.mean(axis=0), found.std(axis=0)
    scale = np.maximum(scale, 1e-6 * max(float(scale.max()), _TINY))
    rows = np.hstack([(found - centre) / scale, np.ones((count, 1))])
    penalty = np.full(rows.shape[1], l2)
    penalty[-1] = _TINY**0.5
    bound = np.linalg.inv(0.5 * rows.T @ rows / count + np.diag(penalty))
    weights = ahead = np.zeros((rows.shape[1], wanted.shape[1]))
    pace, before = 1.0, math.inf
    for _ in range(_STEPS):
        logits = rows @ ahead
        logits -= logits.max(axis=1, keepdims=True)
        made = np.exp(logits)
        made /= made.sum(axis=1, keepdims=True)
        loss = float(-(wanted * np.log(made + _TINY)).sum() / count)
        stepped = ahead - bound @ (rows.T @ (made - wanted) / count + penalty[:, None] * ahead)
        pace = 1.0 if loss > before else pace
        faster = (1 + math.sqrt(1 + 4 * pace * pace)) / 2
        weights, ahead = stepped, stepped + (pace - 1) / faster * (stepped - weights)
        pace, before = faster, loss
    weight = weights[:-1] / scale[:, None]
    return weight, weights[-1] - centre @ weight


def features(head: Head, tensors: NDArray[np.float16]) -> Floats:
    """What the head's linear layer reads: float32 [samples, features]."""
    if head.kernel is None or head.bias is None:
        averages: Floats = tensors.mean(axis=(2, 3), dtype=np.float32)
        return averages
    found = []
    for start in range(0, len(tensors), 256):
        maps = _convolved(tensors[start : start + 256].astype(np.float32), head.kernel, head.bias)
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
