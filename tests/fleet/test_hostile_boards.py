"""What a hostile board says: it is stored or dropped, and every task and every answer goes on showing the others."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import sqlalchemy as sa
from servers import FLEET, NOW
from starlette.testclient import TestClient

from edgekit.core.events import words
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.task import Alerts
from edgekit.fleet.api import make_app
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.context import Context
from edgekit.fleet.enroll import enroll
from edgekit.fleet.intake import Malformed, read_message
from edgekit.fleet.names import MOST_OF_A_BOARD, PROFILE
from edgekit.fleet.retention import Forgetting
from edgekit.fleet.rolling import roll_up
from edgekit.fleet.standings import Standings
from edgekit.fleet.store import Store

HUGE, LONG, MOST = 10**400, "y" * 4096, 2**32
LATENCY = {"buckets": [[160, MOST]], "sum_ms": 1e15}


def record(seq: int, **fields: Any) -> dict[str, Any]:
    usual = {"uptime": 1.0, "time": NOW, "clock_synced": True, "interval_s": 1.0, "bundle": "toy/1"}
    return {"seq": seq, **usual, "policy": "full", "requests": 1, "latency": LATENCY} | fields


def event(seq: int, kind: str, **detail: Any) -> tuple[str, dict[str, Any]]:
    return "event", {"boot_id": "b1", "seq": seq, "kind": kind, "time": None, "detail": detail}


def reported(**fields: Any) -> tuple[str, dict[str, Any]]:
    usual = {"rev": 2**53, "job_id": None, "state": None, "bundle": None, "content_id": None, "policy": None}
    return "reported", {**usual, "interval_s": 1.0, "why": None} | fields


def job_event(seq: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    usual = {"boot_id": "b1", "seq": seq, "job_id": "not-its-own", "state": "failed", "time": 1e11}
    return "job/event", usual | {"target": "x\x1b[2J", "reason": "<b>", "detail": "=1+1\n"} | fields


def telemetry(boot: str, floor: int, *records: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "telemetry", {"boot_id": boot, "floor": floor, "records": list(records)}


HOSTILE = [
    reported(interval_s=1e308, bundle="=HYPERLINK(1)\n<img src=x>", why="\x1b[2J<script>"),
    reported(interval_s=10**300, bundle="b" * 4096, config={"x": 10**300}),
    reported(interval_s=1e-300, bundle="²/²", why=LONG),
    reported(bundle="toy/" + "9" * 30),
    event(1, "throttle", on=True, temperature_c=HUGE),
    event(2, "condition", what={"a": [1]}, on=[], temperature_c=-HUGE, flags=HUGE),
    event(3, "rollback", **{"from": HUGE, "to": {"x": "\0"}}),
    event(4, "dropped", **{"\0": "\0", "\ud800": 1}),
    event(5, "unreadable", why={"a": [[[HUGE]]]}),
    job_event(6),
    job_event(2**53, target="\0"),
    job_event(2**63, state="active"),
    telemetry("b2", 2**53, record(2**53), record(2**53 - 1), record(1)),
    telemetry(
        "b3",
        1,
        record(1, energy_mj=1e15, energy_provenance="measured", energy_on="\x1b<b>", interval_s=1e10),
        record(2, requests=MOST, errors=MOST, labelled=1, correct=MOST, busy_s=1e10, temperature_c=1e9),
        record(3, time=1e11, memory_mb=-1e9),
        record(4, time=0, uptime=1e10, clock_synced=False, requests=0),
        record(5, exit_counts={f"e{number}": MOST for number in range(64)}),
        record(6, bundle="\n/1", policy="\x1b"),
        record(7, bundle=LONG, energy_why=LONG),
        record(8, time=1_577_836_801, throttled=True, interval_s=0),
        record(9, bundle="(more)", latency={"buckets": [], "sum_ms": 1e15}),
    ),
    (
        "info",
        {
            "profile": "p",
            "agent": "\x1b<b>",
            "boot_id": "b1",
            "certificate_expires": 1e11,
            "slots": ["="] * 500,
        },
    ),
]
READERS = [
    *(
        "status",
        "status/series",
        "devices",
        "devices?sort=p99",
        "devices?state=online",
        "devices?state=offline",
    ),
    *("devices?state=problem", "devices?state=differs", "devices/honest", "events", "bundles", "bundles/toy"),
    *("jobs", "alerts", "rollouts", "profiles/raspberrypi5/figures", "fleet"),
]


def say(store: Store, device: str, *said: tuple[str, dict[str, Any]], now: float = NOW) -> None:
    """As ingest does it."""
    received, malformed = [], []
    for kind, payload in said:
        data = json.dumps({"v": 1, **payload}).encode()
        try:
            received.append(read_message(FLEET, f"edgekit/v1/{FLEET}/{device}/{kind}", data))
        except Malformed as err:
            malformed.append(err)
    with store.write() as connection:
        commit_batch(connection, received, malformed, now)


@pytest.mark.both_databases
def test_no_board_breaks_a_task_or_an_answer_that_shows_others(context: Context) -> None:
    store, config = context.store, context.config
    birth = ("status", {"online": True, "boot_id": "b1"})
    with store.write() as connection:
        for number in range(len(HOSTILE)):
            enroll(connection, f"h{number}", "raspberrypi5", [], NOW)
        enroll(connection, "honest", "raspberrypi5", [], NOW)
    for number, message in enumerate(HOSTILE):
        say(store, f"h{number}", birth, message)
    say(store, "honest", birth, telemetry("b1", 1, record(1)))
    later = NOW + 5.0
    assert roll_up(store) > 0
    assert roll_up(store) == 0
    Standings(store, lambda: later).step()
    Alerts(store, config.fleet, config.alert_rules, config.repository, lambda: later).step()
    Forgetting(store, config.retention, lambda: later).step()
    app = make_app(dataclasses.replace(context, clock=lambda: later))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as web:
        web.headers["authorization"] = f"Bearer {context.token}"
        boards = [f"devices/h{number}" for number in range(len(HOSTILE))]
        answers = {path: web.get(f"/api/v1/{path}") for path in (*READERS, *boards)}
        assert {
            path: answer.status_code for path, answer in answers.items() if answer.status_code != 200
        } == {}
        for answer in answers.values():
            json.loads(answer.content, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert web.get("/metrics").status_code == 200
        row = answers["devices/honest"].json()["device"]
    assert (row["name"], row["requests"]) == ("honest", 1)


def test_an_event_is_said_in_words_whatever_its_temperature() -> None:
    for celsius in (HUGE, -HUGE, 1e308, "hot", None, True, [HUGE], {"a": HUGE}):
        for kind in ("throttle", "condition", "rollback", "something-new"):
            assert len(words(kind, {"on": True, "what": "heat", "temperature_c": celsius})) <= 300


def test_a_board_that_calls_itself_something_else_each_time_brings_a_bounded_number_of_profiles(
    context: Context,
) -> None:
    store = context.store
    with store.write() as connection:
        enroll(connection, "liar", "raspberrypi5", [], NOW)
    rows = []
    for number in range(1, 2 * MOST_OF_A_BOARD + 1):
        info = ("info", {"profile": f"p{number}", "agent": "1", "boot_id": "b1"})
        say(store, "liar", info, telemetry("b1", 1, record(number)), now=NOW + number)
        roll_up(store)
        with store.read() as connection:
            named = sa.select(sa.func.count()).select_from(db.names).where(db.names.c.kind == PROFILE)
            totals = sa.select(sa.func.count()).select_from(db.fleet_totals)
            rows.append((connection.scalar(named), connection.scalar(totals)))
    assert rows[-1] == rows[MOST_OF_A_BOARD + 1]
    assert rows[-1][0] <= MOST_OF_A_BOARD + 1  # one more stands for all others
