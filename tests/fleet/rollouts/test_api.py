"""The routes of rollouts, and the commands over them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from fleet.rollouts.simulated import NEW, TARGETS, Fleet

from edgekit.fleet import schema as db
from edgekit.fleet.context import Context
from edgekit.fleet.rollouts import commands
from edgekit.fleet.store import Store
from edgekit.repo.add import Conflict


@pytest.fixture
def fleet(context: Context, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(commands, "published", lambda _: dict(TARGETS))
    return Fleet(context.store, 60)


def test_a_rollout_is_previewed_begun_paused_resumed_and_aborted(web: Any, fleet: Fleet) -> None:
    plan = {"target": NEW, "to": "all", "canary": 3}
    seen = web.post("/api/v1/rollouts/preview", json=plan).json()["preview"]
    assert [wave["boards"] for wave in seen["waves"]] == [3, 12, 45]
    assert seen["warnings"] == []
    made = web.post("/api/v1/rollouts", json=plan)
    assert made.status_code == 201
    rollout_id = made.json()["rollout"]["rollout_id"]
    assert web.post("/api/v1/rollouts", json=plan).status_code == 409
    states = []
    for action, body in (("pause", None), ("resume", {"accept": True}), ("abort", None)):
        answer = web.post(f"/api/v1/rollouts/{rollout_id}/{action}", json=body)
        states.append(answer.json()["rollout"]["state"])
    assert states == ["paused", "waiting", "aborted"]
    assert web.post(f"/api/v1/rollouts/{rollout_id}/pause").status_code == 409
    assert web.get("/api/v1/rollouts/none").status_code == 404
    found = web.get(f"/api/v1/rollouts/{rollout_id}").json()["rollout"]
    assert [line["action"] for line in found["audit"]][::-1] == [
        "rollout.create",
        "rollout.pause",
        "rollout.accept",
        "rollout.abort",
    ]
    assert {line["who"] for line in found["audit"]} == {"server token"}
    assert web.get("/api/v1/rollouts").json()["rollouts"][0]["boards"]["total"] == 60
    boards = web.get(f"/api/v1/rollouts/{rollout_id}/boards?wave=0&limit=2").json()
    assert (boards["total"], len(boards["boards"])) == (3, 2)


@pytest.mark.parametrize("body", [{}, [], {"target": "toy/2"}, {"target": 3, "to": "all"}, {"v": 1}, None])
def test_a_plan_that_is_none_is_one_line(web: Any, fleet: Fleet, body: Any) -> None:
    answer = web.post("/api/v1/rollouts", json=body)
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_boards_that_a_newer_job_took_over_are_left_where_they_are(store: Store) -> None:
    fleet = Fleet(store, 60)
    rollout_id = fleet.start(canary="50%")
    while fleet.step():
        pass
    fleet.answer()
    with store.write() as connection:
        first = connection.scalar(
            sa.select(sa.func.min(db.rollout_boards.c.device)).where(db.rollout_boards.c.asked)
        )
        own = sa.update(db.desired).where(db.desired.c.device == first)
        connection.execute(own.values(target="toy/7"))
        commands.roll_back(connection, rollout_id, "eve", fleet.now)
    found = fleet.run(rollout_id)
    assert found["state"] == "rolled_back"
    assert found["back"]["left"] == [{"why": "a newer job has taken it over", "boards": 1}]
    assert found["back"]["back"] == 29


def test_what_was_before_must_be_allowed_to_go_back_to(store: Store) -> None:
    fleet = Fleet(store, 30, slow={"raspberrypi5": 3.0})
    fleet.targets = {NEW: TARGETS[NEW]}
    found = fleet.run(fleet.start(canary="50%"))
    assert found["state"] == "rolled_back"
    assert "toy/1 is not published any more" in json.dumps(found["back"])


def test_overlap_is_refused_unless_it_is_wanted(store: Store) -> None:
    fleet = Fleet(store, 30)
    fleet.start()
    with pytest.raises(Conflict, match="in another rollout"):
        fleet.start(to="name=b0000*")
    fleet.start(to="name=b0000*", overlap=True)


def test_a_target_that_is_revoked_meanwhile_goes_no_further(store: Store) -> None:
    import dataclasses

    fleet = Fleet(store, 30)
    rollout_id = fleet.start()
    while fleet.step():
        pass
    fleet.answer()
    fleet.targets[NEW] = dataclasses.replace(TARGETS[NEW], state="revoked")
    found = fleet.run(rollout_id)
    assert found["state"] == "rolled_back"
    assert "toy/2 was revoked" in found["why"]
