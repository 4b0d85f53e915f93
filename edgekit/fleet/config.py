"""fleet.toml, read and checked once. Opens no socket and no database."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from edgekit.core.checks import NAME
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.table import Table
from edgekit.core.toml import read_toml

DEFAULT_MAX_BUNDLE_MB = 512
MOST_INGESTERS = 16  # on all machines together: each has its own account at the broker


@dataclass(frozen=True)
class Web:
    """Where the page, the API and the repository are served. port 0: any free one, written to data_dir/address."""

    host: str
    port: int
    tls: bool = True


@dataclass(frozen=True)
class Broker:
    """The MQTT broker, as this server reaches it and as boards are told to.

    tls: by certificates of the fleet's own authority, of both sides.
    password_file: the server's own password; drawn where there is none. files_dir: where `passwd` and `acl` for
    Mosquitto are written. pid_file: Mosquitto's; it gets a SIGHUP after each enrolment. None: somebody else reloads it.
    """

    host: str
    port: int
    username: str
    password_file: Path
    files_dir: Path
    pid_file: Path | None
    public_host: str
    public_port: int
    tls: bool = True

    @property
    def reached_at(self) -> str:
        """What the server itself connects to: an address of this machine where the broker listens on all."""
        return on_this_machine(self.host)

    def account(self, number: int) -> str:
        """An ingester's user name, which is also its client id: two of one name would hang up on each other."""
        return self.username if number == 1 else f"{self.username}-{number}"

    @property
    def accounts(self) -> tuple[str, ...]:
        """Every ingester's user name, also of those that other machines run."""
        return tuple(self.account(number) for number in range(1, MOST_INGESTERS + 1))


@dataclass(frozen=True)
class Ingesters:
    """How many processes of this machine share what boards send, and whether the first of them leads.

    The leader hears of births and deaths, and tells boards what to do; a fleet has one. first: its number, so that no
    two machines have an ingester of the same.
    """

    processes: int = 1
    leader: bool = True
    first: int = 1

    @property
    def numbers(self) -> range:
        """The numbers of this machine's ingesters."""
        return range(self.first, self.first + self.processes)

    def leads(self, number: int) -> bool:
        """Whether that one is the fleet's leader."""
        return self.leader and number == self.first


@dataclass(frozen=True)
class Retention:
    """How long the store keeps what, and how large it may get: then ages shrink, records' first.

    gb_per_1000_boards: 10^9 bytes; a store of fewer boards may take 1 GB. pass_every_s: how often all boards are gone
    through.
    """

    raw_hours: float = 24.0
    minute_days: float = 7.0
    hour_days: float = 730.0
    event_days: float = 90.0
    job_days: float = 400.0
    gb_per_1000_boards: float = 6.0
    pass_every_s: float = 3600.0


@dataclass(frozen=True)
class Limits:
    """What one board may bring: what is above is dropped, acknowledged and counted; and how many boards there may be.

    *_burst: what may come at once after a silence: a week of Records each minute is 10,080.
    """

    records_per_hour: int = 7_200
    records_burst: int = 100_000
    events_per_hour: int = 600
    events_burst: int = 10_000
    boots_per_day: int = 1_000
    names_per_board: int = 64  # new bundles, policies, exits, ...: of each kind
    devices: int = 20_000  # of the whole fleet: more are not enrolled


@dataclass(frozen=True)
class FleetConfig:
    """Everything `edgekit fleet serve` is told. Paths in the file are relative to its folder."""

    path: Path
    fleet: str
    data_dir: Path
    repository: Path
    max_bundle_bytes: int
    web: Web
    broker: Broker
    public_url: str | None  # what boards are given; None: the address that is served
    database: str | None = field(default=None, repr=False)  # None: SQLite in data_dir. May hold a password
    database_password_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    alert_rules: Path | None = None  # alerts.toml; None: the default rules, and nobody is told
    retention: Retention = field(default_factory=Retention)
    ingest: Ingesters = field(default_factory=Ingesters)

    @property
    def database_url(self) -> str:
        """The store, as SQLAlchemy names it: not to be shown. Raises BadInput, WorldFailed (its password's file)."""
        url = self.database or f"sqlite:///{self.data_dir / 'fleet.db'}"
        if self.database_password_file is None:
            return url
        scheme, rest = url.split("://", 1)
        who, at, where = rest.rpartition("@")
        password = quote(read_secret(self.database_password_file), safe="")
        return f"{scheme}://{who}:{password}{at}{where}"

    @property
    def token_file(self) -> Path:
        """The API's token."""
        return self.data_dir / "api.token"

    @property
    def control_key_file(self) -> Path:
        """The private key that signs commands to boards."""
        return self.data_dir / "control.pem"

    @property
    def control_public_file(self) -> Path:
        """Its public half, which boards are enrolled with."""
        return self.data_dir / "control.pub"

    @property
    def tls_dir(self) -> Path:
        """The authority's keys and the server's own certificates: nobody else's to read."""
        return self.data_dir / "tls"

    @property
    def ca_file(self) -> Path:
        """The authority's certificate: what boards, commands and browsers check this server's against. Public."""
        return self.data_dir / "ca.pem"

    @property
    def address_file(self) -> Path:
        """Holds the served address while the server runs."""
        return self.data_dir / "address"

    @property
    def incoming(self) -> Path:
        """Where uploads wait to be published."""
        return self.data_dir / "incoming"


def read_config(path: Path) -> FleetConfig:
    """Read fleet.toml. Raises BadInput (also for a key nobody knows), WorldFailed."""
    path = path.absolute()
    base = path.parent
    top = Table(read_toml(path), str(path))
    fleet = top.text("fleet")
    if not NAME.fullmatch(fleet):
        raise top.wrong("fleet", "a name (letters, digits, '_' and '-', at most 64)", fleet)
    data_dir = base / top.text("data_dir")
    config = FleetConfig(
        path=path,
        fleet=fleet,
        data_dir=data_dir,
        repository=base / top.text("repository"),
        max_bundle_bytes=(top.optional_count("max_bundle_mb") or DEFAULT_MAX_BUNDLE_MB) * 2**20,
        web=_web(top.optional_table("web")),
        broker=_broker(top.optional_table("broker"), base, data_dir),
        public_url=_url(top, "public_url"),
        database=_database(top, base),
        database_password_file=_password_file(top, base),
        limits=_limits(top.optional_table("limits")),
        alert_rules=_alert_rules(top.optional_table("alerts"), base),
        retention=_retention(top.optional_table("retention")),
        ingest=_ingesters(top.optional_table("ingest")),
    )
    if not config.ingest.leader and (config.database or "sqlite").startswith("sqlite"):
        raise BadInput(
            f"{path}: ingest.leader = false needs the database_url of the PostgreSQL of the machine that leads"
        )
    top.close()
    if top.extra:
        raise BadInput(f"{path}: does not know the key {', '.join(sorted(top.extra))}")
    return config


def _alert_rules(table: Table, base: Path) -> Path | None:
    name = table.optional_text("rules")
    return None if name is None else base / name


def _limits(table: Table) -> Limits:
    usual = Limits()
    return Limits(**{key: table.optional_count(key) or value for key, value in vars(usual).items()})


def _ingesters(table: Table) -> Ingesters:
    first = table.optional_count("first") or 1
    processes = table.optional_count("processes") or 1
    if first + processes - 1 > MOST_INGESTERS:
        key, most = (
            ("processes", MOST_INGESTERS + 1 - first)
            if first <= MOST_INGESTERS
            else ("first", MOST_INGESTERS)
        )
        raise table.wrong(key, f"at most {most}", processes if key == "processes" else first)
    return Ingesters(processes, _flag(table, "leader", default=True), first)


def _web(table: Table) -> Web:
    host = table.optional_text("host") or "127.0.0.1"
    tls = _encrypted(table, "web", host, "the page and the API")
    return Web(host, _port(table, "port", 8080, 0), tls)


def _encrypted(table: Table, section: str, host: str, what: str) -> bool:
    """Whether TLS is spoken; without it only this machine may come in, unless somebody said otherwise."""
    tls, allowed = _flag(table, "tls", default=True), _flag(table, "allow_remote", default=False)
    if not tls and not allowed and not _is_loopback(host):
        raise BadInput(
            f'{table.where}: {section}.host = "{host}" is not loopback: other machines would reach {what} without '
            f"encryption; take out {section}.tls = false, or set {section}.allow_remote = true"
        )
    return tls


def _flag(table: Table, key: str, *, default: bool) -> bool:
    value = table.take(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise table.wrong(key, "true or false", value)
    return value


def _broker(table: Table, base: Path, data_dir: Path) -> Broker:
    host = table.optional_text("host") or "127.0.0.1"
    tls = _encrypted(table, "broker", host, "the broker")
    port = _port(table, "port", 8883 if tls else 1883, 1)
    username = table.optional_text("username") or "edgekit-server"
    if not NAME.fullmatch(username):  # a board's has a slash in it: none can be called like the server
        raise table.wrong("username", "a name (letters, digits, '_' and '-', at most 64)", username)
    pid_file, password_file, files_dir = (
        table.optional_text(key) for key in ("pid_file", "password_file", "files_dir")
    )
    files = base / files_dir if files_dir else data_dir / "broker"
    return Broker(
        host=host,
        port=port,
        username=username,
        password_file=base / password_file if password_file else data_dir / "broker.password",
        files_dir=files,
        pid_file=base / pid_file if pid_file else files / "mosquitto.pid",
        public_host=table.optional_text("public_host") or host,
        public_port=_port(table, "public_port", port, 1),
        tls=tls,
    )


def _database(top: Table, base: Path) -> str | None:
    """A database's address; a file of SQLite's is relative to fleet.toml's folder. No message shows it."""
    url = top.optional_text("database_url")
    if url is None:
        return None
    wanted = f"{top.where}: database_url must be sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest[1:] and "?" not in rest:
        return f"sqlite:///{base / rest[1:]}"
    if scheme not in {"postgresql", "postgresql+psycopg"} or not separator or "/" not in rest:
        raise BadInput(f"{wanted}, not {scheme if separator else 'a text'} and something else")
    if not rest.partition("?")[0].rpartition("/")[2]:
        raise BadInput(f"{wanted}: no database is named")
    return f"postgresql+psycopg://{rest}"


def _password_file(top: Table, base: Path) -> Path | None:
    """Where the database's password is, for an address that names a user and holds no password."""
    file, url = top.optional_text("database_password_file"), top.optional_text("database_url") or ""
    if file is None:
        return None
    scheme, _, rest = url.partition("://")
    who, at, _ = rest.rpartition("@")
    if not scheme.startswith("postgresql") or not at or not who or ":" in who:
        raise BadInput(
            f"{top.where}: database_password_file needs a database_url of PostgreSQL with a user and no password"
        )
    return base / file


def _retention(table: Table) -> Retention:
    least = {
        "raw_hours": 1.0,
        "minute_days": 0.25,
        "hour_days": 7.0,
        "event_days": 1.0,
        "job_days": 1.0,
        "gb_per_1000_boards": 0.1,
    }
    given = {key: _at_least(table, key, low) for key, low in least.items()}
    return Retention(**{key: value for key, value in given.items() if value is not None})


def _at_least(table: Table, key: str, low: float) -> float | None:
    value = table.take(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
        raise table.wrong(key, f"a number of at least {low:g}", value)
    return float(value)


def _port(table: Table, key: str, default: int, low: int) -> int:
    value = table.take(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 65535:
        raise table.wrong(key, f"a port from {low} to 65535", value)
    return value


def _url(table: Table, key: str) -> str | None:
    value = table.optional_text(key)
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        good = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and not parts.query
            and not parts.fragment
        )
    except ValueError:
        good = False
    if not good:
        raise table.wrong(key, "an address such as https://fleet.example", value)
    return value.rstrip("/")


def read_secret(path: Path) -> str:
    """A token or password file's one line. Raises BadInput where there is none, WorldFailed."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError) as err:
        raise BadInput(f"{path}: must hold a secret of one line") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    if not text or "\n" in text:
        raise BadInput(f"{path}: must hold a secret of one line")
    return text


def on_this_machine(host: str) -> str:
    """An address to connect to: loopback for one that means every address of this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
