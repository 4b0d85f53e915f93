"""agent.toml, parsed once: errors say file, key, what was wanted, what came. Reads secrets, never shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from edgekit.core import checks
from edgekit.core.errors import BadInput, EdgekitError, one_line
from edgekit.core.policy import PolicySpec
from edgekit.core.profile import Profile
from edgekit.core.table import Table
from edgekit.core.toml import read_toml
from edgekit.runtime.detect import find_profile

T = TypeVar("T")
AUTO = "auto"
PROTOCOLS = (AUTO, "5", "3.1.1")
ACKS = ("server", "broker")
_MAX_PORT = 65535
_MAX_SOCKET_PATH = 100  # the system's limit is 107, and a socket is bound under a longer name first
_SECTIONS = (
    "device", "broker", "repository", "trust", "telemetry", "sensors", "policy", "limits", "source", "api",
    "identity", "update", "trial", "log",
)  # fmt: skip


@dataclass(frozen=True)
class Broker:
    """Where MQTT goes. protocol: "auto" begins with MQTT 5 and falls back to 3.1.1 where the broker wants that."""

    host: str
    port: int
    username: str
    password: str | None = field(repr=False)
    tls: bool
    ca: Path | None
    protocol: str
    keepalive_s: int


@dataclass(frozen=True)
class Repository:
    """Where bundles come from. url has no trailing slash; below it lie metadata and targets. ca None: the system's."""

    url: str
    token: str | None = field(repr=False)
    ca: Path | None = None


@dataclass(frozen=True)
class Identity:
    """The board's own certificate and its private key, PEM: two files or one. A renewed pair lies in the state."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Update:
    """How updates come. jitter_s: a download begins after a random part of it. rate_kb_s: None: as fast as it goes.

    refresh_h: how often the metadata is looked at without a job. sticks: patterns of folders that may hold a repository
    and commands, such as a mounted USB stick's.
    """

    jitter_s: float = 30.0
    rate_kb_s: float | None = None
    refresh_h: float = 24.0
    sticks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What a bundle must stand before it is committed: so many requests or seconds, in a child and then live."""

    requests: int = 100
    seconds: float = 5.0
    live_requests: int = 100
    live_seconds: float = 10.0


@dataclass(frozen=True)
class Log:
    """How the log is written. verbose: more than warnings and changes."""

    as_json: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Trust:
    """The enrolled roots: TUF's root.json as bytes, and the control key as PEM."""

    root: bytes = field(repr=False)
    control_key: bytes = field(repr=False)


@dataclass(frozen=True)
class Telemetry:
    """How often a Record is made, whose word releases it, and how much may wait for that."""

    interval_s: float
    ack: str
    resend_s: float
    outbox_bytes: int


@dataclass(frozen=True)
class Sensors:
    """power: a sensor's name ("auto" was resolved from the profile). simulated: every figure is labelled so."""

    power: str
    sysroot: Path
    simulated: bool
    sample_s: float


@dataclass(frozen=True)
class Limits:
    """What no command from outside can exceed. threads: what one inference may use.

    golden_memory_mb: data a child may take, for golden cases or measuring. accepts_measure: candidates of a conversion
    may be timed here, beside what serves.
    """

    threads: int
    throttled_factor: float
    accepts_code: bool
    max_bundle_bytes: int
    min_interval_s: float
    golden_timeout_s: float
    golden_memory_mb: int
    accepts_measure: bool = False
    measure_timeout_s: float = 300.0


@dataclass(frozen=True)
class Source:
    """Where inputs come from. rate_hz None: as fast as they are answered. device: of a camera.

    watch: files as they appear; delete, move_to: what becomes of one that is done. max_waiting: of messages.
    """

    kind: str
    path: Path | None = None
    loop: bool = False
    rate_hz: float | None = None
    watch: bool = False
    delete: bool = False
    move_to: Path | None = None
    device: int | str | None = None
    exit_at_end: bool = False
    max_input_bytes: int = 4 * 2**20
    max_waiting: int = 16


@dataclass(frozen=True)
class Sink:
    """Where the source's answers go.

    outputs: with the network's raw outputs. max_bytes, keep: of a file, and how many old ones stay. qos: of MQTT.
    """

    kind: str
    outputs: bool = False
    path: Path | None = None
    max_bytes: int = 16 * 2**20
    keep: int = 5
    qos: int = 0


@dataclass(frozen=True)
class Api:
    """The local API: `host` and `port`, or `path` of a Unix socket. timeout_s: what a slow client may take at most.

    max_connections: more at once are refused. allow_remote: addresses beyond this machine may be listened on.
    """

    host: str | None = None
    port: int = 0
    path: Path | None = None
    socket_mode: int = 0o660
    timeout_s: float = 10.0
    max_connections: int = 64
    allow_remote: bool = False

    @property
    def address(self) -> str:
        """As in `listen`."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in (self.host or "") else f"{self.host}:{self.port}"

    @property
    def openness(self) -> str:
        """Who may come in."""
        if self.path is not None:
            return f"for whom the permissions {self.socket_mode:04o} let in"
        if ip_address(self.host or "127.0.0.1").is_loopback:
            return "for this machine only"
        return "for everybody who can reach it: nobody is asked who he is"


@dataclass(frozen=True)
class Config:
    """Everything in agent.toml. api: None where there is no such section.

    unknown: keys this version does not know, by dotted path; kept and ignored. secret_files: nobody else's to read.
    """

    path: Path
    fleet: str
    name: str
    profile: Profile
    state_dir: Path
    broker: Broker
    repository: Repository
    trust: Trust
    telemetry: Telemetry
    sensors: Sensors
    policy: PolicySpec
    limits: Limits
    source: Source
    sinks: tuple[Sink, ...]
    unknown: tuple[str, ...]
    secret_files: tuple[Path, ...]
    api: Api | None = None
    identity: Identity | None = None
    update: Update = field(default_factory=Update)
    trial: Trial = field(default_factory=Trial)
    log: Log = field(default_factory=Log)

    @property
    def address(self) -> str:
        """`fleet/device`: client id, user name, and the `to` of commands."""
        return f"{self.fleet}/{self.name}"


def load_config(path: Path) -> Config:
    """Read agent.toml and the files it names; relative paths start at its folder.

    Raises BadInput, one line; WorldFailed where the disk does not give the file.
    """
    return parse_config(read_toml(path), path)


def parse_config(data: Mapping[str, object], path: Path) -> Config:
    """The config in a parsed TOML document that stands at `path`. Raises BadInput."""
    top = Table(data, str(path))
    sections = {name: top.optional_table(name) for name in _SECTIONS}
    device, folder = sections["device"], path.resolve().parent
    fleet, name = _get(device, "fleet", checks.name), _get(device, "name", checks.name)
    sysroot = folder / _get(sections["sensors"], "sysroot", checks.text, "/")
    profile = _profile(device, sysroot)
    config = Config(
        path=path,
        fleet=fleet,
        name=name,
        profile=profile,
        state_dir=folder / _get(device, "state_dir", checks.text, "state"),
        broker=_broker(sections["broker"], folder, f"{fleet}/{name}"),
        repository=_repository(sections["repository"], folder),
        trust=Trust(
            _read(sections["trust"], "root", folder, "root.json"),
            _read(sections["trust"], "control_key", folder, "control.pub"),
        ),
        telemetry=_telemetry(sections["telemetry"]),
        sensors=_sensors(sections["sensors"], sysroot, profile),
        policy=_policy(sections["policy"], path),
        limits=_limits(sections["limits"]),
        source=_source(sections["source"], folder),
        sinks=_sinks(top, folder),
        unknown=(),
        secret_files=tuple(
            folder / str(table.data[key])
            for table, key in (
                (sections["broker"], "password_file"),
                (sections["repository"], "token_file"),
                (sections["identity"], "key" if "key" in sections["identity"].data else "certificate"),
            )
            if key in table.data
        ),
        api=None if data.get("api") is None else _api(sections["api"], folder),
        identity=None if data.get("identity") is None else _identity(sections["identity"], folder),
        update=_update(sections["update"], folder),
        trial=_trial(sections["trial"]),
        log=Log(
            _get(sections["log"], "json", checks.flag, False),
            _get(sections["log"], "verbose", checks.flag, False),
        ),
    )
    top.close()
    return replace(config, unknown=tuple(sorted(top.extra)))


def _get(table: Table, key: str, parse: Callable[[object, str], T], default: T | None = None) -> T:
    """The value under `key`, parsed; where it is missing `default`, or an error if there is none."""
    value = table.take(key)
    if value is None and default is not None:
        return default
    try:
        return parse(value, f"{table.where}: {table.key(key)}")
    except BadInput as err:
        if value is None:
            raise BadInput(str(err).removesuffix("null") + "nothing") from err
        raise


def _maybe(table: Table, key: str, parse: Callable[[object, str], T]) -> T | None:
    """The value under `key`, parsed; None where it is missing."""
    return None if table.take(key) is None else _get(table, key, parse)


def _number(low: float, high: float) -> Callable[[object, str], float]:
    return lambda value, where: checks.number(value, where, low, high)


def _whole(low: int, high: int) -> Callable[[object, str], int]:
    return lambda value, where: checks.integer(value, where, low, high)


def _word(*allowed: str) -> Callable[[object, str], str]:
    return lambda value, where: checks.choice(value, where, allowed)


def _read(table: Table, key: str, folder: Path, default: str | None = None) -> bytes:
    """The content of the file that `key` names."""
    name = _get(table, key, checks.text, default)
    try:
        return (folder / name).read_bytes()
    except OSError as err:
        wanted = f"a file that can be read ({err.strerror})"
        raise checks.wrong(f"{table.where}: {table.key(key)}", wanted, name) from err


def _secret(table: Table, key: str, folder: Path) -> str | None:
    """The one line in the secret file that `key` names; None where no file is named."""
    if table.take(key) is None:
        return None
    try:
        text = _read(table, key, folder).decode("utf-8").strip()
    except UnicodeDecodeError as err:
        raise BadInput(f"{table.where}: {table.key(key)} must name a text file") from err
    if not text:
        raise BadInput(f"{table.where}: {table.key(key)} must name a file with a secret in it, it is empty")
    return text


def _profile(device: Table, sysroot: Path) -> Profile:
    name = _get(device, "profile", checks.text)
    try:
        return find_profile(name, sysroot)
    except EdgekitError as err:
        raise BadInput(f"{device.where}: device.profile: {one_line(err)}") from err


def _broker(table: Table, folder: Path, address: str) -> Broker:
    tls = _get(table, "tls", checks.flag, True)
    ca = _maybe(table, "ca", checks.text)
    if ca is not None:
        _read(table, "ca", folder)
    return Broker(
        host=_get(table, "host", checks.text),
        port=_get(table, "port", _whole(1, 65535), 8883 if tls else 1883),
        username=_get(table, "username", checks.text, address),
        password=_secret(table, "password_file", folder),
        tls=tls,
        ca=None if ca is None else folder / ca,
        protocol=_get(table, "protocol", _word(*PROTOCOLS), AUTO),
        keepalive_s=_get(table, "keepalive_s", _whole(5, 3600), 30),
    )


def _url(value: object, where: str) -> str:
    text = checks.text(value, where)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise checks.wrong(where, "an http:// or https:// address", value)
    return text.rstrip("/")


def _repository(table: Table, folder: Path) -> Repository:
    ca = _maybe(table, "ca", checks.text)
    if ca is not None:
        _read(table, "ca", folder)
    return Repository(
        _get(table, "url", _url), _secret(table, "token_file", folder), None if ca is None else folder / ca
    )


def _identity(table: Table, folder: Path) -> Identity:
    certificate = _get(table, "certificate", checks.text)
    key = _get(table, "key", checks.text, certificate)
    _read(table, "certificate", folder)
    _read(table, "key", folder, certificate)
    return Identity(folder / certificate, folder / key)


def _update(table: Table, folder: Path) -> Update:
    patterns = _maybe(table, "sticks", lambda value, where: checks.rows(value, where, checks.text)) or ()
    return Update(
        jitter_s=_get(table, "jitter_s", _number(0.0, 86_400), Update.jitter_s),
        rate_kb_s=_maybe(table, "rate_kb_s", _number(1.0, 1e7)),
        refresh_h=_get(table, "refresh_h", _number(0.001, 24 * 14), Update.refresh_h),
        sticks=tuple(str(folder / pattern) for pattern in patterns),
    )


def _trial(table: Table) -> Trial:
    return Trial(
        requests=_get(table, "requests", _whole(1, 10**6), Trial.requests),
        seconds=_get(table, "seconds", _number(0.01, 86_400), Trial.seconds),
        live_requests=_get(table, "live_requests", _whole(0, 10**6), Trial.live_requests),
        live_seconds=_get(table, "live_seconds", _number(0.0, 86_400), Trial.live_seconds),
    )


def _telemetry(table: Table) -> Telemetry:
    return Telemetry(
        interval_s=_get(table, "interval_s", _number(0.1, 86_400), 60.0),
        ack=_get(table, "ack", _word(*ACKS), "server"),
        resend_s=_get(table, "resend_s", _number(0.1, 3600), 20.0),
        outbox_bytes=round(_get(table, "outbox_mb", _number(0.5, 100_000), 64.0) * 2**20),
    )


def _sensors(table: Table, sysroot: Path, profile: Profile) -> Sensors:
    power = _get(table, "power", checks.text, AUTO)
    return Sensors(
        power=profile.power.sensor if power == AUTO else power,
        sysroot=sysroot,
        simulated=_get(table, "simulated", checks.flag, False),
        sample_s=_get(table, "sample_s", _number(0.01, 60), 0.5),
    )


def _policy(table: Table, path: Path) -> PolicySpec:
    for key in ("kind", "budget", "deadline_ms", "max_drop"):
        table.take(key)
    try:
        return PolicySpec.parse({"kind": "full", **table.data}, "policy")
    except BadInput as err:
        raise BadInput(f"{path}: {err}") from err


def _limits(table: Table) -> Limits:
    return Limits(
        threads=_get(table, "threads", _whole(1, 1024), 1),
        throttled_factor=_get(table, "throttled_factor", _number(0.01, 1.0), 0.6),
        accepts_code=_get(table, "accepts_code", checks.flag, False),
        max_bundle_bytes=round(_get(table, "max_bundle_mb", _number(0.01, 100_000), 512.0) * 2**20),
        min_interval_s=_get(table, "min_interval_s", _number(0.1, 86_400), 1.0),
        golden_timeout_s=_get(table, "golden_timeout_s", _number(0.1, 3600), 60.0),
        golden_memory_mb=_get(table, "golden_memory_mb", _whole(16, 10**6), 1024),
        accepts_measure=_get(table, "accepts_measure", checks.flag, False),
        measure_timeout_s=_get(table, "measure_timeout_s", _number(0.1, 86_400), 300.0),
    )


def _source(table: Table, folder: Path) -> Source:
    kind = _get(table, "kind", checks.text, "none")
    path = _maybe(table, "path", checks.text)
    done = _get(table, "done", _done, ("keep", ""))
    return Source(
        kind=kind,
        path=None if path is None else folder / path,
        loop=_get(table, "loop", checks.flag, False),
        rate_hz=_maybe(table, "rate_hz", _number(1e-6, 1e6)),
        watch=_get(table, "watch", checks.flag, False),
        delete=done[0] == "delete",
        move_to=folder / done[1] if done[1] else None,
        device=_device(_maybe(table, "device", _number_or_text), folder),
        exit_at_end=_get(table, "exit_at_end", checks.flag, False),
        max_input_bytes=_get(table, "max_input_bytes", _whole(1024, 2**30), Source.max_input_bytes),
        max_waiting=_get(table, "max_waiting", _whole(1, 10_000), Source.max_waiting),
    )


def _done(value: object, where: str) -> tuple[str, str]:
    """`keep`, `delete` or `move:FOLDER`: the word, and the folder."""
    word, _, target = checks.text(value, where).partition(":")
    if (word, bool(target)) not in (("keep", False), ("delete", False), ("move", True)):
        raise checks.wrong(where, "keep, delete or move:FOLDER", value)
    return word, target


def _number_or_text(value: object, where: str) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool):
        return checks.integer(value, where, 0, 1000)
    return checks.text(value, where)


def _device(device: int | str | None, folder: Path) -> int | str | None:
    """A camera's path is relative to the config like all others; an address is none."""
    return str(folder / device) if isinstance(device, str) and "://" not in device else device


def _sinks(top: Table, folder: Path) -> tuple[Sink, ...]:
    """One `[sink]`, or several `[[sink]]`."""
    value = top.take("sink")
    if value is None or value == []:
        return ()
    found = (top.table("sink"),) if isinstance(value, Mapping) else top.tables("sink")
    return tuple(_sink(table, folder) for table in found)


def _sink(table: Table, folder: Path) -> Sink:
    path = _maybe(table, "path", checks.text)
    return Sink(
        kind=_get(table, "kind", checks.text),
        outputs=_get(table, "outputs", checks.flag, False),
        path=None if path is None else folder / path,
        max_bytes=round(_get(table, "max_mb", _number(0.001, 1e6), Sink.max_bytes / 2**20) * 2**20),
        keep=_get(table, "keep", _whole(0, 1000), Sink.keep),
        qos=_get(table, "qos", _whole(0, 1), Sink.qos),
    )


def _api(table: Table, folder: Path) -> Api:
    listen = _get(table, "listen", checks.text, "127.0.0.1:8000")
    where = f"{table.where}: {table.key('listen')}"
    allow_remote = _get(table, "allow_remote", checks.flag, False)
    api = Api(
        socket_mode=int(_get(table, "socket_mode", _octal, "0660"), 8),
        timeout_s=_get(table, "timeout_s", _number(0.1, 600), 10.0),
        max_connections=_get(table, "max_connections", _whole(1, 1000), 64),
        allow_remote=allow_remote,
    )
    if listen.startswith("unix:"):
        return replace(api, path=_socket_path(folder, listen.removeprefix("unix:"), where))
    host, port = _host_and_port(listen, where)
    if not (allow_remote or ip_address(host).is_loopback):
        raise checks.wrong(
            where,
            "an address of this machine only (api.allow_remote = true lifts that; nobody is asked who he is)",
            listen,
        )
    return replace(api, host=host, port=port)


def _octal(value: object, where: str) -> str:
    text = checks.text(value, where)
    if not re.fullmatch("0?[0-7]{3}", text):
        raise checks.wrong(where, 'permissions such as "0660"', value)
    return text


def _socket_path(folder: Path, name: str, where: str) -> Path:
    path = folder / name
    if not name or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise checks.wrong(where, f"unix:PATH with a path of at most {_MAX_SOCKET_PATH} bytes", str(path))
    return path


def _host_and_port(listen: str, where: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = {"localhost": "127.0.0.1"}.get(host, host.removeprefix("[").removesuffix("]"))
    try:
        ip_address(host)
        number = int(port) if port.isascii() and port.isdigit() else 0
    except ValueError:
        number = 0
    if not 1 <= number <= _MAX_PORT:
        raise checks.wrong(where, "ADDRESS:PORT (an IP address, a port from 1 to 65535) or unix:PATH", listen)
    return host, number
