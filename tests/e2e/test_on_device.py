"""`edgekit convert --on DEVICE`, with a real broker, server, repository, and the agent of a simulated board."""

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
from networks import CLASSES, SIDE, save, three_exits, write_data

from edgekit.cli import remote_bench as subject
from edgekit.cli.demo.processes import Process, Processes, wait_for
from edgekit.cli.demo.steps import Demo, call, edgekit, start_server
from edgekit.cli.remote_bench import remote_bench
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed
from edgekit.host.bench import Bench
from edgekit.host.pack import Finished
from edgekit.runtime.data import Data

PROFILE = "raspberrypi5"
WAIT_S = 60.0
NO_DATA = Data("none", range(1), None, lambda index: {}, str)


class Site:
    """A server with its broker, and one enrolled board whose figures are simulated and that accepts measuring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes(folder)
        demo = Demo(folder, 0, lambda text: None, self.processes)
        self.client, self.address = start_server(demo)
        self.token, self.keys = folder / "server/api.token", folder / "repository/keys"
        self.board = folder / "board"
        call(
            *("fleet", "enroll", "pi5", "--profile", PROFILE, "-o", self.board),
            *("--server", self.address, "--token-file", self.token),
        )
        text = (self.board / "agent.toml").read_text().replace("interval_s = 60", "interval_s = 1")
        self.plain = text
        self.configure("accepts_measure = true")

    def configure(self, limits: str) -> None:
        self.willing = "accepts_measure = true" in limits
        text = self.plain.replace("[sensors]", "[sensors]\nsimulated = true")
        (self.board / "agent.toml").write_text(
            f"{text}\n[limits]\n{limits}\n[trial]\nseconds = 1\nlive_seconds = 1\n"
        )

    def start_agent(self) -> Process:
        agent = self.processes.start(
            "agent", edgekit("agent", "--config", self.board / "agent.toml", "--json")
        )
        self.wait("the board to be online", lambda: self.device()["online"], [agent])
        self.wait("its info", lambda: self.device()["accepts_measure"] is self.willing, [agent])
        return agent

    def kill(self, agent: Process) -> None:
        os.kill(agent.popen.pid, signal.SIGKILL)
        agent.popen.wait()
        self.wait("its will", lambda: not self.device()["online"], [])

    def device(self) -> dict[str, Any]:
        return next(device for device in self.client.devices() if device["name"] == "pi5")

    def wait(self, what: str, ready: Any, alive: list[Process]) -> None:
        wait_for(what, ready, WAIT_S, alive)

    def bench(self, **more: Any) -> Bench:
        return remote_bench(self.client, "pi5", PROFILE, self.keys / "measure.pem", **more)

    def candidate(self, **options: Any) -> Finished:
        path = self.folder / "candidate.edge"
        path.write_bytes(null_bundle(profiles=(PROFILE,), **options))
        return finished(open_bundle(path))

    def convert(self, *more: str | Path) -> list[str]:
        """The command line of a conversion on the board."""
        if not (self.folder / "net.onnx").exists():
            save(three_exits(), self.folder / "net.onnx")
            write_data(self.folder / "calib.npz", (3, SIDE, SIDE), 40, 1, CLASSES)
        words = ["convert", self.folder / "net.onnx", "--profile", PROFILE, "--no-cache", "--effort", "quick"]
        words += ["--calib", self.folder / "calib.npz", "-o", self.folder / "out.edge", "--on", "pi5"]
        words += ["--server", self.address, "--token-file", self.token, "--key", self.keys / "measure.pem"]
        return [str(word) for word in (*words, *more)]

    def job(self) -> dict[str, Any]:
        """The last measure job, and how its board ended it."""
        last = next(job for job in self.client.jobs() if job["action"] == "measure")
        row: dict[str, Any] = self.client.job(last["job_id"])["devices"]["pi5"]
        return row

    def rounds(self) -> list[Path]:
        return list((self.folder / "repository/targets/measure").rglob("*.edge"))

    def child(self) -> int | None:
        """The process that times candidates on the board."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            if "edgekit.agent.bench" in words and any(str(self.board) in word for word in words):
                return int(path.parent.name)
        return None


def finished(bundle: Bundle) -> Finished:
    names = [member.name for member in bundle.manifest.files]
    return Finished(bundle.manifest, {name: bundle.read(name) for name in names})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all: every test starts the board's agent anew, and ends its jobs."""
    made = None
    try:
        made = Site(tmp_path_factory.mktemp("site"))
        yield made
    finally:
        if made is not None:
            made.processes.end_all()


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    shared.configure("accepts_measure = true")
    (shared.folder / "out.edge").unlink(missing_ok=True)
    yield shared
    for process in [process for process in shared.processes.running if process.name == "agent"]:
        shared.processes.end(process)
    shared.wait("its goodbye", lambda: not shared.device()["online"], [])


def test_a_conversion_on_a_board_has_that_boards_figures_and_leaves_it_serving_what_it_served(
    site: Site,
) -> None:
    agent = site.start_agent()
    (site.folder / "toy.edge").write_bytes(null_bundle(profiles=(PROFILE,)))
    there = ("--server", site.address, "--token-file", site.token)
    call(
        "push",
        site.folder / "toy.edge",
        *there,
        "--key",
        site.keys / "targets.pem",
        "--to",
        "all",
        "--wait",
        "60",
    )
    slots = sorted(path.name for path in (site.board / "state/slots").iterdir())

    answer = call(*site.convert())
    latency = answer["latency_ms"]
    assert (latency["provenance"], latency["on"]) == ("simulated", f"pi5, {PROFILE}")
    for when in ("before", "after"):
        assert latency[when]["p50"] > 0
        assert latency[when]["p95"] >= latency[when]["p50"]
    report = json.loads(json.dumps(open_bundle(site.folder / "out.edge").report))
    assert report["latency_ms"]["provenance"] == "simulated"
    assert [exit_["latency_mean_ms"] is not None for exit_ in report["exits"]] == [True] * 3

    done = [job for job in site.client.jobs() if job["action"] == "measure"]
    assert done
    for job in done:
        (found,) = site.client.job(job["job_id"])["devices"].values()
        assert found["state"] == "done"
        assert all(entry["busy"] and entry["provenance"] == "simulated" for entry in found["reports"])
    assert site.device()["bundle"] == "toy/1"
    assert sorted(path.name for path in (site.board / "state/slots").iterdir()) == slots
    assert site.rounds() == []
    assert site.client.repository()["measure"]["targets"] == []
    assert site.processes.end(agent) == 0


def test_a_board_that_does_not_accept_measuring_says_so_and_refuses_whoever_asks_it_anyway(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.configure("accepts_measure = false")
    agent = site.start_agent()
    with pytest.raises(EdgekitError, match=r"ended with code 2.*pi5 does not accept measuring"):
        call(*site.convert())
    assert not (site.folder / "out.edge").exists()
    monkeypatch.setattr(subject, "_check_board", lambda *given: None)
    with pytest.raises(BadInput, match="measuring refused: measure-not-accepted"):
        site.bench()([site.candidate()], NO_DATA)
    assert site.rounds() == []
    assert site.processes.end(agent) == 0


def test_what_is_wrong_is_said_before_the_work_begins(site: Site, tmp_path: Path) -> None:
    measure_key = site.keys / "measure.pem"
    with pytest.raises(EdgekitError, match="must be online"):
        remote_bench(site.client, "pi5", PROFILE, measure_key)
    agent = site.start_agent()
    with pytest.raises(
        EdgekitError, match="is a raspberrypi5, the model is converted for --profile jetson-nano"
    ):
        remote_bench(site.client, "pi5", "jetson-nano", measure_key)
    with pytest.raises(EdgekitError, match="is not the key that signs what this server's boards measure"):
        remote_bench(site.client, "pi5", PROFILE, site.keys / "targets.pem")
    with pytest.raises(EdgekitError, match="pi6"):
        remote_bench(site.client, "pi6", PROFILE, measure_key)
    assert site.processes.end(agent) == 0


def test_a_child_that_is_killed_fails_the_round_and_the_next_one_is_measured(site: Site) -> None:
    agent = site.start_agent()
    stuck = site.candidate(delay_ms=20_000.0)
    bench = site.bench(say=lambda line: None)
    killer = site.processes.start("killer", [*edgekit()[:1], "-c", KILLER.format(board=str(site.board))])
    with pytest.raises(WorldFailed, match=r"measuring failed: crash: .*SIGKILL"):
        bench([stuck], NO_DATA)
    killer.popen.wait()
    (report,) = site.bench()([site.candidate()], NO_DATA)
    assert report.problems == ()
    assert report.latency.p50 is not None
    assert site.processes.end(agent) == 0


KILLER = """
import os, pathlib, signal, time
while True:
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split(chr(0))
        except OSError:
            continue
        if "edgekit.agent.bench" in words and any({board!r} in word for word in words):
            os.kill(int(path.parent.name), signal.SIGKILL)
            raise SystemExit
    time.sleep(0.01)
"""


def start_round(site: Site, **options: Any) -> Process:
    """A round under way, its candidate stuck on the board: a process that waits for it."""
    path = site.folder / "candidate.edge"
    path.write_bytes(null_bundle(profiles=(PROFILE,), **options))
    code = ROUND.format(folder=str(site.folder), url=site.address, life=40.0)
    waiting = site.processes.start("round", [*edgekit()[:1], "-c", code])
    site.wait("the round on the board", site.child, [])
    return waiting


ROUND = """
import sys
from pathlib import Path
from edgekit.cli.remote_bench import remote_bench
from edgekit.client import Client
from edgekit.core.bundle import open_bundle
from edgekit.core.errors import EdgekitError
from edgekit.host.pack import Finished
from edgekit.runtime.data import Data
folder = Path({folder!r})
bundle = open_bundle(folder / "candidate.edge")
made = Finished(bundle.manifest, {{m.name: bundle.read(m.name) for m in bundle.manifest.files}})
token = (folder / "server/api.token").read_text().strip()
client = Client({url!r}, token, ca=folder / "server/ca.pem")
bench = remote_bench(client, "pi5", "raspberrypi5", folder / "repository/keys/measure.pem", life_s={life})
try:
    bench([made], Data("none", range(1), None, lambda index: {{}}, str))
except EdgekitError as err:
    sys.exit(str(err))
"""


def test_an_agent_that_is_killed_while_it_measures_ends_the_job_when_it_is_back(site: Site) -> None:
    agent = site.start_agent()
    waiting = start_round(site, delay_ms=20_000.0)
    site.kill(agent)
    site.wait("the child's end with its agent", lambda: site.child() is None, [])
    site.configure("accepts_measure = true\nmeasure_timeout_s = 2")
    agent = site.start_agent()
    assert waiting.popen.wait(WAIT_S) == 1
    row = site.job()
    assert (row["state"], row["reason"]) == ("failed", "timeout")
    assert "measuring failed: timeout" in waiting.log.read_text()
    assert site.device()["online"]
    assert site.processes.end(agent) == 0


def test_a_round_that_takes_longer_than_the_job_may_expires(site: Site) -> None:
    agent = site.start_agent()
    stuck = site.candidate(delay_ms=20_000.0)
    begun = time.monotonic()
    with pytest.raises(WorldFailed, match="measuring expired: late"):
        site.bench(life_s=5.0)([stuck], NO_DATA)
    assert time.monotonic() - begun < WAIT_S
    assert site.child() is None
    assert site.rounds() == []
    assert site.processes.end(agent) == 0


def test_a_round_changed_on_the_server_is_refused_as_tampered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = site.start_agent()
    bench = site.bench()
    measure = type(site.client).measure

    def tamper_first(client: Any, *given: Any) -> dict[str, Any]:
        (stored,) = site.rounds()
        data = bytearray(stored.read_bytes())
        data[len(data) // 2] ^= 1
        stored.write_bytes(data)
        return measure(client, *given)

    monkeypatch.setattr(type(site.client), "measure", tamper_first)
    with pytest.raises(EdgekitError, match="measuring refused: tampered"):
        bench([site.candidate()], NO_DATA)
    assert site.processes.end(agent) == 0
