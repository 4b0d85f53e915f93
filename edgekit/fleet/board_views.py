"""What is shown of boards: a page of the fleet, one board with its figures over time. Computed from the store."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput
from edgekit.fleet import schema as db
from edgekit.fleet.event_views import event_page
from edgekit.fleet.figures import Sum, total
from edgekit.fleet.job_views import device_job_page
from edgekit.fleet.names import NONE, texts_of
from edgekit.fleet.reading import ROLLED, board_series, board_sums
from edgekit.fleet.store import get_fact
from edgekit.fleet.viewing import DEFAULT_WINDOW_S, Unknown, contains, is_online, online, policy_text

SERIES_POINTS = 60
_MINUTES_SHOWN_S = 2 * 86_400.0  # charts are drawn from minutes up to this window
_SHOWN = 100  # events and jobs beside a board
_AT_ONCE = 500
STATES = ("online", "offline", "revoked", "problem", "differs", "throttled")

_PROFILE: sa.ColumnElement[str] = sa.func.coalesce(db.devices.c.says_profile, db.devices.c.profile)
_BUNDLE: sa.ColumnElement[str] = sa.func.coalesce(db.devices.c.runs, db.names.c.text)
_JOINED = (
    db.devices.join(db.presence, db.presence.c.device == db.devices.c.id)
    .outerjoin(db.names, db.names.c.id == db.presence.c.bundle)
    .outerjoin(db.desired, db.desired.c.device == db.devices.c.id)
)
_LIVE = db.devices.c.revoked_at.is_(None)
_DIFFERS = sa.and_(
    _LIVE, db.desired.c.target.is_not(None), db.desired.c.target != sa.func.coalesce(_BUNDLE, "")
)
_SLOWED = sa.and_(_LIVE, sa.or_(db.presence.c.throttled.is_(True), db.presence.c.under_voltage.is_(True)))
_PROBLEM = sa.and_(
    _LIVE,
    sa.or_(_SLOWED, db.devices.c.why.is_not(None), sa.func.coalesce(db.devices.c.settings_refused, 0) > 0),
)
_STANDING = ("requests", "errors", "deadline_missed", "p50", "p95", "p99", "accuracy", "energy_mj")
_ORDERS: Mapping[str, sa.ColumnElement[Any]] = {
    "name": db.devices.c.name,
    "profile": _PROFILE,
    "bundle": _BUNDLE,
    "last_seen": db.presence.c.last_seen,
    "temperature_c": db.presence.c.temperature_c,
    **{key: db.standings.c[key] for key in _STANDING},
}
SORTS = tuple(_ORDERS)


def states_of(now: float) -> dict[str, sa.ColumnElement[bool]]:
    """State -> the condition on rows of the joined tables."""
    return {
        "online": online(now),
        "offline": sa.and_(_LIVE, sa.not_(online(now))),
        "revoked": sa.not_(_LIVE),
        "problem": _PROBLEM,
        "differs": _DIFFERS,
        "throttled": _SLOWED,
    }


def device_page(
    connection: sa.Connection,
    now: float,
    *,
    window_s: float = DEFAULT_WINDOW_S,
    search: str = "",
    profile: str | None = None,
    bundle: str | None = None,
    state: str | None = None,
    tag: str | None = None,
    sort: str = "name",
    descending: bool = False,
    offset: int = 0,
    limit: int = 50,
) -> dict[str, Any]:
    """Some of the boards, and how many there are in `total`.

    search: part of a name. bundle: NAME/VERSION, or NAME for all its versions. sort: by a figure it is that of the
    last 24 hours; boards where it is unknown come last. Raises BadInput.
    """
    wanted = _conditions(now, search, profile, bundle, state, tag)
    source: Any = _JOINED
    if sort not in _ORDERS:
        raise BadInput(f"sort must be one of {', '.join(SORTS)}, got {sort!r}")
    if sort in _STANDING:
        source = source.outerjoin(db.standings, db.standings.c.device == db.devices.c.id)
    order = _ORDERS[sort]
    query = sa.select(db.devices.c.id).select_from(source).where(*wanted)
    query = query.order_by(
        *(() if sort == "name" else (order.is_(None),)),
        order.desc() if descending else order,
        db.devices.c.name,
    )
    ids = list(connection.scalars(query.offset(offset).limit(limit)))
    count = connection.scalar(sa.select(sa.func.count()).select_from(_JOINED).where(*wanted)) or 0
    rows = {row["name"]: row for row in device_rows(connection, now, window_s, ids=ids)}
    query = sa.select(db.devices.c.id, db.devices.c.name).where(db.devices.c.id.in_(ids))
    names = {row.id: row.name for row in connection.execute(query)}
    return {"total": count, "devices": [rows[names[number]] for number in ids]}


def facets(connection: sa.Connection) -> dict[str, dict[str, int]]:
    """How many boards there are of each profile, bundle and tag: what filters can be set to. Revoked ones left out."""
    found: dict[str, dict[str, int]] = {}
    for key, column in (("profiles", _PROFILE), ("bundles", _BUNDLE)):
        query = sa.select(column, sa.func.count()).select_from(_JOINED).where(_LIVE).group_by(column)
        counts = {row[0]: row[1] for row in connection.execute(query) if row[0]}
        found[key] = dict(sorted(counts.items()))
    tags: dict[str, int] = {}
    same = sa.select(db.devices.c.tags, sa.func.count()).where(_LIVE).group_by(db.devices.c.tags)
    for text, count in connection.execute(same):
        for tag in json.loads(text):
            tags[tag] = tags.get(tag, 0) + count
    return {**found, "tags": dict(sorted(tags.items()))}


def boards_counted(connection: sa.Connection, now: float) -> dict[str, int]:
    """How many boards are enrolled, and how many are in each state."""
    counts = {name: sa.func.sum(sa.case((where, 1), else_=0)) for name, where in states_of(now).items()}
    query = sa.select(sa.func.sum(sa.case((_LIVE, 1), else_=0)).label("enrolled"))
    row = connection.execute(
        query.add_columns(*(c.label(n) for n, c in counts.items())).select_from(_JOINED)
    ).one()
    return {key: int(value or 0) for key, value in zip(row._fields, row, strict=True)}


def boards_by(connection: sa.Connection, now: float, *keys: str) -> list[tuple[Any, ...]]:
    """(key..., boards, those online) of boards that are not revoked, by "profile" or "bundle" or both."""
    columns = [{"profile": _PROFILE, "bundle": _BUNDLE}[key] for key in keys]
    here = sa.func.sum(sa.case((online(now), 1), else_=0))
    query = sa.select(*columns, sa.func.count(), here).select_from(_JOINED).where(_LIVE).group_by(*columns)
    return [(*row[:-1], int(row[-1] or 0)) for row in connection.execute(query)]


def device_rows(
    connection: sa.Connection,
    now: float,
    window_s: float = DEFAULT_WINDOW_S,
    names: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """One row per board, by name. Figures are those of the bundle in force, of the last `window_s` seconds."""
    devices, presence = db.devices, db.presence
    own = [column for column in presence.c if column.name != "device"]
    query = (
        sa.select(devices, *own).join(presence, presence.c.device == devices.c.id).order_by(devices.c.name)
    )
    if names is not None:
        query = query.where(devices.c.name.in_(names))
    if ids is not None:
        query = query.where(devices.c.id.in_(ids))
    found = connection.execute(query).all()
    rows: list[dict[str, Any]] = []
    for first in range(0, len(found), _AT_ONCE):
        rows += _rows(connection, found[first : first + _AT_ONCE], now, window_s)
    return rows


def device_detail(
    connection: sa.Connection, name: str, now: float, window_s: float = DEFAULT_WINDOW_S
) -> dict[str, Any]:
    """A board's row with its figures per bundle, over time, its newest events and jobs. Raises Unknown."""
    found = device_rows(connection, now, window_s, [name])
    if not found:
        raise Unknown(f"there is no board called {name!r}")
    device = connection.execute(sa.select(db.devices).where(db.devices.c.name == name)).one()
    sums = board_sums(connection, now - window_s, now, [device.id]).get(device.id, {})
    texts = texts_of(connection, {n for s in sums.values() for n in s.names} | set(sums))
    bundles = sorted((texts[key], figures) for key, figures in sums.items() if key in texts)
    return {
        **found[0],
        "info": json.loads(device.info or "null"),
        "reported": json.loads(device.reported or "null"),
        "bundles": [{"bundle": bundle, **figures.summary(texts)} for bundle, figures in bundles],
        "series": device_series(connection, device.id, now - window_s, now),
        "events": event_page(connection, device=name, limit=_SHOWN)["events"],
        "jobs": device_job_page(connection, name, limit=_SHOWN)["jobs"],
    }


def device_series(
    connection: sa.Connection, device: int, start: float, end: float, points: int = SERIES_POINTS
) -> list[dict[str, Any]]:
    """A board's figures over time, in at most `points` spans that hold something, oldest first."""
    step = db.MINUTE_S if end - start <= _MINUTES_SHOWN_S else db.HOUR_S
    return points_of(connection, board_series(connection, device, start, end, step), step, points)


def points_of(
    connection: sa.Connection, found: Sequence[tuple[int, int, Sum]], step: int, points: int = SERIES_POINTS
) -> list[dict[str, Any]]:
    """(begin of a span, bundle, figures) joined to at most `points` spans, as charts want them."""
    if not found:
        return []
    width = max(1, math.ceil((found[-1][0] - found[0][0] + step) / step / points)) * step
    spans: dict[int, list[tuple[int, Sum]]] = {}
    for at, bundle, figures in found:
        spans.setdefault(at // width * width, []).append((bundle, figures))
    sums = {at: total(figures for _, figures in parts) for at, parts in spans.items()}
    texts = texts_of(connection, {n for s in sums.values() for n in s.names} | {key for _, key, _ in found})
    return [
        {
            "at": at + width / 2,
            "bundle": texts.get(spans[at][-1][0]),
            "throttled": figures.throttled_s > 0,
            "temperature_c": figures.temperature_c,
        }
        | {key: value for key, value in figures.summary(texts).items() if key in _SERIES_KEYS}
        for at, figures in sorted(sums.items())
    ]


_SERIES_KEYS = ("requests", "latency_ms", "exit_counts", "accuracy", "energy_mj", "deadline_missed", "errors")


def _conditions(
    now: float, search: str, profile: str | None, bundle: str | None, state: str | None, tag: str | None
) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if search:
        found.append(contains(db.devices.c.name, search))
    if profile is not None:
        found.append(_PROFILE.in_([profile]))
    if bundle is not None:
        found.append(
            _BUNDLE.in_([bundle]) if "/" in bundle else _BUNDLE.startswith(f"{bundle}/", autoescape=True)
        )
    if tag is not None:  # tags are names: no quotes in them
        found.append(db.devices.c.tags.contains(json.dumps(tag), autoescape=True))
    if state is not None:
        if state not in STATES:
            raise BadInput(f"state must be one of {', '.join(STATES)}, got {state!r}")
        found.append(states_of(now)[state])
    return found


def fresh_counts(connection: sa.Connection, devices: Sequence[int]) -> dict[int, int]:
    """Device -> how many of its records are not in `presence.records` yet."""
    table = db.records
    query = sa.select(table.c.device, sa.func.count()).where(table.c.id > (get_fact(connection, ROLLED) or 0))
    query = query.where(table.c.device.in_(devices)).group_by(table.c.device)
    return {row[0]: row[1] for row in connection.execute(query)}


def _rows(
    connection: sa.Connection, found: Sequence[sa.Row[Any]], now: float, window_s: float
) -> list[dict[str, Any]]:
    ids = [device.id for device in found]
    query = sa.select(db.desired).where(db.desired.c.device.in_(ids))
    wanted = {row.device: row for row in connection.execute(query)}
    sums = board_sums(connection, now - window_s, now, ids)
    counts = fresh_counts(connection, ids)
    bundles = {key for part in sums.values() for key in part}
    texts = texts_of(connection, bundles | {d.bundle for d in found} | {d.policy for d in found})
    texts |= texts_of(connection, {n for part in sums.values() for s in part.values() for n in s.names})
    return [
        _row(device, wanted.get(device.id), counts.get(device.id, 0), sums.get(device.id, {}), texts, now)
        for device in found
    ]


def _row(
    device: sa.Row[Any],
    desired: sa.Row[Any] | None,
    fresh: int,
    sums: Mapping[int, Sum],
    texts: Mapping[int, str],
    now: float,
) -> dict[str, Any]:
    info, reported = json.loads(device.info or "{}"), json.loads(device.reported or "{}")
    bundle = reported.get("bundle") or texts.get(device.bundle or NONE)
    own = next((figures for key, figures in sums.items() if texts.get(key) == bundle), Sum())
    refused = reported.get("config_refused") or {}
    here = is_online(device, now)
    differs = desired is not None and desired.target not in {None, bundle}
    row = {
        "name": device.name,
        "profile": info.get("profile") or device.profile,
        "tags": json.loads(device.tags),
        "online": here,
        "state": "revoked" if device.revoked_at is not None else "online" if here else "offline",
        "revoked_at": device.revoked_at,
        "certificate_expires": device.certificate_expires,
        "last_seen": device.last_seen,
        "bundle": bundle,
        "policy": policy_text(reported.get("policy")) or texts.get(device.policy or NONE),
        "why": reported.get("why"),
        "rev": reported.get("rev"),
        "desired": desired and {"rev": desired.rev, "target": desired.target, "job": desired.job_id},
        "differs": differs and device.revoked_at is None,
        "settings": {"config": reported.get("config") or {}, "refused": refused},
        "agent": info.get("agent"),
        "sensors": info.get("sensors"),
        "simulated": info.get("simulated"),
        "accepts_measure": info.get("accepts_measure"),
        "records": device.records + fresh,
        "malformed": device.malformed,
        "malformed_why": device.malformed_why,
        "temperature_c": device.temperature_c,
        "throttled": device.throttled,
        "under_voltage": device.under_voltage,
        "memory_mb": device.memory_mb,
        "idle_power_mw": device.idle_power_mw,
    }
    return row | {"problems": [] if device.revoked_at is not None else _problems(row)} | own.summary(texts)


def _problems(row: Mapping[str, Any]) -> list[str]:
    """What state `problem` means, in words."""
    found = [
        word for key, word in (("throttled", "throttled"), ("under_voltage", "under-voltage")) if row[key]
    ]
    if row["why"] is not None:
        found.append(str(row["why"]))
    found += [f"setting {key} refused: {why}" for key, why in row["settings"]["refused"].items()]
    return found
