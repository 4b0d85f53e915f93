"""Read what boards publish: every payload is hostile until it has been parsed here. Stores and sends nothing.

A message that cannot be read is dropped and counted. But where its boot and seq can be read, it leaves an event of kind
`unreadable` under that number: else the board would send it again for ever, and all that comes after it with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput, one_line
from edgekit.core.messages import (
    FROM_BOARD,
    Event,
    Info,
    JobEvent,
    Reported,
    Status,
    decode,
    parse_topic,
)
from edgekit.core.record import Record

UNREADABLE = "unreadable"
MAX_RECORDS = 10_000  # in one message
MAX_WIRE_BYTES = 2**20
MAX_STATE_BYTES = 64 * 1024  # of an info or reported payload
MAX_EVENT_BYTES = 4096
_MAX_DEPTH = (
    16  # of an info, a reported or an event's detail: who reads them has less stack left than who stores them
)
_MAX_WHY = 200


class Malformed(BadInput):
    """A message was dropped. `device`: who sent it; None where the topic does not say."""

    def __init__(self, device: str | None, why: str) -> None:
        super().__init__(why)
        self.device = device


@dataclass(frozen=True)
class Unreadable:
    """An entry whose number could be read and nothing else."""

    seq: int
    why: str


@dataclass(frozen=True)
class Received:
    """One message of a board; its entries are of one boot. floor: telemetry's. state: info or reported as it came.

    retained: the broker kept it from earlier; that it comes does not show that the board lives.
    """

    device: str
    kind: str
    boot_id: str | None = None
    floor: int | None = None
    status: Status | None = None
    state: Mapping[str, Any] | None = None
    records: tuple[Record, ...] = ()
    events: tuple[Event, ...] = ()
    job_events: tuple[JobEvent, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    malformed: str | None = None  # why some of it was dropped
    retained: bool = False


def read_message(fleet: str, topic: str, data: bytes) -> Received:
    """Parse one message. Raises Malformed."""
    try:
        its_fleet, device, kind = parse_topic(topic)
    except BadInput as err:
        raise Malformed(None, one_line(err)) from err
    if its_fleet != fleet or kind not in FROM_BOARD:
        raise Malformed(None, f"topic {topic} is not one that boards of fleet {fleet} send on")
    if len(data) > MAX_WIRE_BYTES:
        raise Malformed(device, f"{kind}: {len(data)} bytes are more than {MAX_WIRE_BYTES}")
    try:
        return _PARSERS[kind](device, decode(data, kind))
    except (
        BadInput,
        ValueError,
    ) as err:  # ValueError: what JSON can hold and cannot be stored, such as 1e999
        raise Malformed(device, _short(err)) from err


def entries_of(message: Received) -> Iterator[tuple[int, Received]]:
    """Each numbered entry: its number, and the message as if it held nothing else."""
    empty = replace(message, records=(), events=(), job_events=(), unreadable=(), malformed=None)
    for record in message.records:
        yield record.seq, replace(empty, records=(record,))
    for event in message.events:
        yield event.seq, replace(empty, events=(event,))
    for job_event in message.job_events:
        yield job_event.seq, replace(empty, job_events=(job_event,))
    for unreadable in message.unreadable:
        yield unreadable.seq, replace(empty, unreadable=(unreadable,))


def stored_json(value: object, where: str, most: int) -> str:
    """JSON as the store keeps it: ASCII, no NaN, of at most `most` characters. Raises BadInput, ValueError.

    Nothing in it may fail later, where it is read for a page or an answer that shows other boards as well: tables in
    tables in tables, or half of a surrogate pair, which is no UTF-8.
    """
    if _deeper(value, _MAX_DEPTH):
        raise checks.wrong(where, f"at most {_MAX_DEPTH} levels deep", "more")
    checks.canonical_json(value)
    text = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    if len(text) > most:
        raise checks.wrong(where, f"at most {most} characters of JSON", len(text))
    return text


def _deeper(value: object, levels: int) -> bool:
    """Whether JSON is nested deeper than that."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(
        levels == 0 or _deeper(entry, levels - 1) for entry in inner if isinstance(entry, (Mapping, list))
    )


def _status(device: str, payload: Mapping[str, Any]) -> Received:
    status = Status.parse(payload)
    return Received(device, "status", boot_id=status.boot_id, status=status)


def _info(device: str, payload: Mapping[str, Any]) -> Received:
    stored_json(payload, "info", MAX_STATE_BYTES)
    return Received(device, "info", boot_id=Info.parse(payload).boot_id, state=payload)


def _reported(device: str, payload: Mapping[str, Any]) -> Received:
    stored_json(payload, "reported", MAX_STATE_BYTES)
    Reported.parse(payload)
    return Received(device, "reported", state=payload)


def _telemetry(device: str, payload: Mapping[str, Any]) -> Received:
    """As core's Telemetry, but one record that cannot be read does not take the others with it."""
    boot_id = checks.name(payload.get("boot_id"), "telemetry.boot_id")
    floor = checks.integer(payload.get("floor"), "telemetry.floor", 1)
    entries = payload.get("records")
    if not isinstance(entries, list) or len(entries) > MAX_RECORDS:
        raise checks.wrong("telemetry.records", f"a list of at most {MAX_RECORDS} records", entries)
    records: list[Record] = []
    unreadable: list[Unreadable] = []
    malformed = None
    for index, entry in enumerate(entries):
        where = f"telemetry.records[{index}]"
        try:
            records.append(Record.parse(entry, where))
        except BadInput as err:
            malformed = malformed or _short(err)
            unreadable += _tombstone(entry, err)
    return Received(
        device,
        "telemetry",
        boot_id,
        floor,
        records=tuple(records),
        unreadable=tuple(unreadable),
        malformed=malformed,
    )


def _job_event(device: str, payload: Mapping[str, Any]) -> Received:
    boot_id = checks.name(payload.get("boot_id"), "job/event.boot_id")
    try:
        return Received(device, "job/event", boot_id, job_events=(JobEvent.parse(payload),))
    except BadInput as err:
        left = _tombstone(payload, err)
        return Received(device, "job/event", boot_id, unreadable=left, malformed=_short(err))


def _event(device: str, payload: Mapping[str, Any]) -> Received:
    boot_id = checks.name(payload.get("boot_id"), "event.boot_id")
    try:
        event = Event.parse(payload)
        stored_json(event.detail, "event.detail", MAX_EVENT_BYTES)
    except (BadInput, ValueError) as err:
        left = _tombstone(payload, err)
        return Received(device, "event", boot_id, unreadable=left, malformed=_short(err))
    return Received(device, "event", boot_id, events=(event,))


def _tombstone(entry: object, err: Exception) -> tuple[Unreadable, ...]:
    """What remains of an entry: its number and why it was dropped; nothing where it has no number."""
    try:
        seq = checks.integer(checks.table(entry, "entry").get("seq"), "entry.seq", 1)
    except BadInput:
        return ()
    return (Unreadable(seq, _short(err)),)


def _short(err: Exception) -> str:
    return one_line(err)[:_MAX_WHY]


_PARSERS = {
    "status": _status,
    "info": _info,
    "reported": _reported,
    "telemetry": _telemetry,
    "job/event": _job_event,
    "event": _event,
}
