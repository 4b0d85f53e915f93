"""Rounding of matrices: never worse than nearest, on the grid, and close to the best there is."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.host.passes._rounding import (
    Problem,
    _order_and_root,
    best_rounding,
    compensated,
    descended,
    nearest,
    softened,
)


def problem(
    seed: int,
    groups: int,
    outputs: int,
    inputs: int,
    *,
    qmax: int = 7,
    share: float = 1.0,
    rank: int | None = None,
) -> Problem:
    """Random weights, correlated inputs of the rank, a scale per output that reaches `share` of the largest weight."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(groups, outputs, inputs))
    mixed = random.normal(size=(groups, rank or 2 * inputs, inputs)) @ random.normal(
        size=(groups, inputs, inputs)
    )
    moments = np.swapaxes(mixed, 1, 2) @ mixed / mixed.shape[1]
    size = np.abs(weights)
    largest = size.max(axis=2, keepdims=True)
    steps = np.broadcast_to(share * largest / qmax, weights.shape).copy()
    pinned = np.arange(inputs) == size.argmax(axis=2)[..., None]
    return Problem(weights, steps, moments, qmax, pinned)


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 70))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), SHAPES, st.floats(0.4, 1.0), st.integers(1, 30))
def test_no_way_of_rounding_leaves_the_grid_and_the_best_is_never_worse_than_nearest(
    seed: int, shape: tuple[int, int, int], share: float, rank: int
) -> None:
    given_ = problem(seed, *shape, share=share, rank=rank)
    base = nearest(given_)
    least = given_.loss(base)
    chosen, steps = best_rounding([given_], False, 20)
    np.testing.assert_array_equal(steps, given_.steps)
    assert (given_.loss(chosen) <= least * (1 + 1e-9) + 1e-12).all()
    for codes in (base, compensated(given_, *_order_and_root(given_.moments)), softened(given_, 20), chosen):
        assert (codes == np.rint(codes)).all()
        assert (np.abs(codes).max(axis=2) == given_.qmax).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), SHAPES, st.floats(0.4, 1.0), st.integers(1, 6))
def test_coordinate_descent_never_raises_the_loss(
    seed: int, shape: tuple[int, int, int], share: float, sweeps: int
) -> None:
    given_ = problem(seed, *shape, share=share)
    start = nearest(given_)
    assert (given_.loss(descended(given_, start, sweeps)) <= given_.loss(start) * (1 + 1e-9)).all()


def test_small_problems_are_solved_nearly_to_the_optimum() -> None:
    excess = []
    for seed in range(40):
        given_ = problem(seed, 1, 1, 6)
        floor = np.floor(given_.weights / given_.steps)
        every = np.array(list(itertools.product((-1, 0, 1, 2), repeat=6)))
        codes = np.clip(floor + every[None], -7, 7)
        codes = np.where(given_.pinned, nearest(given_), codes)
        error = codes * given_.steps - given_.weights
        best = np.einsum("gmk,gkl,gml->gm", error, given_.moments, error).min()
        found, _ = best_rounding([given_], False, 100)
        excess.append(given_.loss(found).sum() / best)
    assert np.median(excess) < 1.1
    assert np.mean(excess) < 1.5


def test_each_way_beats_nearest_by_far_where_inputs_are_correlated() -> None:
    given_ = problem(0, 1, 32, 60)
    base = given_.loss(nearest(given_)).sum()
    assert given_.loss(compensated(given_, *_order_and_root(given_.moments))).sum() < 0.5 * base
    assert given_.loss(softened(given_, 300)).sum() < 0.7 * base
    assert given_.loss(best_rounding([given_], False, 300)[0]).sum() < 0.4 * base


def test_of_several_grids_each_output_takes_its_best_one() -> None:
    grids = [problem(3, 2, 8, 30, share=share) for share in (1.0, 0.8, 0.6, 0.4)]
    alone = [grid.loss(best_rounding([grid], False, 0)[0]) for grid in grids]
    codes, steps = best_rounding(grids, False, 0)
    error = codes * steps - grids[0].weights
    loss = np.einsum("gmk,gkl,gml->gm", error, grids[0].moments, error)
    assert loss.sum() < min(each.sum() for each in alone)
    used = {round(float(value), 9) for value in (steps[..., 0] / grids[0].steps[..., 0]).ravel()}
    assert len(used) > 1


def test_outputs_that_share_a_scale_take_the_same_grid() -> None:
    grids = [problem(3, 5, 4, 12, share=share) for share in (1.0, 0.7, 0.5)]
    _, steps = best_rounding(grids, True, 0)
    share = steps[..., 0] / grids[0].steps[..., 0]
    np.testing.assert_allclose(share, np.broadcast_to(share[:1], share.shape))


def test_inputs_that_never_come_leave_nearest_rounding() -> None:
    given_ = problem(0, 1, 3, 10)
    silent = Problem(given_.weights, given_.steps, np.zeros_like(given_.moments), 7, given_.pinned)
    np.testing.assert_array_equal(best_rounding([silent], False, 10)[0], nearest(silent))
