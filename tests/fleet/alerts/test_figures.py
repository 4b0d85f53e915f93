"""A profile's figures: what its boards measured, and nothing that was simulated."""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa
from bundles import write_null_bundle
from fleet.alerts.conftest import Ward
from servers import NOW
from starlette.testclient import TestClient

from edgekit.core.target import target_path
from edgekit.fleet import schema as db
from edgekit.fleet.api import Context
from edgekit.fleet.rolling import roll_up


def say(ward: Ward, name: str, *, simulated: bool, profile: str = "host") -> None:
    info = json.dumps({"profile": profile, "simulated": simulated})
    with ward.store.write() as connection:
        board = db.devices.c.name == name
        connection.execute(sa.update(db.devices).where(board).values(info=info, says_profile=profile))


def test_only_boards_of_that_very_profile_that_measured_count(
    context: Context, web: TestClient, tmp_path: Path
) -> None:
    ward = Ward(context.store, tmp_path)
    path = context.config.repository / "targets" / target_path("toy", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_null_bundle(path)
    ward.enroll(4)
    say(ward, "b0000", simulated=False)
    say(ward, "b0001", simulated=True)
    say(ward, "b0002", simulated=False, profile="other")
    for number in range(4):
        ward.record(f"b000{number}", 500, 4.0, exit_counts={"exit1": 100, "exit3": 400})
    ward.record("b0000", 300, 9.0, throttled=True, bundle="toy/2")  # of a slower clock
    while roll_up(context.store):
        pass
    object.__setattr__(context, "clock", lambda: NOW)
    found = web.get("/api/v1/profiles/host/figures").json()
    assert (found["boards"], found["simulated"], found["silent"]) == (1, 1, 1)
    (row,) = found["rows"]
    assert (row["board"], row["bundle"], row["requests"], row["sum_ms"]) == ("b0000", "toy/1", 500, 2000.0)
    assert row["exits"] == {"exit1": 100, "exit3": 400}
    (bundle,) = found["bundles"]
    assert [entry["name"] for entry in bundle["exits"]] == ["exit1", "exit2", "exit3"]
    assert bundle["stages"][0][0]["op"] == "Conv"
