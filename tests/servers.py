"""A real Mosquitto with the server's own password and access files, a real fleet server, and a board made of paho."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents import Mosquitto, free_port, until
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgekit.client import Client as Api
from edgekit.core.figure import Figure
from edgekit.core.histogram import histogram
from edgekit.core.messages import TO_BOARD, Desired, OneShot, decode, encode, signed_bytes, topic
from edgekit.core.record import Record
from edgekit.fleet.broker import write_conf
from edgekit.fleet.config import FleetConfig, read_config
from edgekit.repo.init import init

FLEET = "demo"
NOW = 1_800_000_000.0  # what a standing clock says


class Broker(Mosquitto):
    """Mosquitto with the server's own conf; nobody may come in until the server has written `passwd` and `acl`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        folder.mkdir(exist_ok=True)
        for name in ("passwd", "acl"):
            (folder / name).touch()
        write_conf(folder, "127.0.0.1", self.port, folder / "pid", as_root=os.geteuid() == 0, tls=False)
        self._config = folder / "mosquitto.conf"
        self.start()


def write_config(folder: Path, broker_port: int, *, tls: bool = False, **more: Any) -> FleetConfig:
    """A repository and a fleet.toml beside it, read back. more: keys of its top table."""
    from datetime import datetime, timezone

    if not (folder / "repository").exists():
        init(folder / "repository", datetime.now(timezone.utc))
    top = {"fleet": FLEET, "data_dir": "server", "repository": "repository", **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    lines += [
        "[web]",
        "port = 0",
        f"tls = {json.dumps(tls)}",
        "[broker]",
        f"port = {broker_port}",
        f"tls = {json.dumps(tls)}",
        'files_dir = "broker"',
        'pid_file = "broker/pid"',
    ]
    (folder / "fleet.toml").write_text("\n".join(lines) + "\n")
    return read_config(folder / "fleet.toml")


class FleetServer:
    """`edgekit fleet serve` as a process of its own."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.log = config.data_dir.parent / "serve.log"
        self.start()

    def start(self) -> None:
        code = "from edgekit.cli.main import main; main()"
        command = [sys.executable, "-c", code, "fleet", "serve", "--config", str(self.config.path), "--json"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers, f"the server's start ({self.log})", 40)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.config.address_file.exists()

    @property
    def url(self) -> str:
        return self.config.address_file.read_text().strip()

    @property
    def token(self) -> str:
        return self.config.token_file.read_text().strip()

    def login_link(self, path: str = "/") -> str:
        """An address that lets one browser in, once, and leads to `path`."""
        ca = self.config.ca_file if self.url.startswith("https") else None
        return self.url + str(Api(self.url, self.token, ca=ca).login_link(path)["path"])

    def children(self) -> dict[str, int]:
        """Kind of child -> its process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            if "edgekit.fleet.child" in words and str(self.config.path) in words:
                found[words[words.index("edgekit.fleet.child") + 1]] = int(path.parent.name)
        return found

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def end(self) -> None:
        if self.process.poll() is None:
            self.stop()


class FakeBoard:
    """A board that keeps what it made until an ack covers it, and answers desired states as it is told.

    answer: the job states it goes through, or None to say nothing.
    """

    def __init__(
        self,
        port: int,
        name: str,
        password: str,
        control_key: str,
        *,
        boot: str = "boot-1",
        profile: str = "host",
    ) -> None:
        self.name, self.boot, self.profile = name, boot, profile
        self.key = load_pem_public_key(control_key.encode())
        self.answer: tuple[str, ...] | None = (
            "received",
            "downloading",
            "verifying",
            "installed",
            "trial",
            "active",
        )
        self.reason: str | None = None
        self.next_seq = 1
        self.outbox: dict[int, tuple[str, dict[str, Any]]] = {}  # seq -> (kind, payload)
        self.acks: list[int] = []
        self.desired: list[Desired] = []
        self.shots: list[OneShot] = []  # as they came, the same one more than once
        self.bundle: str | None = None
        self.info: dict[str, Any] = {}  # more of what it says of itself
        self.online = threading.Event()
        self.lock = threading.RLock()
        self.client = Client(
            CallbackAPIVersion.VERSION2, f"{FLEET}/{name}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self.client.username_pw_set(f"{FLEET}/{name}", password)
        self.client.will_set(
            topic(FLEET, name, "status"), encode({"online": False, "boot_id": boot}), 1, retain=True
        )
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.port = port

    def start(self) -> FakeBoard:
        """Connect, again and again until the broker lets it in, and wait for its birth."""
        self.client.connect_async("127.0.0.1", self.port, 10)
        self.client.loop_start()
        assert self.online.wait(20)
        return self

    def die(self) -> None:
        """End without a word: the broker sends the will."""
        self.client._sock_close()
        self.client.loop_stop()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, kind: str, payload: Mapping[str, Any] | bytes, *, retain: bool = False) -> None:
        """Publish on one of its own topics."""
        data = payload if isinstance(payload, bytes) else encode(payload)
        self.client.publish(topic(FLEET, self.name, kind), data, 1, retain)

    def record(self, requests: int = 10, latency_ms: float = 2.0, **fields: Any) -> int:
        """Make a record, keep it, and give its number; `send` sends it."""
        with self.lock:
            seq = self._draw()
            usual = {
                "time": time.time(),
                "interval_s": 1.0,
                "bundle": self.bundle,
                "labelled": requests,
                "correct": requests - 1,
                "exit_counts": {"exit1": requests - 2, "exit2": 2},
                "latency": histogram([latency_ms] * requests),
                "energy": Figure(4.0 * requests, "mJ", "simulated", None, self.profile),
                "busy_s": 0.1,
            }
            made = Record(
                seq=seq,
                uptime_s=float(seq),
                clock_synced=True,
                policy="full",
                requests=requests,
                **(usual | fields),
            )
            self.outbox[seq] = ("telemetry", made.to_json())
            return seq

    def event(self, kind: str, **detail: Any) -> int:
        """Make an event and send it."""
        with self.lock:
            seq = self._draw()
            self.outbox[seq] = ("event", {"kind": kind, "time": time.time(), "detail": detail})
        self.send()
        return seq

    def send(self, seqs: list[int] | None = None) -> None:
        """Send what the outbox holds, or some of it: records in one message, events one by one."""
        with self.lock:
            held = {seq: self.outbox[seq] for seq in (seqs or sorted(self.outbox)) if seq in self.outbox}
            floor = min(self.outbox, default=self.next_seq)
        records = [payload for kind, payload in held.values() if kind == "telemetry"]
        if records:
            self.say("telemetry", {"boot_id": self.boot, "floor": floor, "records": records})
        for seq, (kind, payload) in held.items():
            if kind != "telemetry":
                self.say(kind, {"boot_id": self.boot, "seq": seq, **payload})

    def report(self, rev: int = 0, job_id: str | None = None, state: str | None = None) -> None:
        reported = {
            "rev": rev,
            "job_id": job_id,
            "state": state,
            "bundle": self.bundle,
            "content_id": None,
            "policy": None,
            "interval_s": 1.0,
            "why": None,
        }
        self.say("reported", reported, retain=True)

    def _draw(self) -> int:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        return seq

    def _on_connect(
        self, client: Client, _data: object, _flags: object, reason: Any, _properties: object
    ) -> None:
        if reason.is_failure:
            return
        client.subscribe([(topic(FLEET, self.name, kind), 1) for kind in TO_BOARD])
        self.say("status", {"online": True, "boot_id": self.boot}, retain=True)
        info = {
            "profile": self.profile,
            "agent": "fake",
            "boot_id": self.boot,
            "sensor": "none",
            "simulated": True,
            **self.info,
        }
        self.say("info", info, retain=True)
        self.report()
        self.send()
        self.online.set()

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        payload = decode(bytes(message.payload))
        if message.topic.endswith("/ack"):
            with self.lock:
                if payload["boot_id"] == self.boot:
                    self.acks.append(payload["upto"])
                    for seq in [seq for seq in self.outbox if seq <= payload["upto"]]:
                        del self.outbox[seq]
        elif message.topic.endswith("/desired"):
            self._obey(payload)
        elif message.topic.endswith("/job"):
            assert isinstance(self.key, Ed25519PublicKey)
            self.key.verify(base64.b64decode(payload["sig"]), signed_bytes(payload))
            self.shots.append(OneShot.parse(payload))

    def job_event(self, job_id: str, state: str, **more: Any) -> None:
        """Say how a job goes."""
        event = {"job_id": job_id, "state": state, "target": None, "time": time.time(), **more}
        with self.lock:
            self.outbox[self._draw()] = ("job/event", event)
        self.send()

    def _obey(self, payload: Mapping[str, Any]) -> None:
        assert isinstance(self.key, Ed25519PublicKey)
        try:
            self.key.verify(base64.b64decode(payload["sig"]), signed_bytes(payload))
        except InvalidSignature:
            return
        desired = Desired.parse(payload)
        new = all(known.rev < desired.rev for known in self.desired)
        self.desired.append(desired)
        if not new or self.answer is None:
            return
        for state in self.answer:
            with self.lock:
                event = {
                    "job_id": desired.job_id,
                    "state": state,
                    "target": desired.target,
                    "time": time.time(),
                }
                last = state == self.answer[-1]
                self.outbox[self._draw()] = ("job/event", event | {"reason": self.reason if last else None})
        if self.answer[-1] == "active":
            self.bundle = desired.target
        self.report(desired.rev, desired.job_id, self.answer[-1])
        self.send()
