"""What boards of one profile measured, for fitting its costs: mean latencies with their exit mix, and bundles' work.

Latencies of boards that say they are simulated (info.simulated) are no measurement of the profile. They are counted,
and left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgekit.core.cost import Work
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.world import read_manifest
from edgekit.fleet.names import EXIT, all_of, texts_of
from edgekit.fleet.packing import unpack_counts

MOST_ROWS = 20_000  # of one answer; the newest hours
MOST_BUNDLES = 200
_ANY_NAME = 2**62
_AT_ONCE = 400


def profile_figures(
    connection: sa.Connection, repository: Path, profile: str, now: float, window_s: float
) -> dict[str, Any]:
    """boards: name -> id in rows; rows: [board, bundle, hour, requests, sum of ms, {exit: count}]; bundles: work.

    throttled hours are left out: they say what a slower clock costs. `simulated`, `silent`: boards that were left out.
    """
    devices = db.devices
    said = sa.func.coalesce(devices.c.says_profile, devices.c.profile)
    query = sa.select(devices.c.id, devices.c.name, devices.c.info).where(said == profile)
    measured, simulated, silent = {}, [], []
    for row in connection.execute(query.order_by(devices.c.name)):
        info = json.loads(row.info or "null")
        if info is None:
            silent.append(row.name)
        elif info.get("simulated") or info.get("profile") != profile:
            simulated.append(row.name)
        else:
            measured[row.id] = row.name
    rows = _rows(connection, sorted(measured), now - window_s)
    texts = texts_of(connection, {row["bundle"] for row in rows})
    exits = all_of(connection, EXIT)
    shown = [
        {
            "board": measured[row["device"]],
            "bundle": texts[row["bundle"]],
            "at": row["at"],
            "requests": row["requests"],
            "sum_ms": row["sum_ms"],
            "exits": {exits.get(key, str(key)): count for key, count in row["exits"].items()},
        }
        for row in rows
        if row["bundle"] in texts
    ]
    labels = sorted({row["bundle"] for row in shown})[:MOST_BUNDLES]
    return {
        "boards": len(measured),
        "simulated": len(simulated),
        "silent": len(silent),
        "rows": shown,
        "bundles": [found for label in labels if (found := _bundle(repository, label)) is not None],
    }


def _rows(connection: sa.Connection, devices: list[int], since: float) -> list[dict[str, Any]]:
    table = db.hours
    found = []
    for first in range(0, len(devices), _AT_ONCE):
        query = (
            sa.select(
                table.c.device,
                table.c.bundle,
                table.c.at,
                table.c.requests,
                table.c.latency_sum_ms,
                table.c.exits,
            )
            .where(
                table.c.device.in_(devices[first : first + _AT_ONCE]),
                table.c.at >= int(since),
                table.c.requests > 0,
                table.c.errors == 0,
                table.c.throttled_s == 0,
            )
            .order_by(table.c.at.desc())
            .limit(MOST_ROWS)
        )
        found += [
            {
                "device": row.device,
                "bundle": row.bundle,
                "at": row.at,
                "requests": row.requests,
                "sum_ms": row.latency_sum_ms,
                "exits": unpack_counts(row.exits, _ANY_NAME),
            }
            for row in connection.execute(query)
        ]
    return sorted(found, key=lambda row: (-row["at"], row["device"], row["bundle"]))[:MOST_ROWS]


def _bundle(repository: Path, label: str) -> dict[str, Any] | None:
    manifest = read_manifest(repository, label)
    if manifest is None:
        return None
    return {
        "bundle": label,
        "backends": sorted({part.backend for stage in manifest.stages for part in stage.parts}),
        "exits": [{"name": entry.name, "stage": entry.stage} for entry in manifest.exits],
        "stages": [_work(stage.work) for stage in manifest.stages],
    }


def _work(work: tuple[Work, ...]) -> list[dict[str, object]]:
    return [entry.to_json() for entry in work]
