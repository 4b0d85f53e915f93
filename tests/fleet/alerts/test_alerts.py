"""Alerts from what boards say to what somebody hears."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from bundles import write_null_bundle
from fleet.alerts.conftest import Ward
from servers import NOW

from edgekit.core.figure import Figure
from edgekit.core.manifest import BoardLimits
from edgekit.core.target import target_path
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.sending import send_next
from edgekit.fleet.alerts.silences import silence, unsilence
from edgekit.fleet.store import get_fact, put_fact
from edgekit.repo.init import init

OFFLINE = '[rules.gone]\nkind = "offline"\nfor = "1m"\nclear_for = "30s"\n'


def test_a_board_that_stays_away_is_told_once_and_its_return_once(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules(OFFLINE)
    assert ward.step() == []
    ward.presence(online=False)
    assert ward.step(15) == []
    assert ward.states() == [("board:b0000", "pending")]
    assert ward.step(60) == ["[critical] demo: gone: b0000 firing"]
    assert [ward.step(15) for _ in range(10)] == [[]] * 10
    ward.presence(online=True, last_seen=ward.now + 15)
    assert ward.step(15) == []
    assert ward.states() == [("board:b0000", "clearing")]
    assert ward.step(30) == ["[critical] demo: gone: b0000 resolved"]
    assert ward.step(15) == []
    assert ward.states() == [("board:b0000", "resolved")]


def test_5000_boards_offline_at_once_are_one_message_with_a_count_and_names(ward: Ward) -> None:
    ward.enroll(5000)
    ward.rules(OFFLINE, send='urls = ["json://user:secret-word@127.0.0.1:9/hook"]\nwait = "30s"\n')
    ward.step()
    with ward.store.write() as connection:
        half = db.presence.c.device % 2 == 0
        connection.execute(sa.update(db.presence).where(half).values(online=False))
    ward.step(15)
    ward.presence(online=False)
    heard = [title for _ in range(12) for title in ward.step(15)]
    assert heard == ["[critical] demo: gone: 5,000 boards firing"]
    body = ward.heard[-1][2]
    assert body.startswith("b0")
    assert body.endswith("and 4,990 more")
    assert ward.page()["counts"]["firing"] == 5000


def test_nobody_is_offline_while_nobody_knows(ward: Ward) -> None:
    ward.enroll(3)
    ward.rules(OFFLINE + '[rules.broker]\nkind = "ingest"\nfor = "0s"\nclear_for = "0s"\n')
    ward.step()
    ward.broker(connected=False)
    ward.presence(online=False)
    assert ward.step(15) == ["[critical] demo: broker: fleet firing"]
    assert [ward.step(60) for _ in range(5)] == [[]] * 5
    ward.broker(connected=True)
    assert ward.step(15) == ["[critical] demo: broker: fleet resolved"]
    assert ward.states() == [("fleet", "resolved")]
    ward.step(200)  # boards had time to come back, and did not
    assert ward.step(60) == ["[critical] demo: gone: 3 boards firing"]


def test_an_ingester_that_no_longer_says_it_lives_knows_nothing(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules(OFFLINE)
    with ward.store.write() as connection:
        put_fact(connection, "ingest:1", {"at": NOW - 120, "connected": True})
    ward.presence(online=False)
    ward.step()
    ward.step(120)
    assert ward.states() == []
    with ward.store.read() as connection:
        (rule,) = get_fact(connection, "alerts")["rules"]
    assert "no ingest process" in rule["note"]


def test_a_process_killed_after_any_step_tells_everything_and_nothing_twice(ward: Ward) -> None:
    ward.enroll(2)
    ward.rules(OFFLINE)
    ward.presence(online=False)
    for _ in range(8):
        ward.step(15)
        ward.start()
    assert [title for _, title, _ in ward.heard] == ["[critical] demo: gone: 2 boards firing"]


def test_a_message_that_was_written_and_not_sent_is_sent_by_the_next_process(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules(OFFLINE)
    ward.presence(online=False)
    for _ in range(6):  # evaluated, and killed before anything was sent
        ward.now += 15
        ward.alerts.step()
    ward.start()
    assert ward.step() == ["[critical] demo: gone: b0000 firing"]


def test_what_goes_on_is_told_again_after_repeat(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules(OFFLINE + 'repeat = "1h"\n')
    ward.presence(online=False)
    ward.step()
    assert ward.step(60) == ["[critical] demo: gone: b0000 firing"]
    assert ward.step(3500) == []
    assert ward.step(200) == ["[critical] demo: gone: b0000 still firing"]
    assert ward.step(200) == []


def test_at_most_so_many_messages_a_minute_and_the_rest_together(ward: Ward) -> None:
    ward.enroll(9)
    rules = "".join(OFFLINE.replace("gone", f"gone{n}") for n in range(9))
    ward.rules(
        rules, send='urls = ["json://user:secret-word@127.0.0.1:9/hook"]\nwait = "0s"\nper_minute = 3\n'
    )
    ward.presence(online=False)
    ward.step()
    heard = ward.step(60)
    assert heard[:2] == ["[critical] demo: gone0: 9 boards firing", "[critical] demo: gone1: 9 boards firing"]
    assert heard[2:] == ["[critical] demo: 63 alerts of 7 rules or groups"]
    ward.presence(online=True, last_seen=ward.now + 90)
    ward.step(15)
    assert ward.step(30) == []  # the minute's messages are used up
    assert len(ward.step(30)) == 3


def test_a_silence_keeps_quiet_and_its_end_tells_what_still_fires(ward: Ward) -> None:
    ward.enroll(1)
    ward.enroll(1, "other")
    ward.rules(OFFLINE)
    with ward.store.write() as connection:
        made = silence(
            connection, ward.now, "eva", until=ward.now + 3600, why="moving", selector="name=b0000"
        )
    ward.presence(online=False)
    ward.step()
    assert ward.step(60) == ["[critical] demo: gone: other0000 firing"]
    assert {row["board"]: row["silenced"] for row in ward.page()["alerts"]} == {
        "b0000": True,
        "other0000": False,
    }
    with ward.store.write() as connection:
        unsilence(connection, ward.now, "eva", made["id"])
        assert [row.action for row in connection.execute(sa.select(db.audit))] == [
            "alerts.silence",
            "alerts.unsilence",
        ]
    assert ward.step(15) == ["[critical] demo: gone: b0000 firing"]


def test_a_wrong_file_leaves_the_rules_in_force_and_is_a_problem(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules(OFFLINE)
    ward.step()
    (ward.folder / "alerts.toml").write_text('[rules.gone]\nkind = "gone"\n')
    ward.presence(online=False)
    ward.step(15)
    ward.step(60)
    assert ward.states() == [("board:b0000", "firing")]
    with ward.store.read() as connection:
        (problem,) = get_fact(connection, "alerts")["problems"]
    assert "alerts.toml: rules.gone.kind must be one of" in problem
    ward.rules(OFFLINE)
    ward.step()
    with ward.store.read() as connection:
        assert get_fact(connection, "alerts")["problems"] == []


def test_a_receiver_that_fails_is_a_problem_without_its_secret_and_gets_the_message_later(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules(OFFLINE)
    ward.presence(online=False)
    ward.now += 15
    ward.alerts.step()
    ward.now += 60
    ward.alerts.step()
    assert send_next(ward.store, ward.receiver(), ward.now, 1.0, lambda *_: "did not take it (HTTP 500)")
    assert not send_next(ward.store, ward.receiver(), ward.now, 1.0, lambda *_: None)  # not before the delay
    ward.alerts.step()
    with ward.store.read() as connection:
        (problem,) = get_fact(connection, "alerts")["problems"]
    assert (
        problem
        == "alerts: json://127.0.0.1:9 (address 1) has not taken 1 messages: did not take it (HTTP 500)"
    )
    assert ward.step(15) == ["[critical] demo: gone: b0000 firing"]
    ward.step(15)
    with ward.store.read() as connection:
        assert get_fact(connection, "alerts")["problems"] == []
        tables = [
            str(row) for table in db.metadata.sorted_tables for row in connection.execute(sa.select(table))
        ]
    assert not any("secret-word" in row for row in tables)


@pytest.mark.parametrize(
    ("rule", "bad", "value"),
    [
        ('kind = "errors"\nabove = 0.01', {"errors": 50}, 50 / 1050),
        ('kind = "deadline-misses"', {"deadline_missed": 100}, 0.1),
        ('kind = "p99"\nabove = 10', {"latency_ms": 20.0}, 20.0),
    ],
)
def test_figures_of_a_window_fire_above_and_resolve_below(
    ward: Ward, rule: str, bad: dict[str, int], value: float
) -> None:
    ward.enroll(2)
    ward.rules(f'[rules.r]\n{rule}\nfor = "0s"\nclear_for = "0s"\nwindow = "2m"\nmin_requests = 100\n')
    ward.record()
    ward.record("b0001")
    ward.step(60)
    assert ward.states() == []
    ward.record(**bad)  # type: ignore[arg-type]
    ward.record("b0001", 20, **bad)  # type: ignore[arg-type]  # too few to say anything
    ward.step(180)
    assert ward.states() == []
    ward.record(**bad)  # type: ignore[arg-type]
    assert ward.step(60) == ["[warning] demo: r: b0000 firing"]
    assert ward.page()["alerts"][0]["value"] == pytest.approx(value, rel=0.13)  # a bucket's width
    ward.now += 300
    ward.record()
    assert ward.step() == ["[warning] demo: r: b0000 resolved"]


def publish(folder: Path, version: int = 1, **more: object) -> None:
    path = folder / "targets" / target_path("toy", version)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_null_bundle(path, version=version, **more)


def test_p99_is_held_against_the_limit_the_bundle_was_made_for(ward: Ward) -> None:
    publish(ward.folder, limits=BoardLimits(latency_ms=10.0))
    publish(ward.folder, 2)
    ward.enroll(2)
    ward.rules('[rules.slow]\nkind = "p99"\nabove = "bundle"\nfor = "0s"\n')
    ward.record("b0000", latency_ms=30.0)
    ward.record("b0001", latency_ms=30.0, bundle="toy/2")
    assert ward.step(60) == ["[warning] demo: slow: b0000 firing"]


def test_an_exit_mix_is_held_against_the_bundles_operating_points(ward: Ward) -> None:
    publish(ward.folder)
    ward.enroll(3)
    ward.rules('[rules.mix]\nkind = "exit-mix"\nfor = "0s"\n')
    expected = {"exit1": 500, "exit2": 500}  # of the point at 37.5 %
    ward.record("b0000", policy="budget 37.5%", exit_counts=expected)
    ward.record("b0001", policy="budget 37.5%", exit_counts={"exit1": 100, "exit2": 900})
    ward.record("b0002", policy="anytime 5ms", exit_counts={"exit1": 1000})
    assert ward.step(60) == ["[warning] demo: mix: b0001 firing"]
    assert ward.page()["alerts"][0]["value"] == pytest.approx(0.4)
    with ward.store.read() as connection:
        (rule,) = get_fact(connection, "alerts")["rules"]
    assert rule["note"].endswith("1: with a deadline it depends on the board's speed")


@pytest.mark.parametrize(("how", "fires"), [("measured", True), ("estimated", False)])
def test_more_energy_after_an_update_fires_with_the_same_provenance_only(
    ward: Ward, how: str, *, fires: bool
) -> None:
    ward.enroll(1)
    ward.rules('[rules.energy]\nkind = "energy-after-update"\nabove = 20\nclear = 10\nfor = "0s"\n')
    ward.record(energy=Figure(4000.0, "mJ", "measured", None, "host"))
    ward.now += 3600
    with ward.store.write() as connection:
        job = {"job_id": "j", "created": ward.now, "expires": ward.now, "target": "toy/2", "selector": "all"}
        connection.execute(sa.insert(db.jobs).values(id=1, **job))
        state = {"job": 1, "device": 1, "state": "active", "updated": ward.now}
        connection.execute(sa.insert(db.job_devices).values(**state))
    ward.record(bundle="toy/2", energy=Figure(5000.0, "mJ", how, None, "host"))  # type: ignore[arg-type]
    ward.step(60)
    assert bool(ward.states()) == fires
    if fires:
        assert ward.page()["alerts"][0]["value"] == pytest.approx(25.0)


def test_the_repositorys_end_a_full_disk_dropped_messages_and_a_stopped_rollout_are_told(ward: Ward) -> None:
    repository = ward.folder / "repository"
    init(repository, datetime.fromtimestamp(NOW, timezone.utc))
    ward.rules(
        '[rules.ends]\nkind = "expiry"\nabove = "5d"\n[rules.disk]\nkind = "disk"\n[rules.bad]\n'
        'kind = "malformed"\nabove = 10\nclear = 2\n[rules.stopped]\nkind = "rollout"\n',
        send="",
    )
    ward.alerts._repository = repository
    ward.enroll(1)
    ward.step()
    assert ward.states() == []
    with ward.store.write() as connection:
        put_fact(connection, "disk", {"reached": True, "why": "9 of 8 GB"})
        connection.execute(sa.update(db.devices).values(malformed=50))
        rollout = {
            "rollout_id": "r1",
            "created": NOW,
            "created_by": "eva",
            "target": "toy/2",
            "selector": "all",
        }
        row = rollout | {
            "plan": "{}",
            "state": "paused",
            "why": "p99 doubled",
            "updated": NOW,
            "wave": 0,
            "turn": 0,
            "since": NOW,
        }
        connection.execute(sa.insert(db.rollouts).values(**row))
    ward.step(60)
    assert dict(ward.states()) == {"fleet": "firing", "rollout:r1": "firing"}
    assert ward.page()["total"] == 3
    ward.now = NOW + 361 * 86_400
    ward.step()
    assert {"role:root", "role:targets", "role:timestamp"} <= set(dict(ward.states()))


def test_hostile_names_stay_on_one_line_of_bounded_length(ward: Ward) -> None:
    ward.enroll(1)
    ward.rules('[rules.e]\nkind = "errors"\nfor = "0s"\n')
    ward.record(errors=500, bundle="x\n\x1b[31m" + "y" * 3000)
    assert ward.step(60) == ["[warning] demo: e: b0000 firing"]
    body = ward.heard[-1][2]
    assert "\n" not in body
    assert "\x1b" not in body
    assert len(body) < 400
