"""Put a batch of parsed messages into the store, exactly once however often it is replayed. Sends nothing.

Everything of a batch goes into the caller's one transaction; what `commit_batch` returns may be acknowledged once that
transaction is committed, and not before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.core.bench import reports_json
from edgekit.core.figure import PROVENANCES
from edgekit.core.messages import Ack, Event, JobEvent, Status
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet.figures import COUNTS
from edgekit.fleet.intake import MAX_EVENT_BYTES, UNREADABLE, Malformed, Received, Unreadable, stored_json
from edgekit.fleet.names import BUNDLE, EXIT, MACHINE, POLICY, REASON, ids_of, known_ids
from edgekit.fleet.packing import pack_counts
from edgekit.fleet.store import count, insert_new

UNKNOWN_DEVICE = "messages of boards that are not enrolled"
FOREIGN_TOPIC = "messages on foreign topics"
_CLOCKS_DIFFER_S = 300.0
_OF_THE_COMMAND = ("bad-signature", "wrong-board", "replayed")  # refusals that no job was begun for
_HEALTH = (
    "bundle",
    "policy",
    "interval_s",
    "temperature_c",
    "throttled",
    "under_voltage",
    "memory_mb",
    "idle_power_mw",
)
_MAX_STEPS = 50_000  # of `upto` in one batch; the next one goes on


@dataclass(frozen=True)
class Outcome:
    """What follows from a committed batch: an ack for each boot that was heard of, and boards that came online."""

    acks: tuple[tuple[str, Ack], ...]
    births: frozenset[str]


def commit_batch(
    connection: sa.Connection, batch: Sequence[Received], malformed: Sequence[Malformed], now: float
) -> Outcome:
    """Store a batch. Messages of boards that are not enrolled are counted and dropped."""
    ids = _device_ids(connection, {m.device for m in batch} | {m.device for m in malformed if m.device})
    known = [message for message in batch if message.device in ids]
    _count_strangers(connection, batch, malformed, ids)
    _count_malformed(connection, known, malformed, ids)
    births = set()
    for message in known:
        device = ids[message.device]
        if message.status is not None:
            _set_status(connection, device, message.status)
            if message.status.online:
                births.add(message.device)
        if message.state is not None:
            _set_state(connection, device, message)
    boots = _boots(connection, known, ids)
    _insert_entries(connection, known, ids, boots, now)
    _advance(connection, boots.values())
    seen = {ids[message.device] for message in known if not message.retained}
    if seen:
        _touch(connection, seen, now)
    acks = tuple((boot.name, Ack(boot.boot_id, boot.upto)) for boot in boots.values())
    return Outcome(acks, frozenset(births))


@dataclass
class _Boot:
    """A boot that a batch speaks of: its row, and the numbers the batch brings."""

    id: int
    name: str
    boot_id: str
    floor: int
    upto: int
    last: int
    seqs: set[int]


def _boots(
    connection: sa.Connection, known: Sequence[Received], ids: Mapping[str, int]
) -> dict[tuple[int, str], _Boot]:
    """The rows of all boots in a batch, drawn now where they are new. A floor only grows."""
    table = db.boots
    keys = {(ids[m.device], m.boot_id): m.device for m in known if m.boot_id is not None}
    if not keys:
        return {}
    insert_new(connection, table, [{"device": device, "boot_id": boot_id} for device, boot_id in keys])
    wanted = table.c.device.in_({key[0] for key in keys}) & table.c.boot_id.in_({key[1] for key in keys})
    boots = {}
    for row in connection.execute(sa.select(table).where(wanted)):
        key = (row.device, row.boot_id)
        if key in keys:
            boots[key] = _Boot(row.id, keys[key], row.boot_id, row.floor, row.upto, row.last, set())
    for message in known:
        if message.boot_id is not None:
            boot = boots[ids[message.device], message.boot_id]
            boot.floor = max(boot.floor, message.floor or 1)
            for entries in (message.records, message.events, message.job_events, message.unreadable):
                boot.seqs |= {entry.seq for entry in entries}
    return boots


def _advance(connection: sa.Connection, boots: Iterable[_Boot]) -> None:
    """Move each boot's `upto` on over what is in the store without a gap."""
    changed = []
    for boot in boots:
        before = (boot.floor, boot.upto, boot.last)
        boot.last = max(boot.last, max(boot.seqs, default=0))
        boot.upto = max(boot.upto, boot.floor - 1)
        while boot.upto + 1 in boot.seqs:
            boot.upto += 1
        if boot.upto < boot.last:  # there is or was a gap: what other batches brought counts as well
            boot.upto = _contiguous(connection, boot.id, boot.upto)
        if before != (boot.floor, boot.upto, boot.last):
            changed.append({"key": boot.id, "floor": boot.floor, "upto": boot.upto, "last": boot.last})
    if changed:
        change = sa.update(db.boots).where(db.boots.c.id == sa.bindparam("key"))
        connection.execute(
            change.values({key: sa.bindparam(key) for key in ("floor", "upto", "last")}), changed
        )


def _contiguous(connection: sa.Connection, boot: int, start: int) -> int:
    """The last number after `start` up to which the boot's records and events are all in the store."""
    tables = (db.records, db.events, db.job_events)
    parts = (sa.select(table.c.seq).where(table.c.boot == boot, table.c.seq > start) for table in tables)
    upto = start
    for seq in connection.execute(sa.union_all(*parts).order_by("seq").limit(_MAX_STEPS)).scalars():
        if seq > upto + 1:
            break
        upto = seq
    return upto


def _device_ids(connection: sa.Connection, names: Iterable[str]) -> dict[str, int]:
    rows = connection.execute(
        sa.select(db.devices.c.name, db.devices.c.id).where(db.devices.c.name.in_(list(names)))
    )
    return {row.name: row.id for row in rows}


def _count_strangers(
    connection: sa.Connection,
    batch: Sequence[Received],
    malformed: Sequence[Malformed],
    ids: Mapping[str, int],
) -> None:
    strangers = sum(m.device not in ids for m in batch)
    strangers += sum(m.device is not None and m.device not in ids for m in malformed)
    foreign = sum(m.device is None for m in malformed)
    for key, number in ((UNKNOWN_DEVICE, strangers), (FOREIGN_TOPIC, foreign)):
        if number:
            count(connection, key, number)


def _count_malformed(
    connection: sa.Connection,
    known: Sequence[Received],
    malformed: Sequence[Malformed],
    ids: Mapping[str, int],
) -> None:
    reasons = [(ids[m.device], str(m)) for m in malformed if m.device is not None and m.device in ids]
    reasons += [(ids[m.device], m.malformed) for m in known if m.malformed]
    for device, why in reasons:
        values = {"malformed": db.devices.c.malformed + 1, "malformed_why": why}
        connection.execute(sa.update(db.devices).where(db.devices.c.id == device).values(values))


def _set_state(connection: sa.Connection, device: int, message: Received) -> None:
    """Keep an info or reported payload, and of it what boards are looked for by."""
    state = message.state or {}
    values: dict[str, Any] = {message.kind: json.dumps(state)}
    if message.kind == "info":
        values["says_profile"] = state.get("profile")
    else:
        values |= {"runs": state.get("bundle"), "why": state.get("why")}
        values["settings_refused"] = len(state.get("config_refused") or {})
    connection.execute(sa.update(db.devices).where(db.devices.c.id == device).values(values))
    if message.kind == "reported" and state.get("interval_s"):
        change = sa.update(db.presence).where(db.presence.c.device == device)
        connection.execute(change.values(interval_s=state["interval_s"]))


def _set_status(connection: sa.Connection, device: int, status: Status) -> None:
    """A birth or a death. An old connection's will does not put a newer boot offline."""
    wanted = db.presence.c.device == device
    values: dict[str, Any] = {"online": status.online}
    if status.online:
        values["boot_id"] = status.boot_id
    else:
        wanted &= sa.or_(db.presence.c.boot_id.is_(None), db.presence.c.boot_id == status.boot_id)
    connection.execute(sa.update(db.presence).where(wanted).values(values))


def _set_health(connection: sa.Connection, records: Sequence[Mapping[str, Any]]) -> None:
    """What each board's newest record says of it now. Late history changes nothing."""
    newest: dict[int, Mapping[str, Any]] = {}
    for record in records:
        if record["device"] not in newest or newest[record["device"]]["at"] <= record["at"]:
            newest[record["device"]] = record
    if not newest:
        return
    table = db.presence
    key: sa.BindParameter[int] = sa.bindparam("key")
    at: sa.BindParameter[float] = sa.bindparam("newest")
    older = table.c.record_at.is_(None) | (table.c.record_at <= at)
    change = sa.update(table).where((table.c.device == key) & older)
    values: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in _HEALTH}
    rows = [
        {"key": device, "newest": record["at"]} | {f"to_{name}": record[name] for name in _HEALTH}
        for device, record in sorted(newest.items())
    ]
    connection.execute(change.values(record_at=at, **values), rows)


def _touch(connection: sa.Connection, seen: set[int], now: float) -> None:
    table = db.presence
    connection.execute(sa.update(table).where(table.c.device.in_(seen)).values(last_seen=now))


def _insert_entries(
    connection: sa.Connection,
    known: Sequence[Received],
    ids: Mapping[str, int],
    boots: Mapping[tuple[int, str], _Boot],
    now: float,
) -> None:
    records: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    job_events: list[dict[str, Any]] = []
    touched: set[tuple[str, int]] = set()
    numbers = _numbers(connection, known, ids)
    for message in known:
        if message.boot_id is None:
            continue
        device = ids[message.device]
        boot = boots[device, message.boot_id].id
        common = {"boot": boot, "device": device, "received": now}
        records += [common | {"seq": r.seq} | _record(r, now, numbers) for r in message.records]
        events += [common | {"seq": e.seq} | _event(e, now) for e in message.events]
        events += [common | {"seq": u.seq} | _tombstone(u, now) for u in message.unreadable]
        job_events += [common | {"seq": e.seq} | _job_event(e, now) for e in message.job_events]
        touched |= {(e.job_id, device) for e in message.job_events}
    insert_new(connection, db.records, records)
    _set_health(connection, records)
    insert_new(connection, db.events, events)
    insert_new(connection, db.job_events, job_events)
    for message in known:
        for event in message.job_events:
            if event.reports:
                _keep_reports(connection, event, ids[message.device])
    for job_id, device in sorted(touched):
        _mirror_job(connection, job_id, device, now)


_Numbers = Mapping[tuple[str, str], int]


def _numbers(connection: sa.Connection, known: Sequence[Received], ids: Mapping[str, int]) -> _Numbers:
    """(kind, text) -> number, of every name in a batch's records."""
    said: dict[tuple[int, str], set[str]] = {}
    for message in known:
        for record in message.records:
            for kind, text in _names(record):
                said.setdefault((ids[message.device], kind), set()).add(text)
    found: dict[tuple[str, str], int] = {}
    for kind in sorted({kind for _, kind in said}):
        texts = {text for (_, its_kind), own in said.items() if its_kind == kind for text in own}
        found |= {(kind, text): number for text, number in known_ids(connection, kind, texts).items()}
    for (device, kind), texts in sorted(said.items()):  # what is new is drawn board by board: each has its bound
        new = {text for text in texts if (kind, text) not in found}
        if new:
            found |= {(kind, text): n for text, n in ids_of(connection, kind, new, device).items()}
    return found


def _names(record: Record) -> Iterator[tuple[str, str]]:
    plain = (
        (BUNDLE, record.bundle),
        (POLICY, record.policy),
        (MACHINE, record.energy.on),
        (REASON, record.energy_why),
    )
    yield from ((kind, text) for kind, text in plain if text)
    yield from ((EXIT, name) for name in record.exit_counts)


def _record(record: Record, now: float, numbers: _Numbers) -> dict[str, Any]:
    def number(kind: str, text: str | None) -> int | None:
        return numbers[kind, text] if text else None

    exits: dict[int, int] = {}
    for name, times in record.exit_counts.items():
        exits[numbers[EXIT, name]] = exits.get(numbers[EXIT, name], 0) + times
    return {
        "at": _when(record.time if record.clock_synced else None, now),
        "uptime_s": record.uptime_s,
        "clock_synced": record.clock_synced,
        "interval_s": record.interval_s,
        "bundle": number(BUNDLE, record.bundle),
        "policy": number(POLICY, record.policy),
        **{name: getattr(record, name) for name in COUNTS[1:]},
        "exits": pack_counts({key: count for key, count in exits.items() if count}),
        "latency": pack_counts(record.latency.counts),
        "latency_sum_ms": record.latency.sum_ms,
        "energy_mj": record.energy.value,
        "energy_provenance": record.energy.provenance and PROVENANCES.index(record.energy.provenance),
        "energy_on": number(MACHINE, record.energy.on),
        "energy_why": number(REASON, record.energy_why),
        "energy_updates": record.energy_updates,
        "idle_power_mw": record.idle_power_mw,
        "busy_s": record.busy_s,
        "temperature_c": record.temperature_c,
        "throttled": record.throttled,
        "under_voltage": record.under_voltage,
        "memory_mb": record.memory_mb,
    }


def _when(time: float | None, now: float) -> float:
    """A board's own time; where it has none, or one that is still to come, the time of arrival."""
    return now if time is None or time > now + _CLOCKS_DIFFER_S else time


def _event(event: Event, now: float) -> dict[str, Any]:
    detail = stored_json(dict(event.detail), "event.detail", MAX_EVENT_BYTES)
    return {"at": _when(event.time, now), "kind": event.kind, "detail": detail}


def _tombstone(entry: Unreadable, now: float) -> dict[str, Any]:
    return {"at": now, "kind": UNREADABLE, "detail": json.dumps({"why": entry.why})}


def _job_event(event: JobEvent, now: float) -> dict[str, Any]:
    return {
        "at": _when(event.time, now),
        "job_id": event.job_id,
        "state": event.state,
        "target": event.target,
        "reason": event.reason,
        "detail": event.detail,
    }


def _keep_reports(connection: sa.Connection, event: JobEvent, device: int) -> None:
    """What a board measured, once, and only for a job that had it measure."""
    asked = sa.select(db.commands.c.job).join(db.jobs, db.jobs.c.id == db.commands.c.job)
    job = connection.scalar(asked.where(db.jobs.c.job_id == event.job_id, db.commands.c.device == device))
    if job is not None and event.state == job_states.MEASURED:
        reports = json.dumps(reports_json(event.reports), separators=(",", ":"))
        insert_new(connection, db.job_reports, [{"job": job, "device": device, "reports": reports}])


def _mirror_job(connection: sa.Connection, job_id: str, device: int, now: float) -> None:
    """Set the job's state on this board to what the board's own events say. What the server set itself gives way."""
    events, jobs, states = db.job_events, db.jobs, db.job_devices
    said = connection.execute(
        sa.select(events.c.state, events.c.reason, events.c.detail)
        .where(events.c.job_id == job_id, events.c.device == device)
        .order_by(events.c.boot, events.c.seq)
    ).all()
    state = _state_of(said)
    job = sa.select(jobs.c.id).where(jobs.c.job_id == job_id).scalar_subquery()
    connection.execute(
        sa.update(states)
        .where(states.c.job == job, states.c.device == device)
        .values(state=state.state, reason=state.reason, detail=state.detail, updated=now)
    )


def _state_of(said: Sequence[Any]) -> Any:
    """The event that tells a job's state: its first final one, else its last. Events are in the board's order.

    A command that was forged or replayed may carry a real job's id. Its refusal counts only where the board said
    nothing else of the job.
    """
    own = [e for e in said if not (e.state == "refused" and e.reason in _OF_THE_COMMAND)]
    return next((event for event in own if event.state in job_states.FINAL), (own or said)[-1])


def expire_silent_jobs(connection: sa.Connection, now: float, grace_s: float = 60.0) -> int:
    """End what boards never ended: silence after a job's expiry is a failure. Returns how many."""
    states, jobs = db.job_devices, db.jobs
    overdue = sa.select(jobs.c.id).where(jobs.c.expires < now - grace_s)
    result = connection.execute(
        sa.update(states)
        .where(states.c.job.in_(overdue), states.c.state.not_in(job_states.FINAL))
        .values(
            state="expired",
            reason="silent",
            detail="the board said nothing before the job expired",
            updated=now,
        )
    )
    return result.rowcount
