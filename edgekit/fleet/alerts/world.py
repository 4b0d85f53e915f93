"""What rules look at, read from the store in few queries however many boards there are. Decides nothing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import EdgekitError
from edgekit.core.jobs import DONE
from edgekit.core.manifest import MANIFEST, Manifest
from edgekit.core.selector import parse_selector
from edgekit.core.target import parse_label, target_path
from edgekit.fleet import schema as db
from edgekit.fleet.names import BUNDLE, POLICY, all_of
from edgekit.fleet.packing import unpack_counts
from edgekit.fleet.store import get_fact
from edgekit.repo.metadata import read_current, target_file

SILENT_INTERVALS, SILENT_AT_LEAST_S = 3, 15.0  # as fleet.views judges who is online
SETTLE_S = 180.0  # after the broker is back, boards need time to come back: nobody knows who is online
INGEST_SILENT_S = 60.0  # an ingester says every few seconds that it lives
UPDATED_WITHIN_S = 7 * 86_400.0
_AT_ONCE = 400
_ANY_NAME = 2**62  # numbers of exits are names
_MOST_MANIFEST = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Board:
    """A board whose credentials count. bundle, policy: of its newest record. online: None where it never was."""

    id: int
    name: str
    profile: str | None
    tags: frozenset[str]
    online: bool | None
    last_seen: float | None
    bundle: str | None
    bundle_id: int | None
    policy: str | None
    throttled: bool | None

    def is_in(self, selector: str) -> bool:
        """Whether a selector means it."""
        return parse_selector(selector).matches(
            name=self.name, profile=self.profile, tags=self.tags, bundle=self.bundle
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Sums of one board with one bundle over a window."""

    requests: int
    errors: int
    deadline_missed: int
    latency_sum_ms: float


@dataclass
class World:
    """One look at the fleet. knows_online: whether anybody knows who is online now."""

    now: float
    boards: Mapping[int, Board]
    ingest: Mapping[str, Any]
    knows_online: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    chosen: dict[str, list[Board]] = field(default_factory=dict)

    def selected(self, selector: str) -> list[Board]:
        """The boards that a selector means."""
        if selector not in self.chosen:
            parsed = parse_selector(selector)
            self.chosen[selector] = [
                board
                for board in self.boards.values()
                if parsed.matches(
                    name=board.name, profile=board.profile, tags=board.tags, bundle=board.bundle
                )
            ]
        return self.chosen[selector]


def look(connection: sa.Connection, now: float) -> World:
    """Read every board, and how ingest is."""
    devices, presence = db.devices, db.presence
    bundles, policies = all_of(connection, BUNDLE), all_of(connection, POLICY)
    query = (
        sa.select(
            devices.c.id,
            devices.c.name,
            sa.func.coalesce(devices.c.says_profile, devices.c.profile).label("profile"),
            devices.c.tags,
            presence.c.online,
            presence.c.last_seen,
            presence.c.interval_s,
            presence.c.bundle,
            presence.c.policy,
            presence.c.throttled,
        )
        .outerjoin(presence, presence.c.device == devices.c.id)
        .where(devices.c.revoked_at.is_(None))
    )
    boards = {
        row.id: Board(
            row.id,
            row.name,
            row.profile,
            frozenset(json.loads(row.tags)) if row.tags != "[]" else frozenset(),
            is_online(row, now),
            row.last_seen,
            bundles.get(row.bundle),
            row.bundle,
            policies.get(row.policy),
            row.throttled,
        )
        for row in connection.execute(query)
    }
    ingest = _ingest(connection, now)
    knows = ingest["connected"] and now - ingest["since"] >= SETTLE_S
    return World(now, boards, ingest, knows)


def is_online(row: Any, now: float) -> bool | None:
    """Its status says so, and it has not been silent for several intervals. None: it never said anything."""
    if row.last_seen is None:
        return None
    if not row.online:
        return False
    silent = now - row.last_seen
    return not row.interval_s or bool(silent <= max(SILENT_INTERVALS * row.interval_s, SILENT_AT_LEAST_S))


def _ingest(connection: sa.Connection, now: float) -> dict[str, Any]:
    """connected, since, why: what the ingesters say, and whether one of them lives."""
    fact = get_fact(connection, "ingest") or {}
    found = {
        "connected": bool(fact.get("connected")),
        "since": float(fact.get("since") or 0.0),
        "why": str(fact.get("why") or "starting"),
    }
    table = db.facts
    rows = connection.execute(sa.select(table.c.value).where(table.c.key.like("ingest:%")))
    beats = [json.loads(row.value).get("at") or 0.0 for row in rows]
    if beats and now - max(beats) > INGEST_SILENT_S:
        since = max(beats)
        return {"connected": False, "since": since, "why": "no ingest process says that it lives"}
    return found


def windows(connection: sa.Connection, since: float, boards: Collection[Board]) -> dict[int, Window]:
    """Board -> its sums since then with the bundle that it runs; boards that answered nothing are left out.

    Each board is looked up by its key, so what boards said before is not read.
    """
    table, presence = db.minutes, db.presence
    begin = int(since // db.MINUTE_S) * db.MINUTE_S
    query = (
        sa.select(
            table.c.device,
            sa.func.sum(table.c.requests),
            sa.func.sum(table.c.errors),
            sa.func.sum(table.c.deadline_missed),
            sa.func.sum(table.c.latency_sum_ms),
        )
        .select_from(presence)
        .join(table, (table.c.device == presence.c.device) & (table.c.bundle == presence.c.bundle))
        .where(table.c.at >= begin, presence.c.last_seen >= since)
        .group_by(table.c.device)
    )
    wanted = {board.id for board in boards}
    return {
        row[0]: Window(int(row[1]), int(row[2]), int(row[3]), float(row[4]))
        for row in connection.execute(query)
        if row[0] in wanted and row[1] + row[2]
    }


def packed_sums(
    connection: sa.Connection, column: str, since: float, devices: Iterable[Board]
) -> dict[int, dict[int, int]]:
    """Board -> the added-up counts of `latency` or `exits` since then, with the bundle that it runs."""
    table = db.minutes
    begin = int(since // db.MINUTE_S) * db.MINUTE_S
    running = {board.id: board.bundle_id for board in devices}
    ids = sorted(running)
    found: dict[int, dict[int, int]] = {}
    for first in range(0, len(ids), _AT_ONCE):
        query = sa.select(table.c.device, table.c.bundle, table.c[column]).where(
            table.c.device.in_(ids[first : first + _AT_ONCE]), table.c.at >= begin
        )
        for device, bundle, packed in connection.execute(query):
            if bundle == running[device]:
                sums = found.setdefault(device, {})
                for key, count in unpack_counts(packed, _ANY_NAME).items():
                    sums[key] = sums.get(key, 0) + count
    return found


@dataclass(frozen=True, slots=True)
class Energy:
    """mJ per request of one board with one bundle. kinds: bit n is PROVENANCES[n]. last: the newest hour it is of."""

    mj: float
    requests: int
    kinds: int
    last: float


def energies(connection: sa.Connection, now: float) -> dict[int, dict[int, Energy]]:
    """Boards that were updated lately -> bundle (names.id) -> energy, of twice as long."""
    states, jobs, hours = db.job_devices, db.jobs, db.hours
    updated = (
        sa.select(states.c.device)
        .join(jobs, jobs.c.id == states.c.job)
        .where(states.c.state == DONE, states.c.updated >= now - UPDATED_WITHIN_S, jobs.c.target != "")
        .distinct()
    ).subquery()
    query = (
        sa.select(
            hours.c.device,
            hours.c.bundle,
            sa.func.sum(hours.c.energy_mj),
            sa.func.sum(hours.c.energy_requests),
            sa.func.min(hours.c.energy_kinds),
            sa.func.max(hours.c.energy_kinds),
            sa.func.max(hours.c.at),
        )
        .join(updated, updated.c.device == hours.c.device)
        .where(hours.c.at >= int(now - 2 * UPDATED_WITHIN_S), hours.c.energy_requests > 0)
        .group_by(hours.c.device, hours.c.bundle)
    )
    found: dict[int, dict[int, Energy]] = {}
    for device, bundle, mj, requests, least, most, last in connection.execute(query):
        kinds = most if least == most else 0  # of several kinds: comparable with nothing
        found.setdefault(device, {})[bundle] = Energy(float(mj), int(requests), kinds, float(last))
    return found


def board_ends(connection: sa.Connection) -> dict[int, tuple[float, str]]:
    """Board -> when the first thing it holds ends, and what: metadata by role as it says, its certificate."""
    table = db.devices
    found: dict[int, tuple[float, str]] = {}
    columns = (table.c.id, table.c.info, table.c.certificate_expires)
    for row in connection.execute(sa.select(*columns).where(table.c.revoked_at.is_(None))):
        ends = [(row.certificate_expires, "certificate")] if row.certificate_expires is not None else []
        said = json.loads(row.info or "{}").get("metadata_expires") or {}
        ends += [
            (float(at), role)
            for role, at in said.items()
            if role in {"root", "targets", "snapshot", "timestamp"}
        ]
        if ends:
            found[row.id] = min(ends)
    return found


def repository_ends(folder: Path) -> dict[str, float]:
    """Role -> when the metadata in force ends. Raises BadInput, WorldFailed."""
    current = read_current(folder)
    roles = ("root", "targets", "snapshot", "timestamp")  # rounds to measure are meant to end soon
    return {role: _utc(getattr(current, role).signed.expires).timestamp() for role in roles}


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def dropped_messages(connection: sa.Connection) -> int:
    """Every message that was dropped so far, of all boards and of nobody's."""
    of_boards = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(db.devices.c.malformed), 0)))
    table = db.counters
    others = connection.scalar(
        sa.select(sa.func.coalesce(sa.func.sum(table.c.count), 0)).where(table.c.key != "replays")
    )
    return int(of_boards or 0) + int(others or 0)


class Manifests:
    """Manifests of the repository's bundles by label; each is read once. None: it is not there, or cannot be read."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._known: dict[str, Manifest | None] = {}

    def get(self, label: str | None) -> Manifest | None:
        """The manifest of name/version."""
        if label is None:
            return None
        if self._known.get(label) is None:  # what is not there may be published later
            if len(self._known) > 1000:
                self._known.clear()
            self._known[label] = read_manifest(self._repository, label)
        return self._known[label]


def read_manifest(repository: Path, label: str) -> Manifest | None:
    """A published bundle's manifest: its file was verified when it was published."""
    try:
        path = target_file(repository, target_path(*parse_label(label, "bundle")))
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(MANIFEST).file_size > _MOST_MANIFEST:
                return None
            return Manifest.parse(json.loads(archive.read(MANIFEST)), label)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EdgekitError):
        return None
