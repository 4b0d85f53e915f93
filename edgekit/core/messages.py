"""What board and server say to each other over MQTT, version 1. Encodes, decodes and checks; sends nothing."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core import checks, jobs
from edgekit.core.bench import BenchReport, parse_reports, reports_json
from edgekit.core.checks import canonical_json, flag, integer, name, number, optional, rows, table, text
from edgekit.core.errors import BadInput
from edgekit.core.policy import PolicySpec
from edgekit.core.record import Record
from edgekit.core.target import parse_label

ROOT = "edgekit/v1"
TO_BOARD = ("desired", "job", "ack")
FROM_BOARD = ("status", "info", "reported", "job/event", "telemetry", "event")
INPUT, ANSWER = "input", "answer"  # opt-in: a board's source and sink; the server hears neither
_KINDS = (*TO_BOARD, *FROM_BOARD, INPUT, ANSWER)
ACTIONS = ("measure", "refresh", "update-agent")
RETAINED = ("status", "info", "desired", "reported")
COMPRESS_ABOVE = 1024
MAX_PAYLOAD = 4 * 2**20  # bytes once unpacked
_MAX_RECORDS = 10_000
_MAX_SETTINGS = 100
_MAX_INTERVAL_S = 1e10  # as of a record


def topic(fleet: str, device: str, kind: str) -> str:
    """`edgekit/v1/{fleet}/{device}/{kind}`."""
    return f"{ROOT}/{fleet}/{device}/{kind}"


def parse_topic(value: str) -> tuple[str, str, str]:
    """fleet, device, kind. Raises BadInput for a topic that is not ours."""
    parts = value.split("/", 4)
    if len(parts) != 5 or "/".join(parts[:2]) != ROOT or parts[4] not in _KINDS:
        raise checks.wrong("topic", f"{ROOT}/FLEET/DEVICE/KIND", value)
    return name(parts[2], "topic: fleet"), name(parts[3], "topic: device"), parts[4]


def encode(payload: Mapping[str, Any]) -> bytes:
    """JSON with `"v":1`; zlib-compressed above 1 KiB."""
    return compressed(canonical_json({**payload, "v": 1}))


def compressed(data: bytes) -> bytes:
    """JSON text as it goes out: zlib-compressed above 1 KiB."""
    return zlib.compress(data, 6) if len(data) > COMPRESS_ABOVE else data


def decode(data: bytes, where: str = "message", limit: int = MAX_PAYLOAD) -> Mapping[str, Any]:
    """The JSON object in a payload, compressed or not. Raises BadInput; memory is bounded by `limit` (bytes)."""
    if data[:1] != b"{":
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(data, limit)
        except zlib.error as err:
            raise BadInput(f"{where} must be JSON or zlib-compressed JSON: {err}") from err
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise BadInput(f"{where} is cut short or larger than {limit} bytes")
    elif len(data) > limit:
        raise BadInput(f"{where} is larger than {limit} bytes")
    payload = table(checks.parse_json(data, where), where)
    if payload.get("v") != 1:
        raise checks.wrong(
            f"{where}.v", "1 (a newer board or server must be met by a newer edgekit)", payload.get("v")
        )
    return payload


def signed_bytes(payload: Mapping[str, Any]) -> bytes:
    """What the control key signs: the canonical payload without its `sig`."""
    return canonical_json({key: value for key, value in payload.items() if key != "sig"} | {"v": 1})


def _time(value: object, where: str) -> float:
    return number(value, where, 0.0, 1e11)


def _settings(value: object, where: str) -> Mapping[str, Any]:
    """Settings by dotted key: plain values only. Raises BadInput."""
    settings = table(value, where)
    if len(settings) > _MAX_SETTINGS:
        raise checks.wrong(where, f"at most {_MAX_SETTINGS} settings", len(settings))
    for key, setting in settings.items():
        text(key, where)
        if isinstance(setting, str):
            text(setting, f"{where}: {key}")
        elif not isinstance(setting, bool):
            if not isinstance(setting, (int, float)):
                raise checks.wrong(f"{where}: {key}", "a number, a text, true or false", setting)
            number(setting, f"{where}: {key}")
    return settings


@dataclass(frozen=True)
class Desired:
    """What a board should run. Retained; alone says it all. `n` grows with every command the control key signs.

    target: `name/version`, or None to leave it as it is. policy, interval_s (`interval` on the wire): None to leave as
    configured.
    expires: Unix seconds after which an unfinished job ends as expired. config: settings by dotted key, such as
    "limits.threads": the board takes those it lets others change, within its local limits. None: as configured there.
    """

    to: str  # fleet/device, so that one board's command is no other's
    rev: int
    n: int
    job_id: str
    target: str | None
    policy: PolicySpec | None
    interval_s: float | None
    expires: float
    config: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "desired") -> Desired:
        """Read a decoded payload. Raises BadInput."""
        target = optional(payload.get("target"), f"{where}.target", text)
        if target is not None:
            parse_label(target, f"{where}.target")
        return cls(
            to=text(payload.get("to"), f"{where}.to"),
            rev=integer(payload.get("rev"), f"{where}.rev", 1),
            n=integer(payload.get("n"), f"{where}.n", 1),
            job_id=name(payload.get("job_id"), f"{where}.job_id"),
            target=target,
            policy=optional(payload.get("policy"), f"{where}.policy", PolicySpec.parse),
            interval_s=optional(
                payload.get("interval"), f"{where}.interval", lambda v, w: number(v, w, 0.1, 86400)
            ),
            expires=number(payload.get("expires"), f"{where}.expires", 0.0, 1e11),
            config=optional(payload.get("config"), f"{where}.config", _settings),
        )

    def to_json(self) -> dict[str, Any]:
        """The payload before it is signed."""
        return {
            "to": self.to,
            "rev": self.rev,
            "n": self.n,
            "job_id": self.job_id,
            "target": self.target,
            "policy": self.policy.to_json() if self.policy else None,
            "interval": self.interval_s,
            "expires": self.expires,
            "config": None if self.config is None else dict(self.config),
        }


@dataclass(frozen=True)
class OneShot:
    """A job to be done once, on the topic `job`; never retained. action: one of ACTIONS.

    target: `name/version` of the repository. `n` grows with every command the control key signs; desired states and
    one-shots are compared with their own kind only, since the broker hands a retained desired state out again.
    """

    to: str
    n: int
    job_id: str
    action: str
    target: str
    expires: float

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "job") -> OneShot:
        """Read a decoded payload. Raises BadInput."""
        target = text(payload.get("target"), f"{where}.target")
        parse_label(target, f"{where}.target")
        return cls(
            to=text(payload.get("to"), f"{where}.to"),
            n=integer(payload.get("n"), f"{where}.n", 1),
            job_id=name(payload.get("job_id"), f"{where}.job_id"),
            action=checks.choice(payload.get("action"), f"{where}.action", ACTIONS),
            target=target,
            expires=number(payload.get("expires"), f"{where}.expires", 0.0, 1e11),
        )

    def to_json(self) -> dict[str, Any]:
        """The payload before it is signed."""
        return {
            "to": self.to,
            "n": self.n,
            "job_id": self.job_id,
            "action": self.action,
            "target": self.target,
            "expires": self.expires,
        }


@dataclass(frozen=True)
class Status:
    """Online or not; the will says offline with the boot_id that died."""

    online: bool
    boot_id: str

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "status") -> Status:
        """Read a decoded payload. Raises BadInput."""
        return cls(
            flag(payload.get("online"), f"{where}.online"), name(payload.get("boot_id"), f"{where}.boot_id")
        )

    def to_json(self) -> dict[str, Any]:
        """The payload."""
        return {"online": self.online, "boot_id": self.boot_id}


@dataclass(frozen=True)
class Info:
    """What a board is and has. slots: labels of verified bundles. metadata: highest TUF versions seen, by role.

    accepts_measure: candidates of a conversion may be timed there. metadata_expires, certificate_expires: Unix seconds
    at which updates, and the connection, would stop; None: not known, or none. environment: label of the agent's own
    environment where that was installed by an update.
    """

    profile: str
    agent: str
    boot_id: str
    runtimes: Mapping[str, str] = field(default_factory=dict)
    sensors: tuple[str, ...] = ()
    simulated: bool = False
    slots: tuple[str, ...] = ()
    metadata: Mapping[str, int] = field(default_factory=dict)
    accepts_measure: bool = False
    metadata_expires: Mapping[str, float] = field(default_factory=dict)
    certificate_expires: float | None = None
    environment: str | None = None

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "info") -> Info:
        """Read a decoded payload. Raises BadInput."""
        runtimes = table(payload.get("runtimes", {}), f"{where}.runtimes")
        metadata = table(payload.get("metadata", {}), f"{where}.metadata")
        expires = table(payload.get("metadata_expires", {}), f"{where}.metadata_expires")
        return cls(
            profile=name(payload.get("profile"), f"{where}.profile"),
            agent=text(payload.get("agent"), f"{where}.agent"),
            boot_id=name(payload.get("boot_id"), f"{where}.boot_id"),
            runtimes={text(k, where): text(v, f"{where}.runtimes.{k}") for k, v in runtimes.items()},
            sensors=rows(payload.get("sensors", []), f"{where}.sensors", text),
            simulated=flag(payload.get("simulated", False), f"{where}.simulated"),
            slots=rows(payload.get("slots", []), f"{where}.slots", text),
            metadata={text(k, where): integer(v, f"{where}.metadata.{k}") for k, v in metadata.items()},
            accepts_measure=flag(payload.get("accepts_measure", False), f"{where}.accepts_measure"),
            metadata_expires={
                text(k, where): _time(v, f"{where}.metadata_expires.{k}") for k, v in expires.items()
            },
            certificate_expires=optional(
                payload.get("certificate_expires"), f"{where}.certificate_expires", _time
            ),
            environment=optional(payload.get("environment"), f"{where}.environment", text),
        )

    def to_json(self) -> dict[str, Any]:
        """The payload."""
        return {
            "profile": self.profile,
            "agent": self.agent,
            "boot_id": self.boot_id,
            "runtimes": dict(self.runtimes),
            "sensors": list(self.sensors),
            "simulated": self.simulated,
            "slots": list(self.slots),
            "metadata": dict(self.metadata),
            "accepts_measure": self.accepts_measure,
            "metadata_expires": dict(self.metadata_expires),
            "certificate_expires": self.certificate_expires,
            "environment": self.environment,
        }


@dataclass(frozen=True)
class Reported:
    """What is in force on a board, and why it differs from what was desired."""

    rev: int  # of the desired state this answers; 0 before the first
    job_id: str | None
    state: str | None  # of that job
    bundle: str | None  # name/version that serves
    content_id: str | None
    policy: PolicySpec | None  # in force now: a throttled board may run a tighter one than desired
    interval_s: float
    why: str | None
    config: Mapping[str, Any] = field(default_factory=dict)  # settings from outside that are in force
    config_refused: Mapping[str, str] = field(default_factory=dict)  # those that are not, and why

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "reported") -> Reported:
        """Read a decoded payload. Raises BadInput."""
        return cls(
            rev=integer(payload.get("rev"), f"{where}.rev"),
            job_id=optional(payload.get("job_id"), f"{where}.job_id", name),
            state=optional(
                payload.get("state"), f"{where}.state", lambda v, w: checks.choice(v, w, jobs.STATES)
            ),
            bundle=optional(payload.get("bundle"), f"{where}.bundle", text),
            content_id=optional(payload.get("content_id"), f"{where}.content_id", checks.sha256),
            policy=optional(payload.get("policy"), f"{where}.policy", PolicySpec.parse),
            interval_s=number(payload.get("interval_s"), f"{where}.interval_s", 0.0, _MAX_INTERVAL_S),
            why=optional(payload.get("why"), f"{where}.why", text),
            config=_settings(payload.get("config", {}), f"{where}.config"),
            config_refused={
                text(k, where): text(v, f"{where}.config_refused.{k}")
                for k, v in table(payload.get("config_refused", {}), f"{where}.config_refused").items()
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The payload."""
        return {
            "rev": self.rev,
            "job_id": self.job_id,
            "state": self.state,
            "bundle": self.bundle,
            "content_id": self.content_id,
            "policy": self.policy.to_json() if self.policy else None,
            "interval_s": self.interval_s,
            "why": self.why,
            "config": dict(self.config),
            "config_refused": dict(self.config_refused),
        }


@dataclass(frozen=True)
class JobEvent:
    """One transition of a job. Held in the outbox like a Record: (boot_id, seq) names it, `ack` releases it.

    reports: what a `measure` job brought, in its last event.
    """

    boot_id: str
    seq: int
    job_id: str
    state: str
    target: str | None
    time: float | None
    reason: str | None = None  # one of trust.REASONS, "superseded", "golden", ...
    detail: str | None = None
    reports: tuple[BenchReport, ...] = ()

    @property
    def event_id(self) -> str:
        """Unique per board."""
        return f"{self.boot_id}-{self.seq}"

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "job/event") -> JobEvent:
        """Read a decoded payload. Raises BadInput."""
        return cls(
            boot_id=name(payload.get("boot_id"), f"{where}.boot_id"),
            seq=integer(payload.get("seq"), f"{where}.seq", 1),
            job_id=name(payload.get("job_id"), f"{where}.job_id"),
            state=checks.choice(payload.get("state"), f"{where}.state", jobs.STATES),
            target=optional(payload.get("target"), f"{where}.target", text),
            time=optional(payload.get("time"), f"{where}.time", lambda v, w: number(v, w, 0.0, 1e11)),
            reason=optional(payload.get("reason"), f"{where}.reason", text),
            detail=optional(payload.get("detail"), f"{where}.detail", text),
            reports=parse_reports(payload.get("reports", []), f"{where}.reports"),
        )

    def to_json(self) -> dict[str, Any]:
        """The payload; `reports` only where there are some."""
        return {
            "event_id": self.event_id,
            "boot_id": self.boot_id,
            "seq": self.seq,
            "job_id": self.job_id,
            "state": self.state,
            "target": self.target,
            "time": self.time,
            "reason": self.reason,
            "detail": self.detail,
            **({"reports": reports_json(self.reports)} if self.reports else {}),
        }


@dataclass(frozen=True)
class Event:
    """Something an operator should know: throttle, deadline_missed, rollback, dropped. In the outbox like a Record."""

    boot_id: str
    seq: int
    kind: str
    time: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "event") -> Event:
        """Read a decoded payload. Raises BadInput."""
        return cls(
            boot_id=name(payload.get("boot_id"), f"{where}.boot_id"),
            seq=integer(payload.get("seq"), f"{where}.seq", 1),
            kind=name(payload.get("kind"), f"{where}.kind"),
            time=optional(payload.get("time"), f"{where}.time", lambda v, w: number(v, w, 0.0, 1e11)),
            detail=table(payload.get("detail", {}), f"{where}.detail"),
        )

    def to_json(self) -> dict[str, Any]:
        """The payload."""
        return {
            "event_id": f"{self.boot_id}-{self.seq}",
            "boot_id": self.boot_id,
            "seq": self.seq,
            "kind": self.kind,
            "time": self.time,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True)
class Telemetry:
    """Records of one boot. floor: the lowest seq of that boot the board still holds (Records and events alike)."""

    boot_id: str
    floor: int
    records: tuple[Record, ...]

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "telemetry") -> Telemetry:
        """Read a decoded payload. Raises BadInput."""
        entries = payload.get("records")
        if isinstance(entries, list) and len(entries) > _MAX_RECORDS:
            raise checks.wrong(f"{where}.records", f"at most {_MAX_RECORDS} records", len(entries))
        return cls(
            name(payload.get("boot_id"), f"{where}.boot_id"),
            integer(payload.get("floor"), f"{where}.floor", 1),
            rows(entries, f"{where}.records", Record.parse),
        )

    def to_json(self) -> dict[str, Any]:
        """The payload."""
        return {"boot_id": self.boot_id, "floor": self.floor, "records": [r.to_json() for r in self.records]}


@dataclass(frozen=True)
class Ack:
    """All of that boot from its floor to `upto` is committed in the server's store."""

    boot_id: str
    upto: int

    @classmethod
    def parse(cls, payload: Mapping[str, Any], where: str = "ack") -> Ack:
        """Read a decoded payload. Raises BadInput."""
        return cls(
            name(payload.get("boot_id"), f"{where}.boot_id"), integer(payload.get("upto"), f"{where}.upto")
        )

    def to_json(self) -> dict[str, Any]:
        """The payload."""
        return {"boot_id": self.boot_id, "upto": self.upto}
