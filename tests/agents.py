"""A board's surroundings for tests, on loopback: Mosquitto, a signed repository, the server's half of MQTT."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from bundles import null_bundle
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgekit.agent.config import load_config
from edgekit.agent.daemon import Agent, Summary
from edgekit.agent.volatile import Volatile
from edgekit.core import messages
from edgekit.core.bundle import open_bundle
from edgekit.core.candidates import pack_candidates, target_of_candidates, unpack_candidates
from edgekit.core.environment import open_environment, target_of_environment
from edgekit.core.messages import Desired, OneShot
from edgekit.core.target import Target, target_path

FLEET = "demo"
WAIT_S = 20.0


def until(ready: Callable[[], Any], what: str = "the condition", timeout_s: float = WAIT_S) -> Any:
    """Wait until `ready()` gives something true, and give that."""
    end = time.monotonic() + timeout_s
    while not (value := ready()):
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.01)
    return value


def free_port() -> int:
    """Below those that outgoing connections get: one of them may be another test's before the server has it."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Mosquitto:
    """A broker on a free port that keeps nothing on disk.

    passwords: a file; without one everybody may come in. tls: make a certificate `ca.pem` in `folder` and use it.
    """

    def __init__(self, folder: Path, passwords: Path | None = None, *, tls: bool = False) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "persistence false"]
        lines += ["user root"] if os.geteuid() == 0 else []  # else it could not read a test's folder
        lines += ["allow_anonymous true"] if passwords is None else [f"password_file {passwords}"]
        if tls:
            make_certificate(folder)
            lines += [f"certfile {folder}/ca.pem", f"keyfile {folder}/key.pem"]
        self._config.write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        assert program is not None, "mosquitto is not installed"
        command = [program, "-c", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers, "the broker's port")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def make_certificate(folder: Path) -> None:
    """A self-signed certificate for 127.0.0.1: `ca.pem` and `key.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(address, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )


class Repository:
    """A TUF repository in memory, served over HTTP with a token and Range.

    Its roles are plain python-tuf metadata: a test changes them as an attacker or a clock would and signs again.
    """

    TOKEN = "board-token"

    def __init__(self) -> None:
        self.keys = {
            role: CryptoSigner.generate_ed25519()
            for role in ("root", "targets", "snapshot", "timestamp", "measure")
        }
        expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=1)
        self.root = Root(expires=expires, consistent_snapshot=False)
        public = self.keys["measure"].public_key
        measure = DelegatedRole("measure", [public.keyid], 1, terminating=True, paths=["measure/*/*.edge"])
        for role, signer in self.keys.items():
            if role != "measure":
                self.root.add_key(signer.public_key, role)
        self.targets, self.measure, self.snapshot, self.timestamp = (
            Targets(expires=expires, delegations=Delegations({public.keyid: public}, {"measure": measure})),
            Targets(expires=expires),
            Snapshot(expires=expires),
            Timestamp(expires=expires),
        )
        self.snapshot.meta["measure.json"] = MetaFile(1)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.sent: dict[str, int] = {}  # bytes of bodies, by path
        self.break_after: int | None = None  # bytes of a target after which the connection is cut
        self.gate = threading.Event()  # cleared: a target stops around its middle until it is set
        self.gate.set()
        self.sign()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/repo"

    def sign(self) -> None:
        """Write every role's file as it is now."""
        self.files["metadata/1.root.json"] = self.signed("root", self.root)
        for role, signed in self.roles():
            self.files[f"metadata/{role}.json"] = self.signed(role, signed)

    def roles(self) -> list[tuple[str, Any]]:
        return [
            ("targets", self.targets),
            ("measure", self.measure),
            ("snapshot", self.snapshot),
            ("timestamp", self.timestamp),
        ]

    def signed(self, role: str, content: Any, signer: CryptoSigner | None = None) -> bytes:
        metadata: Metadata[Any] = Metadata(content)
        metadata.sign(signer or self.keys[role])
        return metadata.to_bytes()

    @property
    def root_json(self) -> bytes:
        return self.files["metadata/1.root.json"]

    def publish(self) -> None:
        """Next versions of targets, snapshot and timestamp, signed."""
        for _, signed in self.roles():
            signed.version += 1
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        self.snapshot.meta["measure.json"] = MetaFile(self.measure.version)
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.sign()

    def add(
        self, folder: Path, state: str = "current", custom: Mapping[str, Any] | None = None, **options: Any
    ) -> str:
        """Sign and serve a null bundle; gives `name/version`. custom: what its signed entry says against the truth."""
        data = null_bundle(**{"profiles": ("raspberrypi5",), **options})
        file = folder / f"made-{len(self.files)}.edge"
        file.write_bytes(data)
        bundle = open_bundle(file)
        manifest = bundle.manifest
        target = Target(manifest.name, manifest.version, manifest.profiles, "run", state, bundle.content_id)
        path = target_path(target.name, target.version)
        entry = {**target.to_custom(), **(custom or {})}
        digests = {"sha256": hashlib.sha256(data).hexdigest()}
        self.targets.targets[path] = TargetFile(len(data), digests, path, {"custom": entry})
        self.files[f"targets/{path}"] = data
        self.publish()
        return target.label

    def add_round(
        self,
        folder: Path,
        bundles: Sequence[bytes],
        board: str = "pi5",
        custom: Mapping[str, Any] | None = None,
        data: bytes | None = None,
    ) -> str:
        """Sign and serve candidates to measure. custom: what the entry says against the truth; data: other bytes."""
        file = folder / f"round-{len(self.files)}.edge"
        file.write_bytes(pack_candidates(bundles))
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            opened = unpack_candidates(file, Path(unpacked))
            target = target_of_candidates(board, self.measure.version + 1, opened)
        content = file.read_bytes() if data is None else data
        entry = {**target.to_custom(), **(custom or {})}
        digests = {"sha256": hashlib.sha256(content).hexdigest()}
        self.measure.targets[target.path] = TargetFile(len(content), digests, target.path, {"custom": entry})
        self.files[f"targets/{target.path}"] = content
        self.publish()
        return target.label

    def add_environment(self, folder: Path, data: bytes, custom: Mapping[str, Any] | None = None) -> str:
        """Sign and serve an environment's file. custom: what its signed entry says against the truth."""
        file = folder / f"made-{len(self.files)}.env"
        file.write_bytes(data)
        target = target_of_environment(open_environment(file).environment)
        digests = {"sha256": hashlib.sha256(data).hexdigest()}
        entry = {**target.to_custom(), **(custom or {})}
        self.targets.targets[target.path] = TargetFile(len(data), digests, target.path, {"custom": entry})
        self.files[f"targets/{target.path}"] = data
        self.publish()
        return target.label

    def set_state(self, label: str, state: str) -> None:
        name, version = label.split("/")
        file = self.targets.targets[target_path(name, int(version))]
        file.unrecognized_fields["custom"]["state"] = state
        self.publish()

    def _handler(repository) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/repo/")
                wanted = self.headers.get("Range")
                repository.requests.append((path, wanted))
                if self.headers.get("Authorization") != f"Bearer {repository.TOKEN}":
                    return self.send_error(401)
                data = repository.files.get(path)
                if data is None:
                    return self.send_error(404)
                first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                self.send_header("Content-Length", str(end - start))
                self.end_headers()
                body = data[start:end]
                repository.sent[path] = repository.sent.get(path, 0) + len(body)
                with contextlib.suppress(OSError):
                    if path.startswith("targets/") and end > len(data) // 2:
                        self.wfile.write(body[: len(body) // 2])
                        self.wfile.flush()
                        repository.gate.wait(WAIT_S)
                        if repository.break_after is not None:
                            self.wfile.write(body[len(body) // 2 : repository.break_after - start])
                            return self.connection.close()
                        body = body[len(body) // 2 :]
                    self.wfile.write(body)
                return None

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


class Server:
    """The server's half: hears everything boards say, commands them, and acknowledges as the real one does."""

    def __init__(self, port: int) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.acks = True
        self.heard: list[
            tuple[str, Mapping[str, Any]]
        ] = []  # (kind, payload) of one board's topics, in order
        self._have: dict[tuple[str, str], set[int]] = {}
        self._floor: dict[tuple[str, str], int] = {}
        self._n = 0
        self.subscribed = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "server", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{messages.ROOT}/#", 1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._on_message
        self.client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]  # paho takes fractions
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.subscribed.wait(WAIT_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def public_pem(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def _on_message(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        _, device, kind = messages.parse_topic(message.topic)
        if kind in (*messages.TO_BOARD, messages.INPUT):
            return
        payload = messages.decode(bytes(message.payload))
        self.heard.append((kind, payload))
        boot = str(payload.get("boot_id"))
        have = self._have.setdefault((device, boot), set())
        if kind == "telemetry":
            self._floor[device, boot] = max(self._floor.get((device, boot), 1), payload["floor"])
            have.update(record["seq"] for record in payload["records"])
        elif kind in ("event", "job/event"):
            have.add(payload["seq"])
        else:
            return
        if self.acks:
            self.ack(device, boot)

    def ack(self, device: str, boot: str) -> None:
        """Confirm everything from the floor up to the first number that is missing."""
        upto = self._floor.get((device, boot), 1) - 1
        while upto + 1 in self._have[device, boot]:
            upto += 1
        payload = messages.encode({"boot_id": boot, "upto": upto})
        self.client.publish(messages.topic(FLEET, device, "ack"), payload, qos=1)

    def desire(self, device: str, target: str | None, rev: int, **changes: Any) -> Desired:
        """Publish a signed, retained command. key: sign with another one. Other keywords: fields of Desired."""
        key = changes.pop("key", self.key)
        self._n += 1
        desired = Desired(
            to=f"{FLEET}/{device}",
            rev=rev,
            n=self._n,
            job_id=f"job-{rev}",
            target=target,
            policy=None,
            interval_s=None,
            expires=time.time() + 3600,
        )
        desired = replace(desired, **changes)
        payload = {**desired.to_json(), "v": 1}
        payload["sig"] = base64.b64encode(key.sign(messages.signed_bytes(payload))).decode()
        info = self.client.publish(
            messages.topic(FLEET, device, "desired"), messages.encode(payload), qos=1, retain=True
        )
        info.wait_for_publish(WAIT_S)
        return desired

    def order(self, device: str, target: str, **changes: Any) -> OneShot:
        """Publish a signed one-shot `measure`. key, payload: as for desire; other keywords: fields of OneShot."""
        key, more = changes.pop("key", self.key), changes.pop("payload", {})
        self._n += 1
        shot = OneShot(f"{FLEET}/{device}", self._n, f"shot-{self._n}", "measure", target, time.time() + 3600)
        shot = replace(shot, **changes)
        payload = {**shot.to_json(), **more, "v": 1}
        payload["sig"] = base64.b64encode(key.sign(messages.signed_bytes(payload))).decode()
        info = self.client.publish(messages.topic(FLEET, device, "job"), messages.encode(payload), qos=1)
        info.wait_for_publish(WAIT_S)
        return shot

    # --- what was heard ---

    def job_events(self, job_id: str | None = None) -> list[Mapping[str, Any]]:
        found = {
            payload["event_id"]: payload
            for kind, payload in list(self.heard)
            if kind == "job/event" and job_id in (None, payload["job_id"])
        }
        return list(found.values())

    def states(self, job_id: str) -> list[str]:
        return [str(event["state"]) for event in self.job_events(job_id)]

    def ended(self, job_id: str) -> Mapping[str, Any]:
        """Wait for the end of a job and give its last event."""
        final = ("active", "done", "failed", "refused", "expired")
        return until(
            lambda: next((e for e in self.job_events(job_id) if e["state"] in final), None),
            f"the end of {job_id}",
        )

    def records(self) -> list[Mapping[str, Any]]:
        """Every record once, by boot and number."""
        found: dict[tuple[str, int], Mapping[str, Any]] = {}
        for kind, payload in list(self.heard):
            if kind == "telemetry":
                found.update({(payload["boot_id"], r["seq"]): r for r in payload["records"]})
        return list(found.values())

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        return [
            payload for topic, payload in list(self.heard) if topic == "event" and payload["kind"] == kind
        ]

    def last(self, kind: str) -> Mapping[str, Any] | None:
        return next((payload for topic, payload in reversed(list(self.heard)) if topic == kind), None)

    def requests(self) -> int:
        return sum(int(record["requests"]) for record in self.records())


@dataclass
class Board:
    """A folder as enrolment writes it, and agents that run in it: in a thread, or as a process of its own."""

    folder: Path
    name: str
    settings: dict[str, dict[str, Any]]
    running: list[tuple[Agent, threading.Thread]] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    summary: Summary | None = None

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def state(self) -> Mapping[str, Any]:
        path = self.folder / "state/state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def slots(self) -> set[str]:
        """What lies in the slots' folder."""
        return {entry.name for entry in (self.folder / "state/slots").iterdir()}

    def write(self, **changes: Mapping[str, Any]) -> None:
        """Write agent.toml; changes: section -> keys, None takes a key out."""
        for section, keys in changes.items():
            self.settings.setdefault(section, {}).update(keys)
        lines = []
        for section, keys in self.settings.items():
            lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items() if v is not None)]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self) -> Agent:
        agent = Agent(load_config(self.config), "test")

        def run() -> None:
            self.summary = agent.run()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.running.append((agent, thread))
        return agent

    def stop(self) -> Summary:
        """Stop the last agent that was started."""
        agent, thread = self.running.pop()
        agent.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert self.summary is not None
        return self.summary

    def spawn(
        self, *before: str, command: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """The agent as a process. before: lines of Python run first. env: variables added to this process's."""
        code = "\n".join([*before, "from edgekit.cli.main import main", "main()"])
        process = subprocess.Popen(
            [sys.executable, "-c", code, "agent", *command.split(), "--config", str(self.config), "--json"],
            stdout=subprocess.PIPE,
            stderr=(self.folder / "agent.log").open("a"),
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for agent, _ in self.running:
            agent.stop()
        for _, thread in self.running:
            thread.join(WAIT_S)
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        left = Volatile(
            self.folder / "state/outbox.db", Path("/dev/shm")
        )  # what a killed agent could not send
        left.clear()
        left.close()


@dataclass
class Site:
    """One board with its broker, repository and server."""

    folder: Path
    broker: Mosquitto
    repository: Repository
    server: Server
    board: Board

    def add(self, **options: Any) -> str:
        return self.repository.add(self.folder, **options)

    def run(self, target: str | None, rev: int, **changes: Any) -> Mapping[str, Any]:
        """Command a target and wait for the end of the job; its last event."""
        desired = self.server.desire(self.board.name, target, rev, **changes)
        return self.server.ended(desired.job_id)


@contextlib.contextmanager
def make_site(folder: Path) -> Iterator[Site]:
    """Everything started, the board's folder written and its agent not yet started; all of it gone afterwards."""
    with contextlib.ExitStack() as stack:
        broker = Mosquitto(folder)
        stack.callback(broker.stop)
        repository = Repository()
        stack.callback(repository.close)
        server = Server(broker.port)
        stack.callback(server.close)
        board = make_board(folder / "board", broker.port, repository, server)
        stack.callback(board.end)
        yield Site(folder, broker, repository, server, board)


def make_board(folder: Path, port: int, repository: Repository, server: Server, name: str = "pi5") -> Board:
    folder.mkdir()
    (folder / "root.json").write_bytes(repository.root_json)
    (folder / "control.pub").write_bytes(server.public_pem())
    (folder / "repo.token").write_text(repository.TOKEN + "\n")
    (folder / "repo.token").chmod(0o600)
    (folder / "sysroot").mkdir()
    board = Board(
        folder,
        name,
        {
            "device": {"fleet": FLEET, "name": name, "profile": "raspberrypi5", "state_dir": "state"},
            "broker": {"host": "127.0.0.1", "port": port, "tls": False},
            "repository": {"url": repository.url, "token_file": "repo.token"},
            "trust": {"root": "root.json", "control_key": "control.pub"},
            "telemetry": {"interval_s": 0.2, "resend_s": 0.5},
            "sensors": {"power": "none", "sysroot": "sysroot", "sample_s": 0.05},
            "limits": {"min_interval_s": 0.1},
            "update": {"jitter_s": 0},
            "trial": {"requests": 4, "seconds": 0.3, "live_requests": 10, "live_seconds": 0.1},
        },
    )
    board.write()
    return board
