"""Measure jobs on the server: made once, sent until ended, and their reports kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from bundles import null_bundle
from servers import NOW
from starlette.testclient import TestClient

from edgekit.core.bench import BenchReport
from edgekit.core.candidates import pack_candidates, unpack_candidates
from edgekit.core.messages import JobEvent
from edgekit.core.target import Target
from edgekit.fleet import schema as db
from edgekit.fleet import views
from edgekit.fleet.api import Context
from edgekit.fleet.commit import commit_batch, expire_silent_jobs
from edgekit.fleet.intake import Received
from edgekit.fleet.jobs import Order, create_job, create_measure, known_devices, selected
from edgekit.fleet.store import Store
from edgekit.repo.add import Conflict, measure, sign_targets
from edgekit.repo.delegate import with_candidates, without_candidates
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import key_file, parse_targets

V1 = "/api/v1"
ROUND = Target("pi5-a", 2, ("raspberrypi5",), "measure", "current", "b" * 64)
REPORT = BenchReport("c" * 64, turns_ms=(1.0, 1.1), provenance="simulated", device="pi5-a")


def order(store: Store, target: Target = ROUND, now: float = NOW) -> dict[str, Any]:
    with store.write() as connection:
        (device,) = selected(known_devices(connection), "name=pi5-a")
        job_id = create_measure(connection, target, device, 100.0, now)
        return views.job_detail(connection, job_id)


def say(
    store: Store, seq: int, job_id: str, state: str, *reports: BenchReport, device: str = "pi5-a"
) -> None:
    event = JobEvent("b1", seq, job_id, state, None, NOW, reports=reports)
    with store.write() as connection:
        commit_batch(connection, [Received(device, "job/event", "b1", job_events=(event,))], (), NOW)


def detail(store: Store, job_id: str) -> dict[str, Any]:
    with store.read() as connection:
        return views.job_detail(connection, job_id)


def test_a_measure_job_carries_the_boards_reports(store: Store, boards: object) -> None:
    job = order(store)
    assert (job["action"], job["target"], job["to"], job["expires"]) == (
        "measure",
        "pi5-a/2",
        "name=pi5-a",
        NOW + 100,
    )
    assert job["devices"]["pi5-a"]["state"] == "pending"
    say(store, 1, job["job_id"], "measuring")
    say(store, 2, job["job_id"], "done", REPORT)
    say(store, 2, job["job_id"], "done", REPORT)
    found = detail(store, job["job_id"])["devices"]["pi5-a"]
    assert found["state"] == "done"
    assert [BenchReport.parse(entry, "report") for entry in found["reports"]] == [REPORT]


def test_reports_that_nobody_asked_that_board_for_are_not_kept(store: Store, boards: object) -> None:
    job = order(store)
    say(store, 1, job["job_id"], "done", REPORT, device="pi5-b")
    say(store, 1, "unheard-of", "done", REPORT)
    assert detail(store, job["job_id"])["devices"]["pi5-a"]["reports"] == []
    with store.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(db.job_reports)) == 0


def test_a_board_measures_one_round_at_a_time(store: Store, boards: object) -> None:
    first = order(store)
    with pytest.raises(Conflict, match=f"pi5-a measures already .job {first['job_id']}"):
        order(store)
    say(store, 1, first["job_id"], "failed")
    assert order(store, now=NOW + 1)["devices"]["pi5-a"]["state"] == "pending"


def test_a_board_that_stays_silent_is_done_with_when_the_job_has_expired(
    store: Store, boards: object
) -> None:
    job = order(store)
    with store.write() as connection:
        assert expire_silent_jobs(connection, NOW + 161) == 1
    board = detail(store, job["job_id"])["devices"]["pi5-a"]
    assert (board["state"], board["reason"]) == ("expired", "silent")
    assert order(store, now=NOW + 200)["devices"]["pi5-a"]["state"] == "pending"


def test_measuring_and_running_do_not_end_each_other_and_share_one_growing_number(
    store: Store, boards: object
) -> None:
    measuring = order(store)
    target = Target("toy", 1, ("raspberrypi5",), "run", "current", "a" * 64)
    with store.write() as connection:
        chosen = selected(known_devices(connection), "name=pi5-a")
        running = create_job(connection, Order(target, "name=pi5-a"), chosen, NOW)
        numbers = [connection.scalar(sa.select(table.c.n)) for table in (db.commands, db.desired)]
    assert detail(store, measuring["job_id"])["devices"]["pi5-a"]["state"] == "pending"
    assert detail(store, running)["devices"]["pi5-a"]["state"] == "pending"
    assert detail(store, running)["action"] == "run"
    assert None not in numbers
    assert numbers[0] < numbers[1]  # type: ignore[operator]


def test_what_the_board_would_refuse_anyway_is_not_asked(store: Store, boards: object) -> None:
    job = order(store, replace(ROUND, profiles=("pynq-z1",)))
    board = job["devices"]["pi5-a"]
    assert (board["state"], board["reason"]) == ("refused", "wrong-profile")


# --- over HTTP ---


def sign_round(
    web: TestClient, context: Context, tmp_path: Path, board: str = "pi5"
) -> tuple[bytes, Path, Target]:
    """The next measure metadata as an engineer signs it, the file it names, and the target."""
    file = tmp_path / "round.edge"
    file.write_bytes(pack_candidates([null_bundle()]))
    folder = tmp_path / f"unpacked-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    bundles = unpack_candidates(file, folder)
    current = parse_targets(web.get(f"{V1}/repo/measure").content, "measure")
    metadata, target = with_candidates(current, board, file, bundles, datetime.now(timezone.utc))
    return sign_targets(metadata, key(context)), file, target


def key(context: Context) -> Any:
    return read_key(key_file(context.config.repository, "measure"))


def publish(web: TestClient, context: Context, tmp_path: Path) -> Target:
    data, file, target = sign_round(web, context, tmp_path)
    sha256 = measure(file)[1]
    assert web.put(f"{V1}/repo/bundles/{sha256}", content=file.read_bytes()).status_code == 201
    answer = web.post(f"{V1}/repo/measure", content=data)
    assert answer.status_code == 200, answer.text
    assert answer.json()["measure"]["targets"] == [target.label]
    return target


@pytest.fixture
def token(web: TestClient) -> str:
    """Of an enrolled board."""
    answer = web.post(f"{V1}/devices", json={"name": "pi5", "profile": "host", "tags": []})
    return str(answer.json()["repo_token"])


def test_a_published_round_is_served_to_boards_and_gone_when_it_is_withdrawn(
    web: TestClient, context: Context, tmp_path: Path, token: str
) -> None:
    target = publish(web, context, tmp_path)
    board = {"authorization": f"Bearer {token}"}
    for path in ("metadata/2.measure.json", f"targets/{target.path}"):
        assert web.get(f"/repo/{path}", headers=board).status_code == 200
    assert list(context.config.incoming.glob("*.edge")) == []
    current = parse_targets(web.get(f"{V1}/repo/measure").content, "measure")
    data = sign_targets(without_candidates(current, "pi5", datetime.now(timezone.utc)), key(context))
    assert web.post(f"{V1}/repo/measure", content=data).status_code == 200
    assert web.get(f"/repo/targets/{target.path}", headers=board).status_code == 404


def test_a_measure_job_is_made_for_a_published_round_and_its_own_board_alone(
    web: TestClient, context: Context, tmp_path: Path, token: str
) -> None:
    answer = web.post(f"{V1}/measure", json={"target": "pi5/2"})
    assert (answer.status_code, answer.json()) == (400, {"error": "target pi5/2 is not published (none)"})
    target = publish(web, context, tmp_path)
    answer = web.post(f"{V1}/measure", json={"target": target.label, "expires_s": 60})
    assert answer.status_code == 201
    job = answer.json()["job"]
    assert (job["action"], list(job["devices"])) == ("measure", ["pi5"])
    again = web.post(f"{V1}/measure", json={"target": target.label})
    assert again.status_code == 409
    assert "measures already" in again.json()["error"]
    run = web.post(f"{V1}/jobs", json={"target": target.label, "to": "name=pi5"})
    assert (run.status_code, "is not published" in run.json()["error"]) == (400, True)


def test_a_round_of_yesterdays_version_is_told_so(
    web: TestClient, context: Context, tmp_path: Path, token: str
) -> None:
    data, *_ = sign_round(web, context, tmp_path)
    publish(web, context, tmp_path)
    answer = web.post(f"{V1}/repo/measure", content=data)
    assert answer.status_code == 409
    assert "fetch the metadata and sign again" in answer.json()["error"]
