"""Round weights onto a given grid so that a product's outputs change least. Matrices only: knows no graph.

All arrays have a leading axis of groups (a grouped convolution is so many small products): weights (G, M, K) of M
outputs from K inputs, steps of the same shape (the grid's step under each weight), and H = E[x xᵀ] of the inputs,
(G, K, K). Rounding that changes the weights of one output by e changes that output by e H eᵀ, squared and expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float64 or float32
_BLOCK = 64  # columns between two products of matrices
_RIDGE = 0.003  # of the mean of H's diagonal
_STRETCH = (-0.1, 1.1)  # γ and ζ of the rectified sigmoid
_BETA = (20.0, 2.0)
_WARM_UP = 0.2  # of the iterations without the regulariser
_REGULARISER = 0.3
_LEARNING_RATE = 0.05
_WORK = 2e10  # multiply-accumulates that soft rounding may take for one product
_SWEEPS, _FEWEST_SWEEPS, _SWEEP_WORK = 20, 2, 4e10  # of coordinate descent, and what all may take


@dataclass(frozen=True)
class Problem:
    """What is to be rounded. qmax: codes are -qmax to qmax. pinned: where the code must be ±qmax, by the weight's sign.

    A pinned weight in each scale's group makes max|code| = qmax, so that whoever quantizes the result finds the grid.
    """

    weights: Array
    steps: Array
    moments: Array
    qmax: int
    pinned: NDArray[np.bool_]

    def loss(self, codes: Array) -> Array:
        """e H eᵀ per output, (G, M)."""
        error = codes * self.steps - self.weights
        return np.asarray(np.einsum("gmk,gmk->gm", error @ self.moments, error))

    def codes(self, wanted: Array, where: slice | int = slice(None)) -> Array:
        """The nearest codes for weights wanted in some columns, pinned where they must be."""
        codes = np.clip(np.rint(wanted / self.steps[..., where]), -self.qmax, self.qmax)
        ends = np.where(self.weights[..., where] < 0, -self.qmax, self.qmax)
        return np.asarray(np.where(self.pinned[..., where], ends, codes), wanted.dtype)


def nearest(problem: Problem) -> Array:
    """Each weight to the code next to it."""
    return problem.codes(problem.weights)


def best_rounding(problems: Sequence[Problem], shared: bool, iterations: int) -> tuple[Array, Array]:
    """(codes, steps) with the least loss per output over several grids for the same weights. Never worse than nearest.

    Each grid is tried with nearest and compensated rounding; on the best one soft rounding is tried too, for so many
    iterations where that is affordable, and coordinate descent comes last. shared: output m of every group has the same
    scale, so that all groups take the same grid.
    """
    order, root = _order_and_root(problems[0].moments)
    best = codes = None
    least = np.zeros(0)
    for problem in problems:
        found, loss = _better(problem, nearest(problem), compensated(problem, order, root))
        if best is None or codes is None:
            best, codes, least = problem, found, loss
            continue
        better = (
            loss.sum(axis=0, keepdims=True) < least.sum(axis=0, keepdims=True) if shared else loss < least
        )
        chosen = np.broadcast_to(better, loss.shape)[..., None]
        codes, least = np.where(chosen, found, codes), np.where(chosen[..., 0], loss, least)
        best = replace(
            best,
            steps=np.where(chosen, problem.steps, best.steps),
            pinned=np.where(chosen, problem.pinned, best.pinned),
        )
    if best is None or codes is None:
        raise ValueError("no grid to round onto")
    work = float(best.weights.size) * best.weights.shape[-1]
    if iterations and work * iterations <= _WORK:
        codes, _ = _better(best, codes, softened(best, iterations))
    sweeps = int(np.clip(_SWEEP_WORK / work, _FEWEST_SWEEPS, _SWEEPS))
    codes, _ = _better(best, codes, descended(best, codes, sweeps))
    return codes, best.steps


def _better(problem: Problem, one: Array, other: Array) -> tuple[Array, Array]:
    """Of two roundings the one with less loss per output, and that loss."""
    first, second = problem.loss(one), problem.loss(other)
    return np.where((second < first)[..., None], other, one), np.minimum(first, second)


def compensated(problem: Problem, order: NDArray[np.intp], root: Array) -> Array:
    """Round column after column, each making up for the error of those before (GPTQ, Frantar et al. 2023, 2210.17323).

    With H = RᵀR, R upper triangular, the loss is a sum over rows of R; going from the last column to the first, each
    code is the best for its row (Babai's nearest plane). order, root: of `_order_and_root`.
    """
    there = order[:, None, :]
    weights, steps, pinned = (
        np.take_along_axis(each, there, 2) for each in (problem.weights, problem.steps, problem.pinned)
    )
    ordered = replace(problem, weights=weights, steps=steps, pinned=pinned)
    count = weights.shape[-1]
    codes, error = np.zeros_like(weights), np.zeros_like(weights)
    for end in range(count, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        carried = error[..., end:] @ np.swapaxes(root[:, start:end, end:], 1, 2)
        for j in range(end - 1, start - 1, -1):
            near = error[..., j + 1 : end] @ root[:, j, j + 1 : end, None]
            pull = carried[..., j - start] + near[..., 0]
            codes[..., j] = ordered.codes(weights[..., j] - pull / root[:, j, j, None], j)
            error[..., j] = codes[..., j] * steps[..., j] - weights[..., j]
    back = np.empty_like(codes)
    np.put_along_axis(back, np.broadcast_to(there, codes.shape), codes, 2)
    return back


def _order_and_root(moments: Array) -> tuple[NDArray[np.intp], Array]:
    """The order of columns, those that matter most by H's diagonal last, and R of the ordered H."""
    order = np.argsort(np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(moments, order[:, None, :], 2), order[:, :, None], 1)
    return order, _root(ordered)


def _root(moments: Array) -> Array:
    """R of H + ridge = RᵀR, upper triangular."""
    count = moments.shape[-1]
    mean = np.trace(moments, axis1=1, axis2=2)[:, None, None] / count
    ridge = np.where(mean > 0, mean, 1.0).astype(moments.dtype) * np.eye(count, dtype=moments.dtype)
    share = _RIDGE
    while True:
        try:
            return np.asarray(np.swapaxes(np.linalg.cholesky(moments + share * ridge), 1, 2))
        except np.linalg.LinAlgError:  # float32 sums of many products are a little indefinite
            share *= 10


def descended(problem: Problem, codes: Array, sweeps: int) -> Array:
    """Coordinate descent: each code in turn to its best value while the others stay, until none moves.

    Every step lowers the loss or leaves it.
    """
    codes = codes.copy()
    weights, steps, moments = problem.weights, problem.steps, problem.moments
    gradient = (codes * steps - weights) @ moments
    count = weights.shape[-1]
    for _ in range(sweeps):
        moved = False
        for start in range(0, count, _BLOCK):
            end = min(start + _BLOCK, count)
            mine = gradient[..., start:end].copy()
            change = np.zeros_like(mine)
            for j in range(start, end):
                curve = moments[:, j, j, None]
                if not curve.any():
                    continue
                was = codes[..., j]
                wanted = was * steps[..., j] - mine[..., j - start] / np.where(curve > 0, curve, np.inf)
                best = problem.codes(wanted, j)
                step = (best - was) * steps[..., j]
                gain = step * (2 * mine[..., j - start] + step * curve)  # of the loss; rounding may make it 0
                step = np.where(gain < 0, step, 0)
                if not step.any():
                    continue
                codes[..., j] = np.where(gain < 0, best, was)
                change[..., j - start] = step
                mine[..., j + 1 - start :] += step[..., None] * moments[:, j, None, j + 1 : end]
            if change.any():
                moved = True
                gradient += change @ moments[:, start:end, :]
        if not moved:
            break
    return codes


def softened(problem: Problem, iterations: int) -> Array:
    """AdaRound (Nagel et al. 2020, 2004.10568): learn for each weight whether it goes up or down.

    The fraction added to the lower code is a rectified sigmoid of what Adam moves; a regulariser, annealed from the
    ends to the middle, drives it to 0 or 1.
    """
    low, high = _STRETCH
    units = problem.weights / problem.steps
    floor = np.floor(units)
    share = np.clip(units - floor, 1e-3, 1 - 1e-3)
    x = -np.log((high - low) / (share - low) - 1)
    free = ~problem.pinned & (np.abs(units) < problem.qmax)
    # the loss in units of the row's step and of H's mean diagonal, so that all layers learn alike
    scale = np.max(problem.steps, axis=2, keepdims=True)
    relative = problem.steps / scale
    mean = np.trace(problem.moments, axis1=1, axis2=2)[:, None, None] / problem.moments.shape[-1]
    moments = problem.moments / np.where(mean > 0, mean, 1.0)
    first, second = np.zeros_like(x), np.zeros_like(x)
    warm = int(_WARM_UP * iterations)
    for index in range(iterations):
        sigmoid = 1 / (1 + np.exp(-x))
        stretched = sigmoid * (high - low) + low
        h = np.clip(stretched, 0, 1)
        gradient = 2 * relative * (((floor + h - units) * relative) @ moments)
        if index >= warm:
            progress = (index - warm) / max(1, iterations - warm)
            beta = _BETA[1] + 0.5 * (_BETA[0] - _BETA[1]) * (1 + np.cos(progress * np.pi))
            far = 2 * h - 1
            gradient -= _REGULARISER * 2 * beta * np.sign(far) * np.abs(far) ** (beta - 1)
        inside = (stretched > 0) & (stretched < 1) & free
        gradient = np.where(inside, gradient * (high - low) * sigmoid * (1 - sigmoid), 0)
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient**2 - second)
        rate = _LEARNING_RATE * np.sqrt(1 - 0.999 ** (index + 1)) / (1 - 0.9 ** (index + 1))
        x = x - rate * first / (np.sqrt(second) + 1e-12)
    chosen = (floor + (x >= 0)) * problem.steps
    return problem.codes(np.where(free, chosen, problem.weights))
