"""Schedules of a learning rate: pure functions of the share of all steps that are done. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


def warm_cosine(warm_up: float = 0.1, last: float = 0.0) -> Callable[[float], float]:
    """A straight rise over the first `warm_up` of all steps, then half a cosine from 1 down to `last`."""

    def at(done: float) -> float:
        if done < warm_up:
            return (done + 1e-3) / (warm_up + 1e-3)
        share = (done - warm_up) / max(1e-9, 1 - warm_up)
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))

    return at


def gradual_sparsity(
    final: float, initial: float = 0.0, begin: float = 0.0, end: float = 0.7
) -> Callable[[float], float]:
    """s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))^3 (Zhu, Gupta 2017, arXiv 1710.01878): fast at first."""

    def at(done: float) -> float:
        left = 1 - min(1.0, max(0.0, (done - begin) / max(1e-9, end - begin)))
        return final + (initial - final) * left**3

    return at


def exponential(last: float) -> Callable[[float], float]:
    """From 1 down to `last` by the same factor in each step."""

    def at(done: float) -> float:
        return last**done

    return at


def drops(factors: Mapping[float, float]) -> Callable[[float], float]:
    """1, and from each share of all steps on its factor."""

    def at(done: float) -> float:
        passed = [share for share in factors if share <= done]
        return factors[max(passed)] if passed else 1.0

    return at
