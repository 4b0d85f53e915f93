from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.policy import policy_from_options
from edgekit.core.target import Target
from edgekit.fleet import schema as db
from edgekit.fleet import views
from edgekit.fleet.configure import Wanted, create_settings_job
from edgekit.fleet.jobs import Order, create_job, known_devices, selected
from edgekit.fleet.store import Store

TARGET = Target("toy", 2, ("raspberrypi5",), "run", "current", "a" * 64)


def push(store: Store, selector: str, **order: Any) -> None:
    with store.write() as connection:
        chosen = selected(known_devices(connection), selector)
        create_job(connection, Order(TARGET, selector, **order), chosen, NOW)


def wanted(store: Store) -> dict[str, Any]:
    """Each board's desired state."""
    with store.read() as connection:
        names = db.devices.c
        query = sa.select(db.desired, names.name).join(db.devices, names.id == db.desired.c.device)
        return {row.name: row for row in connection.execute(query)}


def configure(store: Store, selector: str = "name=pi5-a", **more: Any) -> dict[str, Any]:
    with store.write() as connection:
        chosen = selected(known_devices(connection), selector)
        asked = Wanted(**{"selector": selector, "config": {}} | more)
        job_id = create_settings_job(connection, asked, chosen, NOW)
        return views.job_detail(connection, job_id)


def end(store: Store, state: str) -> None:
    """Every job of every board has come to this."""
    with store.write() as connection:
        connection.execute(sa.update(db.job_devices).values(state=state))


def settings(store: Store, name: str = "pi5-a") -> dict[str, Any]:
    return json.loads(wanted(store)[name].config or "{}")


def test_settings_go_out_as_the_next_revision_and_what_runs_stays(store: Store, boards: object) -> None:
    push(store, "name=pi5-a", policy=policy_from_options(None, "3ms", None), interval_s=30.0)
    end(store, "active")
    before = wanted(store)["pi5-a"]
    job = configure(store, config={"update.rate_kb_s": 64})
    after = wanted(store)["pi5-a"]
    assert (after.rev, after.target) == (before.rev + 1, before.target)
    assert (after.policy, after.interval_s) == (before.policy, before.interval_s)
    assert after.n > before.n
    assert settings(store) == {"update.rate_kb_s": 64}
    assert (job["action"], job["target"], job["config"]) == ("configure", None, {"update.rate_kb_s": 64})
    assert job["devices"]["pi5-a"]["state"] == "pending"


def test_settings_add_up_one_is_taken_back_by_null_and_reset_takes_all_back(
    store: Store, boards: object
) -> None:
    configure(store, config={"trial.requests": 5, "log.verbose": True}, interval_s=10.0)
    configure(store, config={"log.verbose": None, "trial.seconds": 2.0})
    assert settings(store) == {"trial.requests": 5, "trial.seconds": 2.0}
    assert wanted(store)["pi5-a"].interval_s == 10.0
    configure(store, reset=True)
    assert (settings(store), wanted(store)["pi5-a"].interval_s) == ({}, None)


def test_a_push_leaves_settings_as_they_are(store: Store, boards: object) -> None:
    configure(store, config={"log.verbose": True})
    push(store, "name=pi5-a")
    assert settings(store) == {"log.verbose": True}
    assert wanted(store)["pi5-a"].target == "toy/2"


def test_an_update_that_is_on_its_way_goes_on_under_the_new_revision(store: Store, boards: object) -> None:
    push(store, "name=pi5-a")
    end(store, "downloading")
    configure(store, config={"update.rate_kb_s": 64})
    assert wanted(store)["pi5-a"].target == "toy/2"


@pytest.mark.parametrize("state", ["failed", "refused", "expired"])
def test_a_bundle_that_came_to_a_bad_end_is_not_tried_again_for_a_setting(
    store: Store, boards: object, state: str
) -> None:
    push(store, "name=pi5-a")
    end(store, state)
    configure(store, config={"log.verbose": True})
    assert wanted(store)["pi5-a"].target is None


def test_a_bundle_that_was_revoked_is_not_asked_for_again_with_a_setting(
    store: Store, boards: object
) -> None:
    push(store, "name=pi5-a")
    end(store, "active")
    with store.write() as connection:
        chosen = selected(known_devices(connection), "name=pi5-a")
        asked = Wanted("name=pi5-a", {"log.verbose": True})
        create_settings_job(connection, asked, chosen, NOW, {"toy/2"})
    assert wanted(store)["pi5-a"].target is None
    assert settings(store) == {"log.verbose": True}


def test_each_board_keeps_what_it_was_told_itself(store: Store, boards: object) -> None:
    configure(store, "name=pi5-b", config={"log.verbose": True})
    configure(store, "all", config={"trial.requests": 5})
    assert settings(store, "pi5-b") == {"log.verbose": True, "trial.requests": 5}
    assert settings(store, "orin") == {"trial.requests": 5}
