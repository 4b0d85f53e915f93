"""The whole agent in its surroundings: commands, refusals, switches, throttling, repair. All real but the board."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Site, until
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Timestamp

from edgekit.agent import monitor
from edgekit.agent.config import load_config
from edgekit.agent.daemon import Agent
from edgekit.agent.outbox import Outbox
from edgekit.agent.repository import metadata
from edgekit.agent.serving import Server
from edgekit.agent.slots import Slots
from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.messages import JobEvent
from edgekit.core.policy import PolicySpec, parse_budget

ALL_STATES = ["received", "downloading", "verifying", "installed", "trial", "active"]
BUDGET = PolicySpec("budget", parse_budget("40%"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_RETRY_S", 0.0)


@pytest.fixture
def images(site: Site) -> Path:
    folder = site.board.folder / "images"
    for number in range(60):
        path = folder / str(number % 3) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((4, 4), np.uint8)
        pixels.flat[number % 3] = 200
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def serving(site: Site) -> Site:
    """An agent that serves toy/3, whose job is over."""
    label = site.add(version=3)
    site.board.start()
    assert site.run(label, 1)["state"] == "active"
    return site


def in_force(site: Site, bundle: str | None) -> Mapping[str, Any]:
    return until(
        lambda: (r := site.server.last("reported")) and r["bundle"] == bundle and r, f"{bundle} in force"
    )


def refused(site: Site, target: str, rev: int, **changes: Any) -> str:
    """Command a target that must not run; the reason. What served before still serves."""
    event = site.run(target, rev, **changes)
    assert event["state"] == "refused"
    assert event["detail"]
    reported = until(lambda: (r := site.server.last("reported")) and r["state"] == "refused" and r)
    assert (reported["bundle"], event["reason"] in reported["why"]) == ("toy/3", True)
    assert [entry["reason"] for entry in site.server.job_events(event["job_id"]) if entry["reason"]] == [
        event["reason"]
    ]
    return str(event["reason"])


# --- a good job ---


def test_a_command_installs_a_bundle_and_the_board_says_every_step(site: Site) -> None:
    label = site.add(version=1)
    site.board.start()
    assert site.run(label, 1)["state"] == "active"
    assert site.server.states("job-1") == ALL_STATES
    reported = in_force(site, "toy/1")
    assert (reported["rev"], reported["state"], reported["why"]) == (1, "active", None)
    info = until(lambda: (i := site.server.last("info")) and i["slots"] == ["toy/1"] and i)
    assert info["metadata"] == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2, "measure": 2}
    assert (info["profile"], info["sensors"], info["simulated"]) == ("raspberrypi5", [], False)


def test_what_was_installed_serves_after_a_restart_without_a_network(serving: Site) -> None:
    serving.board.stop()
    serving.repository.close()
    serving.broker.stop()
    agent = serving.board.start()
    until(lambda: agent._server.in_force.label == "toy/3")
    assert serving.board.stop().bundle == "toy/3"


def test_the_slot_before_is_kept_and_older_ones_go(serving: Site) -> None:
    for version, rev in ((4, 2), (5, 3)):
        assert serving.run(serving.add(version=version), rev)["state"] == "active"
    state = serving.board.state
    kept = {state["active"]["content_id"], state["previous"]["content_id"]}
    until(lambda: serving.board.slots == kept, "the cleaning up")
    assert (state["active"]["label"], state["previous"]["label"]) == ("toy/5", "toy/4")


def test_a_bundle_that_a_slot_still_holds_is_not_fetched_again(serving: Site) -> None:
    assert serving.run(serving.add(version=4), 2)["state"] == "active"
    serving.repository.set_state("toy/3", "allowed")
    serving.repository.requests.clear()
    assert serving.run("toy/3", 3)["state"] == "active"
    assert serving.server.states("job-3") == ["received", "verifying", "installed", "trial", "active"]
    assert not [path for path, _ in serving.repository.requests if path.startswith("targets/")]
    in_force(serving, "toy/3")


def test_a_command_seen_twice_does_nothing_twice(serving: Site) -> None:
    heard = len(serving.server.job_events())
    serving.server.desire("pi5", "toy/3", 1, n=1)
    serving.server.desire("pi5", "toy/3", 1, n=2)  # the same revision, signed again
    until(lambda: serving.board.state["n"] == 2)
    assert len(serving.server.job_events()) == heard


def test_a_bundle_that_runs_already_is_confirmed_under_a_new_revision_without_a_trial(serving: Site) -> None:
    requests = len(serving.repository.requests)
    assert serving.run("toy/3", 2, policy=BUDGET)["state"] == "active"
    assert all("targets/" not in path for path, _ in serving.repository.requests[requests:])
    until(lambda: in_force(serving, "toy/3")["policy"] == BUDGET.to_json(), "the policy in force")


def test_policy_and_interval_change_without_a_target_and_last_over_a_restart(serving: Site) -> None:
    assert serving.run(None, 2, policy=BUDGET, interval_s=0.15)["state"] == "active"
    assert serving.server.states("job-2") == ["received", "active"]
    reported = until(
        lambda: (r := serving.server.last("reported")) and r["rev"] == 2 and r["state"] == "active" and r
    )
    assert (reported["policy"], reported["interval_s"]) == (BUDGET.to_json(), 0.15)
    serving.board.stop()
    serving.server.heard.clear()
    serving.board.start()
    reported = in_force(serving, "toy/3")
    assert (reported["policy"], reported["interval_s"]) == (BUDGET.to_json(), 0.15)


def test_a_newer_command_replaces_an_unfinished_one(serving: Site) -> None:
    serving.repository.gate.clear()
    serving.server.desire("pi5", serving.add(version=4, padding=500_000), 2)
    until(lambda: "downloading" in serving.server.states("job-2"))
    label = serving.add(version=5)
    serving.server.desire("pi5", label, 3)
    until(lambda: serving.board.state["rev"] == 3)
    serving.repository.gate.set()
    event = serving.server.ended("job-2")
    assert (event["state"], event["reason"]) == ("failed", "superseded")
    assert serving.server.ended("job-3")["state"] == "active"
    in_force(serving, "toy/5")


def test_a_repository_that_is_away_is_waited_for(serving: Site) -> None:
    label = serving.add(version=4)
    token, serving.repository.TOKEN = serving.repository.TOKEN, "changed"  # type: ignore[misc]
    serving.server.desire("pi5", label, 2)
    why = until(lambda: (r := serving.server.last("reported")) and r["rev"] == 2 and r["why"])
    assert "answered 401" in why
    serving.repository.TOKEN = token  # type: ignore[misc]
    assert serving.server.ended("job-2")["state"] == "active"


def test_a_job_whose_time_runs_out_while_waiting_expires_with_what_it_waited_for(serving: Site) -> None:
    label = serving.add(version=4)
    serving.repository.TOKEN = "changed"  # type: ignore[misc]
    event = serving.run(label, 2, expires=time.time() + 0.5)
    assert (event["state"], event["reason"]) == ("expired", "download")
    assert "answered 401" in event["detail"]


# --- refusals: each with its word in the job event ---


def test_a_tampered_file_is_refused(serving: Site) -> None:
    label = serving.add(version=4, padding=300_000)  # what a slot holds already is not fetched
    data = bytearray(serving.repository.files["targets/run/toy/4.edge"])
    data[len(data) // 2] ^= 1
    serving.repository.files["targets/run/toy/4.edge"] = bytes(data)
    assert refused(serving, label, 2) == "tampered"


def test_unsigned_metadata_is_refused(serving: Site) -> None:
    label = serving.add(version=4)
    stranger = CryptoSigner.generate_ed25519()
    forged = serving.repository.signed("targets", serving.repository.targets, stranger)
    serving.repository.files["metadata/targets.json"] = forged
    assert refused(serving, label, 2) == "unsigned"


def test_expired_metadata_is_refused(serving: Site) -> None:
    label = serving.add(version=4)
    timestamp: Timestamp = serving.repository.timestamp
    timestamp.expires = timestamp.expires.replace(year=2020)
    serving.repository.sign()
    assert refused(serving, label, 2) == "expired"


def test_an_old_timestamp_is_refused_although_the_local_metadata_was_emptied(serving: Site) -> None:
    old = {name: data for name, data in serving.repository.files.items() if name.startswith("metadata/")}
    assert serving.run(serving.add(version=4), 2)["state"] == "active"
    serving.repository.set_state("toy/3", "allowed")
    serving.repository.files.update(old)
    shutil.rmtree(serving.board.folder / "state/metadata")
    event = serving.run("toy/3", 3)
    assert (event["state"], event["reason"]) == ("refused", "rollback")
    in_force(serving, "toy/4")


def test_an_older_version_is_refused_unless_it_is_allowed(serving: Site) -> None:
    label = serving.add(version=2)
    assert refused(serving, label, 2) == "older"
    serving.repository.set_state(label, "allowed")
    assert serving.run(label, 3)["state"] == "active"
    in_force(serving, "toy/2")


def test_a_revoked_target_is_refused(serving: Site) -> None:
    assert refused(serving, serving.add(version=4, state="revoked"), 2) == "revoked"


def test_a_target_for_another_profile_is_refused(serving: Site) -> None:
    assert refused(serving, serving.add(version=4, profiles=("jetson-nano",)), 2) == "wrong-profile"


def test_a_target_that_runs_code_is_refused_where_the_config_does_not_allow_it(serving: Site) -> None:
    assert refused(serving, serving.add(version=4, custom={"executes_code": True}), 2) == "code-not-accepted"


def test_the_running_version_with_other_content_is_refused(serving: Site) -> None:
    assert refused(serving, serving.add(version=3, padding=10), 2) == "changed-content"


def test_a_target_the_metadata_does_not_name_is_refused(serving: Site) -> None:
    assert refused(serving, "toy/99", 2) == "unknown-target"


def test_a_signed_file_that_is_another_bundle_than_its_entry_says_is_refused(serving: Site) -> None:
    assert refused(serving, serving.add(version=4, custom={"content_id": "0" * 64}), 2) == "bad-bundle"


def test_a_bundle_beyond_the_local_limit_is_refused(site: Site) -> None:
    site.board.write(limits={"max_bundle_mb": 0.05})
    label = site.add(version=3)
    site.board.start()
    assert site.run(label, 1)["state"] == "active"
    assert refused(site, site.add(version=4, padding=100_000), 2) == "beyond-limits"


def test_an_interval_below_the_local_limit_is_refused(serving: Site) -> None:
    event = serving.run(None, 2, interval_s=0.1, expires=1e10)
    assert event["state"] == "active"
    serving.board.stop()
    serving.board.write(limits={"min_interval_s": 5.0})
    serving.board.start()
    for rev, target in ((3, None), (4, "toy/3")):
        event = serving.run(target, rev, interval_s=1.0)
        assert (event["state"], event["reason"]) == ("refused", "beyond-limits")


def test_a_command_signed_with_another_key_is_refused_and_reported_once(serving: Site) -> None:
    label, stranger = serving.add(version=4), Ed25519PrivateKey.generate()
    event = serving.run(label, 2, key=stranger)
    assert (event["state"], event["reason"]) == ("refused", "bad-signature")
    assert serving.run(label, 3)["state"] == "active", "the true key's next command is obeyed"
    assert len(serving.server.job_events("job-2")) == 1


def test_a_signed_command_this_agent_does_not_understand_is_refused_and_says_what_it_stumbled_over(
    serving: Site,
) -> None:
    class Newer:
        def to_json(self) -> dict[str, object]:
            return {"kind": "telepathic"}

    event = serving.run("toy/3", 2, policy=Newer())
    assert (event["state"], event["reason"]) == ("refused", "beyond-limits")
    assert "telepathic" in event["detail"]


def test_an_old_command_is_refused_as_replayed(serving: Site) -> None:
    serving.run(serving.add(version=4), 2, n=10)
    event = serving.run("toy/3", 3, n=9)
    assert (event["state"], event["reason"]) == ("refused", "replayed")
    in_force(serving, "toy/4")


def test_a_command_for_another_board_is_refused(serving: Site) -> None:
    event = serving.run(serving.add(version=4), 2, to="demo/other")
    assert (event["state"], event["reason"]) == ("refused", "wrong-board")


def test_a_refused_target_is_not_tried_again_at_the_same_revision(serving: Site) -> None:
    serving.run("toy/99", 2)
    count = len(serving.repository.requests)
    serving.server.desire("pi5", "toy/99", 2)
    until(lambda: serving.board.state["n"] == 3)
    assert serving.server.states("job-2") == ["received", "refused"]
    assert len(serving.repository.requests) == count


# --- trials ---


def test_a_bundle_whose_golden_cases_fail_never_serves_and_its_slot_goes(serving: Site) -> None:
    event = serving.run(serving.add(version=4, golden_error=0.5), 2)
    assert (event["state"], event["reason"]) == ("failed", "golden")
    assert "off by 0.5" in event["detail"]
    assert serving.server.states("job-2")[-3:] == ["trial", "rolling_back", "failed"]
    in_force(serving, "toy/3")
    until(lambda: serving.board.slots == {serving.board.state["active"]["content_id"]}, "the cleaning up")
    rollback = until(lambda: serving.server.events("rollback"))[0]["detail"]
    assert (rollback["from"], rollback["to"], rollback["reason"]) == ("toy/4", "toy/3", "golden")


def test_a_trial_that_hangs_ends_with_timeout_and_the_old_bundle_serves(site: Site) -> None:
    site.board.start()
    assert site.run(site.add(version=3), 1)["state"] == "active"
    site.board.stop()
    site.board.write(limits={"golden_timeout_s": 0.6})
    site.board.start()
    event = site.run(site.add(version=4, delay_ms=5000), 2)
    assert (event["state"], event["reason"]) == ("failed", "timeout")
    in_force(site, "toy/3")


def test_requests_are_answered_all_through_a_switch_and_a_failed_one(site: Site, images: Path) -> None:
    site.board.write(source={"kind": "folder", "path": "images", "loop": True, "rate_hz": 400})
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    assert site.run(site.add(version=2), 2)["state"] == "active"
    assert site.run(site.add(version=3, golden_error=0.5), 3)["state"] == "failed"
    until(lambda: {r["bundle"] for r in site.server.records() if r["requests"]} == {"toy/1", "toy/2"})
    summary = site.board.stop()
    until(lambda: site.server.requests() == summary.requests, "all records")
    assert sum(record["errors"] for record in site.server.records()) == 0


# --- records ---


def test_a_folder_is_served_once_and_its_records_add_up(site: Site, images: Path) -> None:
    site.board.write(source={"kind": "folder", "path": "images"}, policy={"kind": "budget", "budget": "60%"})
    site.board.start()
    site.run(site.add(version=1), 1)
    until(lambda: site.server.requests() == 60, "all requests")
    assert until(lambda: site.server.events("source-ended"))[0]["detail"] == {"requests": 60}
    records = [record for record in site.server.records() if record["requests"]]
    assert sum(record["labelled"] for record in records) == sum(record["correct"] for record in records) == 60
    assert sum(sum(record["exit_counts"].values()) for record in records) == 60
    assert sum(count for record in records for _, count in record["latency"]["buckets"]) == 60
    assert {record["policy"] for record in records} == {"budget 60%"}
    assert all(record["memory_mb"] > 1 for record in records)
    assert all((r["energy_mj"], r["energy_why"]) == (None, "this board has no power sensor") for r in records)
    summary = site.board.stop()
    assert summary.requests == 60
    assert summary.records["made"] == summary.records["acked"] == len(site.server.records())


def test_energy_of_a_simulated_board_says_that_it_is(site: Site) -> None:
    hwmon = site.board.folder / "sysroot/sys/class/hwmon/hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("ina226\n")
    (hwmon / "power1_input").write_text("2500000\n")
    site.board.write(sensors={"power": "hwmon", "simulated": True})
    site.board.start()
    record = until(lambda: next((r for r in site.server.records() if r["interval_s"] >= 0.19), None))
    assert (record["energy_provenance"], record["energy_on"]) == ("simulated", "raspberrypi5")
    assert record["energy_mj"] == pytest.approx(2500 * record["interval_s"], rel=0.3)
    site.board.stop()
    site.board.write(sensors={"simulated": False})
    site.board.start()
    record = until(
        lambda: next((r for r in site.server.records() if r["energy_provenance"] == "measured"), None)
    )
    assert record["energy_on"] != "raspberrypi5"


def test_a_budget_in_mj_is_kept_where_the_board_has_a_sensor(site: Site) -> None:
    hwmon = site.board.folder / "sysroot/sys/class/hwmon/hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("ina226\n")
    (hwmon / "power1_input").write_text("2500000\n")
    (hwmon / "update_interval").write_text("20\n")
    budget = {"kind": "budget", "budget": "0.002mJ"}
    site.board.write(sensors={"power": "hwmon", "simulated": True}, policy=budget)
    site.board.start()
    site.run(site.add(version=1), 1)
    reported = in_force(site, "toy/1")
    assert (reported["policy"], reported["why"]) == (budget, None)
    site.run(None, 2, policy=PolicySpec())
    until(lambda: (r := site.server.last("reported")) and r["policy"] == {"kind": "full"})
    site.board.stop()
    site.board.write(policy={"kind": "full", "budget": None})
    site.board.start()
    in_force(site, "toy/1")
    site.run(None, 3, policy=PolicySpec("budget", parse_budget("0.002mJ")))
    reported = until(
        lambda: (r := site.server.last("reported")) and r["rev"] == 3 and r["policy"] == budget and r
    )
    assert reported["why"] is None


def test_a_budget_in_mj_without_a_readable_sensor_says_why_the_full_network_runs(site: Site) -> None:
    site.board.write(sensors={"power": "hwmon"}, policy={"kind": "budget", "budget": "5mJ"})
    site.board.start()
    site.run(site.add(version=1), 1)
    reported = in_force(site, "toy/1")
    assert reported["policy"] == {"kind": "full"}
    assert "budget 5mJ cannot be had, the full network runs" in reported["why"]
    assert "hwmon" in reported["why"]


def test_throttling_does_not_claim_to_cut_what_it_leaves(site: Site) -> None:
    throttled = site.board.folder / "sysroot/sys/devices/platform/soc/soc:firmware/get_throttled"
    throttled.parent.mkdir(parents=True)
    throttled.write_text("4\n")
    site.board.write(policy={"kind": "anytime", "deadline_ms": 50.0}, limits={"throttled_factor": 0.5})
    site.board.start()
    site.run(site.add(version=1), 1)
    until(lambda: site.server.events("throttle"), "the throttling")
    site.run(None, 2, policy=PolicySpec("anytime", deadline_ms=40.0))
    reported = until(
        lambda: (r := site.server.last("reported")) and r["rev"] == 2 and r["state"] == "active" and r
    )
    assert (reported["policy"]["deadline_ms"], reported["why"]) == (40.0, None)


def test_under_voltage_tightens_the_policy_too(site: Site) -> None:
    chip = site.board.folder / "sysroot/sys/class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    (chip / "name").write_text("rpi_volt\n")
    (chip / "in0_lcrit_alarm").write_text("1\n")
    site.board.write(policy={"kind": "budget", "budget": "80%"}, limits={"throttled_factor": 0.5})
    site.board.start()
    site.run(site.add(version=1), 1)
    until(lambda: (r := site.server.last("reported")) and r["policy"] and r["policy"]["budget"] == "40%")
    (told,) = site.server.events("condition")
    assert (told["detail"]["what"], told["detail"]["on"]) == ("under-voltage", True)


def test_throttling_tightens_the_policy_is_told_and_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "HEALTH_S", 0.1)
    monkeypatch.setattr(monitor, "CLEAR_S", 0.3)
    throttled = site.board.folder / "sysroot/sys/devices/platform/soc/soc:firmware/get_throttled"
    throttled.parent.mkdir(parents=True)
    throttled.write_text("0\n")
    site.board.write(policy={"kind": "budget", "budget": "80%"}, limits={"throttled_factor": 0.5})
    site.board.start()
    site.run(site.add(version=1), 1)
    assert in_force(site, "toy/1")["policy"]["budget"] == "80%"
    throttled.write_text("4\n")
    reported = until(lambda: (r := site.server.last("reported")) and r["policy"]["budget"] == "40%" and r)
    assert "throttled" in reported["why"]
    until(
        lambda: any(r["throttled"] and r["policy"] == "budget 40%" for r in site.server.records()),
        "a Record of that time",
    )
    throttled.write_text("40000\n")
    until(lambda: site.server.last("reported")["policy"]["budget"] == "80%")  # type: ignore[index]
    told = until(lambda: len(found := site.server.events("throttle")) == 2 and found)
    assert [(event["detail"]["on"], event["detail"]["policy"]) for event in told] == [
        (True, "budget 40%"),
        (False, "budget 80%"),
    ]
    assert told[0]["detail"]["flags"] == ["throttled"]
    conditions = until(lambda: len(found := site.server.events("condition")) == 2 and found)
    assert [(entry["detail"]["what"], entry["detail"]["on"]) for entry in conditions] == [
        ("throttled", True),
        ("throttled", False),
    ]
    assert conditions[1]["detail"]["flags"] == ["throttled-has-happened"]


# --- what breaks ---


def test_an_unreadable_state_file_is_repaired_from_the_slots_and_told(serving: Site) -> None:
    serving.board.stop()
    (serving.board.folder / "state/state.json").write_bytes(b"\x00" * 700)
    serving.server.heard.clear()
    serving.board.start()
    event = until(lambda: serving.server.events("state-repaired"))[0]
    assert event["detail"]["active"] == "toy/3"
    in_force(serving, "toy/3")


def test_a_damaged_active_slot_gives_way_to_the_one_before(serving: Site) -> None:
    assert serving.run(serving.add(version=4), 2)["state"] == "active"
    serving.board.stop()
    content = serving.board.state["active"]["content_id"]
    (serving.board.folder / "state/slots" / content / "bundle.edge").write_bytes(b"torn")
    serving.server.heard.clear()
    serving.board.start()
    in_force(serving, "toy/3")
    assert until(lambda: serving.server.events("rollback"))[0]["detail"]["from"] == "toy/4"
    assert serving.run("toy/4", 3)["state"] == "active", "a new command brings it back"


def test_a_bundle_over_which_the_agent_keeps_dying_gives_way_to_the_one_before(serving: Site) -> None:
    assert serving.run(serving.add(version=4), 2)["state"] == "active"
    serving.board.stop()
    path = serving.board.folder / "state/state.json"
    path.write_text(json.dumps({**serving.board.state, "failed_starts": 3}))
    serving.server.heard.clear()
    serving.board.start()
    in_force(serving, "toy/3")
    assert until(lambda: serving.server.events("rollback"))[0]["detail"]["reason"] == "crash"


def test_an_only_bundle_over_which_the_agent_keeps_dying_is_left_out_and_the_board_stays_reachable(
    serving: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.board.stop()
    path = serving.board.folder / "state/state.json"
    path.write_text(json.dumps({**serving.board.state, "failed_starts": 3}))

    def never(*_: object) -> None:
        raise AssertionError("the bundle that kills the agent is opened")

    with monkeypatch.context() as patched:
        patched.setattr(Server, "open", never)
        for _ in range(2):  # and at every further start
            serving.server.heard.clear()
            serving.board.start()
            assert "toy/3 cannot serve (crash): the agent died 3 times" in in_force(serving, None)["why"]
            serving.board.stop()
    serving.board.start()
    assert serving.run("toy/3", 2)["state"] == "active", "a new command brings it back"
    assert in_force(serving, "toy/3")["why"] is None


def test_one_that_kills_the_agent_too_is_found_out_behind_the_first(serving: Site) -> None:
    """Deaths are counted anew for each."""
    assert serving.run(serving.add(version=4), 2)["state"] == "active"
    serving.board.stop()
    path = serving.board.folder / "state/state.json"
    path.write_text(json.dumps({**serving.board.state, "failed_starts": 3}))
    with pytest.MonkeyPatch.context() as patched:

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(Server, "open", dies)
        with pytest.raises(KeyboardInterrupt):
            Agent(load_config(serving.board.config), "test").run()
    assert (serving.board.state["active"]["label"], serving.board.state["failed_starts"]) == ("toy/3", 1)


def test_a_damaged_only_slot_is_said_at_every_start_until_a_bundle_serves_again(serving: Site) -> None:
    serving.board.stop()
    content = serving.board.state["active"]["content_id"]
    (serving.board.folder / "state/slots" / content / "bundle.edge").write_bytes(b"torn")
    for _ in range(2):
        serving.server.heard.clear()
        serving.board.start()
        assert "toy/3 cannot serve (damaged)" in in_force(serving, None)["why"]
        serving.board.stop()
    serving.board.start()
    assert serving.run("toy/3", 2)["state"] == "active"
    assert in_force(serving, "toy/3")["why"] is None


def test_a_slot_that_cannot_be_read_now_is_kept_for_the_next_start(
    serving: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serving.run(serving.add(version=4), 2)["state"] == "active"
    serving.board.stop()
    before, true_open = serving.board.state, Slots.open

    def fails(slots: Slots, content_id: str) -> Bundle:
        if content_id == before["active"]["content_id"]:
            raise WorldFailed("Input/output error")
        return true_open(slots, content_id)

    serving.server.heard.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Slots, "open", fails)
        serving.board.start()
        assert "toy/4 cannot serve (unreadable): Input/output error" in in_force(serving, "toy/3")["why"]
        serving.board.stop()
    assert serving.board.state["active"] == before["active"]
    assert serving.board.state["previous"] == before["previous"]
    serving.board.start()
    assert in_force(serving, "toy/4")["why"] is None


def test_an_outbox_that_was_damaged_is_told_and_the_agent_serves(serving: Site) -> None:
    serving.board.stop()
    (serving.board.folder / "state/outbox.db").write_bytes(b"\x00" * 9000)
    serving.board.start()
    until(lambda: serving.server.events("outbox-damaged"))
    in_force(serving, "toy/3")


def test_what_was_only_in_memory_is_counted_as_dropped_at_the_end_and_said_to_be_lost(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    (site.board.folder / "state").mkdir()
    (site.board.folder / "state/outbox.db").mkdir()  # SQLite cannot open a folder
    site.server.acks = False
    caplog.set_level("INFO")
    site.board.start()
    until(site.server.records, "a record")
    records = site.board.stop().records
    assert records["made"] == records["dropped"] > 0
    assert records["held"] == 0
    assert "not acknowledged and are lost" in caplog.text
    assert "sent at the next start" not in caplog.text


def test_a_full_disk_fails_the_job_and_not_the_agent(serving: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    label, true_fsync = serving.add(version=4), os.fsync

    def full(descriptor: int) -> None:
        if "/slots/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true_fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        event = serving.run(label, 2)
    assert (event["state"], event["reason"]) == ("failed", "disk")
    assert "No space left" in event["detail"]
    in_force(serving, "toy/3")
    until(lambda: len(serving.board.slots) == 1, "the cleaning up")
    assert serving.run(label, 3)["state"] == "active"


def test_a_disk_without_room_for_a_bundle_fails_the_job_before_anything_is_fetched(
    serving: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = serving.add(version=4)
    fetched = len([path for path, _ in serving.repository.requests if path.startswith("targets/")])
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30, 10**6))  # type: ignore[attr-defined]
        event = serving.run(label, 2)
    assert (event["state"], event["reason"]) == ("failed", "disk")
    assert "make room on the disk" in event["detail"]
    in_force(serving, "toy/3")
    assert len([path for path, _ in serving.repository.requests if path.startswith("targets/")]) == fetched
    assert serving.run(label, 3)["state"] == "active"


def test_a_disk_that_is_full_for_everything_leaves_the_agent_serving(
    serving: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = serving.add(version=4)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        event = serving.run(label, 2)
        assert (event["state"], event["reason"]) == ("failed", "disk")
        in_force(serving, "toy/3")
    assert serving.run(label, 3)["state"] == "active"


def test_the_end_of_a_job_that_the_outbox_did_not_take_is_reported_later(
    serving: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_put = Outbox.put

    def full(outbox: Outbox, item: Any) -> int | None:
        return None if getattr(item, "state", None) == "active" else true_put(outbox, item)

    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "put", full)
        serving.server.desire("pi5", serving.add(version=4), 2)
        in_force(serving, "toy/4")
    assert serving.server.ended("job-2")["state"] == "active"


def test_ends_that_the_outbox_did_not_take_are_reported_although_other_jobs_came_after_them(
    serving: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_put = Outbox.put

    def full(outbox: Outbox, item: Any) -> int | None:
        return None if isinstance(item, JobEvent) else true_put(outbox, item)

    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "put", full)
        for rev in (2, 3):
            serving.server.desire("pi5", None, rev)
            until(lambda rev=rev: (j := serving.board.state["job"])["rev"] == rev and j["state"] == "active")
    assert serving.server.ended("job-2")["state"] == "active"
    assert serving.server.ended("job-3")["state"] == "active"
    until(lambda: serving.board.state["owed"] == [])


def test_two_agents_do_not_share_a_state_folder(serving: Site) -> None:
    with pytest.raises(BadInput, match="another agent is running"):
        serving.board.start()
