"""What simulated boards do: their profiles, what a bundle brings on them, which of them fail a job. Sends nothing.

Everything follows from a seed and names: the same scenario gives the same boards, figures and failures.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import NormalDist
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure, unknown
from edgekit.core.histogram import BUCKETS, LOW_MS, PER_DECADE, Histogram, bucket_of
from edgekit.core.record import Record

VARIANTS = 256  # intervals made up for each profile and bundle; a Record is one of them at its own time
_QUANTILES = 400
_SLOWEST = 0.05  # the share of requests that `tail` slows down: it holds the p99
_MIDDLE_MS = [LOW_MS * 10 ** ((bucket - 0.5) / PER_DECADE) for bucket in range(BUCKETS)]
# What a board goes through, as events of core.jobs: with a bundle that is new to it, and with one it has.
FRESH = ("accept", "fetched", "verified", "start", "pass")
PRESENT = ("present", "verified", "start", "pass")
_FAILS = ("fail", "restored")


@dataclass(frozen=True)
class Bundle:
    """What a bundle brings: median latency and energy of a request, the log-normal spread, shares of the exits.

    tail: the slowest twentieth of the requests takes so many times as long. energy_mj: None: no board has a sensor.
    on: the same figures by profile, as factors (`latency`, `tail`, `energy`).
    """

    latency_ms: float = 4.0
    spread: float = 0.25
    tail: float = 1.0
    energy_mj: float | None = 6.0
    exits: Mapping[str, float] = field(default_factory=lambda: {"exit1": 0.7, "exit2": 0.2, "exit3": 0.1})
    on: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class JobRule:
    """What becomes of jobs: shares of the boards that fail them, and of those that are never heard of again.

    target: of which bundle, `name/version`; None: of all. mute: boards that stay connected and only say nothing of it.
    """

    target: str | None = None
    fail: float = 0.0
    reason: str = "golden"
    silent: float = 0.0
    mute: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """A fleet's behaviour. profiles: shares of the boards. speed: latency of a profile over that of a bundle."""

    seed: int = 1
    requests_per_s: float = 10.0
    profiles: Mapping[str, float] = field(
        default_factory=lambda: {"raspberrypi5": 0.5, "raspberrypi4b": 0.3, "jetson-orin-nano": 0.2}
    )
    speed: Mapping[str, float] = field(
        default_factory=lambda: {"raspberrypi4b": 2.2, "jetson-orin-nano": 0.6}
    )
    bundle: str | None = "demo/1"
    bundles: Mapping[str, Bundle] = field(default_factory=dict)
    jobs: tuple[JobRule, ...] = ()
    step_s: float = 0.2  # between two states of a job
    throttled: float = 0.01  # share of intervals

    def profile_of(self, board: str) -> str:
        """The profile of a board that its credentials give none."""
        at = chance(self.seed, "profile", board) * sum(self.profiles.values())
        for profile, share in self.profiles.items():
            at -= share
            if at < 0:
                return profile
        return next(reversed(list(self.profiles)))

    def path_of(
        self, board: str, target: str | None, *, present: bool
    ) -> tuple[tuple[str, ...], str | None] | None:
        """Events of the job on this board, and why it fails; None: nothing is heard of the board any more.

        An empty path: the board lives on and says nothing of the job.
        """
        path = PRESENT if present else FRESH
        rule = next((rule for rule in self.jobs if rule.target in {None, target}), JobRule())
        at = chance(self.seed, "job", target or "", board)
        if at < rule.fail:
            return (*path[:-1], *_FAILS), rule.reason
        if at < rule.fail + rule.silent:
            return None
        if at < rule.fail + rule.silent + rule.mute:
            return (), None
        return path, None

    def bundle_of(self, label: str) -> Bundle:
        """By label, by name, or any."""
        name = label.partition("/")[0]
        return self.bundles.get(label) or self.bundles.get(name) or self.bundles.get("*") or Bundle()


def chance(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b("\0".join((str(seed), *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def draw(seed: int, boot_id: str, seq: int) -> int:
    """The same of a Record, in a microsecond: 32 bits."""
    return zlib.crc32(b"%d" % seq, zlib.crc32(boot_id.encode(), seed))


class Intervals:
    """Made-up intervals as Records' JSON, without what is each Record's own (seq, time, uptime)."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._made: dict[tuple[str, str | None, float], list[dict[str, Any]]] = {}

    def of(self, profile: str, bundle: str | None, interval_s: float) -> list[dict[str, Any]]:
        """VARIANTS of them."""
        key = (profile, bundle, interval_s)
        if key not in self._made:
            rng = random.Random(f"{self._scenario.seed} {profile} {bundle}")
            shares = {} if bundle is None else self._latencies(self._scenario.bundle_of(bundle), profile)
            self._made[key] = [self._one(rng, *key, shares).to_json() for _ in range(VARIANTS)]
        return self._made[key]

    def _one(
        self,
        rng: random.Random,
        profile: str,
        label: str | None,
        interval_s: float,
        shares: Mapping[str, float],
    ) -> Record:
        common: dict[str, Any] = {
            "seq": 1,
            "uptime_s": 0.0,
            "time": 0.0,
            "clock_synced": True,
            "interval_s": interval_s,
            "temperature_c": round(rng.uniform(45, 65), 1),
            "throttled": rng.random() < self._scenario.throttled,
            "under_voltage": False,
            "memory_mb": round(rng.uniform(80, 95), 1),
        }
        if label is None:
            return Record(bundle=None, policy=None, energy_why="no bundle serves", **common)
        bundle = self._scenario.bundle_of(label)
        factors = bundle.on.get(profile, {})
        wanted = max(1, round(self._scenario.requests_per_s * interval_s * rng.uniform(0.9, 1.1)))
        latency = _histogram(rng, wanted, shares)
        energy = unknown("mJ")
        if bundle.energy_mj is not None:
            mj = bundle.energy_mj * factors.get("energy", 1.0) * wanted * rng.uniform(0.97, 1.03)
            energy = Figure(round(mj, 3), "mJ", "simulated", None, profile)
        exits = _shared_out(rng, wanted, bundle.exits)
        return Record(
            bundle=label,
            policy="full",
            requests=wanted,
            labelled=wanted,
            correct=round(wanted * rng.uniform(0.88, 0.94)),
            exit_counts=exits,
            latency=latency,
            energy=energy,
            energy_why=None if energy.value is not None else "this board has no power sensor",
            energy_updates=None if energy.value is None else 10 * round(interval_s),
            busy_s=round(latency.sum_ms / 1000, 6),
            **common,
        )

    def _latencies(self, bundle: Bundle, profile: str) -> dict[str, float]:
        """Shares of the buckets of a histogram."""
        factors = bundle.on.get(profile, {})
        median = bundle.latency_ms * self._scenario.speed.get(profile, 1.0) * factors.get("latency", 1.0)
        shares: dict[str, float] = {}
        for step in range(_QUANTILES):
            quantile = (step + 0.5) / _QUANTILES
            value = median * math.exp(bundle.spread * NormalDist().inv_cdf(quantile))
            if quantile > 1 - _SLOWEST:
                value *= bundle.tail * factors.get("tail", 1.0)
            bucket = str(bucket_of(value))
            shares[bucket] = shares.get(bucket, 0.0) + 1 / _QUANTILES
        return shares


def _histogram(rng: random.Random, total: int, shares: Mapping[str, float]) -> Histogram:
    counts = {int(bucket): count for bucket, count in _shared_out(rng, total, shares).items()}
    sum_ms = sum(_MIDDLE_MS[bucket] * count for bucket, count in counts.items())
    return Histogram(counts, round(sum_ms, 6))


def _shared_out(rng: random.Random, total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` whole things over shares of it, the odd ones by chance; none that would be 0."""
    whole = sum(shares.values())
    found = {key: int(total * share / whole) for key, share in shares.items()}
    for key in rng.choices(list(shares), list(shares.values()), k=total - sum(found.values())):
        found[key] += 1
    return {key: count for key, count in found.items() if count}


# --- reading -----------------------------------------------------------------------------------------------------


def read_scenario(path: Path | None, changes: Mapping[str, Any]) -> Scenario:
    """A scenario from a JSON file, with changes to its top level. Raises BadInput."""
    said: dict[str, Any] = {}
    if path is not None:
        try:
            said = json.loads(path.read_text())
        except (OSError, ValueError) as err:
            raise BadInput(f"{path}: must hold a scenario in JSON: {err}") from err
    return parse_scenario({**checks.table(said, str(path)), **changes})


def parse_scenario(said: Mapping[str, Any]) -> Scenario:
    """A scenario as JSON gives it; what is left out is as usual. Raises BadInput."""
    given = dict(_known(Scenario, said, "scenario"))
    if "bundles" in given:
        given["bundles"] = {
            label: Bundle(**_known(Bundle, value, f"bundles.{label}"))
            for label, value in checks.table(given["bundles"], "bundles").items()
        }
    if "jobs" in given:
        given["jobs"] = checks.rows(
            given["jobs"], "jobs", lambda value, where: JobRule(**_known(JobRule, value, where))
        )
    for profile, share in checks.table(given.get("profiles", {"any": 1}), "profiles").items():
        checks.number(share, f"profiles.{profile}", 0.0)
    return Scenario(**given)


def _known(kind: type[Scenario | Bundle | JobRule], value: object, where: str) -> Mapping[str, Any]:
    said, known = checks.table(value, where), [entry.name for entry in fields(kind)]
    for key in said:
        if key not in known:
            raise checks.wrong(where, "of " + ", ".join(known), key)
    return said
