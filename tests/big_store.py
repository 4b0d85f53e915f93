"""A store as a fleet of thousands leaves it after a week, written in bulk: hours of all boards, minutes of some."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import sqlalchemy as sa

from edgekit.core.histogram import histogram
from edgekit.fleet import schema as db
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import BUNDLE, EXIT, MACHINE, POLICY, PROFILE, ids_of
from edgekit.fleet.store import Store, put_fact

_AT_ONCE = 20_000
_VARIANTS = 48
SITES = 20


@dataclass(frozen=True)
class Size:
    """How much there is. Boards from `updated` of the fleet changed to the newer bundle half way through the hours."""

    boards: int = 10_000
    hours: int = 168
    minute_boards: int = 500
    minutes: int = 1440
    records: int = 2_500  # that are in no roll-up yet
    events: int = 20_000
    jobs: int = 20  # each for every board
    profiles: Sequence[str] = ("raspberrypi5", "raspberrypi4b", "jetson-orin-nano", "pynq-z2", "host")
    bundles: Sequence[str] = ("toy/1", "toy/2", "other/7")


SMALL = Size(boards=230, hours=30, minute_boards=10, minutes=90, records=60, events=300, jobs=5)


def fill(store: Store, now: float, size: Size = Size(), seed: int = 1) -> None:
    """Write it all. Boards are called b00000 and so on; the newest hour is the one that `now` lies in."""
    draw = random.Random(seed)
    with store.write() as connection:
        names = _names(connection, size)
        _write(connection, db.devices, _devices(size, now))
        _write(connection, db.presence, _presence(size, names, now))
        _write(connection, db.boots, _boots(size, now))
        _write(connection, db.desired, _desired(size, now))
        _write(connection, db.standings, _standings(size, now, draw))
    hour = int(now // 3600) * 3600
    minute = int(now // 60) * 60
    with store.write() as connection:
        sums = _variants(draw, names, requests=3600)
        spans = [(hour - 3600 * (size.hours - 1 - k), k) for k in range(size.hours)]
        _write(connection, db.hours, _board_rows(_boards(size), spans, size, names, sums))
    with store.write() as connection:
        sums = _variants(draw, names, requests=60)
        spans = [(minute - 60 * (size.minutes - 1 - k), size.hours - 1) for k in range(size.minutes)]
        some = range(1, min(size.minute_boards, size.boards) + 1)
        _write(connection, db.minutes, _board_rows(some, spans, size, names, sums))
    with store.write() as connection:
        _write(connection, db.fleet_hours, _fleet_rows(size, names, draw, hour, 3600, size.hours))
        _write(connection, db.fleet_minutes, _fleet_rows(size, names, draw, minute, 60, size.minutes))
        _write(connection, db.fleet_totals, _fleet_rows(size, names, draw, 0, 0, 1))
        _write(connection, db.events, _events(size, now, draw))
        _write(connection, db.jobs, _jobs(size, now))
        _write(connection, db.job_devices, _job_devices(size, now))
        put_fact(connection, "rolled", 0)
        _write(connection, db.records, fresh(size, names, now, draw))


def name_of(board: int) -> str:
    """The name of the board with this number, from 1."""
    return f"b{board - 1:05d}"


def profile_of(size: Size, board: int) -> str:
    """Its profile."""
    return size.profiles[board % len(size.profiles)]


def bundle_of(size: Size, board: int, part: int) -> str:
    """What a board runs: one in eight another network; the others change version half way, but for every fourth."""
    if board % 8 == 3:
        return size.bundles[2]
    return size.bundles[0 if part < size.hours // 2 or board % 4 == 0 else 1]


def in_force(size: Size, board: int) -> str:
    """What it runs now."""
    return bundle_of(size, board, size.hours)


def is_online(board: int) -> bool:
    """Whether its status says so."""
    return board % 10 != 0


def _boards(size: Size) -> range:
    return range(1, size.boards + 1)


def _names(connection: sa.Connection, size: Size) -> dict[str, int]:
    found = ids_of(connection, PROFILE, list(size.profiles)) | ids_of(connection, BUNDLE, list(size.bundles))
    found |= ids_of(connection, POLICY, ["full"]) | ids_of(connection, EXIT, ["exit1", "exit2", "exit3"])
    return found | {
        f"on {key}": value for key, value in ids_of(connection, MACHINE, ["raspberrypi5"]).items()
    }


def _devices(size: Size, now: float) -> Iterator[dict[str, Any]]:
    for board in _boards(size):
        profile, runs = profile_of(size, board), in_force(size, board)
        info = {"profile": profile, "agent": "1.0", "boot_id": f"boot-{board}", "simulated": True,
                "sensors": {"power": "ina219", "temperature": "thermal_zone0"}}  # fmt: skip
        reported = {"rev": 3, "job_id": "j1", "state": "active", "bundle": runs, "policy": {"kind": "full"},
                    "interval_s": 10.0, "why": "low on memory" if board % 50 == 7 else None,
                    "config": {"log.verbose": True}, "config_refused": {}}  # fmt: skip
        yield {
            "id": board,
            "name": name_of(board),
            "profile": profile,
            "tags": json.dumps([f"site-{board % SITES}", "big"]),
            "enrolled_at": now - 1e6,
            "token_sha256": f"{board:064x}",
            "broker_hash": "x" * 80,
            "info": json.dumps(info),
            "reported": json.dumps(reported),
            "says_profile": profile,
            "runs": runs,
            "why": reported["why"],
            "malformed": 1 if board % 100 == 0 else 0,
            "rev": 3,
            "n": 3,
            "certificate_serial": f"{board:032x}",
            "certificate_expires": now + 1e6 + board,
            "revoked_at": now - 50.0 if board % 1000 == 999 else None,
        }


def _presence(size: Size, names: dict[str, int], now: float) -> Iterator[dict[str, Any]]:
    for board in _boards(size):
        yield {
            "device": board,
            "online": is_online(board),
            "boot_id": f"boot-{board}",
            "last_seen": now - (board % 9 if is_online(board) else 4000 + board),
            "interval_s": 10.0,
            "record_at": now - board % 9,
            "bundle": names[in_force(size, board)],
            "policy": names["full"],
            "temperature_c": 40.0 + board % 40,
            "throttled": board % 200 == 5,
            "under_voltage": False,
            "memory_mb": 100.0,
            "idle_power_mw": 1500.0,
            "records": 60_000,
        }


def _boots(size: Size, now: float) -> Iterator[dict[str, Any]]:
    zero = dict.fromkeys(("upto", "last", "forgotten"), 0)
    for board in _boards(size):
        yield {
            "id": board,
            "device": board,
            "boot_id": f"boot-{board}",
            "started": now - 6e5,
            "floor": 1,
            **zero,
        }


def _desired(size: Size, now: float) -> Iterator[dict[str, Any]]:
    for board in _boards(size):
        target = in_force(size, board) if board % 25 else "toy/9"
        yield {"device": board, "rev": 3, "n": 3, "job_id": "j1", "target": target, "expires": now + 1e6,
               "pending": False}  # fmt: skip


def _standings(size: Size, now: float, draw: random.Random) -> Iterator[dict[str, Any]]:
    for board in _boards(size):
        p50 = 1 + 10 * draw.random()
        yield {"device": board, "computed": now - 60, "requests": 86_400 - board, "errors": board % 3,
               "deadline_missed": board % 7, "p50": p50, "p95": 2 * p50, "p99": 3 * p50, "accuracy": 0.5 + board / 1e5,
               "energy_mj": None if board % 5 else 4.0}  # fmt: skip


def _variants(draw: random.Random, names: dict[str, int], requests: int) -> dict[str, list[dict[str, Any]]]:
    """Sums to choose from, by bundle: toy/2 is slower than toy/1."""
    found: dict[str, list[dict[str, Any]]] = {}
    for bundle, middle in (("toy/1", 4.0), ("toy/2", 6.0), ("other/7", 20.0)):
        found[bundle] = []
        for _ in range(_VARIANTS):
            latencies = [draw.lognormvariate(0, 0.4) * middle for _ in range(min(requests, 400))]
            scale = requests // len(latencies)
            shape = histogram(latencies)
            early = draw.randint(0, requests)
            found[bundle].append(
                Sum(
                    records=requests // 10,
                    requests=requests,
                    deadline_missed=requests // 900,
                    latency_sum_ms=shape.sum_ms * scale,
                    energy_mj=3.0 * requests,
                    energy_requests=requests,
                    energy_kinds=1,
                    energy_on=names["on raspberrypi5"],
                    busy_s=requests / 20,
                    span_s=float(requests),
                    temperature_c=55.0,
                    memory_mb=100.0,
                    exits={names["exit1"]: early, names["exit3"]: requests - early},
                    latency={bucket: count * scale for bucket, count in shape.counts.items()},
                ).values()
            )
    return found


def _board_rows(
    boards: Iterable[int],
    spans: Sequence[tuple[int, int]],
    size: Size,
    names: dict[str, int],
    sums: dict[str, list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    for board in boards:
        for at, part in spans:
            bundle = bundle_of(size, board, part)
            chosen = sums[bundle][(board * 31 + part) % _VARIANTS]
            yield {"device": board, "at": at, "bundle": names[bundle], **chosen}


def _fleet_rows(
    size: Size, names: dict[str, int], draw: random.Random, last: int, step: int, count: int
) -> Iterator[dict[str, Any]]:
    """Each profile and bundle in each span, as many requests as the boards that have them."""
    share = max(1, size.boards // (len(size.profiles) * len(size.bundles)))
    sums = _variants(draw, names, requests=max(1, step or 3600) * share)
    for place in range(count):
        for profile in size.profiles:
            for bundle in size.bundles:
                at = last - step * (count - 1 - place)
                chosen = sums[bundle][(place * 7) % _VARIANTS]
                yield {"at": at, "profile": names[profile], "bundle": names[bundle], **chosen}


def _events(size: Size, now: float, draw: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(size.events):
        board = draw.randint(1, size.boards)
        on = draw.random() < 0.5
        detail = {"what": "throttled", "on": on, "flags": ["throttled"], "temperature_c": 81.0}
        at = now - 300_000 * draw.random()
        yield {"boot": board, "seq": 10**6 + number, "device": board, "at": at, "received": at,
               "kind": "condition" if number % 3 else "rollback", "detail": json.dumps(detail)}  # fmt: skip


def _jobs(size: Size, now: float) -> Iterator[dict[str, Any]]:
    for job in range(1, size.jobs + 1):
        yield {"id": job, "job_id": f"job-{job}", "created": now - 1e5 + job, "expires": now + 1e5,
               "target": size.bundles[job % 2], "selector": "all", "policy": None}  # fmt: skip


def _job_devices(size: Size, now: float) -> Iterator[dict[str, Any]]:
    states = ("active", "active", "active", "failed", "pending")
    for job in range(1, size.jobs + 1):
        for board in _boards(size):
            yield {"job": job, "device": board, "state": states[(board + job) % 5], "updated": now - 1e4,
                   "reason": None, "detail": None}  # fmt: skip


def fresh(
    size: Size, names: dict[str, int], now: float, draw: random.Random, first: int = 1
) -> Iterator[dict[str, Any]]:
    """Records that are in no roll-up yet."""
    sums = _variants(draw, names, requests=10)
    for number in range(size.records):
        board = number % size.boards + 1
        bundle = in_force(size, board)
        chosen = sums[bundle][number % _VARIANTS]
        yield {
            "id": first + number,
            "boot": board,
            "seq": first + number,
            "device": board,
            "at": now - number % 30,
            "received": now,
            "uptime_s": 100.0,
            "clock_synced": True,
            "interval_s": 10.0,
            "bundle": names[bundle],
            "policy": names["full"],
            "errors": 0,
            "labelled": 0,
            "correct": 0,
            "inputs_dropped": 0,
            "answers_lost": 0,
            "cancelled": 0,
            "nan_confidences": 0,
            "energy_provenance": 0,
            "throttled": False,
            "under_voltage": False,
            **{key: chosen[key] for key in ("requests", "deadline_missed", "exits", "latency", "latency_sum_ms",
                                            "energy_mj", "energy_on", "busy_s", "temperature_c", "memory_mb")},
        }  # fmt: skip


def _write(connection: sa.Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    """All rows have the keys of the first. Straight to the driver: SQLAlchemy would take minutes."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    keys = [key for key in first if key in table.c]
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    quoted = ", ".join(f'"{key}"' for key in keys)
    text = f"INSERT INTO {table.name} ({quoted}) VALUES ({', '.join([mark] * len(keys))})"
    waiting = [tuple(first[key] for key in keys)]
    while waiting:
        connection.exec_driver_sql(text, waiting)
        waiting = [tuple(row[key] for key in keys) for row in islice(rows, _AT_ONCE)]


def scaled(size: Size, boards: int) -> Size:
    """The same with another number of boards."""
    return replace(size, boards=boards, minute_boards=min(size.minute_boards, boards))
