"""Rows of the store as an export gives them: names instead of numbers, units in the columns. Reads names only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from edgekit.core.events import words
from edgekit.core.histogram import edge_ms
from edgekit.fleet import schema as db
from edgekit.fleet.figures import COUNTS, Sum
from edgekit.fleet.names import texts_of

TABLES: Mapping[str, sa.Table] = {
    "records": db.records,
    "minutes": db.minutes,
    "hours": db.hours,
    "events": db.events,
}
KEYS: Mapping[str, tuple[str, ...]] = {  # what a cursor holds, in the order of the rows
    "records": ("id",),
    "minutes": ("device", "at", "bundle"),
    "hours": ("device", "at", "bundle"),
    "events": ("device", "at", "boot", "seq"),
}


@dataclass(frozen=True)
class Board:
    """What an export says of the board that a row is from."""

    name: str
    profile: str | None


def shown_rows(
    connection: sa.Connection,
    what: str,
    rows: Sequence[Any],
    boards: Mapping[int, Board],
    texts: dict[int, str],
) -> list[dict[str, Any]]:
    """Rows with the columns of core.exported. texts: number -> name, as far as known; grows."""
    if what == "events":
        return [_event(row, boards[row.device]) for row in rows]
    sums = [_sum(what, row) for row in rows]
    wanted = {number for figures in sums for number in figures.names} | {row.bundle for row in rows}
    if what == "records":
        wanted |= {row.policy for row in rows}
    texts |= texts_of(connection, {number for number in wanted if number and number not in texts})
    shown = _record if what == "records" else _span
    return [
        shown(what, row, boards[row.device], figures, texts) for row, figures in zip(rows, sums, strict=True)
    ]


def cursor_of(what: str, row: Any) -> str:
    """Where to go on after a row."""
    return ":".join(repr(getattr(row, name)) for name in KEYS[what])


def _sum(what: str, row: Any) -> Sum:
    figures = Sum()
    if what == "records":
        figures.add_record(row)
    else:
        figures.add(row)
    return figures


def _record(what: str, row: Any, board: Board, figures: Sum, texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "board": board.name,
        "profile": board.profile,
        "at": _iso(row.at),
        "received": _iso(row.received),
        "clock_synced": row.clock_synced,
        "interval_s": row.interval_s,
        "bundle": texts.get(row.bundle),
        "policy": texts.get(row.policy),
        **_figures(figures, texts),
        "idle_power_mw": row.idle_power_mw,
        "temperature_c": row.temperature_c,
        "throttled": row.throttled,
        "under_voltage": row.under_voltage,
        "memory_mb": row.memory_mb,
        "cursor": cursor_of(what, row),
    }


def _span(what: str, row: Any, board: Board, figures: Sum, texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "board": board.name,
        "profile": board.profile,
        "at": _iso(row.at),
        "bundle": texts.get(row.bundle),
        "records": figures.records,
        "covered_s": figures.span_s,
        **_figures(figures, texts),
        "throttled_s": figures.throttled_s,
        "under_voltage_s": figures.under_voltage_s,
        "temperature_highest_c": figures.temperature_c,
        "memory_highest_mb": figures.memory_mb,
        "cursor": cursor_of(what, row),
    }


def _event(row: Any, board: Board) -> dict[str, Any]:
    return {
        "board": board.name,
        "profile": board.profile,
        "at": _iso(row.at),
        "received": _iso(row.received),
        "kind": row.kind,
        "text": words(row.kind, json.loads(row.detail)),
        "detail": row.detail,
        "cursor": cursor_of("events", row),
    }


def _figures(figures: Sum, texts: Mapping[int, str]) -> dict[str, Any]:
    found = figures.summary(texts)
    latency, energy = found["latency_ms"], found["energy_mj"]
    edges = (f"{edge_ms(bucket):.6g}:{count}" for bucket, count in sorted(figures.latency.items()))
    return {
        **{name: getattr(figures, name) for name in COUNTS[1:]},
        **{f"latency_{key}_ms": latency[key] for key in ("mean", "p50", "p95", "p99")},
        "latency_histogram_ms": " ".join(edges),
        "exits": json.dumps(found["exit_counts"]),
        "energy_mj": figures.energy_mj if figures.energy_requests else None,
        "energy_requests": figures.energy_requests,
        "energy_provenance": energy["provenance"],
        "energy_on": energy["on"],
        "energy_why": texts.get(figures.energy_why) if figures.energy_why else None,
        "busy_s": figures.busy_s,
    }


def _iso(at: float) -> str | None:
    """ISO 8601 in UTC; None for what no calendar holds."""
    try:
        found = datetime.fromtimestamp(at, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")
