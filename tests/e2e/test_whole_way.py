"""The real thing: Mosquitto, the fleet server, a signed repository, and an agent that is killed half-way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import null_bundle

from edgekit.cli.demo.processes import Process, Processes, wait_for
from edgekit.cli.demo.steps import Demo, call, edgekit, start_broker, start_server
from edgekit.client import Client
from edgekit.core import jobs
from edgekit.core.errors import EdgekitError
from edgekit.core.schemas import OUTPUTS
from edgekit.core.target import target_path
from edgekit.repo.add import sign_targets
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import parse_targets

jsonschema = pytest.importorskip("jsonschema")
WAIT_S = 60.0
LARGE = 96 * 2**20  # bytes of padding: a download that can be caught in the middle


class Site:
    """A server with its broker, and one enrolled board."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes(folder)
        demo = Demo(folder, 0, lambda text: None, self.processes)
        self.client, self.address = start_server(demo)
        self.token = folder / "server/api.token"
        self.board = folder / "board"
        call(
            *("fleet", "enroll", "pi5", "--profile", "raspberrypi5", "-o", self.board),
            *("--server", self.address, "--token-file", self.token),
        )
        config = self.board / "agent.toml"
        text = config.read_text().replace("interval_s = 60", "interval_s = 1")
        config.write_text(f"{text}\n[trial]\nseconds = 1\nlive_seconds = 1\n[update]\njitter_s = 0\n")

    @property
    def state_dir(self) -> Path:
        return self.board / "state"

    def start_agent(self) -> Process:
        return self.processes.start(
            "agent", edgekit("agent", "--config", self.board / "agent.toml", "--json")
        )

    def end_agent(self, agent: Process) -> dict[str, Any]:
        """What the agent said about itself at its end."""
        assert self.processes.end(agent) == 0
        summary: dict[str, Any] = json.loads(agent.log.read_text().strip().splitlines()[-1])
        return summary

    def push(self, version: int, wait_s: float = 0.0, **options: Any) -> dict[str, Any]:
        bundle = self.folder / f"toy-{version}.edge"
        bundle.write_bytes(null_bundle(version=version, profiles=("raspberrypi5",), **options))
        waiting = ("--wait", f"{wait_s:g}") if wait_s else ()
        return call(
            *("push", bundle, "--server", self.address, "--key", self.folder / "repository/keys/targets.pem"),
            *("--to", "name=pi5", "--token-file", self.token, *waiting),
        )

    def device(self) -> dict[str, Any]:
        return next(device for device in self.client.devices() if device["name"] == "pi5")

    def wait(self, what: str, ready: Any, alive: list[Process]) -> None:
        wait_for(what, ready, WAIT_S, alive)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = None
    try:
        made = Site(tmp_path)
        yield made
    finally:
        if made is not None:
            made.processes.end_all()


def installing(site: Site) -> bool:
    """Whether bytes of a bundle are on the board that is not yet a slot."""
    return any(path.stat().st_size > 0 for path in site.state_dir.glob("slots/.part-*/*"))


def kill_in_the_middle(site: Site, agent: Process) -> None:
    end = time.monotonic() + WAIT_S
    while not installing(site):
        assert time.monotonic() < end, "no download began"
        time.sleep(0.001)
    os.kill(agent.popen.pid, signal.SIGKILL)
    agent.popen.wait()


def test_an_agent_killed_during_an_install_comes_back_and_finishes(site: Site) -> None:
    agent = site.start_agent()
    site.push(1, wait_s=WAIT_S)
    assert site.device()["bundle"] == "toy/1"

    site.push(2, padding=LARGE)
    kill_in_the_middle(site, agent)
    state = json.loads((site.state_dir / "state.json").read_text())
    assert state["job"]["state"] not in jobs.FINAL, "the kill came too late to show anything"
    assert state["active"]["label"] == "toy/1"

    agent = site.start_agent()
    job = site.client.jobs()[0]
    assert job["target"] == "toy/2"
    site.wait("the end of the job", lambda: ended(site, job["job_id"]), [agent])
    assert site.client.job(job["job_id"])["devices"]["pi5"]["state"] == "active"
    site.wait("version 2", lambda: site.device()["bundle"] == "toy/2", [agent])
    assert not installing(site)
    assert site.processes.end(agent) == 0


def test_the_server_shows_a_killed_board_as_offline_and_a_stopped_one_too(site: Site) -> None:
    agent = site.start_agent()
    site.wait("the board to be online", lambda: site.device()["online"], [agent])
    os.kill(agent.popen.pid, signal.SIGKILL)
    agent.popen.wait()
    site.wait("the will to be delivered", lambda: not site.device()["online"], [])
    agent = site.start_agent()
    site.wait("the board to be back", lambda: site.device()["online"], [agent])
    assert site.processes.end(agent) == 0
    site.wait("its goodbye", lambda: not site.device()["online"], [])


def make_current_again(site: Site, version: int) -> None:
    """An engineer's slip: version 1 is signed as `current` again, not as `allowed` for rolling back."""
    metadata = parse_targets(site.client.targets_metadata(), "targets")
    path = target_path("toy", version)
    metadata.signed.targets[path].custom["state"] = "current"
    metadata.signed.version += 1
    key = read_key(site.folder / "repository/keys/targets.pem")
    site.client.publish(sign_targets(metadata, key))


def ended(site: Site, job_id: str) -> dict[str, Any] | None:
    board: dict[str, Any] = site.client.job(job_id)["devices"]["pi5"]
    return board if board["state"] in jobs.FINAL else None


def test_rolling_back_is_allowed_and_an_older_current_version_is_refused_with_its_reason(site: Site) -> None:
    agent = site.start_agent()
    for version in (1, 2):
        site.push(version, wait_s=WAIT_S)
    back = site.client.create_job("toy/1", "name=pi5")["job_id"]
    site.wait("the roll-back", lambda: ended(site, back), [agent])
    assert site.device()["bundle"] == "toy/1"
    forward = site.client.create_job("toy/2", "name=pi5")["job_id"]
    site.wait("version 2 again", lambda: ended(site, forward), [agent])

    make_current_again(site, 1)
    refused = site.client.create_job("toy/1", "name=pi5")["job_id"]
    site.wait("the refusal", lambda: ended(site, refused), [agent])
    board = site.client.job(refused)["devices"]["pi5"]
    assert (board["state"], board["reason"]) == ("refused", "older")
    assert site.device()["bundle"] == "toy/2"
    assert site.processes.end(agent) == 0


def test_a_file_changed_on_the_server_is_refused_as_tampered(site: Site) -> None:
    agent = site.start_agent()
    site.push(1, wait_s=WAIT_S)
    assert site.processes.end(agent) == 0
    site.push(2, padding=300_000)  # what a slot holds already is not fetched
    stored = next((site.folder / "repository/targets").rglob("2.edge"))
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    agent = site.start_agent()
    job_id = site.client.jobs()[0]["job_id"]
    site.wait("the end of the job", lambda: ended(site, job_id), [agent])
    board = site.client.job(job_id)["devices"]["pi5"]
    assert (board["state"], board["reason"]) == ("refused", "tampered")
    assert site.device()["bundle"] == "toy/1"
    assert site.processes.end(agent) == 0


def test_a_board_stops_what_is_revoked_at_once_and_follows_every_change_of_keys(site: Site) -> None:
    agent = site.start_agent()
    for version in (1, 2):
        site.push(version, wait_s=WAIT_S)
    repository = site.folder / "repository"
    for role in ("online", "targets", "root"):
        call("repo", "rotate", repository, role)
    there = ("--server", site.address, "--token-file", site.token)
    call("repo", "revoke", "toy/2", *there, "--key", repository / "keys/targets.pem")
    site.wait("the board to go back", lambda: site.device()["bundle"] == "toy/1", [agent])
    looked = next(job for job in site.client.jobs() if job["action"] == "refresh")
    site.wait("the end of the look", lambda: ended(site, looked["job_id"]), [agent])
    assert site.client.job(looked["job_id"])["devices"]["pi5"]["state"] == "done"
    assert site.push(3, wait_s=WAIT_S)["devices"]["pi5"]["state"] == "active"
    seen = site.client.device("pi5")["info"]["metadata"]
    versions = {role: facts["version"] for role, facts in site.client.repository()["roles"].items()}
    assert {role: seen[role] for role in versions} == versions
    assert versions["root"] == 4
    assert site.processes.end(agent) == 0


def test_a_bundle_whose_golden_cases_fail_never_serves(site: Site) -> None:
    agent = site.start_agent()
    site.push(1, wait_s=WAIT_S)
    answer = site.push(2, wait_s=WAIT_S, golden_error=0.5)
    device = answer["devices"]["pi5"]
    assert (device["state"], device["reason"]) == ("failed", "golden")
    assert site.device()["bundle"] == "toy/1"
    assert site.processes.end(agent) == 0


def test_telemetry_survives_a_broker_that_was_away(site: Site) -> None:
    agent = site.start_agent()
    site.push(1, wait_s=WAIT_S)
    site.wait("first records", lambda: site.device()["records"] > 0, [agent])
    broker = next(process for process in site.processes.running if process.name == "mosquitto")
    site.processes.end(broker)
    outbox = site.state_dir / "outbox.db"
    assert outbox.exists()
    held = site.device()["records"]
    start_broker(Demo(site.folder, 0, lambda text: None, site.processes))
    site.wait("records made meanwhile", lambda: site.device()["records"] > held + 2, [agent])
    summary = site.end_agent(agent)
    while summary["records"][
        "held"
    ]:  # its two seconds for a last acknowledgement were too short: it goes out now
        summary = site.end_agent(site.start_agent())
    site.wait("the last record", lambda: site.device()["records"] == summary["records"]["made"], [])
    assert summary["records"]["dropped"] == 0


def test_what_the_verbs_print_about_a_fleet_is_what_their_schemas_say(site: Site) -> None:
    agent = site.start_agent()
    jsonschema.validate(site.push(1, wait_s=WAIT_S), OUTPUTS["push"])
    there = ("--server", site.address, "--token-file", site.token)
    job_id = site.client.jobs()[0]["job_id"]
    for name, more in (
        ("fleet status", ()),
        ("fleet devices", ()),
        ("fleet devices", ("pi5",)),
        ("fleet jobs", ()),
        ("fleet jobs", (job_id,)),
    ):
        jsonschema.validate(call(*name.split(), *more, *there), OUTPUTS[name])
    jsonschema.validate(call("repo", "status", site.folder / "repository"), OUTPUTS["repo status"])
    assert site.processes.end(agent) == 0
    jsonschema.validate(
        json.loads((site.folder / "agent.log").read_text().splitlines()[-1]), OUTPUTS["agent"]
    )


def test_a_client_without_the_token_learns_nothing(site: Site) -> None:
    with pytest.raises(EdgekitError, match="token"):
        Client(site.address, "wrong", ca=site.folder / "server/ca.pem").devices()
    with pytest.raises(EdgekitError, match="--ca must name"):  # the system does not know who signed for it
        Client(site.address, site.client.token).devices()
