"""Fit a profile's cost coefficients to measured networks. Measures nothing; needs no graph, only their work.

Each class of operator in each format has a time per MAC, per byte and per call. A network takes the sum of its work
times these; the fit makes the logarithm of predicted over measured small (relative errors, either side alike), with
Huber's weights for what does not fit (Huber 1964). All times are exponentials, so none is negative, and a class's times
are those of the class above it times a factor that is drawn to 1 (ridge): a class with few samples stays close to its
kind, one with none is its kind, and at the top stands the general roofline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.core.cost import SIDE_WORK, Work, classes
from edgekit.core.figure import Figure, unknown
from edgekit.core.profile import FORMATS, Costs, OpCosts

TERMS = ("macs", "bytes", "calls")
_START = {"macs": 1 / 20e9, "bytes": 1 / 10e9, "calls": 2e-6}  # seconds: only where the fit begins
_NOISE = 0.1  # what a good model still misses, relative
_SPREAD = 1.0  # how much classes differ from their kind, natural logarithm
_START_SPREAD = 3.0
_HUBER = 0.3
_ROUNDS, _TOLERANCE = 60, 1e-4
_DIGITS = 4

Floats = NDArray[np.float64]
Place = tuple[str, str, str]  # class of operator ("" = all), number format ("" = all), term


@dataclass(frozen=True)
class Sample:
    """What a network did for one input, and the seconds it took. weight: how much it counts."""

    name: str
    work: tuple[Work, ...]
    seconds: float
    weight: float = 1.0


@dataclass(frozen=True)
class Fitted:
    """Seconds per MAC, byte and call for each class and format, and the general ones (class "")."""

    seconds: Mapping[Place, float]

    def predict(self, work: Iterable[Work]) -> float:
        """Seconds of some work; a class that was not fitted costs what its kind does."""
        return sum(
            amount * self._at(entry, term)
            for entry in work
            for term, amount in zip(TERMS, _amounts(entry), strict=True)
            if amount
        )

    def _at(self, entry: Work, term: str) -> float:
        for path in classes(entry.op):
            found = self.seconds.get((path, entry.format, term))
            if found is not None:
                return found
        if entry.op.partition(".")[0] in SIDE_WORK:
            return 0.0
        return self.seconds.get(("", _general(entry.format, term), term), 0.0)

    def costs(self, threads: int, on: str, when: str | None) -> Costs:
        """As a profile has it; every figure is measured `on` that machine."""

        def figure(place: Place, unit: str) -> Figure:
            seconds = self.seconds.get(place)
            if seconds is None:
                return unknown(unit)
            value = seconds * 1e6 if place[2] == "calls" else 1 / seconds
            return Figure(float(f"{value:.{_DIGITS}g}"), unit, "measured", when, on)

        def own(op: str, fmt: str) -> OpCosts:
            return OpCosts(
                figure((op, fmt, "macs"), "MAC/s"),
                figure((op, fmt, "bytes"), "B/s"),
                figure((op, fmt, "calls"), "us"),
            )

        formats = [fmt for fmt in FORMATS if ("", fmt, "macs") in self.seconds]
        ops = sorted({op for op, _, _ in self.seconds if op})
        return Costs(
            threads=threads,
            macs_per_second={fmt: figure(("", fmt, "macs"), "MAC/s") for fmt in formats},
            bytes_per_second=figure(("", "", "bytes"), "B/s"),
            call_overhead_us=figure(("", "", "calls"), "us"),
            operators={
                op: {
                    fmt: own(op, fmt)
                    for fmt in FORMATS
                    if any((op, fmt, term) in self.seconds for term in TERMS)
                }
                for op in ops
            },
        )


def fit(samples: Sequence[Sample]) -> Fitted:
    """The coefficients that the samples tell. Deterministic; at least one sample, all of positive time."""
    leaves = sorted({(w.op, w.format, t) for s in samples for w in s.work for t in _terms(w)})
    parents = {leaf: _ancestry(leaf) for leaf in leaves}
    places = sorted({place for chain in parents.values() for place in chain})
    column = {place: index for index, place in enumerate(places)}
    chains = np.zeros((len(leaves), len(places)))
    for row, leaf in enumerate(leaves):
        chains[row, [column[place] for place in parents[leaf]]] = 1.0
    amounts = np.zeros((len(samples), len(leaves)))
    leaf_column = {leaf: index for index, leaf in enumerate(leaves)}
    for row, sample in enumerate(samples):
        for entry in sample.work:
            for term, amount in zip(TERMS, _amounts(entry), strict=True):
                if amount:
                    amounts[row, leaf_column[entry.op, entry.format, term]] += amount
    start = np.array([math.log(_START[term]) if not op else 0.0 for op, _, term in places])
    spread = np.array([_SPREAD if op else _START_SPREAD for op, _, _ in places])
    weights = np.array([sample.weight for sample in samples])
    target = np.log([sample.seconds for sample in samples])
    found = _descend(amounts, chains, target, weights, start, (_NOISE / spread) ** 2)
    logs = dict(zip(places, found.tolist(), strict=True))
    return Fitted(
        {place: math.exp(sum(logs[entry] for entry in _ancestry(place))) for place in sorted(places)}
    )


def _descend(
    amounts: Floats, chains: Floats, target: Floats, weights: Floats, start: Floats, pull: Floats
) -> Floats:
    """Levenberg-Marquardt on log(predicted) - log(measured), weights renewed each round (Huber)."""

    def residual(at: Floats) -> tuple[Floats, Floats, Floats]:
        parts = amounts * np.exp(chains @ at)
        whole = np.maximum(parts.sum(axis=1), 1e-12)
        return np.log(whole) - target, parts, whole

    def loss(missed: Floats, at: Floats) -> float:
        size = np.abs(missed)
        huber = np.where(size <= _HUBER, size**2, 2 * _HUBER * size - _HUBER**2)
        return float((weights * huber).sum() + (pull * (at - start) ** 2).sum())

    at: Floats = start.copy()
    damping = 1e-2
    missed, parts, whole = residual(at)
    least = loss(missed, at)
    for _ in range(_ROUNDS):
        slopes = (parts / whole[:, None]) @ chains
        robust = weights * np.minimum(1.0, _HUBER / np.maximum(np.abs(missed), 1e-9))
        gram = slopes.T @ (robust[:, None] * slopes) + np.diag(pull)
        down = slopes.T @ (robust * missed) + pull * (at - start)
        for _ in range(8):
            move: Floats = np.linalg.solve(gram + damping * np.diag(np.diag(gram)), down)
            tried = at - move
            new = residual(tried)
            value = loss(new[0], tried)
            if value <= least:
                break
            damping *= 4
        else:
            break
        gained = least - value
        at, (missed, parts, whole), least = tried, new, value
        damping = max(damping / 4, 1e-6)
        if gained <= _TOLERANCE * max(least, 1e-9):
            break
    return at


def errors(fitted: Fitted, samples: Sequence[Sample]) -> dict[str, float]:
    """Per sample the relative error of its prediction: predicted / measured - 1."""
    return {sample.name: fitted.predict(sample.work) / sample.seconds - 1 for sample in samples}


def leave_one_out(base: Sequence[Sample], networks: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """The error of each network's samples, predicted from `base` and the other networks alone.

    networks: the samples of one network together (its formats), so that none of them helps to predict another.
    """
    found: dict[str, float] = {}
    for index, held in enumerate(networks):
        rest = [sample for other in (*networks[:index], *networks[index + 1 :]) for sample in other]
        found |= errors(fit([*base, *rest]), held)
    return found


def general_only(costs: Costs) -> Costs:
    """The same without operators of their own: what the roofline alone would say."""
    return replace(costs, operators={})


def _ancestry(leaf: Place) -> tuple[Place, ...]:
    """The places whose factors make a leaf's time, the general one last."""
    op, fmt, term = leaf
    return (*((path, fmt, term) for path in classes(op)), ("", _general(fmt, term), term))


def _general(fmt: str, term: str) -> str:
    """MACs have a general rate for each format, bytes and calls one for all."""
    return fmt if term == "macs" else ""


def _amounts(entry: Work) -> tuple[int, int, int]:
    return entry.macs, entry.bytes, entry.calls


def _terms(entry: Work) -> tuple[str, ...]:
    return tuple(term for term, amount in zip(TERMS, _amounts(entry), strict=True) if amount)
