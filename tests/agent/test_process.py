"""The agent as a process: signals, exit codes, what it prints, what it loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from agents import Mosquitto, Site, until

WHAT_IT_DOES_NOT_LOAD = (
    "onnx",
    "torch",
    "nicegui",
    "sqlalchemy",
    "fastapi",
    "onnxruntime",
    "tuf",
    "PIL.JpegImagePlugin",
)


def test_sigterm_flushes_says_goodbye_and_ends_with_a_summary_within_two_seconds(site: Site) -> None:
    site.board.write(telemetry={"interval_s": 60})
    label = site.add(version=1)
    process = site.board.spawn()
    assert site.run(label, 1)["state"] == "active"
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - begun < 2.5  # two seconds, and what the interpreter needs to end
    assert process.returncode == 0
    summary = json.loads(out)
    assert summary["v"] == 1
    assert set(summary) == {"v", "boot_id", "requests", "records", "bundle"}
    assert summary["bundle"] == "toy/1"
    made = summary["records"]["made"]
    assert summary["records"] == {"made": made, "acked": made, "held": 0, "dropped": 0}
    until(lambda: len(site.server.records()) == made >= 1, "the last interval's record")
    until(lambda: site.server.last("status") == {"boot_id": summary["boot_id"], "online": False, "v": 1})
    text = (site.board.folder / "agent.log").read_text()
    assert "is ready" in text
    assert site.repository.TOKEN not in text


def test_sigint_ends_it_the_same_way(site: Site) -> None:
    process = site.board.spawn()
    until(lambda: site.server.last("status"), "the birth")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, json.loads(out)["bundle"]) == (0, None)


def on_disk(site: Site) -> list[Any]:
    """The Records in the outbox's files: a copy of them, for nobody else can open what the agent has open."""
    folder = Path(tempfile.mkdtemp(dir=site.folder))
    for file in (site.board.folder / "state").glob("outbox.db*"):
        shutil.copy(file, folder)
    with closing(sqlite3.connect(folder / "outbox.db")) as outbox, suppress(sqlite3.Error):
        rows = outbox.execute("SELECT payload FROM items WHERE kind = 'record'").fetchall()
        return [json.loads(row[0]) for row in rows]
    return []


def test_without_a_broker_it_serves_keeps_its_records_and_ends_in_time(site: Site) -> None:
    site.server.close()
    site.broker.stop()
    process = site.board.spawn()
    until(lambda: "is ready" in (site.board.folder / "agent.log").read_text(), "readiness")
    until(lambda: "cannot be reached" in (site.board.folder / "agent.log").read_text(), "the complaint")
    until(lambda: len(on_disk(site)) >= 2, "records in the outbox")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - begun < 2.5
    summary = json.loads(out)
    assert process.returncode == 0
    assert summary["records"]["held"] == summary["records"]["made"] >= 2


def test_a_killed_agent_is_said_to_be_offline_by_its_will(site: Site) -> None:
    process = site.board.spawn()
    status = until(lambda: site.server.last("status"), "the birth")
    assert status["online"]
    process.kill()
    until(lambda: site.server.last("status") == {**status, "online": False}, "the will")


def test_a_killed_agent_sends_what_it_had_not_sent(site: Site) -> None:
    site.server.acks = False
    process = site.board.spawn()
    until(lambda: len(on_disk(site)) >= 3, "records")
    process.kill()
    process.communicate()
    heard = {(r["seq"], r["time"]) for r in on_disk(site)}
    site.server.heard.clear()
    site.server.acks = True
    site.board.spawn()
    until(lambda: heard <= {(r["seq"], r["time"]) for r in site.server.records()}, "the old records again")


def test_a_bad_config_is_one_line_and_exit_code_2(site: Site) -> None:
    site.board.write(device={"profile": "raspberrypi9"})
    process = site.board.spawn()
    out, _ = process.communicate(timeout=20)
    lines = (site.board.folder / "agent.log").read_text().splitlines()
    assert (process.returncode, out) == (2, "")
    assert len(lines) == 1
    assert lines[0].startswith("edgekit: ")
    assert "device.profile: unknown profile 'raspberrypi9'" in lines[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"source": {"kind": "radio"}},
            "source: unknown source 'radio'; known: camera, folder, mqtt, none, stdin",
        ),
        ({"sensors": {"power": "nuclear"}}, "sensors.power: unknown power sensor 'nuclear'"),
        ({"trust": {"control_key": "root.json"}}, "trust.control_key must be an ed25519 public key"),
    ],
)
def test_what_only_shows_when_it_is_opened_is_a_config_error_too(
    site: Site, changes: dict[str, Any], said: str
) -> None:
    site.board.write(**changes)
    process = site.board.spawn()
    process.communicate(timeout=20)
    assert process.returncode == 2
    assert said in (site.board.folder / "agent.log").read_text()


def test_no_config_is_a_usage_error() -> None:
    code = "from edgekit.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "agent"], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 2
    assert "missing --config FILE" in done.stderr


def test_importing_the_agent_loads_nothing_it_may_not_need() -> None:
    code = (
        f"import sys, edgekit.agent.daemon; print([n for n in {WHAT_IT_DOES_NOT_LOAD} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_an_idle_agent_hardly_wakes(site: Site) -> None:
    site.board.write(telemetry={"interval_s": 60}, sensors={"sample_s": 0.5})
    process = site.board.spawn()
    until(lambda: site.server.last("status"), "the birth")

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, begun = ticks(), time.monotonic()
    until(lambda: time.monotonic() - begun > 2, "two seconds of idleness")
    share = (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
    assert share < 0.10


# --- check ---


def check(site: Site, *options: str) -> tuple[int, str]:
    process = site.board.spawn(command=" ".join(["check", *options]))
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_check_of_a_good_board_finds_nothing(site: Site) -> None:
    code, out = check(site)
    assert json.loads(out) == {"v": 1, "problems": []}
    assert code == 0


def test_check_beside_a_running_agent_does_not_connect_in_its_place(site: Site) -> None:
    """A broker may take the user name for the client id: a second connection ends the first."""
    site.board.start()
    until(lambda: site.server.last("reported"), "the agent's connection")
    site.server.close()
    site.broker.stop()
    code, out = check(site)
    (said,) = json.loads(out)["problems"]
    assert (code, said["what"], said["exit_code"]) == (0, "broker", 0)
    assert "not tried: the agent is running" in said["detail"]


def test_check_says_everything_that_is_wrong_one_line_each(site: Site) -> None:
    (site.board.folder / "repo.token").chmod(0o644)
    (site.board.folder / "root.json").write_text("{}")
    model = site.board.folder / "sysroot/proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    site.board.write(
        sensors={"power": "rpi5_pmic"}, broker={"hots": "x"}, source={"kind": "folder", "path": "nowhere"}
    )
    code, out = check(site)
    found = {problem["what"]: problem["detail"] for problem in json.loads(out)["problems"]}
    assert code == 2
    assert set(found) == {"config", "secrets", "profile", "sensor", "trust", "source"}
    assert "broker.hots" in found["config"]
    assert "chmod 600 repo.token" in found["secrets"]
    assert "whose profile is raspberrypi4b" in found["profile"]
    assert "vcgencmd" in found["sensor"]
    assert "trust.root must be a signed TUF root.json" in found["trust"]
    assert all("\n" not in detail for detail in found.values())


def test_check_of_a_dead_broker_and_repository_is_exit_code_3(site: Site) -> None:
    site.server.close()
    site.broker.stop()
    site.repository.close()
    code, out = check(site)
    found = {problem["what"]: problem["detail"] for problem in json.loads(out)["problems"]}
    assert code == 3
    assert set(found) == {"broker", "repository"}
    assert "cannot be reached: Connection refused" in found["broker"]


def test_check_of_a_wrong_token_names_the_key(site: Site) -> None:
    (site.board.folder / "repo.token").write_text("wrong\n")
    code, out = check(site)
    assert code == 2
    assert "repository.token_file" in json.loads(out)["problems"][0]["detail"]


def test_check_of_a_wrong_password_says_that_the_broker_refuses(site: Site) -> None:
    folder = site.folder / "closed"
    folder.mkdir()
    (folder / "passwd").write_text("")
    closed = Mosquitto(folder, folder / "passwd")
    site.board.write(broker={"port": closed.port})
    code, out = check(site)
    closed.stop()
    assert code == 3
    assert "refuses demo/pi5" in json.loads(out)["problems"][0]["detail"]
