"""A rollout through everything that is real: Mosquitto, `fleet serve`, boards on MQTT, the command line, a webhook."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import sqlalchemy as sa
from agents import free_port, until
from bundles import write_null_bundle
from servers import Broker, FleetServer, write_config
from simulation import Simulation, enroll_many

from edgekit.cli.main import run
from edgekit.cli.push import publish_bundle
from edgekit.client import Client
from edgekit.core.histogram import histogram
from edgekit.core.schemas import OUTPUTS
from edgekit.fleet import schema as db
from edgekit.fleet.config import FleetConfig, read_config
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import BUNDLE, EXIT, ids_of
from edgekit.fleet.store import insert_new, open_store

jsonschema = pytest.importorskip("jsonschema")

BOARDS = 30
PROFILES = ("raspberrypi5", "raspberrypi4b")
GOOD, BAD = PROFILES
MEDIAN_MS = 4.0
SCENARIO = {
    "bundle": "toy/1",
    "requests_per_s": 200.0,
    "speed": {},
    "throttled": 0.0,
    "bundles": {"toy/2": {"on": {BAD: {"tail": 2.0}}}},  # twice the p99 of one profile, and nothing else
    "step_s": 0.1,
}
PLAN = """\
to = "all"
canary = "20%"
waves = []
deadline_s = 120
[gate]
soak_s = 1
wait_s = 60
before_s = 900
"""


class Hook:
    """A webhook on a free port that keeps what it was told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        told = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Site:
    """The server with its broker, 30 boards that run toy/1, and toy/2 and toy/3 published."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hook = folder, Hook()
        self.started: list[Callable[[], object]] = [self.hook.close]
        (folder / "alerts.toml").write_text(
            f'[send]\nurls = ["{self.hook.url}"]\nwait = "1s"\n[rules.stopped]\nkind = "rollout"\n'
        )
        (folder / "plan.toml").write_text(PLAN)
        self.broker = Broker(folder / "broker")
        self.started.append(self.broker.stop)
        write_config(folder, self.broker.port)
        text = (folder / "fleet.toml").read_text().replace("port = 0", f"port = {free_port()}")
        (folder / "fleet.toml").write_text(f'{text}[alerts]\nrules = "alerts.toml"\n')
        self.config = read_config(folder / "fleet.toml")
        self.server = FleetServer(self.config)
        self.started.append(self.server.end)

    def begin(self) -> None:
        """Publish, enroll, connect, and wait until the server knows what the boards run."""
        self.publish()
        credentials = self.folder / "boards.jsonl"
        enroll_many(self.config, BOARDS, credentials, PROFILES)
        before_now(self.config)
        self.boards = Simulation(
            credentials,
            self.broker.port,
            *("--interval-s", "1", "--ramp-s", "0.5", "--resend-s", "2"),
            *("--control-key", str(self.config.data_dir / "control.pub")),
            scenario=SCENARIO,
        )
        self.started.append(self.boards.stop)
        until(self.all_run, "the boards on toy/1", 60)

    @property
    def client(self) -> Client:
        return Client(self.server.url, self.server.token)

    def publish(self) -> None:
        for version in (1, 2, 3):
            path = self.folder / f"toy-{version}.edge"
            bundle = write_null_bundle(path, version=version, profiles=PROFILES)
            assert publish_bundle(self.client, bundle, self.folder / "repository/keys/targets.pem")

    def all_run(self, label: str = "toy/1") -> bool:
        return sum(row["bundle"] == label for row in self.client.devices()) == BOARDS

    def verb(self, *words: str) -> list[str]:
        given = ("--server", self.server.url, "--token-file", str(self.config.token_file))
        return ["fleet", *words, *given]

    def start(self, label: str) -> subprocess.Popen[str]:
        """`edgekit fleet rollout start --wait` as a process of its own."""
        words = ("rollout", "start", label, "--plan", str(self.folder / "plan.toml"), "--wait", "100")
        code = "from edgekit.cli.main import main; main()"
        command = [sys.executable, "-c", code, *self.verb(*words), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def rollout(self, target: str) -> dict[str, Any] | None:
        return next((row for row in self.client.rollouts() if row["target"] == target), None)

    def wait_until_asked(self, target: str) -> None:
        """Its first boards are at work."""
        until(lambda: (self.rollout(target) or {"boards": {"asked": 0}})["boards"]["asked"], target, 60)

    def kill_server(self) -> None:
        """kill -9 of `fleet serve`; its children end by themselves."""
        children = list(self.server.children().values())
        self.server.process.kill()
        self.server.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the children's end", 20)
        self.config.address_file.unlink()
        self.server.start()

    def close(self) -> None:
        for end in reversed(self.started):
            end()


def before_now(config: FleetConfig) -> None:
    """Ten minutes in which every board ran toy/1: what `before` is, without waiting for it."""
    normal = NormalDist()
    latencies = [MEDIAN_MS * math.exp(0.25 * normal.inv_cdf((place + 0.5) / 400)) for place in range(400)]
    store = open_store(config.database_url)
    with store.write() as connection:
        bundle = ids_of(connection, BUNDLE, ["toy/1"])["toy/1"]
        exits = ids_of(connection, EXIT, ["exit1", "exit2", "exit3"])
        shares = dict(zip(exits.values(), (280, 80, 40), strict=True))
        found = Sum(records=1, requests=400, latency=dict(histogram(latencies).counts), exits=shares).values()
        minute = int(time.time() // 60) * 60
        rows = [
            {"device": device, "at": minute - 60 * ago, "bundle": bundle, **found}
            for device in connection.scalars(sa.select(db.devices.c.id))
            for ago in range(1, 11)
        ]
        insert_new(connection, db.minutes, rows)
    store.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.close()


def test_a_bad_bundle_goes_back_a_good_one_completes_and_kills_change_nothing(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    command = site.start("toy/2")
    site.wait_until_asked("toy/2")
    os.kill(site.server.children()["background"], signal.SIGKILL)
    out, errors = command.communicate(timeout=110)
    assert command.returncode == 1, errors
    bad = json.loads(out)
    jsonschema.validate(bad, OUTPUTS["fleet rollout start"])
    bad = bad["rollout"]
    assert bad["state"] == "rolled_back"
    assert [wave["state"] for wave in bad["waves"]] == ["failed", "waiting"]
    assert bad["boards"]["asked"] == 6
    failed = [check for check in bad["waves"][0]["verdict"]["checks"] if check["verdict"] == "failed"]
    assert (BAD, "p99") in {(check["scope"], check["figure"]) for check in failed}
    assert GOOD not in {check["scope"] for check in failed}
    assert site.all_run("toy/1")
    assert f"{BAD}: p99" in errors
    assert "canary failed its gate" in errors

    assert run(site.verb("rollout", "show", bad["rollout_id"])) == 0
    shown = capsys.readouterr().out
    assert f"{BAD}: p99" in shown
    assert "every board that was asked goes back" in shown
    assert run([*site.verb("audit", "--subject", f"rollout:{bad['rollout_id']}"), "--json"]) == 0
    actions = [line["action"] for line in json.loads(capsys.readouterr().out)["lines"]]
    assert actions[-1] == "rollout.create"
    assert "rollout.gate-failed" in actions

    command = site.start("toy/3")
    site.wait_until_asked("toy/3")
    site.kill_server()
    out, errors = command.communicate(timeout=110)
    assert command.returncode == 0, errors  # an outage is waited out
    good = json.loads(out)["rollout"]
    assert good["state"] == "completed"
    assert [wave["state"] for wave in good["waves"]] == ["passed", "passed"]
    assert good["boards"]["took"] == BOARDS
    assert site.all_run("toy/3")

    until(lambda: bad["rollout_id"] in json.dumps(site.hook.bodies), "the webhook's message", 60)
    assert good["rollout_id"] not in json.dumps(site.hook.bodies)
