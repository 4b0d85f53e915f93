"""What a board's events say, in words. Takes whatever a board sent: nothing in it can make this fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST = 300
_HOT = 1e6  # no temperature; an integer may have more digits than a float can hold


def words(kind: str, detail: Mapping[str, Any]) -> str:
    """One line for people. kind, detail: as in core.messages.Event; kinds not known here are said as they came."""
    known = _SAID.get(kind)
    rest = {key: value for key, value in detail.items() if value not in (None, "", [])}
    if known is None:
        said, used = kind.replace("_", " ").replace("-", " "), frozenset[str]()
    else:
        said, used = known(detail)
    more = ", ".join(
        f"{key.replace('_', ' ')} {_value(value)}" for key, value in rest.items() if key not in used
    )
    line = f"{said}: {more}" if more else said
    return line if len(line) <= _MOST else line[: _MOST - 1] + "…"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " and ".join(str(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_Said = tuple[str, frozenset[str]]  # the line's begin, and the keys that are in it


def _health(detail: Mapping[str, Any]) -> str:
    temperature = detail.get("temperature_c")
    hot = (
        isinstance(temperature, (int, float))
        and not isinstance(temperature, bool)
        and abs(temperature) < _HOT
    )
    return f" at {temperature:.0f} °C" if hot else ""


def _condition(detail: Mapping[str, Any]) -> _Said:
    what = str(detail.get("what", "a condition")).replace("_", " ").replace("-", " ")
    line = f"{what} {'begins' if detail.get('on') else 'is over'}{_health(detail)}"
    flags = detail.get("flags")
    also = [] if flags != [detail.get("what")] else ["flags"]
    return line, frozenset({"what", "on", "temperature_c", *also})


def _throttle(detail: Mapping[str, Any]) -> _Said:
    line = "throttled: the budget is tightened" if detail.get("on") else "no longer throttled"
    return f"{line}{_health(detail)}", frozenset({"on", "temperature_c"})


def _rollback(detail: Mapping[str, Any]) -> _Said:
    source, target = detail.get("from"), detail.get("to")
    away = f" from {source}" if source else ""
    return f"rolled back{away}{f' to {target}' if target else ''}", frozenset({"from", "to"})


def _plain(line: str, *used: str) -> Any:
    return lambda _detail: (line, frozenset(used))


_SAID: Mapping[str, Any] = {
    "condition": _condition,
    "throttle": _throttle,
    "rollback": _rollback,
    "dropped": _plain("records were dropped before they were sent"),
    "sink-failing": _plain("a sink fails"),
    "sink-works": _plain("a sink works again"),
    "sink-over": _plain("a sink was given up"),
    "source-ended": _plain("the source has ended"),
    "source-lost": _plain("the source was lost"),
    "slot-damaged": _plain("a slot is damaged"),
    "state-repaired": _plain("the state file was repaired"),
    "outbox-damaged": _plain("the outbox was damaged and begun anew"),
}
