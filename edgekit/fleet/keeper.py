"""What the server does about its repository by itself: renew, go past what boards have seen, tell of revocations, warn.

A server that was restored from a backup offers boards older versions than they have seen, and they refuse them. Each
board says in `info` which versions it has seen, so timestamp and snapshot are signed anew above those, with the online
key. What a board says is only its word: of all boards together, at most MAX_STEPS versions a day are believed, and the
rest is reported. Targets, root and the measuring key are not here; for them a line says what to do.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.trust import LIVES_S, near_expiry
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.reading import alert_problems
from edgekit.fleet.certificates import BOARD_LIFE
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.jobs import create_refresh
from edgekit.fleet.store import Store, get_fact, open_store, put_fact
from edgekit.repo.metadata import MEASURE, Current, metadata_folder, read_current
from edgekit.repo.publish import renew
from edgekit.repo.refresh import advance, versions
from edgekit.repo.revoke import revoked_labels
from edgekit.repo.status import expiry_problems

log = logging.getLogger("edgekit.fleet.keeper")

RENEW_EVERY_S = 3600.0
CHECK_EVERY_S = 10.0
SAY_AGAIN_S = 86_400.0
MAX_STEPS, STEPS_WITHIN_S = 10_000, 86_400.0  # 2**31 versions would take 588 years
ONLINE = ("timestamp", "snapshot")
FACT = "repository"
_SHOWN = 5
_PAST = {"targets": "targets.pem", MEASURE: "measure.pem"}


@dataclass(frozen=True)
class Board:
    """What an enrolled board said of itself. seen, expires: by role. certificate_expires: Unix seconds."""

    name: str
    seen: Mapping[str, int] = field(default_factory=dict)
    expires: Mapping[str, float] = field(default_factory=dict)
    certificate_expires: float | None = None


def boards_of(connection: sa.Connection) -> list[Board]:
    """Every board whose credentials count. What it says comes over its own topics alone (the broker's ACL)."""
    table = db.devices
    rows = connection.execute(
        sa.select(table.c.name, table.c.info, table.c.certificate_expires)
        .where(table.c.revoked_at.is_(None))
        .order_by(table.c.name)
    )
    return [_board(row) for row in rows]


def _board(row: Any) -> Board:
    info = json.loads(row.info or "{}")  # was parsed before it was stored
    return Board(
        row.name, info.get("metadata", {}), info.get("metadata_expires", {}), row.certificate_expires
    )


@dataclass(frozen=True)
class Behind:
    """Where boards have seen more than is in force. past: role -> version to go above, for the online key.

    problems: one line for each thing that is not done here.
    """

    past: Mapping[str, int]
    problems: tuple[str, ...]


def behind(current: Current, boards: Iterable[Board], steps: int, folder: Path) -> Behind:
    """Compare what is in force with what boards have seen. steps: how many versions may still be gone up today."""
    in_force = versions(current)
    ahead: dict[str, dict[int, list[str]]] = {}
    for board in boards:
        for role, version in board.seen.items():
            if version > in_force.get(role, version):
                ahead.setdefault(role, {}).setdefault(version, []).append(board.name)
    past: dict[str, int] = {}
    problems: list[str] = []
    for role in ONLINE:
        claims = ahead.get(role, {})
        near = [version for version in claims if version - in_force[role] + 1 <= steps]
        if near:
            past[role] = max(near)
            steps -= past[role] - in_force[role] + 1
        far = {version: names for version, names in claims.items() if version not in near}
        if far:
            problems.append(_too_far(role, far, in_force[role], folder))
    problems += [_offline(role, ahead[role], in_force[role], folder) for role in _PAST if role in ahead]
    if "root" in ahead:
        problems.append(_lost_root(ahead["root"], in_force["root"], folder))
    return Behind(past, tuple(problems))


def _too_far(role: str, claims: Mapping[int, list[str]], in_force: int, folder: Path) -> str:
    version = max(claims)
    return (
        f"{_some(claims)}: says it has seen {role} {version}, {in_force} is in force, and not more than {MAX_STEPS} "
        f"versions a day are believed: if it is true, edgekit repo refresh {folder} --past {role}={version}; if the "
        f"online key was stolen, edgekit repo rotate {folder} online; else the board lies"
    )


def _offline(role: str, claims: Mapping[int, list[str]], in_force: int, folder: Path) -> str:
    version = max(claims)
    return (
        f"{_some(claims)}: has seen {role} {version}, {in_force} is in force, so boards refuse all that is published "
        "here, as if this server was restored from an older backup: add and revoke again what was since, then "
        f"edgekit repo refresh {folder} --past {role}={version} --key {_PAST[role]}"
    )


def _lost_root(claims: Mapping[int, list[str]], in_force: int, folder: Path) -> str:
    version = max(claims)
    return (
        f"{_some(claims)}: has seen root {version}, {in_force} is in force: bring each missing root back from a later "
        f"backup, or from that board (state_dir/metadata/root_history/{version}.root.json), with: edgekit repo sign "
        f"{folder} {version}.root.json"
    )


def _some(claims: Mapping[int, list[str]]) -> str:
    names = sorted({name for found in claims.values() for name in found})
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def board_alarms(boards: Iterable[Board], now: float) -> list[str]:
    """One line per thing of boards with less than a third of its life left: metadata by role, certificates."""
    metadata: dict[str, list[tuple[float, str]]] = {}
    for board in boards:
        for role, expires in board.expires.items():
            if role in LIVES_S and near_expiry(role, expires, now):  # a board may say anything
                metadata.setdefault(role, []).append((expires, board.name))
        certificate = board.certificate_expires
        if certificate is not None and certificate - now < BOARD_LIFE.total_seconds() / 3:
            metadata.setdefault("certificate", []).append((certificate, board.name))
    why = {"certificate": "they have not renewed it: have they been off, or does the agent's log say why?"}
    usual = "they have not taken up a newer one: have they been off, or does the agent's log say why?"
    return [
        f"{_some({0: [name for _, name in rows]})}: {role} ends on {_day(min(rows)[0])} or later, with less than a "
        f"third of its life left; {why.get(role, usual)}"
        for role, rows in sorted(metadata.items())
    ]


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d}"


class Keeper:
    """Does what is due each time it is called; every failure is said and tried again."""

    def __init__(self, config: FleetConfig, clock: Callable[[], float] = time.time) -> None:
        self.config, self.clock = config, clock
        self.store: Store | None = None
        self.next_renewal = self.next_check = 0.0
        self.published: int | None = None  # when timestamp.json was written, as looked at last
        self.said: dict[str, float] = {}

    def look(self, ticks: float | None = None) -> None:
        """Renew each hour, compare with boards each 10 s, tell boards at once of what is revoked. ticks: monotonic."""
        ticks = time.monotonic() if ticks is None else ticks
        try:
            if ticks >= self.next_renewal:
                self.next_renewal = ticks + RENEW_EVERY_S
                if renew(self.config.repository, self._now()):
                    log.info("repository: timestamp signed anew")
        except (BadInput, WorldFailed) as err:
            log.warning("repository: could not be renewed: %s", one_line(err))
        try:
            written = (metadata_folder(self.config.repository) / "timestamp.json").stat().st_mtime_ns
            if ticks >= self.next_check or written != self.published:
                self.next_check = ticks + CHECK_EVERY_S
                self._check()
                self.published = written
        except (BadInput, WorldFailed, OSError) as err:
            log.warning("repository: could not be looked at: %s", one_line(err))
        except Exception:  # the server serves on
            log.exception("repository: looking at it met a defect")

    def close(self) -> None:
        """Let go of the database."""
        if self.store is not None:
            self.store.close()
            self.store = None

    def _opened(self) -> Store:
        if self.store is None:
            self.store = open_store(self.config.database_url)
        return self.store

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), timezone.utc)

    def _check(self) -> None:
        store = self._opened()
        folder, now = self.config.repository, self.clock()
        current = read_current(folder)
        with store.read() as connection:
            boards = boards_of(connection)
            fact = get_fact(connection, FACT) or {}
        steps = _steps(fact.get("advanced"), now)
        found = behind(current, boards, MAX_STEPS - steps["used"], folder)
        if found.past:
            before = versions(current)
            current = advance(folder, found.past, self._now())
            after = versions(current)
            steps["used"] += sum(after[role] - before[role] for role in found.past)
            steps["times"] += 1
            log.warning("repository: boards had seen newer versions: %s", _said(before, after, found.past))
        problems = [*found.problems, *board_alarms(boards, now)]
        self._tell_revoked(current, now)
        expiry = expiry_problems(current, self._now())
        self._keep({"expiry": expiry, "problems": problems, "advanced": steps}, fact)
        self._say([*expiry, *problems], now)

    def _tell_revoked(self, current: Current, now: float) -> None:
        """Have boards look at the repository where something was revoked that they were not told of."""
        store = self._opened()
        revoked = revoked_labels(current.targets.signed)
        with store.read() as connection:
            told = get_fact(connection, "revoked")
        if told is not None and revoked <= set(told):
            return
        with store.write() as connection:
            for label in sorted(revoked - set(told or ())):
                number = create_refresh(connection, label, now)
                log.warning("%s is revoked: %d boards are told to look", label, number)
            put_fact(connection, "revoked", sorted(revoked | set(told or ())))

    def _keep(self, wanted: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        if wanted != known:
            with self._opened().write() as connection:
                put_fact(connection, FACT, wanted)

    def _say(self, problems: Iterable[str], now: float) -> None:
        """A line in the log when a problem appears, and again each day."""
        problems = list(problems)
        self.said = {line: at for line, at in self.said.items() if line in problems}
        for line in problems:
            if now - self.said.get(line, 0.0) >= SAY_AGAIN_S:
                self.said[line] = now
                log.warning("repository: %s", line)


def _steps(fact: Any, now: float) -> dict[str, Any]:
    """How many versions were gone up since when; a new day begins anew. times: how often ever."""
    found = dict(fact or {"since": now, "used": 0, "times": 0})
    if not 0 <= now - found["since"] < STEPS_WITHIN_S:
        found |= {"since": now, "used": 0}
    return found


def _said(before: Mapping[str, int], after: Mapping[str, int], roles: Iterable[str]) -> str:
    return ", ".join(f"{role} {before[role]} -> {after[role]}" for role in roles)


def board_problems(connection: sa.Connection) -> list[str]:
    """The lines about boards that the keeper left last. They are a few seconds old."""
    fact = get_fact(connection, FACT) or {}
    return [*(str(line) for line in fact.get("problems", [])), *alert_problems(connection)]


def all_problems(connection: sa.Connection) -> list[str]:
    """Those and the ones about the repository itself, for who does not read the metadata."""
    fact = get_fact(connection, FACT) or {}
    lines = [str(line) for line in (*fact.get("expiry", []), *fact.get("problems", []))]
    return [*lines, *alert_problems(connection)]
