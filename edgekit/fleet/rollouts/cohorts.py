"""Which boards belong to which wave: by hash, so that every server finds the same. No I/O, no randomness.

A board's place is sha256(salt, name) as a number in [0, 1); waves are prefixes of the boards in that order. Boards are
ordered within their profile (strata), so that a wave of 5 % holds 5 % of each profile, rounded up: a canary in which a
profile is missing says nothing about that profile, and a bundle may well be bad on one profile alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from edgekit.fleet.rollouts.plan import Plan, Size

UNKNOWN = "unknown"  # the stratum of boards whose profile nobody knows


def place(salt: str, name: str) -> float:
    """A board's place in [0, 1). The salt's length stands before it, so that no two pairs are hashed as one."""
    digest = hashlib.sha256(f"{len(salt)}:{salt}:{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split(plan: Plan, boards: Mapping[str, str | None]) -> list[list[str]]:
    """The names of each wave's boards, the canary first. boards: name -> profile.

    Waves are cumulative: one of 25 % holds what is missing to 25 % of all. The last holds the rest. A wave may be
    empty.
    """
    strata: dict[str, list[str]] = {}
    for name in sorted(boards, key=lambda name: (place(plan.salt, name), name)):
        stratum = (boards[name] or UNKNOWN) if plan.stratify else ""
        strata.setdefault(stratum, []).append(name)
    keys = sorted(strata)
    sizes = {key: len(strata[key]) for key in keys}
    taken = dict.fromkeys(keys, 0)
    waves = []
    for number, size in enumerate(plan.sizes):
        least = plan.per_profile if plan.stratify and number == 0 else 0
        upto = _shares(size, sizes, least)
        upto = {key: max(taken[key], upto[key]) for key in keys}
        waves.append([name for key in keys for name in strata[key][taken[key] : upto[key]]])
        taken = upto
    waves[-1] += [name for key in keys for name in strata[key][taken[key] :]]
    return waves


def _shares(size: Size, sizes: Mapping[str, int], least: int) -> dict[str, int]:
    """How many of each stratum a wave reaches up to."""
    if size.percent is not None:
        # 5 % of 20 is 1 and not 2: what binary fractions add is taken off before rounding up
        wanted = {key: math.ceil(size.percent * count / 100 - 1e-9) for key, count in sizes.items()}
    else:
        wanted = _apportioned(size.boards or 0, sizes)
    return {key: min(count, max(wanted[key], least)) for key, count in sizes.items()}


def _apportioned(boards: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """A number of boards over the strata by the method of largest remainders (Hamilton)."""
    total = sum(sizes.values())
    boards = min(boards, total)
    exact = (
        {key: boards * count / total for key, count in sizes.items()} if total else dict.fromkeys(sizes, 0.0)
    )
    found = {key: int(share) for key, share in exact.items()}
    rest: Sequence[str] = sorted(sizes, key=lambda key: (found[key] - exact[key], key))
    for key in rest[: boards - sum(found.values())]:
        found[key] += 1
    return found
