#!/usr/bin/env python3
"""What the agent costs a board: memory over the bare runtime and model, idle time, start, bytes written to the card.

    python tools/bench/agent.py [--quick] [--bundle FILE]

Runs the real `edgekit agent` with an installed bundle (the demo's network through `edgekit convert`, unless one is
given), a Mosquitto on loopback and an ingest that acknowledges. Prints one JSON object:

start      seconds from the process' start to serving the bundle, and to the broker having heard of it; of 5 starts
memory_mb  resident memory of the agent after 200 requests, of a process with only onnxruntime and the bundle's networks
           after as many, both as the system says it: of each its own share (Pss), and all that is resident (Rss)
idle       share of one core that the agent takes in a minute without a request, and how often its threads wake up
written    MB a day that reach the card at 1440 Records a day: acknowledged as they come (the real agent, its interval
           shortened), without a line to the broker, and with one over which nobody answers (the outbox alone, on a
           clock that is put forward). The state folder is an ext4 of 4 KiB blocks in a file, synced after every Record,
           and the blocks are counted that it wrote (that needs root: without, what the system says of the process).
           floor: of 900 bytes a minute in a plain file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.agent.outbox import LINGER_S, Outbox
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import State, StateFile
from edgekit.core import messages
from edgekit.core.bundle import open_bundle
from edgekit.core.histogram import Histogram
from edgekit.core.profile import HOST
from edgekit.core.record import Record
from edgekit.runtime.measure import machine_name

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/fashion_mnist_3exit.onnx"
DAY = 1440  # Records at the default interval of 60 s
REQUESTS = 200
STARTS = 5
INTERVAL_S = 0.1
EDGEKIT = (sys.executable, "-c", "from edgekit.cli.main import main; main()")
BARE = """
import sys, numpy, onnxruntime
from edgekit.core.bundle import open_bundle
kinds = {"tensor(uint8)": "u1", "tensor(int8)": "i1"}
bundle = open_bundle(__import__("pathlib").Path(sys.argv[1]))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
sessions = [
    onnxruntime.InferenceSession(bundle.read(part.file), options, providers=["CPUExecutionProvider"])
    for stage in bundle.manifest.stages for part in stage.parts
]
for _ in range(int(sys.argv[2])):
    values = {}
    for session in sessions:
        for entry in session.get_inputs():
            values.setdefault(entry.name, numpy.zeros(entry.shape, kinds.get(entry.type, "f4")))
        feed = {entry.name: values[entry.name] for entry in session.get_inputs()}
        values.update(zip([o.name for o in session.get_outputs()], session.run(None, feed)))
print("ready", flush=True)
sys.stdin.read()
"""


def until(ready: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (value := ready()):
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.005)
    return value


def demo_bundle(folder: Path) -> Path:
    """The demo's three exits, converted for this machine with inputs drawn by chance: timing needs no others."""
    inputs = np.random.default_rng(1).random((64, 1, 28, 28), np.float32)
    np.savez(folder / "calib.npz", x=inputs)
    made = folder / "bench.edge"
    command = [
        "convert",
        str(MODEL),
        "--profile",
        HOST,
        "--calib",
        str(folder / "calib.npz"),
        "--effort",
        "quick",
    ]
    done = subprocess.run([*EDGEKIT, *command, "-o", str(made)], capture_output=True, text=True, check=False)
    if not made.exists():
        raise SystemExit(f"edgekit convert: {done.stderr.strip()}")
    return made


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise SystemExit("mosquitto is not installed (Debian package mosquitto)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{user}")
    process = subprocess.Popen(
        [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


class Ingest:
    """The server's half: counts what comes, and acknowledges it."""

    def __init__(self, port: int) -> None:
        self.records: set[tuple[str, int]] = set()
        self.births: list[float] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "ingest")
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.client.subscribe(f"{messages.ROOT}/#", 1)
        subscribed.wait(10)

    def _on_message(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        fleet, device, kind = messages.parse_topic(message.topic)
        if kind not in ("status", "telemetry", "event"):
            return
        payload = messages.decode(bytes(message.payload))
        if kind == "status":
            if payload["online"]:
                self.births.append(time.monotonic())
            return
        boot = str(payload["boot_id"])
        seqs = [entry["seq"] for entry in payload["records"]] if kind == "telemetry" else [payload["seq"]]
        self.records.update((boot, seq) for seq in seqs)
        if seqs:
            ack = messages.encode({"boot_id": boot, "upto": max(seqs)})
            client.publish(messages.topic(fleet, device, "ack"), ack, qos=1)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Board:
    """A folder with an agent.toml and a committed bundle, and the agent's process on it."""

    def __init__(self, folder: Path, state: Path, bundle: Path, port: int) -> None:
        self.folder, self.state, self.port = folder, state, port
        folder.mkdir()
        subprocess.run(
            [*EDGEKIT, "repo", "init", str(folder / "repository")], check=True, capture_output=True
        )
        root = next((folder / "repository").rglob("1.root.json"))
        shutil.copy(root, folder / "root.json")
        key = Ed25519PrivateKey.generate().public_key()
        (folder / "control.pub").write_bytes(
            key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        opened = open_bundle(bundle)
        slots = Slots(state / "slots", 2**30)
        slot = slots.path(opened.content_id)
        slot.parent.mkdir()
        shutil.copy(bundle, slot)
        slots.mark(opened.content_id, 1)
        active = Slot(opened.content_id, opened.label)
        StateFile(state / "state.json", State).commit(active=active, commits=1)

    def write(self, interval_s: float = 60.0, source: str = "") -> None:
        (self.folder / "agent.toml").write_text(
            f'[device]\nfleet = "bench"\nname = "board"\nprofile = "{HOST}"\nstate_dir = "{self.state}"\n'
            f'[broker]\nhost = "127.0.0.1"\nport = {self.port}\ntls = false\n'
            '[repository]\nurl = "http://127.0.0.1:9/repository"\n'
            '[trust]\nroot = "root.json"\ncontrol_key = "control.pub"\n'
            f"[telemetry]\ninterval_s = {interval_s}\n[limits]\nmin_interval_s = 0.1\n{source}"
        )

    @contextmanager
    def agent(self) -> Iterator[tuple[subprocess.Popen[str], float, float]]:
        """The process, when it was started, and when it said that it serves."""
        begun = time.monotonic()
        command = [*EDGEKIT, "agent", "--config", str(self.folder / "agent.toml")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        said: list[str] = []
        ready: list[float] = []

        def listen() -> None:
            for line in process.stderr or ():
                said.append(line)
                if "is ready: serves" in line and "nothing" not in line:
                    ready.append(time.monotonic())

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            until(lambda: ready or process.poll() is not None, "the agent's start")
            if not ready:
                raise SystemExit("the agent ended: " + "".join(said)[-500:])
            yield process, begun, ready[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            listener.join()


# --- start, memory, idle ---------------------------------------------------------------------------------------------


def measure_start(board: Board, ingest: Ingest) -> dict[str, Any]:
    serving, connected = [], []
    for _ in range(STARTS):
        births = len(ingest.births)
        with board.agent() as (_, begun, ready):
            serving.append(ready - begun)
            until(lambda: len(ingest.births) > births, "the birth")  # noqa: B023
            connected.append(ingest.births[-1] - begun)
    return {
        "serving_s": round(statistics.median(serving), 2),
        "connected_s": round(statistics.median(connected), 2),
        "serving_worst_s": round(max(serving), 2),
    }


def memory_mb(pid: int) -> dict[str, float]:
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    return {name.lower(): round(number_in(rollup, name) / 1024, 1) for name in ("Rss", "Pss")}


def number_in(path: Path, name: str) -> int:
    """What the line `name: 123 ...` of a file of /proc says."""
    found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{path} does not say {name}")
    return int(found.group(1))


def measure_memory(board: Board, folder: Path, bundle: Path, ingest: Ingest) -> dict[str, Any]:
    inputs = folder / "inputs"
    inputs.mkdir()
    np.savez(inputs / "inputs.npz", x=np.random.default_rng(2).random((REQUESTS, 1, 28, 28), np.float32))
    board.write(0.5, f'[source]\nkind = "folder"\npath = "{inputs / "inputs.npz"}"\nrate_hz = 100\n')
    had = len(ingest.records)
    with board.agent() as (process, _, _):
        until(lambda: len(ingest.records) > had + 6, "3 seconds of Records")
        agent = memory_mb(process.pid)
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
    command = [sys.executable, "-c", BARE, str(bundle), str(REQUESTS)]
    bare_process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if bare_process.stdout is None or bare_process.stdout.readline().strip() != "ready":
        raise SystemExit("the bare runtime did not run the bundle")
    bare = memory_mb(bare_process.pid)
    bare_process.communicate("")
    over = {key: round(agent[key] - bare[key], 1) for key in agent}
    return {"agent": agent, "bare": bare, "over": over, "threads": threads}


def measure_idle(board: Board, ingest: Ingest, seconds: float) -> dict[str, Any]:
    board.write()
    births = len(ingest.births)
    with board.agent() as (process, _, _):
        until(lambda: len(ingest.births) > births, "the birth")
        time.sleep(3)  # what belongs to the start is over
        cpu, wakes = cpu_s(process.pid), switches(process.pid)
        time.sleep(seconds)
        spent = cpu_s(process.pid) - cpu
        woken = {
            name: round((count - wakes.get(name, 0)) / seconds, 2)
            for name, count in switches(process.pid).items()
        }
    return {"cpu_percent": round(100 * spent / seconds, 2), "seconds": seconds, "wakes_per_s": woken}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> dict[str, int]:
    """Voluntary context switches of its threads, by number of the thread and what it is called."""
    found = {}
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
        count = number_in(task / "status", "voluntary_ctxt_switches")
        found[f"{task.name}:{(task / 'comm').read_text().strip()}"] = count
    return {f"{index}:{name.partition(':')[2]}": count for index, (name, count) in enumerate(found.items())}


# --- what is written -------------------------------------------------------------------------------------------------


class Card:
    """A file system whose written blocks can be counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY)  # to be closed before it is unmounted
        device = folder.stat().st_dev
        self._name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name

    def sync(self) -> None:
        """What the system would write within a minute by itself. The pause lets a changed time stamp be another one."""
        time.sleep(0.006)
        ctypes.CDLL(None).syncfs(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def written(self) -> int:
        return int(Path(f"/sys/block/{self._name}/stat").read_text().split()[6]) * 512


@contextmanager
def card(folder: Path) -> Iterator[Card | None]:
    """An ext4 in a file, as a card has it; None without the right to mount one."""
    image, place = folder / "card.img", folder / "card"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * 2**20)
    made = shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if made is None or subprocess.run([made, "-q", "-b", "4096", str(image)], check=False).returncode:
        yield None
        return
    mount = ["mount", "-o", "loop,relatime", str(image), str(place)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        yield None
        return
    counted = Card(place)
    try:
        yield counted
    finally:
        counted.close()
        subprocess.run(["umount", str(place)], check=True)


def agent_writes(board: Board, ingest: Ingest, card: Card | None, records: int) -> dict[str, Any]:
    """The real agent, whose Records are acknowledged as they come. Its end is in the figure too."""
    board.write(INTERVAL_S)
    had = len(ingest.records)
    if card is not None:
        card.sync()
    before = 0 if card is None else card.written
    with board.agent() as (process, _, _):
        while len(ingest.records) < had + records:
            if card is not None:
                card.sync()
            time.sleep(INTERVAL_S / 2)
        own = write_bytes(process.pid)
    if card is not None:
        card.sync()
    count = len(ingest.records) - had
    total = own if card is None else card.written - before
    return {"mb": round(total / 1e6, 3), "records": count, "counted": "process" if card is None else "blocks"}


def write_bytes(pid: int) -> int:
    return number_in(Path(f"/proc/{pid}/io"), "write_bytes")


def a_record() -> Record:
    return Record(
        1, 86_400.123, 1.8e9, True, 60.0, "bench/1", "budget 40%", requests=600,
        exit_counts={"exit1": 400, "exit2": 150, "exit3": 50},
        latency=Histogram(dict.fromkeys(range(100, 120), 30)), busy_s=12.345678, temperature_c=55.1,
        energy_why="this board has no power sensor", throttled=False, under_voltage=False, memory_mb=88.1,
    )  # fmt: skip


def outbox_writes(folder: Path, card: Card | None, records: int, answers_after: int) -> float:
    """MB a day of the outbox alone, a minute of its clock between Records; those older than so many are released."""
    clock = [1000.0]
    folder.mkdir()
    box = Outbox(folder / "outbox.db", "b" * 16, 64 * 2**20, clock=lambda: clock[0])
    if card is not None:
        card.sync()
    before = write_bytes(os.getpid()) if card is None else card.written
    for _ in range(records):
        clock[0] += 60 - LINGER_S
        seq = box.put(a_record()) or 0
        clock[0] += LINGER_S
        box.step()
        if answers_after and seq % answers_after == 0:
            box.release("b" * 16, seq)
        if card is not None:
            card.sync()
    box.close()
    after = write_bytes(os.getpid()) if card is None else card.written
    return round((after - before) / records * DAY / 1e6, 1)


def floor_writes(folder: Path, card: Card | None, records: int) -> float | None:
    """MB a day of 900 bytes a minute, written over the same place of a file and synced: what no file can go below."""
    if card is None:
        return None
    descriptor = os.open(folder / "floor", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(descriptor, bytes(900))
    os.fsync(descriptor)
    card.sync()
    before = card.written
    for record in range(records):
        os.pwrite(descriptor, record.to_bytes(900, "little"), 0)
        os.fdatasync(descriptor)
        card.sync()
    os.close(descriptor)
    return round((card.written - before) / records * DAY / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="ten idle seconds and a sixth of a day of Records"
    )
    parser.add_argument("--bundle", type=Path, help="one for this machine on onnxruntime, 1x1x28x28 inputs")
    wanted = parser.parse_args()
    records, idle_s = (DAY // 6, 10.0) if wanted.quick else (DAY, 60.0)
    result: dict[str, Any] = {"on": machine_name()}

    def note(key: str, value: Any) -> None:
        result[key] = value
        print(f"{key}: {value}", file=sys.stderr)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = wanted.bundle or demo_bundle(folder)
        port = stack.enter_context(mosquitto(folder))
        counted = stack.enter_context(card(folder))
        ingest = Ingest(port)
        stack.callback(ingest.close)
        place = folder / "card"
        (place / "state").mkdir()
        board = Board(folder / "board", place / "state", bundle, port)
        board.write()
        with board.agent():  # compiles its modules
            pass
        note("start", measure_start(board, ingest))
        note("memory_mb", measure_memory(board, folder, bundle, ingest))
        note("idle", measure_idle(board, ingest, idle_s))
        real = agent_writes(board, ingest, counted, records)
        note(
            "written",
            {
                "unit": "MB a day at 60 s",
                "counted": real["counted"],
                "agent_acknowledged": round(real["mb"] / real["records"] * DAY, 2),
                "agent_records": real["records"],
                "floor": floor_writes(place, counted, records),
                "outbox_no_line": outbox_writes(place / "off", counted, records, answers_after=0),
                "outbox_no_answer": outbox_writes(place / "mute", counted, records, answers_after=0),
                "outbox_answers_hourly": outbox_writes(place / "late", counted, records, answers_after=60),
            },
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
