"""What a rollout is to do, as people write it in JSON or TOML. Pure data; knows no board.

target = "toy/3"
to = "tag=site-a"
canary = "5%"                    # or a number of boards
waves = ["25%", "100%"]          # cumulative; what is left after the last one is one more wave
time_zone = "Europe/Berlin"
windows = [{days = ["mon", "tue"], from = "22:00", until = "05:00"}]
[gate]                           # of every wave, the canary's too
max_failed_percent = 10.0
[canary_gate]                    # what is different for the canary
soak_s = 1800.0
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from edgekit.core import checks
from edgekit.core.errors import BadInput, one_line
from edgekit.core.policy import PolicySpec
from edgekit.core.selector import parse_selector
from edgekit.core.target import parse_label

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
PAUSE, ROLL_BACK = "pause", "roll-back"
STRICT, LOST, PASS = "strict", "lost", "pass"  # what an unknown figure does to a gate
MOST_WAVES, MOST_WINDOWS = 50, 50
_DAY_S, _YEAR_S = 86_400.0, 366 * 86_400.0
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_SIZE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s?%")


@dataclass(frozen=True)
class Size:
    """Up to how much of the fleet a wave goes: a share in percent, or a number of boards."""

    percent: float | None = None
    boards: int | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> Size:
        """`"5%"` or a whole number. Raises BadInput."""
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is not None and 0 < float(match[1]) <= 100:
            return cls(percent=float(match[1]))
        if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**8:
            return cls(boards=value)
        raise checks.wrong(where, 'a share such as "5%" or a number of boards', value)

    def to_json(self) -> str | int:
        """As it is written."""
        return self.boards if self.boards is not None else f"{self.percent:g}%"


@dataclass(frozen=True)
class Gate:
    """What a wave must show before the next one begins. A limit of None is not looked at.

    Of its boards: at most max_failed_percent (and max_failed) of those that were asked failed or were silent at the
    deadline, at least min_successes took the bundle. Of their figures, for each profile and in total, against the same
    boards in the `before_s` before the wave: p99 and energy at most so many times as high, shares of missed deadlines
    and errors at most so many points (percent of requests) higher, the mix of exits at most so far away (total
    variation, 0-1). Figures are looked at after soak_s, once there are min_requests, and waited for until wait_s.
    """

    max_failed_percent: float = 10.0
    max_failed: int | None = None
    min_successes: int = 1
    p99_ratio: float | None = 1.5
    energy_ratio: float | None = 1.3
    deadline_points: float | None = 2.0
    error_points: float | None = 1.0
    exit_mix: float | None = 0.3
    min_requests: int = 100
    before_s: float = 3600.0
    soak_s: float = 600.0
    wait_s: float = 3600.0
    unknown: str = LOST
    on_failure: str = PAUSE

    @classmethod
    def parse(cls, value: object, where: str, usual: Gate) -> Gate:
        """Keys of a table over the usual ones. Raises BadInput."""
        data = checks.table(value, where)
        unknown = sorted(set(data) - {entry.name for entry in dataclasses.fields(cls)})
        if unknown:
            raise BadInput(checks.line(f"{where} does not know the key {', '.join(map(str, unknown))}"))
        return dataclasses.replace(
            usual, **{key: _GATE[key](entry, f"{where}.{key}") for key, entry in data.items()}
        )

    def to_json(self) -> dict[str, Any]:
        """Every key."""
        return dataclasses.asdict(self)


def _limit(low: float, high: float) -> Any:
    """A number, or null (in TOML: false) for none."""

    def parse(value: object, where: str) -> float | None:
        return None if value is None or value is False else checks.number(value, where, low, high)

    return parse


def _number(low: float, high: float) -> Any:
    return lambda value, where: checks.number(value, where, low, high)


def _whole(low: int, high: int) -> Any:
    return lambda value, where: checks.integer(value, where, low, high)


def _word(*words: str) -> Any:
    return lambda value, where: checks.choice(value, where, words)


_GATE: Mapping[str, Any] = {
    "max_failed_percent": _number(0.0, 100.0),
    "max_failed": lambda value, where: checks.optional(value, where, checks.integer),
    "min_successes": _whole(0, 10**8),
    "p99_ratio": _limit(1.0, 1000.0),
    "energy_ratio": _limit(1.0, 1000.0),
    "deadline_points": _limit(0.0, 100.0),
    "error_points": _limit(0.0, 100.0),
    "exit_mix": _limit(0.0, 1.0),
    "min_requests": _whole(10, 10**9),
    "before_s": _number(60.0, 31 * _DAY_S),
    "soak_s": _number(0.0, 31 * _DAY_S),
    "wait_s": _number(0.0, 31 * _DAY_S),
    "unknown": _word(STRICT, LOST, PASS),
    "on_failure": _word(PAUSE, ROLL_BACK),
}


@dataclass(frozen=True)
class Window:
    """When waves may begin: on these days from `start` to `end`, in minutes of the day.

    Over midnight where end <= start.
    """

    days: tuple[str, ...]
    start: int
    end: int

    @classmethod
    def parse(cls, value: object, where: str) -> Window:
        """Raises BadInput."""
        data = checks.table(value, where)
        days = checks.rows(
            data.get("days", list(DAYS)), f"{where}.days", lambda day, at: checks.choice(day, at, DAYS)
        )
        if not days:
            raise checks.wrong(f"{where}.days", "at least one of " + ", ".join(DAYS), [])
        start, end = (_minutes(data.get(key), f"{where}.{key}") for key in ("from", "until"))
        return cls(tuple(day for day in DAYS if day in days), start, end)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"days": list(self.days), "from": _clock(self.start), "until": _clock(self.end)}

    def contains(self, local: datetime) -> bool:
        """Whether a local time lies in it; the day is the one on which the window began."""
        minute = 60 * local.hour + local.minute
        today, yesterday = DAYS[local.weekday()], DAYS[(local - timedelta(days=1)).weekday()]
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        return (today in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)


def _minutes(value: object, where: str) -> int:
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise checks.wrong(where, "a time of day such as 22:30", value)
    return 60 * int(match[1]) + int(match[2])


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


@dataclass(frozen=True)
class Plan:
    """A whole rollout. gates: one per wave. deadline_s: how long a wave's boards have before silence is a failure.

    salt: what boards are drawn by; the target's label unless somebody chose. overlap: boards of other rollouts that
    are under way may be taken from them.
    """

    target: str
    to: str
    canary: Size = Size(percent=5.0)
    waves: tuple[Size, ...] = (Size(percent=25.0), Size(percent=100.0))
    gate: Gate = Gate()
    canary_gate: Gate = Gate(on_failure=ROLL_BACK)
    stratify: bool = True
    per_profile: int = 1
    windows: tuple[Window, ...] = ()
    time_zone: str = "UTC"
    deadline_s: float = 3600.0
    policy: PolicySpec | None = None
    interval_s: float | None = None
    salt: str = field(default="")
    overlap: bool = False

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of all waves, the canary first."""
        return (self.canary, *self.waves)

    def gate_of(self, wave: int) -> Gate:
        """The gate behind a wave."""
        return self.canary_gate if wave == 0 else self.gate

    @classmethod
    def parse(cls, value: object) -> Plan:
        """Read JSON or TOML. Raises BadInput."""
        data = checks.table(value, "rollout")
        unknown = sorted(set(data) - {entry.name for entry in dataclasses.fields(cls)} - {"v"})
        if unknown:
            raise BadInput(checks.line(f"rollout does not know the key {', '.join(map(str, unknown))}"))
        name, version = parse_label(data.get("target"), "target")
        to = checks.text(data.get("to"), "to")
        parse_selector(to)
        gate = Gate.parse(data.get("gate", {}), "gate", Gate())
        usual = dataclasses.replace(gate, on_failure=ROLL_BACK)
        canary = Size.parse(data.get("canary", cls.canary.to_json()), "canary")
        usual_waves = [size.to_json() for size in cls.waves if (size.percent or 0) > (canary.percent or 0)]
        waves = checks.rows(data.get("waves", usual_waves), "waves", Size.parse)
        if len(waves) > MOST_WAVES:
            raise BadInput(f"waves must be at most {MOST_WAVES}, got {len(waves)}")
        windows = checks.rows(data.get("windows", []), "windows", Window.parse)
        if len(windows) > MOST_WINDOWS:
            raise BadInput(f"windows must be at most {MOST_WINDOWS}, got {len(windows)}")
        zone = checks.text(data.get("time_zone", "UTC"), "time_zone")
        _zone(zone)
        plan = cls(
            target=f"{name}/{version}",
            to=to,
            canary=canary,
            waves=_with_rest(waves),
            gate=gate,
            canary_gate=Gate.parse(data.get("canary_gate", {}), "canary_gate", usual),
            stratify=checks.flag(data.get("stratify", True), "stratify"),
            per_profile=checks.integer(data.get("per_profile", 1), "per_profile", 0, 10**6),
            windows=windows,
            time_zone=zone,
            deadline_s=checks.number(data.get("deadline_s", cls.deadline_s), "deadline_s", 1.0, _YEAR_S),
            policy=checks.optional(data.get("policy"), "policy", PolicySpec.parse),
            interval_s=checks.optional(data.get("interval_s"), "interval_s", _number(0.1, _DAY_S)),
            salt=checks.text(data.get("salt") or f"{name}/{version}", "salt")[:200],
            overlap=checks.flag(data.get("overlap", False), "overlap"),
        )
        _growing(plan)
        return plan

    def to_json(self) -> dict[str, Any]:
        """Every key, as `parse` reads it."""
        found = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return found | {
            "canary": self.canary.to_json(),
            "waves": [size.to_json() for size in self.waves],
            "gate": self.gate.to_json(),
            "canary_gate": self.canary_gate.to_json(),
            "windows": [window.to_json() for window in self.windows],
            "policy": None if self.policy is None else self.policy.to_json(),
        }


def _with_rest(waves: tuple[Size, ...]) -> tuple[Size, ...]:
    """The waves and one that takes what they leave."""
    whole = Size(percent=100.0)
    return waves if waves and waves[-1] == whole else (*waves, whole)


def _growing(plan: Plan) -> None:
    for kind in ("percent", "boards"):
        sizes = [value for size in plan.sizes if (value := getattr(size, kind)) is not None]
        if any(after <= before for before, after in itertools.pairwise(sizes)):
            shown = ", ".join(str(size.to_json()) for size in plan.sizes)
            raise BadInput(f"canary and waves must grow (they are cumulative), got {shown}")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise BadInput(
            checks.line(f"time_zone must be one such as Europe/Berlin, got {name!r} ({one_line(err)})")
        ) from err


def is_open(plan: Plan, now: float) -> bool:
    """Whether a wave may begin now (Unix seconds)."""
    if not plan.windows:
        return True
    local = datetime.fromtimestamp(now, _zone(plan.time_zone))
    return any(window.contains(local) for window in plan.windows)


def next_open(plan: Plan, now: float) -> float | None:
    """The next moment at which a wave may begin, to the minute; `now` where it may already."""
    if is_open(plan, now):
        return now
    minute = now // 60 * 60 + 60
    return next((at for step in range(8 * 1440) if is_open(plan, at := minute + 60 * step)), None)
