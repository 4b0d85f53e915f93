"""The agents' updates on the server: published, ordered from the boards that are meant, sent until ended."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from servers import NOW
from starlette.testclient import TestClient
from supervised import environment

from edgekit.core.messages import JobEvent
from edgekit.core.target import Target
from edgekit.fleet import schema as db
from edgekit.fleet import views
from edgekit.fleet.api import Context
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.intake import Received
from edgekit.fleet.jobs import create_update, known_devices, selected
from edgekit.fleet.store import Store
from edgekit.repo.add import measure, open_publishable, sign_targets, with_bundle
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import key_file, parse_targets

V1 = "/api/v1"
TARGET = Target("agent", 3, ("raspberrypi5",), "agent", "current", "b" * 64, pythons=("3.11",))


def order(store: Store, to: str = "all", now: float = NOW) -> dict[str, Any]:
    with store.write() as connection:
        devices = selected(known_devices(connection), to)
        return views.job_detail(connection, create_update(connection, TARGET, to, devices, 100.0, now))


def states(store: Store, job: dict[str, Any]) -> dict[str, str]:
    with store.read() as connection:
        devices = views.job_detail(connection, job["job_id"])["devices"]
    return {name: row["state"] for name, row in devices.items()}


def test_every_board_that_is_meant_gets_an_order_and_others_are_told_why_not(
    store: Store, boards: object
) -> None:
    job = order(store)
    assert (job["action"], job["target"], job["to"], job["expires"]) == (
        "update-agent",
        "agent/3",
        "all",
        NOW + 100,
    )
    assert states(store, job) == {"pi5-a": "pending", "pi5-b": "pending", "orin": "refused"}
    assert job["devices"]["orin"]["reason"] == "wrong-profile"
    with store.read() as connection:
        pending = connection.scalar(
            sa.select(sa.func.count()).select_from(db.commands).where(db.commands.c.pending)
        )
    assert pending == 2


def test_a_board_says_how_it_goes_and_a_newer_order_ends_what_is_not_finished(
    store: Store, boards: object
) -> None:
    first = order(store, "tag=site-a,profile=raspberrypi5")
    event = JobEvent("b1", 1, first["job_id"], "trial", "agent/3", NOW)
    with store.write() as connection:
        commit_batch(connection, [Received("pi5-a", "job/event", "b1", job_events=(event,))], (), NOW)
    assert states(store, first) == {"pi5-a": "trial"}
    second = order(store, "name=pi5-a", NOW + 1)
    assert states(store, first) == {"pi5-a": "failed"}
    assert states(store, second) == {"pi5-a": "pending"}


def test_an_environment_is_uploaded_published_served_and_ordered(
    web: TestClient, context: Context, tmp_path: Path
) -> None:
    board = web.post(f"{V1}/devices", json={"name": "pi5", "profile": "raspberrypi5", "tags": []}).json()
    own = {"authorization": f"Bearer {board['repo_token']}"}
    file = tmp_path / "agent-1.env"
    file.write_bytes(environment())
    opened = open_publishable(file)
    metadata = parse_targets(web.get(f"{V1}/repo/targets").content, "targets")
    key = read_key(key_file(context.config.repository, "targets"))
    data = sign_targets(with_bundle(metadata, opened, datetime.fromtimestamp(NOW, timezone.utc)), key)
    assert web.post(f"{V1}/repo/targets", content=data).status_code == 400, "it was not uploaded"
    upload = web.put(f"{V1}/repo/bundles/{measure(file)[1]}", content=file.read_bytes())
    assert upload.status_code == 201
    published = web.post(f"{V1}/repo/targets", content=data)
    assert published.status_code == 200, published.text
    assert web.get("/repo/targets/agent/agent/1.env", headers=own).content == file.read_bytes()
    assert web.get("/repo/targets/agent/agent/1.edge", headers=own).status_code == 404
    job = web.post(f"{V1}/agents", json={"target": "agent/1", "to": "all"}).json()["job"]
    assert job["action"] == "update-agent"
    assert {name: row["state"] for name, row in job["devices"].items()} == {"pi5": "pending"}
    run = web.post(f"{V1}/jobs", json={"target": "agent/1", "to": "all"})
    assert (run.status_code, "is not published" in run.json()["error"]) == (400, True)
