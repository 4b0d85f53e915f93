"""A board that no network reaches: `edgekit push`, `edgekit fleet stick`, the stick carried to it, news much later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import free_port
from bundles import write_null_bundle

from edgekit.cli.demo.processes import Process, Processes, wait_for
from edgekit.cli.demo.steps import Demo, call, edgekit, start_broker, start_server
from edgekit.cli.main import run
from edgekit.core.schemas import OUTPUTS

PROFILE = "raspberrypi5"
WAIT_S = 40.0


class Site:
    """A server, and a board whose server and broker are away until the test says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes(folder)
        self.demo = Demo(folder, 0, lambda text: None, self.processes)
        self.client, self.address = start_server(self.demo)
        self.server = ("--server", self.address, "--token-file", folder / "server/api.token")
        self.processes.end(self.processes.running[-1])  # the broker
        self.board = folder / "board"
        call("fleet", "enroll", "pi5", "--profile", PROFILE, "--tag", "hill", "-o", self.board, *self.server)
        config = self.board / "agent.toml"
        away = config.read_text().replace(f"{self.address}/repo", f"http://127.0.0.1:{free_port()}/repo")
        assert away != config.read_text()
        config.write_text(
            f'{away}\n[update]\nsticks = ["{folder}/media/*/edgekit"]\njitter_s = 3600\n'
            "[trial]\nseconds = 0.2\nrequests = 4\nlive_seconds = 0.1\nlive_requests = 4\n"
        )

    def push(self, version: int) -> dict[str, Any]:
        bundle = write_null_bundle(self.folder / f"{version}.edge", version=version, profiles=(PROFILE,))
        key = self.folder / "repository/keys/targets.pem"
        return call("push", bundle.path, "--key", key, "--to", "tag=hill", "--wait", "0", *self.server)

    def start(self) -> Process:
        command = edgekit("agent", "--config", self.board / "agent.toml", "--json")
        return self.processes.start("agent", command)

    def active(self) -> str | None:
        path = self.board / "state/state.json"
        if not path.exists():
            return None
        active = json.loads(path.read_text())["active"]
        return active["label"] if active else None

    def job_of(self, pushed: dict[str, Any]) -> str:
        row: dict[str, Any] = self.client.job(pushed["job_id"])["devices"]["pi5"]
        return str(row["state"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        yield made
    finally:
        made.processes.end_all()


def test_what_is_written_is_complete_and_what_is_no_sticks_is_not_replaced(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = site.folder / "edgekit"
    words = ["fleet", "stick", "--all", "-o", str(folder), *map(str, site.server)]
    assert run(words) == 2
    assert "nothing was pushed to it yet" in capsys.readouterr().err
    assert not folder.exists()
    site.push(1)
    call("fleet", "enroll", "pi4", "--profile", PROFILE, "-o", site.folder / "other", *site.server)
    assert run([*words, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    pytest.importorskip("jsonschema").validate(printed, OUTPUTS["fleet stick"])
    assert printed["left_out"] == {"pi4": "nothing was pushed to it yet"}
    version = json.loads((folder / "repository/metadata/timestamp.json").read_text())["signed"]["version"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "commands/demo/pi5.json",
        "repository/metadata/1.root.json",
        f"repository/metadata/{version}.snapshot.json",
        "repository/metadata/2.targets.json",
        "repository/metadata/timestamp.json",
        "repository/targets/run/toy/1.edge",
    }
    assert (folder / "repository/targets/run/toy/1.edge").read_bytes() == (
        site.folder / "1.edge"
    ).read_bytes()
    assert sorted(path.name for path in site.folder.iterdir() if path.name.startswith(".")) == []
    assert not any(b"PRIVATE" in (folder / name).read_bytes() for name in files)

    (folder / "holiday.jpg").write_bytes(b"mine")
    assert run(words) == 2
    assert "holds what is no stick's: holiday.jpg" in capsys.readouterr().err
    assert (folder / "holiday.jpg").read_bytes() == b"mine"
    assert run([*words[:2], "pi5", *words[2:]]) == 2, "names and --all"


def test_a_board_without_a_network_installs_from_a_stick_and_says_so_when_it_has_one(site: Site) -> None:
    pushed = site.push(2)
    media = site.folder / "media/STICK"
    media.mkdir(parents=True)
    agent = site.start()
    written = call("fleet", "stick", "pi5", "-o", media / "edgekit", *site.server)  # while the agent looks
    assert (written["boards"], written["left_out"]) == ({"pi5": "toy/2"}, {})
    wait_for("the bundle from the stick", lambda: site.active() == "toy/2", WAIT_S, [agent])
    assert site.job_of(pushed) == "pending"

    second = site.push(3)  # the same stick, written anew
    call("fleet", "stick", "--to", "tag=hill", "-o", media / "edgekit", *site.server)
    wait_for("the second bundle", lambda: site.active() == "toy/3", WAIT_S, [agent])

    start_broker(site.demo)
    wait_for("news from the board", lambda: site.job_of(second) == "active", WAIT_S, [agent])
