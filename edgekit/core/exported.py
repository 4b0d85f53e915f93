"""What `GET /api/v1/export` gives: the columns of each kind of row, and what sort of value each holds. Units: in names.

A latency histogram is text, `upper edge in ms:count` with a space between, edges as in core.histogram. Exits are a JSON
object of counts. `cursor` of the last row that arrived is where to go on. Unknown is null in JSON, nothing in CSV.
Energy is that of whole intervals or spans, idle share included: energy_requests says of how many requests it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["text", "time", "integer", "number", "flag"]  # time: ISO 8601, UTC

_COUNTS: Mapping[str, Kind] = {
    "requests": "integer",
    "errors": "integer",
    "deadline_missed": "integer",
    "labelled": "integer",
    "correct": "integer",
    "inputs_dropped": "integer",
    "answers_lost": "integer",
    "cancelled": "integer",
    "nan_confidences": "integer",
    "latency_mean_ms": "number",
    "latency_p50_ms": "number",
    "latency_p95_ms": "number",
    "latency_p99_ms": "number",
    "latency_histogram_ms": "text",
    "exits": "text",
    "energy_mj": "number",
    "energy_requests": "integer",
    "energy_provenance": "text",
    "energy_on": "text",
    "energy_why": "text",
    "busy_s": "number",
}
_RECORD: Mapping[str, Kind] = {
    "board": "text",
    "profile": "text",
    "at": "time",  # end of the interval
    "received": "time",
    "clock_synced": "flag",
    "interval_s": "number",
    "bundle": "text",
    "policy": "text",
    **_COUNTS,
    "idle_power_mw": "number",
    "temperature_c": "number",
    "throttled": "flag",
    "under_voltage": "flag",
    "memory_mb": "number",
    "cursor": "text",
}
_SPAN: Mapping[str, Kind] = {
    "board": "text",
    "profile": "text",
    "at": "time",  # begin of the span
    "bundle": "text",
    "records": "integer",
    "covered_s": "number",  # by records
    **_COUNTS,
    "throttled_s": "number",
    "under_voltage_s": "number",
    "temperature_highest_c": "number",
    "memory_highest_mb": "number",
    "cursor": "text",
}
_EVENT: Mapping[str, Kind] = {
    "board": "text",
    "profile": "text",
    "at": "time",
    "received": "time",
    "kind": "text",
    "text": "text",
    "detail": "text",  # JSON
    "cursor": "text",
}
COLUMNS: Mapping[str, Mapping[str, Kind]] = {
    "records": _RECORD,
    "minutes": _SPAN,
    "hours": _SPAN,
    "events": _EVENT,
}
