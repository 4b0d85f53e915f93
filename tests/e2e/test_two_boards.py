"""Two boards, a server, Mosquitto with TLS and ACL, and a line that is slow, loses packets and is cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import urllib3
from agents import free_port, until
from bundles import null_bundle
from lines import Lines, Namespaces, Proxies, may_make_namespaces
from paho.mqtt.client import Client as Listener
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgekit.agent.identity import key_pem, new_key, request
from edgekit.cli.demo.processes import Process, Processes
from edgekit.cli.demo.steps import edgekit
from edgekit.client import Client
from edgekit.core.messages import decode
from edgekit.core.schemas import OUTPUTS
from edgekit.fleet.certificates import issue
from edgekit.fleet.config import read_config
from edgekit.fleet.schema import certificates, devices
from edgekit.fleet.store import open_store
from edgekit.fleet.tls import authorities_of, broker_context

jsonschema = pytest.importorskip("jsonschema")
BOARDS = ("north", "south")
WAIT_S = 60.0


class Fleet:
    """A server and its broker at one end of the lines, a board at the end of each."""

    def __init__(self, folder: Path, lines: Lines) -> None:
        self.folder, self.lines = folder, lines
        self.processes = Processes(folder)
        self.agents: dict[str, Process] = {}
        self.said: list[str] = []  # what our commands printed
        self.started: set[str] = set()  # command lines that were seen
        self.heard: list[bytes] = []  # payloads at the broker
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self.port, web = free_port(), free_port()
        self.run("repo", "init", folder / "repository")
        (folder / "fleet.toml").write_text(
            f'fleet = "demo"\ndata_dir = "server"\nrepository = "repository"\n'
            f'public_url = "https://{lines.host}:{web}"\n[web]\nhost = "{lines.listen}"\nport = {web}\n'
            f'[broker]\nhost = "{lines.listen}"\nport = {self.port}\npublic_host = "{lines.host}"\n'
            f'files_dir = "broker"\npid_file = "broker/pid"\n'
        )
        self.server = self.start(
            "fleet", lines.on_server(), "fleet", "serve", "--config", folder / "fleet.toml"
        )
        until((folder / "server/address").exists, "the server's start", WAIT_S)
        self.url = f"https://{lines.host}:{web}"
        self.web = web
        self.start_broker()
        token = (folder / "server/api.token").read_text().strip()
        self.client = Client(self.url, token, ca=folder / "server/ca.pem")

    def _watch(self) -> None:
        """Every command line there ever is, as far as a look now and then shows them."""
        while not self._ended.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if str(self.folder) in line or "edgekit" in line:
                    self.started.add(line)

    def start(self, name: str, where: Sequence[str], *arguments: str | Path) -> Process:
        return self.processes.start(name, [*where, *edgekit(*arguments)])

    def start_broker(self) -> None:
        program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        assert program is not None, "mosquitto is not installed"
        conf = self.folder / "broker/mosquitto.conf"
        self.broker = self.processes.start("mosquitto", [*self.lines.on_server(), program, "-v", "-c", conf])

    def run(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """One of our commands beside the server; what it printed as JSON."""
        command = [*self.lines.on_server(), *edgekit(*arguments, "--json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.said += [done.stdout, done.stderr]
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def ask(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        there = ("--server", self.url, "--token-file", self.folder / "server/api.token")
        return self.run(*arguments, *there, code=code)

    def refused(self, *arguments: str | Path) -> str:
        """What a command said that the user could have known better."""
        there = ("--server", self.url, "--token-file", self.folder / "server/api.token")
        done = subprocess.run(edgekit(*arguments, *there), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    def enroll(self) -> None:
        """Both boards from one list, and what a person would change in their agent.toml."""
        (self.folder / "boards.csv").write_text(
            "name,profile,tags\n" + "".join(f"{name},raspberrypi5,field\n" for name in BOARDS)
        )
        arguments = ("fleet", "enroll", "--csv", self.folder / "boards.csv", "-o", self.folder / "boards")
        first, again = self.ask(*arguments), self.ask(*arguments)
        jsonschema.validate(first, OUTPUTS["fleet enroll"])
        assert [board["state"] for board in first["boards"]] == ["enrolled"] * 2
        assert [board["state"] for board in again["boards"]] == ["there"] * 2
        for name in BOARDS:
            config = self.folder / "boards" / name / "agent.toml"
            text = config.read_text().replace("interval_s = 60", "interval_s = 0.5")
            text = text.replace(
                f"port = {self.port}", f"port = {self.lines.port(name, self.port)}\nkeepalive_s = 5"
            )
            text = text.replace(f":{self.web}/", f":{self.lines.port(name, self.web)}/")
            assert "tls = true" in text
            trial = "requests = 4\nseconds = 0.2\nlive_requests = 4\nlive_seconds = 0.1"
            config.write_text(
                f"{text}\n[trial]\n{trial}\n[update]\njitter_s = 0\n[limits]\nmin_interval_s = 0.1\n"
                "[log]\nverbose = true\n"
            )

    def start_agent(self, name: str) -> None:
        config = self.folder / "boards" / name / "agent.toml"
        where = self.lines.on_board(name)
        self.agents[name] = self.start(f"agent-{name}", where, "agent", "--config", config, "--json")

    def listen(self) -> Listener:
        """Hear all that boards and server say to each other."""
        config = read_config(self.folder / "fleet.toml")
        client = Listener(
            CallbackAPIVersion.VERSION2, client_id="listener", protocol=MQTTProtocolVersion.MQTTv5
        )
        client.username_pw_set("edgekit-server", (self.folder / "server/broker.password").read_text().strip())
        client.tls_set_context(broker_context(config))
        client.on_message = lambda _client, _data, message: self.heard.append(bytes(message.payload))
        client.connect(self.lines.host, self.port)
        client.subscribe("edgekit/v1/demo/#")
        for _ in range(20):
            client.loop(0.05)
        client.disconnect()
        return client

    def push(self, version: int, padding: int = 0, wait_s: float = 0.0) -> None:
        bundle = self.folder / f"toy-{version}.edge"
        bundle.write_bytes(null_bundle(version=version, profiles=("raspberrypi5",), padding=padding))
        key = self.folder / "repository/keys/targets.pem"
        waiting = ("--wait", f"{wait_s:g}") if wait_s else ()
        answer = self.ask("push", bundle, "--key", key, "--to", "tag=field", *waiting)
        if wait_s:
            assert {board["state"] for board in answer["devices"].values()} == {"active"}

    def devices(self) -> dict[str, dict[str, Any]]:
        return {device["name"]: device for device in self.lines.ask(self.client.devices)}

    def wait(self, what: str, ready: Callable[[], Any]) -> None:
        def look() -> Any:
            for process in (self.server, *self.agents.values()):
                process.check()
            return ready()

        until(look, what, WAIT_S)

    def downloading(self) -> bool:
        """Whether both boards have some bytes of a bundle, and neither has all."""
        parts = [list((self.folder / "boards" / name).glob("state/slots/.part-*/*")) for name in BOARDS]
        return all(any(path.is_file() and path.stat().st_size > 0 for path in found) for found in parts)

    def end_agent(self, name: str) -> dict[str, Any]:
        """What it said about itself at its end; it is started again until nothing is held."""
        while True:
            agent = self.agents.pop(name)
            assert self.processes.end(agent) == 0
            log = agent.log
            summary: dict[str, Any] = json.loads(log.read_text().strip().splitlines()[-1])
            if not summary["records"]["held"]:
                return summary
            self.start_agent(name)
            self.wait(f"{name} to be back", lambda: self.devices()[name]["online"])

    def close(self) -> None:
        self._ended.set()
        self.processes.end_all()


@contextmanager
def lines_of(kind: str) -> Iterator[Lines]:
    """namespaces: networks of their own. proxies: all on loopback. best: what this machine allows."""
    why = may_make_namespaces() if kind != "proxies" else None
    if kind == "namespaces" and why:
        pytest.skip(why)
    lines = Proxies(BOARDS) if kind == "proxies" or why else Namespaces(BOARDS)
    try:
        yield lines
    finally:
        lines.close()


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    with lines_of(request.param) as lines, ExitStack() as stack:
        made = Fleet(tmp_path, lines)
        stack.callback(made.close)
        yield made


def secrets_of(fleet: Fleet) -> dict[str, str]:
    """Where a secret lies -> the secret, or a line in the middle of a key."""
    found = {}
    files = [fleet.folder / "server/api.token", fleet.folder / "server/broker.password"]
    files += [fleet.folder / "server/control.pem", *(fleet.folder / "server/tls").iterdir()]
    files += [fleet.folder / "broker/server.pem", *(fleet.folder / "repository/keys").glob("*.pem")]
    for name in BOARDS:
        files += [
            fleet.folder / "boards" / name / file for file in ("mqtt.password", "repo.token", "board.key")
        ]
    for file in files:
        assert file.stat().st_mode & 0o077 == 0, file
        lines = file.read_text().strip().splitlines()
        found[str(file)] = lines[0] if len(lines) == 1 else lines[1]
    return found


def check_that_no_secret_shows(fleet: Fleet) -> None:
    places = {f"{path}": path.read_text(errors="replace") for path in fleet.folder.glob("*.log")}
    places |= {"a command's output": "\n".join(fleet.said), "a command line": "\n".join(fleet.started)}
    payloads = [json.dumps(decode(data)) for data in fleet.heard if data]
    places["a message"] = "\n".join(payloads)
    places |= {str(path): path.read_text() for path in fleet.folder.glob("boards/*/agent.toml")}
    assert len(payloads) > 4
    assert any("fleet serve" in line for line in fleet.started)
    assert {"fleet.log", "mosquitto.log", "agent-north.log"} <= {Path(place).name for place in places}
    for where, secret in secrets_of(fleet).items():
        for place, text in places.items():
            assert secret not in text, f"what {where} holds stands in {place}"


def go_through_it(fleet: Fleet, padding: int, rate: int, dark_s: float) -> None:
    fleet.enroll()
    for name in BOARDS:
        fleet.start_agent(name)
    fleet.push(1, wait_s=WAIT_S)
    fleet.lines.ask(fleet.listen)

    fleet.lines.slow(rate, 0.02, 0.01)
    fleet.push(2, padding)
    fleet.wait("both downloads to begin", fleet.downloading)
    fleet.lines.cut()
    assert {device["bundle"] for device in fleet.devices().values()} == {"toy/1"}
    fleet.processes.end(fleet.broker)
    time.sleep(dark_s)  # how long the line is away: nothing is waited for
    fleet.start_broker()
    fleet.lines.mend()
    fleet.wait(
        "version 2 on both", lambda: {device["bundle"] for device in fleet.devices().values()} == {"toy/2"}
    )
    fleet.wait("both to be online", lambda: all(device["online"] for device in fleet.devices().values()))
    fleet.lines.ask(fleet.listen)
    for name in BOARDS:
        summary = fleet.end_agent(name)
        assert (summary["bundle"], summary["records"]["dropped"]) == ("toy/2", 0)
        made = summary["records"]["made"]
        fleet.wait(f"{name}'s last record", lambda n=name, m=made: fleet.devices()[n]["records"] == m)
        jobs = [job["state"] for job in fleet.lines.ask(lambda n=name: fleet.client.device(n))["jobs"]]
        assert jobs == ["active", "active"]
    assert {device["malformed"] for device in fleet.devices().values()} == {0}
    check_that_no_secret_shows(fleet)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fleet", ["best"], indirect=True)
def test_a_slow_line_that_is_cut_in_a_download_while_the_broker_restarts_costs_time_and_nothing_else(
    fleet: Fleet,
) -> None:
    go_through_it(fleet, padding=2**20, rate=2**19, dark_s=1.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fleet", ["namespaces", "proxies"], indirect=True)
def test_the_same_on_a_line_so_slow_and_away_so_long_that_every_connection_is_given_up(fleet: Fleet) -> None:
    go_through_it(fleet, padding=4 * 2**20, rate=2**18, dark_s=20.0)


def age(fleet: Fleet, name: str, days: float) -> float:
    """Give a board a certificate that the server signed so many days ago; when it ends."""
    config = read_config(fleet.folder / "fleet.toml")
    now = datetime.now(timezone.utc)
    address, key = f"demo/{name}", new_key()
    then = now - timedelta(days=days)
    issued = issue(authorities_of(config, now), request(key, address), address, then)
    store = open_store(config.database_url)
    with store.write() as connection:
        device = connection.scalar(sa.select(devices.c.id).where(devices.c.name == name))
        row = {"serial": issued.serial, "device": device, "expires": issued.expires}
        connection.execute(sa.insert(certificates).values(row))
    store.close()
    folder = fleet.folder / "boards" / name
    (folder / "board.key").write_bytes(key_pem(key))
    (folder / "board.pem").write_text(issued.pem)
    return issued.expires


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fleet", ["proxies"], indirect=True)
def test_a_board_renews_its_certificate_by_itself_until_it_is_revoked_and_comes_back_when_enrolled_again(
    fleet: Fleet,
) -> None:
    def said() -> dict[str, Any]:
        """What the board last said about itself."""
        return fleet.client.device("north")["info"] or {}

    fleet.enroll()
    ends = age(fleet, "north", 200)  # it was in a drawer for so long that its certificate has ended
    fleet.start_agent("north")
    fleet.wait("the board to be online", lambda: fleet.devices()["north"]["online"])
    fleet.wait("its new certificate", lambda: said().get("certificate_expires", 0) > ends + 100 * 86_400)
    assert said()["certificate_expires"] == fleet.devices()["north"]["certificate_expires"]

    answer = fleet.ask("fleet", "revoke", "north")
    jsonschema.validate(answer, OUTPUTS["fleet revoke"])
    assert answer["broker_reloaded"]
    log = fleet.agents["north"].log
    fleet.wait("the broker to hang up", lambda: "connection to the broker is gone" in log.read_text())
    fleet.wait("the agent to say why", lambda: "hangs up on demo/north before it answers" in log.read_text())
    revoked = fleet.devices()["north"]
    assert (revoked["online"], revoked["revoked_at"] is None) == (False, False)
    token = (fleet.folder / "boards/north/repo.token").read_text().strip()
    http = urllib3.PoolManager(ca_certs=str(fleet.folder / "server/ca.pem"))
    metadata = f"{fleet.url}/repo/metadata/timestamp.json"
    assert http.request("GET", metadata, headers={"Authorization": f"Bearer {token}"}).status == 401
    assert "nobody was revoked" in fleet.refused("fleet", "revoke", "south", "nobody")
    assert fleet.devices()["south"]["revoked_at"] is None
    assert fleet.processes.end(fleet.agents.pop("north")) == 0

    boards = fleet.folder / "boards"
    shutil.move(boards / "north", fleet.folder / "before")
    again = ("fleet", "enroll", "north", "--profile", "raspberrypi5", "-o", boards / "north", "--again")
    fleet.ask(*again)
    shutil.move(fleet.folder / "before/state", boards / "north/state")  # what it knew it still knows
    fleet.start_agent("north")
    fleet.wait("the board to be back", lambda: fleet.devices()["north"]["online"])
    assert fleet.devices()["north"]["revoked_at"] is None
