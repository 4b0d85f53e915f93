"""Put a batch of parsed messages into the store, exactly once however often it is replayed. Sends nothing.

Everything of a batch goes into the caller's one transaction; what `commit_batch` returns may be acknowledged once that
transaction is committed, and not before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.core.bench import reports_json
from edgekit.core.figure import PROVENANCES
from edgekit.core.messages import Ack, Event, JobEvent
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet.bulk import insert_many
from edgekit.fleet.intake import MAX_EVENT_BYTES, UNREADABLE, Malformed, Received, Unreadable, stored_json
from edgekit.fleet.memory import BOOTS, EVENTS, RECORDS, Draft, Memory
from edgekit.fleet.names import BUNDLE, EXIT, MACHINE, OTHER, POLICY, REASON, ids_of, known_ids, shortened
from edgekit.fleet.packing import pack_counts
from edgekit.fleet.store import count, insert_new, share_records

UNKNOWN_DEVICE = "messages of boards that are not enrolled"
FOREIGN_TOPIC = "messages on foreign topics"
ABOVE_LIMIT = "{} above the limit"
REPLAYS = "replays"  # entries that came again
_CLOCKS_DIFFER_S = 300.0
_EARLIEST = 1_577_836_800.0  # 2020: no clock that was ever set says less
_MOST_NEW_NAMES = 256  # that are looked up of one board and kind in one batch
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


@dataclass
class Counts:
    """What became of a batch's entries: new ones, those that were dropped, and those that had come before."""

    records: int = 0
    events: int = 0
    dropped: int = 0  # also whole messages
    replays: int = 0


@dataclass(frozen=True)
class Outcome:
    """What follows from a committed batch: an ack for each boot that was heard of, and boards that came online."""

    acks: tuple[tuple[str, Ack], ...]
    births: frozenset[str]
    counts: Counts = field(default_factory=Counts, compare=False)


def commit_batch(
    connection: sa.Connection,
    batch: Sequence[Received],
    malformed: Sequence[Malformed],
    now: float,
    draft: Draft | None = None,
) -> Outcome:
    """Store a batch. Messages of boards that are not enrolled are counted and dropped.

    draft: what this ingester remembers; to be kept once the transaction is committed. Rows are locked in one order by
    all ingesters: of boards (presence), then of boots, each by their number, then names.
    """
    draft = Memory().draft() if draft is None else draft
    share_records(connection)
    ids = _device_ids(connection, {m.device for m in batch} | {m.device for m in malformed if m.device})
    known = [message for message in batch if message.device in ids]
    online = _lock(connection, sorted(set(ids.values())))
    _count_strangers(connection, batch, malformed, ids)
    births = _set_statuses(connection, known, ids, online)
    for device, message in _newest_states(known, ids):
        _set_state(connection, device, message)
    refused, counts = _Refused(), Counts()
    boots = _boots(connection, known, ids, draft, refused, now)
    _insert_entries(connection, known, ids, boots, draft, refused, counts, now)
    _advance(connection, boots.values())
    _count_malformed(connection, known, malformed, ids, refused)
    if counts.replays:
        count(connection, REPLAYS, counts.replays)
    counts.dropped += len(batch) - len(known) + len(malformed) + sum(refused.numbers.values())
    seen = {ids[message.device] for message in known if not message.retained}
    if seen:
        _touch(connection, seen, now)
    acks = tuple((boot.name, Ack(boot.boot_id, boot.upto)) for boot in boots.values())
    return Outcome(acks + tuple(refused.acks), births, counts)


@dataclass
class _Refused:
    """What went above a board's limits."""

    numbers: dict[tuple[int, str], int] = field(default_factory=dict)  # (device, kind) -> how many
    acks: list[tuple[str, Ack]] = field(default_factory=list)  # so that it is not sent again

    def add(self, device: int, kind: str, number: int) -> None:
        if number:
            self.numbers[device, kind] = self.numbers.get((device, kind), 0) + number


@dataclass
class _Boot:
    """A boot that a batch speaks of: its row, and the numbers the batch brings."""

    id: int
    name: str
    boot_id: str
    floor: int
    upto: int
    last: int
    forgotten: int
    offset: float | None  # Unix seconds at its uptime 0
    before: tuple[int, int, int, float | None]
    seqs: set[int] = field(default_factory=set)

    def is_new(self, seq: int) -> bool:
        """Whether an entry can be one that never came: the others are in the store, or were, or were dropped there."""
        floor, upto, *_ = self.before
        if seq in self.seqs:
            return False
        self.seqs.add(seq)
        return seq > self.forgotten and not floor <= seq <= upto


def _boots(
    connection: sa.Connection,
    known: Sequence[Received],
    ids: Mapping[str, int],
    draft: Draft,
    refused: _Refused,
    now: float,
) -> dict[tuple[int, str], _Boot]:
    """The rows of all boots in a batch, locked, drawn now where they are new. A floor only grows."""
    keys = {(ids[m.device], m.boot_id): m.device for m in known if m.boot_id is not None}
    boots = _known_boots(connection, keys)
    missing = [key for key in sorted(keys) if key not in boots]
    drawn = [key for key in missing if draft.take(BOOTS, key[0], 1, now)]
    if drawn:
        rows = [{"device": device, "boot_id": boot_id, "started": now} for device, boot_id in drawn]
        insert_new(connection, db.boots, rows)
        boots |= _known_boots(connection, {key: keys[key] for key in drawn})
    for device, boot_id in set(missing) - set(drawn):
        refused.add(device, BOOTS, 1)
        name = keys[device, boot_id]
        seqs = [seq for m in known if (m.device, m.boot_id) == (name, boot_id) for seq in _seqs(m)]
        refused.acks.append((name, Ack(boot_id, max(seqs, default=0))))
    for message in known:
        boot = boots.get((ids[message.device], message.boot_id or ""))
        if boot is not None:
            boot.floor = max(boot.floor, message.floor or 1)
            _learn_clock(boot, message.records, now)
    return {key: boots[key] for key in keys if key in boots}


def _known_boots(
    connection: sa.Connection, keys: Mapping[tuple[int, str], str]
) -> dict[tuple[int, str], _Boot]:
    if not keys:
        return {}
    table = db.boots
    wanted = table.c.device.in_({key[0] for key in keys}) & table.c.boot_id.in_({key[1] for key in keys})
    query = sa.select(table).where(wanted).order_by(table.c.id).with_for_update(key_share=True)
    boots = {}
    for row in connection.execute(query):
        key = (row.device, row.boot_id)
        if key in keys:
            numbers = (row.floor, row.upto, row.last)
            before = (*numbers, row.clock_offset)
            boots[key] = _Boot(
                row.id, keys[key], row.boot_id, *numbers, row.forgotten, row.clock_offset, before
            )
    return boots


def _seqs(message: Received) -> Iterator[int]:
    for entries in (message.records, message.events, message.job_events, message.unreadable):
        yield from (entry.seq for entry in entries)


def _learn_clock(boot: _Boot, records: Sequence[Record], now: float) -> None:
    """When the boot was at uptime 0, from the first record whose clock was synchronised."""
    if boot.offset is None:
        for record in records:
            if record.clock_synced and record.time is not None and _believed(record.time, now):
                boot.offset = record.time - record.uptime_s
                return


def _advance(connection: sa.Connection, boots: Iterable[_Boot]) -> None:
    """Move each boot's `upto` on over what is in the store, or was dropped now, without a gap."""
    changed = []
    for boot in sorted(boots, key=lambda boot: boot.id):
        boot.last = max(boot.last, max(boot.seqs, default=0))
        boot.upto = max(boot.upto, boot.floor - 1, boot.forgotten)
        while True:
            while boot.upto + 1 in boot.seqs:
                boot.upto += 1
            # There is or was a gap: what other batches brought counts as well.
            further = _contiguous(connection, boot.id, boot.upto) if boot.upto < boot.last else boot.upto
            if further == boot.upto:
                break
            boot.upto = further
        after = (boot.floor, boot.upto, boot.last, boot.offset)
        if boot.before != after:
            changed.append(
                dict(zip(("floor", "upto", "last", "clock_offset"), after, strict=True), key=boot.id)
            )
    if changed:
        change = sa.update(db.boots).where(db.boots.c.id == sa.bindparam("key"))
        values: dict[str, Any] = {key: sa.bindparam(key) for key in ("floor", "upto", "last", "clock_offset")}
        connection.execute(change.values(**values), changed)


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
        sa.select(db.devices.c.name, db.devices.c.id).where(db.devices.c.name.in_(sorted(names)))
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
    refused: _Refused,
) -> None:
    """Count by board what was dropped, with the last reason."""
    reasons = [(ids[m.device], 1, str(m)) for m in malformed if m.device is not None and m.device in ids]
    reasons += [(ids[m.device], 1, m.malformed) for m in known if m.malformed]
    above: dict[str, int] = {}
    for (device, kind), number in refused.numbers.items():
        above[kind] = above.get(kind, 0) + number
        reasons.append((device, number, ABOVE_LIMIT.format(f"{number} {kind}")))
    for kind, number in sorted(above.items()):
        count(connection, ABOVE_LIMIT.format(kind), number)
    counted: dict[int, tuple[int, str]] = {}
    for device, number, why in reasons:
        counted[device] = (counted.get(device, (0, ""))[0] + number, why)
    for device, (number, why) in sorted(counted.items()):
        values = {"malformed": db.devices.c.malformed + number, "malformed_why": why}
        connection.execute(sa.update(db.devices).where(db.devices.c.id == device).values(values))


def _lock(connection: sa.Connection, devices: Sequence[int]) -> dict[int, tuple[bool, str | None]]:
    """Lock the boards' rows, in their order; device -> online, and the boot of its last birth."""
    if not devices:
        return {}
    table = db.presence
    query = sa.select(table.c.device, table.c.online, table.c.boot_id).where(table.c.device.in_(devices))
    rows = connection.execute(query.order_by(table.c.device).with_for_update(key_share=True))
    return {row.device: (row.online, row.boot_id) for row in rows}


def _set_statuses(
    connection: sa.Connection,
    known: Sequence[Received],
    ids: Mapping[str, int],
    before: Mapping[int, tuple[bool, str | None]],
) -> frozenset[str]:
    """Births and deaths in their order; who was born. An old connection's will does not put a newer boot offline."""
    after, births = dict(before), set()
    for message in known:
        status, device = message.status, ids[message.device]
        if status is None or device not in after:
            continue
        if status.online:
            births.add(message.device)
            after[device] = (True, status.boot_id)
        elif after[device][1] in (None, status.boot_id):
            after[device] = (False, after[device][1])
    rows = [
        {"key": device, "to_online": state[0], "to_boot": state[1]}
        for device, state in sorted(after.items())
        if state != before[device]
    ]
    if rows:
        change = sa.update(db.presence).where(db.presence.c.device == sa.bindparam("key"))
        values: dict[str, Any] = {"online": sa.bindparam("to_online"), "boot_id": sa.bindparam("to_boot")}
        connection.execute(change.values(**values), rows)
    return frozenset(births)


def _newest_states(known: Sequence[Received], ids: Mapping[str, int]) -> list[tuple[int, Received]]:
    """The last info and the last reported payload of each board, by the board's number."""
    newest = {(ids[m.device], m.kind): m for m in known if m.state is not None}
    return [(key[0], newest[key]) for key in sorted(newest)]


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


def _set_health(connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """What each board's newest record says of it now. Late history changes nothing."""
    newest: dict[int, tuple[Any, ...]] = {}
    for row in rows:
        if row[_DEVICE] not in newest or newest[row[_DEVICE]][_AT] <= row[_AT]:
            newest[row[_DEVICE]] = row
    if not newest:
        return
    table = db.presence
    key: sa.BindParameter[int] = sa.bindparam("key")
    at: sa.BindParameter[float] = sa.bindparam("newest")
    older = table.c.record_at.is_(None) | (table.c.record_at <= at)
    change = sa.update(table).where((table.c.device == key) & older)
    values: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in _HEALTH}
    changed = [
        {"key": device, "newest": row[_AT]} | {f"to_{name}": row[_PLACES[name]] for name in _HEALTH}
        for device, row in sorted(newest.items())
    ]
    connection.execute(change.values(record_at=at, **values), changed)


def _touch(connection: sa.Connection, seen: set[int], now: float) -> None:
    table = db.presence
    connection.execute(sa.update(table).where(table.c.device.in_(seen)).values(last_seen=now))


def _insert_entries(
    connection: sa.Connection,
    known: Sequence[Received],
    ids: Mapping[str, int],
    boots: Mapping[tuple[int, str], _Boot],
    draft: Draft,
    refused: _Refused,
    counts: Counts,
    now: float,
) -> None:
    records: list[tuple[_Boot, int, Record, float]] = []
    events: list[dict[str, Any]] = []
    job_events: list[dict[str, Any]] = []
    touched: dict[tuple[int, str], list[JobEvent]] = {}

    def admitted(kind: str, entries: Sequence[Any]) -> list[Any]:
        """Those that are new, as many as the board may bring; the others count as handled."""
        new = [entry for entry in entries if boot.is_new(entry.seq)]
        counts.replays += len(entries) - len(new)
        allowed = draft.take(kind, device, len(new), now) if new else 0
        refused.add(device, kind, len(new) - allowed)
        return new[:allowed]

    for message in known:
        device = ids[message.device]
        if (device, message.boot_id or "") not in boots:
            continue
        boot = boots[device, message.boot_id or ""]
        common = {"boot": boot.id, "device": device, "received": now}
        latest = max((record.uptime_s for record in message.records), default=0.0)
        records += [(boot, device, record, latest) for record in admitted(RECORDS, message.records)]
        events += [common | {"seq": e.seq} | _event(e, now) for e in admitted(EVENTS, message.events)]
        events += [common | {"seq": u.seq} | _tombstone(u, now) for u in admitted(EVENTS, message.unreadable)]
        for event in admitted(EVENTS, message.job_events):
            job_events.append(common | {"seq": event.seq} | _job_event(event, now))
            touched.setdefault((device, event.job_id), []).append(event)
    numbers = _numbers(connection, [(device, record) for _, device, record, _ in records], draft)
    rows = [_row(boot, device, record, latest, now, numbers) for boot, device, record, latest in records]
    counts.records = insert_many(connection, db.records, RECORD_COLUMNS, rows)
    counts.events = len(events) + len(job_events)
    counts.replays += len(rows) - counts.records  # above a gap it takes the store to know them
    _set_health(connection, rows)
    insert_new(connection, db.events, events)
    insert_new(connection, db.job_events, job_events)
    for (device, job_id), said in sorted(touched.items(), key=lambda item: item[0]):
        for event in said:
            if event.reports:
                _keep_reports(connection, event, device)
        _mirror_job(connection, job_id, device, now)


_Numbers = Mapping[tuple[str, str], int]


def _numbers(connection: sa.Connection, records: Iterable[tuple[int, Record]], draft: Draft) -> _Numbers:
    """(kind, text) -> number, of every name in a batch's records."""
    found: dict[tuple[str, str], int] = {}
    new: dict[tuple[str, int], dict[str, None]] = {}  # (kind, board) -> texts that are not remembered
    for device, record in records:
        for kind, text in _names(record):
            if (kind, text) not in found:
                number = draft.number(kind, shortened(text))
                if number is None:
                    new.setdefault((kind, device), {})[text] = None
                else:
                    found[kind, text] = number
    if new:
        _look_up(connection, new, draft)
        for (kind, _), texts in new.items():
            other = draft.number(kind, OTHER) or 0
            found |= {(kind, text): draft.number(kind, shortened(text)) or other for text in texts}
    return found


def _look_up(connection: sa.Connection, new: Mapping[tuple[str, int], Iterable[str]], draft: Draft) -> None:
    """Have the draft know the numbers of texts, of all boards together, and then draw what is new, by board."""
    wanted = {
        key: sorted({shortened(text) for text in texts})[:_MOST_NEW_NAMES] for key, texts in new.items()
    }
    kinds = sorted({kind for kind, _ in wanted})
    for kind in kinds:
        texts = {text for key, of_one in wanted.items() if key[0] == kind for text in of_one} | {OTHER}
        draft.names |= {(kind, text): number for text, number in known_ids(connection, kind, texts).items()}
    most = draft.memory.limits.names_per_board
    for (kind, device), said in sorted(wanted.items()):
        unknown = [text for text in said if draft.number(kind, text) is None]
        if len(said) == _MOST_NEW_NAMES:
            unknown.append(OTHER)
        if unknown:
            ids = ids_of(connection, kind, unknown, device, most)
            other = known_ids(connection, kind, [OTHER]).get(OTHER)
            draft.names |= {(kind, text): number for text, number in ids.items() if number != other}
            if other:
                draft.names[kind, OTHER] = other


def _names(record: Record) -> Iterator[tuple[str, str]]:
    if record.bundle:
        yield BUNDLE, record.bundle
    if record.policy:
        yield POLICY, record.policy
    if record.energy.on:
        yield MACHINE, record.energy.on
    if record.energy_why:
        yield REASON, record.energy_why
    for name in record.exit_counts:
        yield EXIT, name


_COMPUTED = ("boot", "device", "received", "at", "bundle", "policy", "exits", "latency", "latency_sum_ms")
_ENERGY = ("energy_mj", "energy_provenance", "energy_on", "energy_why")
_PLAIN = tuple(
    name
    for name in (each.name for each in fields(Record))
    if name in db.records.c and name not in {*_COMPUTED, *_ENERGY}
)
RECORD_COLUMNS = (*_COMPUTED, *_ENERGY, *_PLAIN)  # all but the number that the store draws
_PLACES = {name: place for place, name in enumerate(RECORD_COLUMNS)}
_DEVICE, _AT = _PLACES["device"], _PLACES["at"]
_plain_of = attrgetter(*_PLAIN)


def _row(
    boot: _Boot, device: int, record: Record, latest: float, now: float, numbers: _Numbers
) -> tuple[Any, ...]:
    """A record as RECORD_COLUMNS have it. latest: the highest uptime in its message."""
    exits: dict[int, int] = {}
    for name, times in record.exit_counts.items():
        if times:
            number = numbers[EXIT, name]
            exits[number] = exits.get(number, 0) + times
    energy, why, latency = record.energy, record.energy_why, record.latency
    return (
        boot.id,
        device,
        now,
        _when_recorded(boot, record, latest, now),
        numbers[BUNDLE, record.bundle] if record.bundle else None,
        numbers[POLICY, record.policy] if record.policy else None,
        pack_counts(exits),
        pack_counts(latency.counts),
        latency.sum_ms,
        energy.value,
        None if energy.provenance is None else PROVENANCES.index(energy.provenance),
        numbers[MACHINE, energy.on] if energy.on else None,
        numbers[REASON, why] if why else None,
        *_plain_of(record),
    )


def _believed(time: float, now: float) -> bool:
    return _EARLIEST <= time <= now + _CLOCKS_DIFFER_S


def _when_recorded(boot: _Boot, record: Record, latest: float, now: float) -> float:
    """The board's own time; without it, by what is known of its clock; else by uptime, its message's last is now."""
    if record.clock_synced and record.time is not None and _believed(record.time, now):
        return record.time
    if boot.offset is not None and _believed(boot.offset + record.uptime_s, now):
        return boot.offset + record.uptime_s
    at = now - (latest - record.uptime_s)
    return at if _believed(at, now) else now


def _when(time: float | None, now: float) -> float:
    """A board's own time; where it has none, or one that cannot be, the time of arrival."""
    return now if time is None or not _believed(time, now) else time


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
    job = sa.select(jobs.c.id).where(jobs.c.job_id == job_id).scalar_subquery()
    own = (states.c.job == job) & (states.c.device == device)
    connection.execute(sa.select(states.c.job).where(own).with_for_update())  # before the events are read
    said = connection.execute(
        sa.select(events.c.state, events.c.reason, events.c.detail)
        .where(events.c.job_id == job_id, events.c.device == device)
        .order_by(events.c.boot, events.c.seq)
    ).all()
    state = _state_of(said)
    connection.execute(
        sa.update(states)
        .where(own)
        .values(state=state.state, reason=state.reason, detail=state.detail, updated=now)
    )


def _state_of(said: Sequence[Any]) -> Any:
    """The event that tells a job's state: its first final one, else its last. Events are in the board's order.

    A command that was forged or replayed may carry a real job's id. Its refusal counts only where the board said
    nothing else of the job.
    """
    own = [e for e in said if not (e.state == "refused" and e.reason in _OF_THE_COMMAND)]
    return next((event for event in own if event.state in job_states.FINAL), (own or said)[-1])


def expire_silent_jobs(
    connection: sa.Connection, now: float, grace_s: float = 60.0, within_s: float | None = None
) -> int:
    """End what boards never ended: silence after a job's expiry is a failure. Returns how many.

    within_s: look only at jobs that expired that lately; None: at every one, which takes long after years of jobs.
    """
    states, jobs = db.job_devices, db.jobs
    overdue = sa.select(jobs.c.id).where(jobs.c.expires < now - grace_s)
    if within_s is not None:
        overdue = overdue.where(jobs.c.expires >= now - grace_s - within_s)
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
