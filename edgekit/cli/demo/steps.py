"""The demo's story, step by step: the real commands as processes, and what they said, read back through their JSON."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgekit.cli.demo.boards import BOARDS, Sensors, SimulatedBoard
from edgekit.cli.demo.processes import Process, Processes, free_port, wait_for
from edgekit.client import Client
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.resources import demo_model_file
from edgekit.runtime.data import read_idx

FLEET = "demo"
DATA_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path(os.environ.get("EDGEKIT_CACHE", "~/.cache/edgekit")).expanduser() / "fashion-mnist",
)
HELD_OUT = 2_500  # of the last images of the training file: the model never saw them
CALIBRATION = 500
BUDGET = "32%"
THROTTLED_FACTOR = 0.7
INTERVAL_S = 1
RATE_HZ = 700
START_S, PUSH_S, STREAM_S = 40.0, 120.0, 180.0
_DELIVERY_STARTS = 3
Say = Callable[[str], None]


@dataclass
class Demo:
    """Everything the steps share. folder: where all files go. images: how many of the test images each board runs."""

    folder: Path
    images: int
    say: Say
    processes: Processes
    sensors: list[Sensors] = field(default_factory=list)
    agents: dict[str, Process] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def bundles(self) -> Path:
        """Where converted bundles lie."""
        return self.folder / "bundles"

    def end(self) -> None:
        """End every process and simulated board."""
        for sensor in self.sensors:
            sensor.stop()
        self.processes.end_all()


def edgekit(*arguments: str | Path) -> list[str]:
    """The command line of one of our verbs, in this very environment."""
    code = "from edgekit.cli.main import main; main()"
    return [sys.executable, "-c", code, *(str(argument) for argument in arguments)]


def call(*arguments: str | Path, running: list[subprocess.Popen[str]] | None = None) -> dict[str, Any]:
    """Run a verb with --json to its end. Raises WorldFailed with its own line when it fails.

    running: the process is put there, for others to end it.
    """
    command = edgekit(*arguments, "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if running is not None:
            running.append(process)
        try:
            out, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode not in (0, 1) or not out.strip():
        said = errors.strip().splitlines() or ["it said nothing"]
        raise WorldFailed(f"demo: edgekit {arguments[0]} ended with code {process.returncode}: {said[-1]}")
    answer: dict[str, Any] = json.loads(out)
    return answer


def find_data(given: Path | None) -> Path:
    """The folder with Fashion-MNIST's IDX files. Raises BadInput that says how to get them."""
    for folder in [given] if given else DATA_FOLDERS:
        if (folder / "t10k-images-idx3-ubyte.gz").exists():
            return folder
    raise BadInput(
        "Fashion-MNIST not found: apt-get install dataset-fashion-mnist, run tools/fetch_data.py, or give --data FOLDER"
    )


def prepare_data(demo: Demo, source: Path) -> None:
    """Calibration and validation from held-out training images; the test images as a folder, a sub-folder a label."""
    images = read_idx(source / "train-images-idx3-ubyte.gz", 3)[-HELD_OUT:]
    labels = read_idx(source / "train-labels-idx1-ubyte.gz", 1)[-HELD_OUT:]
    np.savez(demo.folder / "calib.npz", x=images[:CALIBRATION])
    np.savez(demo.folder / "val.npz", x=images[CALIBRATION:], y=labels[CALIBRATION:])
    images = read_idx(source / "t10k-images-idx3-ubyte.gz", 3)[: demo.images]
    labels = read_idx(source / "t10k-labels-idx1-ubyte.gz", 1)[: demo.images]
    np.savez(demo.folder / "test.npz", x=images, y=labels)
    np.savez(demo.folder / "some.npz", x=images[::5])
    folder = demo.folder / "images"
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(pixels).save(folder / str(label) / f"{index:05d}.png", compress_level=1)


def convert_all(demo: Demo) -> dict[str, Any]:
    """One bundle per board's profile; what `edgekit convert --json` said, by profile.

    Only the first is judged on the test images here: all boards will run them.
    """
    model = demo.folder / "model.onnx"
    model.write_bytes(demo_model_file().read_bytes())
    demo.bundles.mkdir()
    running: list[subprocess.Popen[str]] = []

    def convert(board: SimulatedBoard) -> dict[str, Any]:
        demo.say(f"convert for {board.profile}")
        judged = ("--eval", demo.folder / "test.npz") if board is BOARDS[0] else ()
        return call(
            *(
                "convert",
                model,
                "--profile",
                board.profile,
                "--name",
                f"fashion-{board.name}",
                "--version",
                "1",
            ),
            *("--calib", demo.folder / "calib.npz", "--val", demo.folder / "val.npz", *judged),
            *("-o", demo.bundles / f"{board.name}.edge", "--report", demo.bundles / f"{board.name}.html"),
            running=running,
        )

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        try:
            answers = list(pool.map(convert, BOARDS))
        except BaseException:  # Ctrl-C as well: nobody waits for conversions that nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    return {board.profile: answer for board, answer in zip(BOARDS, answers, strict=True)}


def start_server(demo: Demo) -> tuple[Client, str]:
    """Repository, fleet server and broker; the server's client and address."""
    repository, server = demo.folder / "repository", demo.folder / "server"
    call("repo", "init", repository)
    server.mkdir()
    port = free_port()
    (demo.folder / "fleet.toml").write_text(
        f'fleet = "{FLEET}"\ndata_dir = "server"\nrepository = "repository"\n\n[web]\nport = 0\n\n'
        f'[broker]\nport = {port}\nfiles_dir = "broker"\npid_file = "broker/mosquitto.pid"\n'
    )
    fleet = demo.processes.start("fleet", edgekit("fleet", "serve", "--config", demo.folder / "fleet.toml"))
    files = demo.folder / "broker"
    wait_for("the fleet server's start", (server / "address").exists, START_S, [fleet])
    wait_for("the broker's password file", (files / "passwd").exists, START_S, [fleet])
    with (files / "mosquitto.conf").open("a") as conf:
        conf.write("log_dest stdout\n")
    start_broker(demo)
    address = (server / "address").read_text().strip()
    return _client(demo, address), address


def login_link(demo: Demo, address: str) -> str:
    """The page's path that lets one browser in, once. Raises WorldFailed."""
    return str(_client(demo, address).login_link()["path"])


def _client(demo: Demo, address: str) -> Client:
    server = demo.folder / "server"
    token = (server / "api.token").read_text().strip()
    return Client(address, token, ca=server / "ca.pem")


def start_broker(demo: Demo) -> Process:
    """Mosquitto with the server's password and access files."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise BadInput("mosquitto is not installed: apt-get install mosquitto, or run tools/demo, which does")
    return demo.processes.start("mosquitto", [program, "-c", demo.folder / "broker/mosquitto.conf"])


def enroll_and_start(demo: Demo, address: str) -> None:
    """Enroll every board, give it simulated sensors and the images, and start its agent."""
    token = demo.folder / "server/api.token"
    for board in BOARDS:
        folder = demo.folder / "boards" / board.name
        call(
            *("fleet", "enroll", board.name, "--profile", board.profile, "--tag", "demo", "-o", folder),
            *("--server", address, "--token-file", token),
        )
        demo.sensors.append(Sensors(board, folder / "sysroot"))
        write_agent_config(folder / "agent.toml", board, demo.folder / "images")
        start_agent(demo, board.name)


def start_agent(demo: Demo, name: str) -> None:
    """Start a board's agent; what it says about itself at its end goes to a file."""
    boards = demo.folder / "boards"
    command = edgekit("agent", "--config", boards / name / "agent.toml", "--json")
    demo.agents[name] = demo.processes.start(f"agent-{name}", command, output=boards / f"{name}.json")


def rest(demo: Demo, name: str) -> None:
    """From its next start on the board has no images to run."""
    config = demo.folder / "boards" / name / "agent.toml"
    config.write_text(config.read_text().replace('kind = "folder"', 'kind = "none"'))


def write_agent_config(path: Path, board: SimulatedBoard, images: Path) -> None:
    """What a person would change in the enrolled agent.toml: sensors, policy, limits, source, interval."""
    kept = [part for part in path.read_text().split("\n[") if part.split("]")[0] not in _CHANGED]
    path.write_text(
        "\n[".join(kept).rstrip()
        + f'\n\n[telemetry]\ninterval_s = {INTERVAL_S}\nack = "server"\n'
        + '\n[sensors]\npower = "auto"\nsysroot = "sysroot"\nsimulated = true\nsample_s = 0.2\n'
        + f'\n[policy]\nkind = "budget"\nbudget = "{BUDGET}"\n'
        + f"\n[limits]\nthrottled_factor = {THROTTLED_FACTOR}\nmin_interval_s = 0.5\naccepts_measure = true\n"
        + "\n[trial]\nrequests = 50\nseconds = 1\nlive_requests = 50\nlive_seconds = 2\n"
        + "\n[update]\njitter_s = 0\n"
        + f'\n[source]\nkind = "folder"\npath = "{images}"\nrate_hz = {RATE_HZ}\n'
    )


_CHANGED = ("telemetry", "sensors", "policy", "limits", "trial", "update", "source")


def push_all(demo: Demo, address: str) -> None:
    """Sign each bundle with the engineer's key, publish it, and wait until its board runs it."""
    for board in BOARDS:
        demo.say(f"push fashion-{board.name}/1 to {board.profile}")
        answer = call(
            *("push", demo.bundles / f"{board.name}.edge", "--server", address),
            *("--key", demo.folder / "repository/keys/targets.pem", "--to", f"profile={board.profile}"),
            *("--token-file", demo.folder / "server/api.token", "--wait", f"{PUSH_S:g}"),
        )
        states = {name: device["state"] for name, device in answer["devices"].items()}
        if set(states.values()) != {"active"}:
            raise WorldFailed(f"demo: the push to {board.profile} ended as {states}")


def stream(demo: Demo, client: Client) -> None:
    """Let the boards run all images; throttle the last one half-way, restart the broker once."""
    throttled, half = demo.sensors[-1], demo.images // 2

    def count(key: str) -> dict[str, int]:
        return {device["name"]: device[key] for device in client.devices()}

    running = list(demo.processes.running)
    wait_for("half of the images", lambda: count("requests")[throttled.board.name] >= half, STREAM_S, running)
    demo.say(f"{throttled.board.name} is throttled: its budget tightens")
    throttled.throttle(on=True)
    demo.say("the broker is restarted")
    broker = next(process for process in demo.processes.running if process.name == "mosquitto")
    demo.processes.end(broker)
    time.sleep(random.uniform(0.5, 1.0))
    running = [*demo.processes.running, start_broker(demo)]
    before = count("records")
    wait_for("the last image", lambda: min(count("requests").values()) >= demo.images, STREAM_S, running)
    wait_for(
        "news from every board after the restart",
        lambda: all(records > before[name] for name, records in count("records").items()),
        STREAM_S,
        running,
    )


def stop_agents(demo: Demo, client: Client) -> dict[str, Any]:
    """End every agent; what each said about itself at its end.

    An agent waits two seconds for the last acknowledgement. What it then still holds stays in its outbox, and goes out
    when it is started again.
    """
    summaries = {name: _stop_agent(demo, name) for name in demo.agents}
    for name in demo.agents:
        for _ in range(_DELIVERY_STARTS):
            if not summaries[name]["records"]["held"]:
                break
            rest(demo, name)
            start_agent(demo, name)
            wait_for(f"{name} to be back", partial(_is_online, client, name), START_S, [demo.agents[name]])
            summaries[name] = _stop_agent(demo, name)
    return summaries


def _is_online(client: Client, name: str) -> bool:
    return bool(client.device(name)["online"])


def _stop_agent(demo: Demo, name: str) -> dict[str, Any]:
    process = demo.agents[name]
    code = demo.processes.end(process)
    if code != 0:
        raise WorldFailed(f"demo: agent {name} ended with code {code}; its log is {process.log}")
    summary: dict[str, Any] = json.loads(
        (demo.folder / "boards" / f"{name}.json").read_text().splitlines()[-1]
    )
    return summary


def measure_budget(demo: Demo) -> dict[str, float | None]:
    """One bundle on this machine under the budget, and before and after it some images under the full policy."""
    bundle = demo.bundles / f"{BOARDS[0].name}.edge"
    full = (demo.folder / "some.npz", "--policy", "full")
    budget = (demo.folder / "test.npz", "--policy", "budget", "--budget", BUDGET)
    runs = [call("bench", bundle, "--data", *options) for options in (full, budget, full)]
    before, between, after = (run["latency_ms"]["mean"] for run in runs)
    return {
        "budget_accuracy": runs[1]["accuracy"],
        "budget_over_full_latency": 2 * between / (before + after),
    }


def fleet_view(client: Client) -> list[dict[str, Any]]:
    """The boards as the fleet server sees them."""
    devices = {device["name"]: device for device in client.devices()}
    keys = (
        "name",
        "profile",
        "bundle",
        "online",
        "requests",
        "accuracy",
        "exit_counts",
        "latency_ms",
        "energy_mj",
    )
    return [{key: devices[board.name][key] for key in keys} for board in BOARDS]


def telemetry(client: Client, summaries: Mapping[str, Any]) -> dict[str, int]:
    """Records that the agents made in their lives, and records in the server's store."""
    sent = sum(summary["records"]["made"] for summary in summaries.values())
    return {"sent": sent, "received": sum(device["records"] for device in client.devices())}
