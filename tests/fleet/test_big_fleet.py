"""Pages of a fleet: what filters, orders and pages give, against what the store was filled with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from big_store import SMALL, Size, fill, in_force, is_online, name_of, profile_of
from servers import NOW

from edgekit.core.errors import BadInput
from edgekit.fleet import views
from edgekit.fleet.board_views import SORTS, STATES
from edgekit.fleet.job_views import job_with_page
from edgekit.fleet.store import Store, open_store

BOARDS = range(1, SMALL.boards + 1)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('big') / 'fleet.db'}")
    fill(store, NOW, SMALL)
    yield store
    store.close()


def page(full: Store, **wanted: Any) -> tuple[int, list[str]]:
    with full.read() as connection:
        found = views.device_page(connection, NOW, **wanted)
    return found["total"], [row["name"] for row in found["devices"]]


def test_pages_together_are_every_board_once(full: Store) -> None:
    seen: list[str] = []
    while more := page(full, offset=len(seen), limit=50)[1]:
        seen += more
    assert seen == [name_of(board) for board in BOARDS]
    assert page(full, limit=1)[0] == SMALL.boards


def test_filters_find_what_was_put_in(full: Store) -> None:
    assert page(full, search="B0012")[1] == [f"b0012{n}" for n in range(10)]
    assert page(full, search="%") == (0, [])
    of_profile = [name_of(b) for b in BOARDS if profile_of(SMALL, b) == "pynq-z2"]
    assert page(full, profile="pynq-z2", limit=200)[1] == of_profile
    runs = [name_of(b) for b in BOARDS if in_force(SMALL, b) == "toy/2"]
    assert page(full, bundle="toy/2", limit=200)[1] == runs
    both = [b for b in BOARDS if in_force(SMALL, b).startswith("toy/")]
    assert page(full, bundle="toy")[0] == len(both)
    assert page(full, bundle="to")[0] == 0
    assert page(full, tag="site-3")[0] == len([b for b in BOARDS if b % 20 == 3])
    assert page(full, tag="site")[0] == 0
    assert page(full, state="offline")[0] == len([b for b in BOARDS if not is_online(b)])
    assert page(full, state="differs")[0] == len([b for b in BOARDS if b % 25 == 0])
    assert page(full, state="throttled")[1] == [name_of(5), name_of(205)]
    with pytest.raises(BadInput, match="state must be one of"):
        page(full, state="broken")


def test_states_are_counted_as_they_are_filtered_and_said(full: Store) -> None:
    with full.read() as connection:
        counts = views.fleet_status(connection, NOW)["boards"]
        rows = views.device_rows(connection, NOW)
    assert counts == {"enrolled": SMALL.boards} | {state: page(full, state=state)[0] for state in STATES}
    assert counts["online"] == sum(row["online"] for row in rows)
    assert counts["problem"] == sum(bool(row["problems"]) for row in rows)
    assert counts["differs"] == sum(row["differs"] for row in rows)


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_goes_both_ways_and_leaves_the_unknown_for_the_end(full: Store, sort: str) -> None:
    up, down = (page(full, sort=sort, descending=turned, limit=200)[1] for turned in (False, True))
    assert len(set(up)) == len(set(down)) == 200
    if sort == "energy_mj":
        assert up[0] in {name_of(board) for board in BOARDS if board % 5 == 0}
        assert up == down  # those that are known are equal
    else:
        assert up != down


def test_facets_count_boards(full: Store) -> None:
    with full.read() as connection:
        found = views.facets(connection)
    assert sum(found["profiles"].values()) == sum(found["bundles"].values()) == SMALL.boards
    assert found["tags"]["big"] == SMALL.boards
    assert found["tags"]["site-3"] == len([b for b in BOARDS if b % 20 == 3])


def test_a_jobs_boards_come_in_pages_with_all_states_counted(full: Store) -> None:
    with full.read() as connection:
        whole = views.job_detail(connection, "job-3")
        part = job_with_page(connection, "job-3", state="failed", limit=10)
        found = views.job_boards(connection, "job-3", search="b0001")
    assert sum(whole["states"].values()) == len(whole["devices"]) == SMALL.boards
    assert part["total"] == whole["states"]["failed"]
    assert {row["state"] for row in part["devices"].values()} == {"failed"}
    assert len(part["devices"]) == found["total"] == 10


def test_events_are_filtered_by_kind_board_and_time(full: Store) -> None:
    with full.read() as connection:
        whole = views.event_page(connection, limit=200)
        kind = views.event_page(connection, kind="rollback", limit=200)
        late = views.event_page(connection, since=NOW - 10_000, limit=200)
        own = views.event_page(connection, device=whole["events"][0]["device"])
    assert whole["total"] == SMALL.events
    assert kind["total"] == SMALL.events // 3
    assert {event["kind"] for event in kind["events"]} == {"rollback"}
    assert late["total"] == sum(event["at"] >= NOW - 10_000 for event in whole["events"])
    assert {event["device"] for event in own["events"]} == {whole["events"][0]["device"]}


def test_a_bundles_versions_are_told_apart(full: Store) -> None:
    with full.read() as connection:
        found = views.bundle_detail(connection, "toy", NOW, 30 * 3600)
        rows = {row["bundle"]: row for row in views.bundle_rows(connection, NOW)}
    assert [version["bundle"] for version in found["versions"]] == ["toy/2", "toy/1"]
    newer, older = found["versions"]
    assert newer["latency_ms"]["p50"] > 1.2 * older["latency_ms"]["p50"]
    assert newer["boards"] == rows["toy/2"]["boards"] == sum(in_force(SMALL, b) == "toy/2" for b in BOARDS)
    assert sum(part["boards"] for part in newer["profiles"]) == newer["boards"]
    (change,) = found["changes"]
    assert (change["from"], change["to"]) == ("toy/1", "toy/2")
    assert change["after"]["latency_ms"]["p50"] > 1.2 * change["before"]["latency_ms"]["p50"]
    with full.read() as connection, pytest.raises(views.Unknown, match="no board has run a bundle"):
        views.bundle_detail(connection, "none", NOW)


@pytest.mark.slow
def test_every_question_to_ten_thousand_boards_is_answered_in_time(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    fill(store, NOW, Size())
    day = 86_400.0
    questions: dict[str, Callable[[sa.Connection], Any]] = {
        "status": lambda c: views.fleet_status(c, NOW, 7 * day),
        "page": lambda c: views.device_page(c, NOW, limit=200, offset=9000),
        "page of a week": lambda c: views.device_page(c, NOW, window_s=7 * day),
        "sorted": lambda c: views.device_page(c, NOW, sort="p99", descending=True),
        "problems": lambda c: views.device_page(c, NOW, state="problem", sort="last_seen"),
        "board": lambda c: views.device_detail(c, "b00042", NOW),
        "jobs": views.job_page,
        "job": lambda c: job_with_page(c, "job-3"),
        "events": lambda c: views.event_page(c, kind="rollback", since=NOW - day),
        "bundles": lambda c: views.bundle_rows(c, NOW, 7 * day),
        "bundle": lambda c: views.bundle_detail(c, "toy", NOW),
        "series": lambda c: views.fleet_points(c, NOW, 7 * day),
    }
    for what, ask in questions.items():
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            with store.read() as connection:
                ask(connection)
            times.append(time.perf_counter() - begin)
        assert sorted(times)[2] < 0.3, what
    store.close()


def test_events_and_bundles_are_asked_for_page_by_page(context: Any, web: Any) -> None:
    fill(context.store, NOW, SMALL)
    boards = web.get("/api/v1/devices", params={"limit": 200, "offset": 200}).json()
    assert (boards["total"], len(boards["devices"])) == (SMALL.boards, SMALL.boards - 200)
    assert web.get("/api/v1/devices").json()["devices"][0]["name"] == name_of(1)
    assert len(web.get("/api/v1/devices").json()["devices"]) == 50
    assert web.get("/api/v1/devices", params={"limit": 201}).status_code == 400
    assert web.get("/api/v1/devices", params={"sort": "x"}).status_code == 400
    found = web.get("/api/v1/events", params={"kind": "rollback", "limit": 7}).json()
    assert (found["total"], len(found["events"])) == (SMALL.events // 3, 7)
    assert web.get("/api/v1/bundles/none").status_code == 404
    assert {row["name"] for row in web.get("/api/v1/bundles").json()["bundles"]} == {"toy", "other"}
