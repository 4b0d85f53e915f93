"""What each kind of rule sees in the world: a table of functions, one a kind. Writes nothing.

A reading is made for what may be over its threshold; whoever has no reading and is not unknown is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import EdgekitError, one_line, printable
from edgekit.core.figure import PROVENANCES
from edgekit.core.histogram import Histogram
from edgekit.core.trust import LIVES_S
from edgekit.fleet import schema as db
from edgekit.fleet.alerts import world as looks
from edgekit.fleet.alerts.mix import expected_mix, total_variation
from edgekit.fleet.alerts.rules import Rule
from edgekit.fleet.alerts.world import Board, Energy, Manifests, World
from edgekit.fleet.names import EXIT, all_of
from edgekit.fleet.store import get_fact

YES = 0.5  # what a yes (1) is over, and a no (0) is under
STOPPED = ("paused", "failed", "rolling_back", "rolled_back")  # a rollout that waits for a person
BUNDLE_CLEAR = 0.9  # of a bundle's own limit
_TEXT = 300
_ROLLOUTS_WITHIN_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure of one subject. value: None where it is unknown. over, clear: the thresholds that hold for it."""

    subject: str
    value: float | None
    over: float
    clear: float
    text: str
    board: Board | None = None


@dataclass
class Seen:
    """What a rule sees. note: why it cannot see everything it should, one line, or nothing."""

    readings: list[Reading] = field(default_factory=list)
    note: str | None = None


@dataclass
class Eyes:
    """What readings need besides the world. drops: (time, messages dropped so far), oldest first."""

    connection: sa.Connection
    manifests: Manifests
    repository: Path
    drops: list[tuple[float, int]] = field(default_factory=list)


def read(rule: Rule, world: World, eyes: Eyes) -> Seen:
    """Everything a rule sees now. Raises BadInput, WorldFailed."""
    return KINDS[rule.kind](rule, world, eyes)


def shown(text: str) -> str:
    """A text with what boards said in it, as one line of bounded length."""
    plain = printable(text)
    return plain if len(plain) <= _TEXT else plain[: _TEXT - 1] + "…"


def when(at: float | None) -> str:
    """A moment for people."""
    return "never" if at is None else f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _of(rule: Rule, board: Board, value: float | None, text: str) -> Reading:
    over = YES if rule.above is None else rule.above
    clear = YES if rule.clear is None else rule.clear
    return Reading(f"board:{board.name}", value, over, clear, shown(text), board)


def _offline(rule: Rule, world: World, eyes: Eyes) -> Seen:
    del eyes
    boards = [board for board in world.selected(rule.selector) if board.online is not None]
    if not world.knows_online:
        why = (
            world.ingest["why"]
            if not world.ingest["connected"]
            else "boards come back after the broker was away"
        )
        return Seen([_of(rule, b, None, "") for b in boards], f"nobody knows who is online: {why}")
    return Seen(
        [_of(rule, b, 1.0, f"offline, last heard of {when(b.last_seen)}") for b in boards if not b.online]
    )


def _throttled(rule: Rule, world: World, eyes: Eyes) -> Seen:
    del eyes
    found = []
    for board in world.selected(rule.selector):
        if not board.online or board.throttled is None:
            found.append(_of(rule, board, None, ""))
        elif board.throttled:
            found.append(_of(rule, board, 1.0, "throttled: its processor runs slower than it could"))
    return Seen(found)


def _share(name: str, what: str) -> Callable[[Rule, World, Eyes], Seen]:
    def seen(rule: Rule, world: World, eyes: Eyes) -> Seen:
        boards = world.selected(rule.selector)
        sums = looks.windows(eyes.connection, world.now - rule.window_s, boards)
        found = []
        for board in boards:
            window = sums.get(board.id)
            number = 0 if window is None else window.requests + (window.errors if name == "errors" else 0)
            if window is None or number < rule.min_requests:
                found.append(_of(rule, board, None, ""))
                continue
            share = getattr(window, name) / number
            if share > (rule.clear or 0.0):
                text = f"{share:.1%} of {number} requests {what} ({board.bundle})"
                found.append(_of(rule, board, share, text))
        return Seen(found)

    return seen


def _p99(rule: Rule, world: World, eyes: Eyes) -> Seen:
    since = world.now - rule.window_s
    boards = world.selected(rule.selector)
    sums = looks.windows(eyes.connection, since, boards)
    found, limits = [], {}
    for board in boards:
        limit = rule.above
        if rule.bundle_limit:
            manifest = eyes.manifests.get(board.bundle)
            limit = None if manifest is None else manifest.limits.latency_ms
        if limit is None:
            continue
        window = sums.get(board.id)
        if window is None or window.requests < rule.min_requests:
            found.append(_of(rule, board, None, ""))
        else:
            clear = BUNDLE_CLEAR * limit if rule.clear is None else rule.clear
            # 1 % above a value make a mean of at least 1 % of it (Markov): most boards need no histogram
            if window.latency_sum_ms >= 0.01 * clear * window.requests:
                limits[board.id] = (board, limit, clear)
    boards = [board for board, _, _ in limits.values()]
    for device, counts in looks.packed_sums(eyes.connection, "latency", since, boards).items():
        board, limit, clear = limits[device]
        value = Histogram(counts).percentile_ms(99)
        if value is not None and value > clear:
            text = f"p99 {value:.4g} ms, limit {limit:g} ms ({board.bundle})"
            found.append(Reading(f"board:{board.name}", value, limit, clear, shown(text), board))
    return Seen(found)


def _energy(rule: Rule, world: World, eyes: Eyes) -> Seen:
    found = []
    chosen = {board.id: board for board in world.selected(rule.selector)}
    for device, by_bundle in looks.energies(eyes.connection, world.now).items():
        board = chosen.get(device)
        now = None if board is None or board.bundle_id is None else by_bundle.get(board.bundle_id)
        if board is None:
            continue
        earlier = [part for bundle, part in by_bundle.items() if bundle != board.bundle_id]
        before = max(earlier, key=lambda part: part.last, default=None)
        if now is None or before is None or not _comparable(rule, now, before):
            found.append(_of(rule, board, None, ""))
        else:
            old, new = before.mj / before.requests, now.mj / now.requests
            more = 100 * (new / old - 1)
            if more > (rule.clear or 0.0):
                how = PROVENANCES[now.kinds.bit_length() - 1]
                text = (
                    f"{new:.4g} mJ per inference with {board.bundle}, {old:.4g} before ({more:+.0f} %, {how})"
                )
                found.append(_of(rule, board, more, text))
    return Seen(found)


def _comparable(rule: Rule, now: Energy, before: Energy) -> bool:
    """Both of enough requests, and come about in the same one way."""
    enough = min(now.requests, before.requests) >= rule.min_requests
    return enough and now.kinds == before.kinds and _is_one(now.kinds) and before.mj > 0


def _is_one(bits: int) -> bool:
    return bits > 0 and bits & (bits - 1) == 0


def _exit_mix(rule: Rule, world: World, eyes: Eyes) -> Seen:
    since = world.now - rule.window_s
    boards = [board for board in world.selected(rule.selector) if board.bundle and board.policy]
    wanted: dict[tuple[str, str], tuple[dict[str, float] | None, str]] = {}
    unknown: dict[str, int] = {}
    known = []
    for board in boards:
        key = (board.bundle or "", board.policy or "")
        if key not in wanted:
            manifest = eyes.manifests.get(board.bundle)
            missing = (None, "the repository has no such bundle")
            wanted[key] = missing if manifest is None else expected_mix(manifest, key[1])
        mix, why = wanted[key]
        if mix is None:
            unknown[why] = unknown.get(why, 0) + 1
        elif len(mix) > 1:
            known.append(board)
    exits = all_of(eyes.connection, EXIT)
    counts = looks.packed_sums(eyes.connection, "exits", since, known)
    found = []
    for board in known:
        mine = {exits.get(key, str(key)): count for key, count in counts.get(board.id, {}).items()}
        expected = wanted[board.bundle or "", board.policy or ""][0] or {}
        if sum(mine.values()) < rule.min_requests:
            found.append(_of(rule, board, None, ""))
            continue
        away = total_variation(mine, expected)
        if away > (rule.clear or 0.0):
            text = f"{away:.0%} of the requests leave elsewhere than {board.bundle} expects with {board.policy}: "
            found.append(_of(rule, board, away, text + _mix(mine, expected)))
    said = "; ".join(f"{number}: {why}" for why, number in sorted(unknown.items()))
    return Seen(found, f"boards whose expected exit mix is unknown, {said}" if said else None)


def _mix(counts: Mapping[str, int], expected: Mapping[str, float]) -> str:
    number = sum(counts.values())
    names = sorted({*counts, *expected})[:8]
    return ", ".join(
        f"{n} {counts.get(n, 0) / number:.0%} (expected {expected.get(n, 0.0):.0%})" for n in names
    )


def _expiry(rule: Rule, world: World, eyes: Eyes) -> Seen:
    try:
        ends = looks.repository_ends(eyes.repository)
    except EdgekitError as err:
        return Seen([], f"the repository could not be read: {one_line(err)}")
    return Seen(
        [
            Reading(f"role:{role}", left, over, clear, f"{role} of the repository ends {when(at)}")
            for role, at in ends.items()
            for left, over, clear in _left(rule, at - world.now, role)
        ]
    )


def _left(rule: Rule, left_s: float, role: str) -> Iterator[tuple[float, float, float]]:
    """Value and thresholds of something that ends: the less is left the higher, and a short life's third is enough."""
    within = min(rule.above or 0.0, LIVES_S.get(role, float("inf")) / 3)
    clear = within * (rule.clear or 0.0) / (rule.above or 1.0)
    if left_s <= clear:
        yield -left_s, -within, -clear


def _board_expiry(rule: Rule, world: World, eyes: Eyes) -> Seen:
    ends = looks.board_ends(eyes.connection)
    return Seen(
        [
            Reading(f"board:{board.name}", value, over, clear, f"its {what} ends {when(at)}", board)
            for board in world.selected(rule.selector)
            for at, what in [ends.get(board.id, (float("inf"), ""))]
            for value, over, clear in _left(rule, at - world.now, what)
        ]
    )


def _ingest(rule: Rule, world: World, eyes: Eyes) -> Seen:
    del rule, eyes
    if world.ingest["connected"]:
        return Seen()
    return Seen([_fleet(1.0, f"the server has no connection to the broker: {world.ingest['why']}")])


def _malformed(rule: Rule, world: World, eyes: Eyes) -> Seen:
    before = [number for at, number in eyes.drops if at >= world.now - rule.window_s]
    if len(before) < 2:
        return Seen([_fleet(None, "")])
    number = before[-1] - before[0]
    text = (
        f"{number} messages dropped in {rule.window_s / 60:g} min: malformed, or beyond what boards may send"
    )
    return Seen([Reading("fleet", float(number), rule.above or 0.0, rule.clear or 0.0, text)])


def _disk(rule: Rule, world: World, eyes: Eyes) -> Seen:
    del rule, world
    fact: Any = get_fact(eyes.connection, "disk") or {}
    if not fact.get("reached"):
        return Seen()
    why = fact.get("why") or "the oldest figures go earlier than they should"
    return Seen([_fleet(1.0, shown(f"the store has reached its disk budget: {why}"))])


def _rollout(rule: Rule, world: World, eyes: Eyes) -> Seen:
    del rule
    table = db.rollouts
    query = sa.select(table.c.rollout_id, table.c.target, table.c.state, table.c.why).where(
        table.c.state.in_(STOPPED), table.c.updated >= world.now - _ROLLOUTS_WITHIN_S
    )
    return Seen(
        [
            Reading(
                f"rollout:{row.rollout_id}",
                1.0,
                YES,
                YES,
                shown(
                    f"rollout {row.rollout_id} of {row.target} is {row.state}: {row.why or 'no reason given'}"
                ),
            )
            for row in eyes.connection.execute(query)
        ]
    )


def _fleet(value: float | None, text: str) -> Reading:
    return Reading("fleet", value, YES, YES, shown(text))


KINDS: Mapping[str, Callable[[Rule, World, Eyes], Seen]] = {
    "offline": _offline,
    "p99": _p99,
    "energy-after-update": _energy,
    "throttled": _throttled,
    "deadline-misses": _share("deadline_missed", "came after their deadline"),
    "errors": _share("errors", "failed"),
    "exit-mix": _exit_mix,
    "expiry": _expiry,
    "board-expiry": _board_expiry,
    "ingest": _ingest,
    "malformed": _malformed,
    "disk": _disk,
    "rollout": _rollout,
}
EVERY_S = {"energy-after-update": 300.0, "expiry": 300.0, "board-expiry": 600.0}
"""How often a kind is looked at, where not at each evaluation or (windowed kinds) each minute."""
