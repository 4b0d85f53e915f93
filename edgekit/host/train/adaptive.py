"""A bit width for every single weight under a bound on the loss (Khoram, Li 2018, OpenReview SyOK1Sg0W). No training.

Each tensor is divided by a power of two, so that magnitudes are below 1, and each weight becomes the fixed-point number
of the fewest bits within a tolerance tau of it: sign and N fraction bits, 0 bits for zero. Tolerances are as large as
the linear model of the loss allows: sum |g| tau within what the bound leaves, tau at most the trust region's delta; the
best ones are min(delta, lambda / |g|) with one lambda for all (water-filling). Directed: towards smaller loss a weight
may go as far as delta, which the linear model says costs nothing; without it nothing can be saved where the bound is
the loss itself. A step whose real loss is above the bound is taken back, and delta is halved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.outputs import outputs_of
from edgekit.host.train.supervised import Labelled, evaluate

MOST_BITS = 16  # fraction bits of one weight
_WIDTH_BITS = 5  # of a width in the side table: 0 to 17
_ROUNDS, _AT_ONCE = 25, 500
_GAIN = 1e-3  # less is no progress
_BISECTIONS = 80

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Accepted:
    """One step that was kept. bits: of all weights' payload; delta: of the trust region."""

    bits: int
    loss: float
    delta: float


@dataclass(frozen=True)
class Adapted:
    """What came out. payload_bits: of the weights, signs included; table_bits: of widths and exponents beside them.

    widths: how many weights have so many bits, by bits. steps: those that were accepted, in order.
    """

    weights: int
    before: float
    after: float
    bound: float
    payload_bits: int
    table_bits: int
    widths: Mapping[int, int]
    steps: tuple[Accepted, ...]

    @property
    def bits_per_weight(self) -> float:
        """Of the payload alone."""
        return self.payload_bits / self.weights


def adapt(
    module: nn.Module,
    samples: Labelled,
    factor: float = 1.0,
    *,
    delta: float = 0.05,
    directed: bool = True,
    rounds: int = _ROUNDS,
) -> Adapted:
    """Change the module's weights and biases in place, so that its loss on the samples stays within factor * loss.

    delta: the first trust region, as a share of each tensor's range. Raises BadInput for a factor below 1, or where no
    step keeps the bound: then the weights are what they were.
    """
    if not factor >= 1 or not 0 < delta <= 1:
        raise BadInput(
            f"adaptive: wants a factor of at least 1 and delta in (0, 1], got {factor} and {delta}"
        )
    held = _weights(module)
    before = _loss(module, samples)
    bound = factor * before
    scales = [_range(each) for each in held]
    now, found, steps = before, [np.full(each.numel(), MOST_BITS + 1) for each in held], list[Accepted]()
    bits = sum(int(each.sum()) for each in found)
    for _ in range(rounds):
        kept = [each.detach().clone() for each in held]
        slopes = _slopes(module, samples, held, scales)
        tolerances = tolerances_of(np.concatenate(slopes), max(0.0, bound - now), delta)
        widths = _quantize(held, scales, slopes, tolerances, delta, directed=directed)
        made, loss = sum(int(each.sum()) for each in widths), _loss(module, samples)
        if loss > bound:
            with torch.no_grad():
                for each, old in zip(held, kept, strict=True):
                    each.copy_(old)
            delta /= 2
            continue
        gained = bits - made
        found, bits, now = widths, made, loss
        steps.append(Accepted(made, loss, delta))
        if gained < _GAIN * bits:
            break
    if not steps:
        raise BadInput(
            f"adaptive: no step kept the loss within {bound:g}: allow more, or a smaller delta than {delta:g}"
        )
    every = np.concatenate(found)
    counts = np.bincount(every, minlength=1)
    return Adapted(
        every.size,
        before,
        now,
        bound,
        bits,
        _WIDTH_BITS * every.size + 8 * len(held),
        {width: int(count) for width, count in enumerate(counts) if count},
        tuple(steps),
    )


def tolerances_of(slopes: Floats, budget: float, delta: float) -> Floats:
    """min(delta, lambda / |g|) with sum |g| tau = budget; delta everywhere where even that is within it."""
    sizes = np.abs(np.asarray(slopes, np.float64))
    if sizes.sum() * delta <= budget:
        return np.full(sizes.shape, delta)
    low, high = 0.0, delta * float(sizes.max())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.minimum(delta * sizes, middle).sum() <= budget:
            low = middle
        else:
            high = middle
    return np.minimum(delta, low / np.where(sizes > 0, sizes, low / delta + 1e-300))


def fewest_bits(low: Floats, high: Floats, wanted: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(numbers, bits): in each interval the fixed-point number of fewest bits, of several the one nearest to `wanted`.

    Magnitudes are below 1. Where no number of MOST_BITS fraction bits is inside, `wanted` rounded to as many.
    """
    values = np.clip(np.rint(wanted * 2**MOST_BITS), 1 - 2**MOST_BITS, 2**MOST_BITS - 1) / 2**MOST_BITS
    bits = np.full(wanted.shape, MOST_BITS + 1, np.int64)
    for fraction in range(MOST_BITS, 0, -1):
        unit, most = 2.0**fraction, 2**fraction - 1
        first, last = np.maximum(np.ceil(low * unit), -most), np.minimum(np.floor(high * unit), most)
        inside = first <= last
        nearest = np.clip(np.rint(wanted * unit), first, last) / unit
        values, bits = np.where(inside, nearest, values), np.where(inside, fraction + 1, bits)
    zero = (low <= 0) & (high >= 0)
    return np.where(zero, 0.0, values), np.where(zero, 0, bits)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Of convolutions and dense layers, with their biases."""
    found = [
        each
        for layer in module.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
        for each in layer.parameters(recurse=False)
    ]
    if not found:
        raise BadInput("adaptive: the network has no convolution and no dense layer")
    return found


def _range(weight: Tensor) -> float:
    """A power of two above every magnitude."""
    top = float(weight.detach().abs().max())
    return 2.0 ** (math.floor(math.log2(top)) + 1) if top > 0 else 1.0


def _loss(module: nn.Module, samples: Labelled) -> float:
    return evaluate(module, samples).loss[-1]


def _slopes(
    module: nn.Module, samples: Labelled, held: Sequence[nn.Parameter], scales: Sequence[float]
) -> list[Floats]:
    """The gradient of the mean loss over all samples, for weights as shares of their tensors' ranges."""
    module.eval()
    module.zero_grad()
    for start in range(0, samples.count, _AT_ONCE):
        batch = samples.plain(start, start + _AT_ONCE)
        loss = functional.cross_entropy(
            outputs_of(module(batch["x"])).logits[-1], batch["y"], reduction="sum"
        )
        (loss / samples.count).backward()
    found = []
    for each, scale in zip(held, scales, strict=True):
        gradient = torch.zeros_like(each) if each.grad is None else each.grad
        found.append(gradient.double().flatten().numpy() * scale)
    module.zero_grad()
    return found


def _quantize(
    held: Sequence[nn.Parameter],
    scales: Sequence[float],
    slopes: Sequence[Floats],
    tolerances: Floats,
    delta: float,
    *,
    directed: bool,
) -> list[NDArray[np.int64]]:
    """Put each weight where it needs fewest bits; the bits of each tensor's."""
    found, start = [], 0
    for each, scale, slope in zip(held, scales, slopes, strict=True):
        tau = tolerances[start : start + slope.size]
        start += slope.size
        value = each.detach().double().flatten().numpy() / scale
        below = np.where(directed & (slope > 0), delta, tau)
        above = np.where(directed & (slope < 0), delta, tau)
        numbers, bits = fewest_bits(value - below, value + above, value)
        with torch.no_grad():
            each.copy_(torch.from_numpy(numbers * scale).reshape(each.shape))
        found.append(bits)
    return found


# --- what is stored ---------------------------------------------------------------------------------------------------


def encode(numbers: Floats) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(payload, side table) of fixed-point numbers below 1: sign and fraction bits of each, five bits of each width."""
    bits = widths_of(numbers)
    codes = np.abs(np.rint(numbers * 2.0 ** np.maximum(bits - 1, 0))).astype(np.int64)
    stream: list[NDArray[np.uint8]] = []
    for number, width, code in zip(numbers, bits, codes, strict=True):
        if width:
            digits = (int(code) >> np.arange(width - 2, -1, -1)) & 1
            stream.append(np.concatenate([[number < 0], digits]).astype(np.uint8))
    payload = np.packbits(np.concatenate(stream)) if stream else np.zeros(0, np.uint8)
    table = (bits[:, None] >> np.arange(_WIDTH_BITS - 1, -1, -1)) & 1
    return payload, np.packbits(table.astype(np.uint8))


def decode(payload: NDArray[np.uint8], table: NDArray[np.uint8], count: int) -> Floats:
    """What encode was given. Raises BadInput where the bytes are of other numbers."""
    if table.size != -(-count * _WIDTH_BITS // 8):
        raise BadInput(
            f"adaptive: widths of {count} weights must be {-(-count * _WIDTH_BITS // 8)} bytes, got {table.size}"
        )
    rows = np.unpackbits(table)[: count * _WIDTH_BITS].reshape(count, _WIDTH_BITS).astype(np.int64)
    bits = rows @ (1 << np.arange(_WIDTH_BITS - 1, -1, -1))
    if payload.size != -(-int(bits.sum()) // 8):
        raise BadInput(
            f"adaptive: {int(bits.sum())} bits must be {-(-int(bits.sum()) // 8)} bytes, got {payload.size}"
        )
    stream, at = np.unpackbits(payload).astype(np.int64), 0
    numbers = np.zeros(count)
    for place, width in enumerate(bits):
        if width:
            one = stream[at : at + width]
            at += int(width)
            code = int(one[1:] @ (1 << np.arange(width - 2, -1, -1)))
            numbers[place] = (-1 if one[0] else 1) * code / 2.0 ** (width - 1)
    return numbers


def _check_bytes(what: str, bits: int, packed: NDArray[np.uint8]) -> None:
    if packed.size != -(-bits // 8):
        raise BadInput(f"adaptive: {what} of {bits} bits must be {-(-bits // 8)} bytes, got {packed.size}")


def widths_of(numbers: Floats) -> NDArray[np.int64]:
    """The bits that fixed-point numbers below 1 need: sign and fraction, 0 for zero."""
    return fewest_bits(np.asarray(numbers), np.asarray(numbers), np.asarray(numbers))[1]
