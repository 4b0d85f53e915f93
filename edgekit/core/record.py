"""What one interval on one board brought: counts, histogram, energy, health. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from edgekit.core import checks
from edgekit.core.checks import choice, flag, integer, number, optional, table, text
from edgekit.core.figure import PROVENANCES, Figure, unknown
from edgekit.core.histogram import MAX_COUNT, Histogram, quick

_MAX_EXITS = 64
_MAX_TEXT = 4096
# Bounds far beyond what any board does in one interval: millions of records at the bound still add up to a number that
# 64 bits, or a float, can hold.
_MAX_SECONDS = 1e10
_MAX_AMOUNT = 1e15  # of mJ
_MAX_LEVEL = 1e9  # of mW, degrees and MB
_MAX_SEQ = 2**53
_MAX_TIME = 1e11


@dataclass(frozen=True)
class Record:
    """One interval. `seq` counts within a boot and never repeats; `time` is None while the clock is not trusted."""

    seq: int
    uptime_s: float
    time: float | None  # Unix seconds at the interval's end
    clock_synced: bool
    interval_s: float
    bundle: str | None  # name/version that served; None: nothing is installed
    policy: str | None
    requests: int = 0
    errors: int = 0
    deadline_missed: int = 0
    labelled: int = 0  # requests whose source knew the label
    correct: int = 0
    exit_counts: Mapping[str, int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    energy: Figure = field(default_factory=lambda: unknown("mJ"))  # energy of the whole interval
    energy_why: str | None = None  # why it is unknown
    energy_updates: int | None = None  # how often the sensor had something new; an energy wants 20 and 1 s
    idle_power_mw: float | None = None  # of the board doing nothing, measured lately; in no figure subtracted
    busy_s: float = 0.0  # time spent inside inferences
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    memory_mb: float | None = None  # resident memory of the agent
    inputs_dropped: int = 0  # before they were requests: replaced camera frames, refused messages
    answers_lost: int = 0  # that a sink could not give
    cancelled: int = 0  # requests dropped from the queue because their client hung up
    nan_confidences: int = 0  # exits that gave no number for a confidence, and were passed by

    def to_json(self) -> dict[str, Any]:
        """Every key present; unknown is null."""
        return {
            "seq": self.seq,
            "uptime": self.uptime_s,
            "time": self.time,
            "clock_synced": self.clock_synced,
            "interval_s": self.interval_s,
            "bundle": self.bundle,
            "policy": self.policy,
            "requests": self.requests,
            "errors": self.errors,
            "deadline_missed": self.deadline_missed,
            "labelled": self.labelled,
            "correct": self.correct,
            "exit_counts": dict(self.exit_counts),
            "latency": self.latency.to_json(),
            "energy_mj": self.energy.value,
            "energy_provenance": self.energy.provenance,
            "energy_on": self.energy.on,
            "energy_why": self.energy_why,
            "energy_updates": self.energy_updates,
            "idle_power_mw": self.idle_power_mw,
            "busy_s": self.busy_s,
            "temperature_c": self.temperature_c,
            "throttled": self.throttled,
            "under_voltage": self.under_voltage,
            "memory_mb": self.memory_mb,
            "inputs_dropped": self.inputs_dropped,
            "answers_lost": self.answers_lost,
            "cancelled": self.cancelled,
            "nan_confidences": self.nan_confidences,
        }

    @classmethod
    def parse(cls, value: object, where: str = "record") -> Record:
        """Read from JSON as a board sent it. Raises BadInput."""
        return _quick(value) or cls._explain(value, where)

    @classmethod
    def _explain(cls, value: object, where: str) -> Record:
        """Read it key by key, so that what is wrong can be said."""
        data = table(value, where)
        exits = table(data.get("exit_counts", {}), f"{where}.exit_counts")
        if len(exits) > _MAX_EXITS:
            raise checks.wrong(f"{where}.exit_counts", f"of at most {_MAX_EXITS} exits", len(exits))
        provenance = optional(
            data.get("energy_provenance"),
            f"{where}.energy_provenance",
            lambda v, w: choice(v, w, PROVENANCES),
        )
        energy = optional(data.get("energy_mj"), f"{where}.energy_mj", _amount)
        if energy is not None and provenance is None:
            raise checks.wrong(f"{where}.energy_provenance", "given where energy_mj is", None)
        return cls(
            seq=integer(data.get("seq"), f"{where}.seq", 1),
            uptime_s=number(data.get("uptime"), f"{where}.uptime", 0.0, _MAX_SECONDS),
            time=optional(data.get("time"), f"{where}.time", lambda v, w: number(v, w, 0.0, _MAX_TIME)),
            clock_synced=flag(data.get("clock_synced"), f"{where}.clock_synced"),
            interval_s=number(data.get("interval_s"), f"{where}.interval_s", 0.0, _MAX_SECONDS),
            bundle=optional(data.get("bundle"), f"{where}.bundle", text),
            policy=optional(data.get("policy"), f"{where}.policy", text),
            requests=_count(data.get("requests", 0), f"{where}.requests"),
            errors=_count(data.get("errors", 0), f"{where}.errors"),
            deadline_missed=_count(data.get("deadline_missed", 0), f"{where}.deadline_missed"),
            labelled=_count(data.get("labelled", 0), f"{where}.labelled"),
            correct=_count(data.get("correct", 0), f"{where}.correct"),
            exit_counts={
                checks.name(k, f"{where}.exit_counts"): _count(v, f"{where}.exit_counts.{k}")
                for k, v in exits.items()
            },
            latency=Histogram.parse(data.get("latency"), f"{where}.latency"),
            energy=Figure(
                energy,
                "mJ",
                provenance if energy is not None else None,  # type: ignore[arg-type]  # checked by choice
                None,
                optional(data.get("energy_on"), f"{where}.energy_on", text),
            ),
            energy_why=optional(data.get("energy_why"), f"{where}.energy_why", text),
            energy_updates=optional(data.get("energy_updates"), f"{where}.energy_updates", _count),
            idle_power_mw=optional(data.get("idle_power_mw"), f"{where}.idle_power_mw", _power),
            busy_s=number(data.get("busy_s", 0.0), f"{where}.busy_s", 0.0, _MAX_SECONDS),
            temperature_c=optional(data.get("temperature_c"), f"{where}.temperature_c", _level),
            throttled=optional(data.get("throttled"), f"{where}.throttled", flag),
            under_voltage=optional(data.get("under_voltage"), f"{where}.under_voltage", flag),
            memory_mb=optional(data.get("memory_mb"), f"{where}.memory_mb", _level),
            inputs_dropped=_count(data.get("inputs_dropped", 0), f"{where}.inputs_dropped"),
            answers_lost=_count(data.get("answers_lost", 0), f"{where}.answers_lost"),
            cancelled=_count(data.get("cancelled", 0), f"{where}.cancelled"),
            nan_confidences=_count(data.get("nan_confidences", 0), f"{where}.nan_confidences"),
        )


def _count(value: object, where: str) -> int:
    return integer(value, where, 0, MAX_COUNT)


def _amount(value: object, where: str) -> float:
    return number(value, where, 0.0, _MAX_AMOUNT)


def _power(value: object, where: str) -> float:
    return number(value, where, 0.0, _MAX_LEVEL)


def _level(value: object, where: str) -> float:
    return number(value, where, -_MAX_LEVEL, _MAX_LEVEL)


_COUNTS = (
    "requests",
    "errors",
    "deadline_missed",
    "labelled",
    "correct",
    "inputs_dropped",
    "answers_lost",
    "cancelled",
    "nan_confidences",
)
_USUAL: Mapping[str, Any] = dict.fromkeys(_COUNTS, 0) | {"exit_counts": {}, "busy_s": 0.0}
_counts_of = itemgetter(*_COUNTS)
_seconds_of = itemgetter("uptime", "interval_s", "busy_s")
_INT, _NUMBERS, _FLAGS = {int}, {int, float}, {bool, type(None)}


def _quick(value: object) -> Record | None:
    """A good record, read without a word about what could be wrong: this is most of what ingest does.

    None where anything is unusual; what it takes, `Record._explain` would take as the same record (a test compares).
    """
    if type(value) is not dict:
        return None
    data: dict[str, Any] = {**_USUAL, **value}
    get = data.get
    try:
        counts, seconds = _counts_of(data), _seconds_of(data)
        seq, exits, synced = data["seq"], data["exit_counts"], data["clock_synced"]
    except KeyError:
        return None
    if type(seq) is not int or not 1 <= seq <= _MAX_SEQ or type(synced) is not bool:
        return None
    if {*map(type, counts)} != _INT or min(counts) < 0 or max(counts) > MAX_COUNT:
        return None
    if not _NUMBERS.issuperset(map(type, seconds)):
        return None
    uptime, interval, busy = seconds
    if not (0 <= uptime <= _MAX_SECONDS and 0 <= interval <= _MAX_SECONDS and 0 <= busy <= _MAX_SECONDS):
        return None
    if type(exits) is not dict or not _good_exits(exits):
        return None
    latency = quick(get("latency"))
    if latency is None:
        return None
    energy, provenance, updates = get("energy_mj"), get("energy_provenance"), get("energy_updates")
    if provenance is not None and (type(provenance) is not str or provenance not in PROVENANCES):
        return None
    if energy is None:
        provenance = None
    elif provenance is None:
        return None
    if updates is not None and (type(updates) is not int or not 0 <= updates <= MAX_COUNT):
        return None
    throttled, under_voltage = get("throttled"), get("under_voltage")
    if type(throttled) not in _FLAGS or type(under_voltage) not in _FLAGS:
        return None
    bundle, policy, on, why = get("bundle"), get("policy"), get("energy_on"), get("energy_why")
    time, idle, celsius, memory = get("time"), get("idle_power_mw"), get("temperature_c"), get("memory_mb")
    if not (
        _within(time, 0, _MAX_TIME)
        and _within(energy, 0, _MAX_AMOUNT)
        and _within(idle, 0, _MAX_LEVEL)
        and _within(celsius, -_MAX_LEVEL, _MAX_LEVEL)
        and _within(memory, -_MAX_LEVEL, _MAX_LEVEL)
        and _plain(bundle)
        and _plain(policy)
        and _plain(on)
        and _plain(why)
    ):
        return None
    return Record(
        seq,
        float(uptime),
        None if time is None else float(time),
        synced,
        float(interval),
        bundle,
        policy,
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        counts[4],
        exits,
        latency,
        Figure(None if energy is None else float(energy), "mJ", provenance, None, on),  # type: ignore[arg-type]  # one of PROVENANCES
        why,
        updates,
        None if idle is None else float(idle),
        float(busy),
        None if celsius is None else float(celsius),
        throttled,
        under_voltage,
        None if memory is None else float(memory),
        counts[5],
        counts[6],
        counts[7],
        counts[8],
    )


def _within(value: Any, low: float, high: float) -> bool:
    return value is None or (type(value) in _NUMBERS and low <= value <= high)


def _plain(value: Any) -> bool:
    """Nothing, or a text of printable ASCII: any other is looked at closely."""
    return value is None or (
        type(value) is str and 0 < len(value) <= _MAX_TEXT and value.isascii() and value.isprintable()
    )


def _good_exits(exits: dict[Any, Any]) -> bool:
    if not exits:
        return True
    times = exits.values()
    return (
        len(exits) <= _MAX_EXITS
        and {*map(type, times)} == _INT
        and min(times) >= 0
        and max(times) <= MAX_COUNT
        and all(type(name) is str and checks.NAME.fullmatch(name) for name in exits)
    )
