from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.errors import BadInput
from edgekit.core.policy import policy_from_options
from edgekit.core.target import Target
from edgekit.core.trust import Running
from edgekit.fleet import schema as db
from edgekit.fleet import views
from edgekit.fleet.jobs import Device, Order, create_job, find_target, known_devices, preview, selected
from edgekit.fleet.store import Store

pytestmark = pytest.mark.both_databases

TARGET = Target("toy", 2, ("raspberrypi5",), "run", "current", "a" * 64)


def names(store: Store, selector: str) -> list[str]:
    with store.read() as connection:
        return [device.name for device in selected(known_devices(connection), selector)]


def push(store: Store, selector: str = "all", now: float = NOW, **order: Any) -> dict[str, Any]:
    with store.write() as connection:
        chosen = selected(known_devices(connection), selector)
        job_id = create_job(
            connection, Order(**{"target": TARGET, "selector": selector} | order), chosen, now
        )
        return views.job_detail(connection, job_id)


def wanted(store: Store) -> dict[str, Any]:
    with store.read() as connection:
        query = sa.select(db.desired, db.devices.c.name).join(
            db.devices, db.devices.c.id == db.desired.c.device
        )
        return {row.name: row for row in connection.execute(query)}


def report(store: Store, name: str, **reported: Any) -> None:
    with store.write() as connection:
        change = sa.update(db.devices).where(db.devices.c.name == name)
        connection.execute(change.values(reported=json.dumps(reported), runs=str(reported.get("bundle"))))


@pytest.mark.parametrize(
    ("selector", "means"),
    [
        ("all", ["orin", "pi5-a", "pi5-b"]),
        ("tag=site-a", ["orin", "pi5-a"]),
        ("tag=site-a,profile=raspberrypi5", ["pi5-a"]),
        ("tag=site-b,tag=lab", ["orin", "pi5-b"]),
        (" name=pi5-b , name=orin ", ["orin", "pi5-b"]),
        ("name=pi5-*", ["pi5-a", "pi5-b"]),
        ("tag=site-a,name!=orin", ["pi5-a"]),
        ("bundle=none", ["orin", "pi5-a", "pi5-b"]),
    ],
)
def test_a_selector_means_these_boards(store: Store, boards: object, selector: str, means: list[str]) -> None:
    assert names(store, selector) == means


@pytest.mark.parametrize("selector", ["", "everything", "tag", "tag=", "colour=red", "all,tag=x", "tag=a,,"])
def test_a_selector_that_cannot_be_read_is_refused_with_an_example(
    store: Store, boards: object, selector: str
) -> None:
    with pytest.raises(BadInput, match=r"must be .all. or pairs such as tag=site-a"):
        names(store, selector)


def test_a_selector_that_means_nobody_lists_what_there_is(store: Store, boards: object) -> None:
    with pytest.raises(BadInput, match=r"means no board \(tag: lab, site-a, site-b\)"):
        names(store, "tag=site-c")


def test_a_job_asks_each_board_once_and_numbers_grow(store: Store, boards: object) -> None:
    first = push(store, "name=pi5-a", policy=policy_from_options(None, "3ms", None))
    before = wanted(store)["pi5-a"]
    assert (before.rev, before.target, before.job_id, before.pending) == (1, "toy/2", first["job_id"], True)
    assert json.loads(before.policy) == {"kind": "budget", "budget": "3ms"}
    push(store, "name=pi5-a")
    after = wanted(store)["pi5-a"]
    assert after.rev == 2
    assert after.n > before.n
    assert list(wanted(store)) == ["pi5-a"]


def test_numbers_go_on_above_the_boards_where_the_server_lost_its_own(store: Store, boards: object) -> None:
    report(store, "pi5-a", rev=41)
    push(store, "name=pi5-a")
    assert wanted(store)["pi5-a"].rev == 42
    assert wanted(store)["pi5-a"].n >= int(NOW * 1000)


def test_a_board_cannot_push_its_numbers_out_of_range(store: Store, boards: object) -> None:
    report(store, "pi5-a", rev=2**53)
    push(store, "name=pi5-a")
    assert wanted(store)["pi5-a"].rev == 2**31 + 1


def test_a_board_of_another_profile_is_listed_as_refused_and_left_alone(store: Store, boards: object) -> None:
    job = push(store)
    states = {name: (row["state"], row["reason"]) for name, row in job["devices"].items()}
    assert states == {
        "orin": ("refused", "wrong-profile"),
        "pi5-a": ("pending", None),
        "pi5-b": ("pending", None),
    }
    assert "here is jetson-orin-nano" in job["devices"]["orin"]["detail"]
    assert set(wanted(store)) == {"pi5-a", "pi5-b"}


def test_what_the_agent_says_of_its_profile_counts_more_than_the_enrolment(
    store: Store, boards: object
) -> None:
    with store.write() as connection:
        change = sa.update(db.devices).where(db.devices.c.name == "orin")
        connection.execute(change.values(says_profile="raspberrypi5"))
    assert push(store)["devices"]["orin"]["state"] == "pending"


def test_a_board_that_runs_a_newer_version_is_refused_unless_going_back_is_allowed(
    store: Store, boards: object
) -> None:
    report(store, "pi5-a", rev=1, bundle="toy/3", content_id="b" * 64)
    assert push(store, "name=pi5-a")["devices"]["pi5-a"]["reason"] == "older"
    allowed = dataclasses.replace(TARGET, state="allowed")
    assert push(store, "name=pi5-a", target=allowed)["devices"]["pi5-a"]["state"] == "pending"


def test_a_newer_job_ends_what_an_older_one_left_unfinished(store: Store, boards: object) -> None:
    first = push(store, "name=pi5-a")
    second = push(store, "name=pi5-a")
    with store.read() as connection:
        old = views.job_detail(connection, first["job_id"])["devices"]["pi5-a"]
    assert (old["state"], old["reason"]) == ("failed", "superseded")
    assert second["job_id"] in old["detail"]


@pytest.mark.parametrize("bundle", ["../../etc", "toy", 7, {"a": 1}, "toy/99999999999"])
def test_a_board_that_reports_nonsense_does_not_stop_a_rollout(
    store: Store, boards: object, bundle: Any
) -> None:
    report(store, "pi5-a", rev=1, bundle=bundle, content_id="b" * 64)
    assert push(store)["devices"]["pi5-a"]["state"] == "pending"


def test_what_only_the_board_knows_is_left_to_the_board() -> None:
    device = Device(1, "x", None, frozenset(), None, 0)
    code = dataclasses.replace(TARGET, executes_code=True)
    assert preview(code, device) is None
    running = dataclasses.replace(device, running=Running("toy", 2, "b" * 64))
    assert (preview(TARGET, running) or {})["reason"] == "changed-content"


def test_a_target_that_is_not_published_lists_what_is() -> None:
    assert find_target([TARGET], "toy/2") == TARGET
    with pytest.raises(BadInput, match=r"target toy/9 is not published \(toy/2\)"):
        find_target([TARGET], "toy/9")
    with pytest.raises(BadInput, match="target must be NAME/VERSION"):
        find_target([TARGET], "toy")
