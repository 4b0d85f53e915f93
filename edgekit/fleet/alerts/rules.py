"""alerts.toml: rules, and how their messages are sent; read and checked once. Evaluates nothing, opens no socket.

Every kind of rule has its figure, its unit and its usual values in one table, KINDS; a key that is left out in the file
means what stands there. Durations are texts: "30s", "10m", "2h", "7d".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.core.checks import NAME
from edgekit.core.errors import BadInput, one_line
from edgekit.core.selector import parse_selector
from edgekit.core.table import Table
from edgekit.core.toml import read_toml

SEVERITIES = ("info", "warning", "critical")
GROUPS = ("rule", "profile", "tag", "bundle")
BOARD, BUNDLE, FLEET = "board", "bundle", "fleet"  # what a rule's alerts are about
BUNDLE_LIMIT = "bundle"  # `above` of p99: the bundle's own limit
MOST_RULES = 100
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_S = 366 * 86_400.0
LONGEST_WINDOW_S = 3 * 3600.0  # windows are read from minutes


@dataclass(frozen=True)
class Kind:
    """What rules of one kind look at. unit: of `above` and `clear`; "s": durations, None: a yes or no without them.

    windowed: figures of the last `window`. per_requests: too few requests mean unknown.
    """

    about: str
    unit: str | None
    means: str
    above: float | None
    clear: float | None
    severity: str = "warning"
    for_s: float = 0.0
    clear_for_s: float = 60.0
    windowed: bool = False
    per_requests: bool = False


KINDS: Mapping[str, Kind] = {
    "offline": Kind(
        BOARD, None, "the board is not online", None, None, for_s=600.0, clear_for_s=60.0, severity="critical"
    ),
    "p99": Kind(
        BOARD,
        "ms",
        "99th percentile of a board's latency",
        None,
        None,
        for_s=300.0,
        clear_for_s=300.0,
        windowed=True,
        per_requests=True,
    ),
    "energy-after-update": Kind(
        BOARD,
        "%",
        "energy per inference over that before the update, on the same board, with the same provenance",
        20.0,
        10.0,
        for_s=1800.0,
        clear_for_s=3600.0,
        per_requests=True,
    ),
    "throttled": Kind(
        BOARD, None, "the board says it is throttled", None, None, for_s=600.0, clear_for_s=300.0
    ),
    "deadline-misses": Kind(
        BOARD,
        "share",
        "requests answered after their deadline",
        0.05,
        0.02,
        for_s=300.0,
        clear_for_s=300.0,
        windowed=True,
        per_requests=True,
    ),
    "errors": Kind(
        BOARD,
        "share",
        "requests that failed",
        0.01,
        0.005,
        for_s=120.0,
        clear_for_s=300.0,
        windowed=True,
        per_requests=True,
    ),
    "exit-mix": Kind(
        BOARD,
        "share",
        "total variation between a board's exit mix and the one its bundle expects with its policy",
        0.2,
        0.15,
        for_s=900.0,
        clear_for_s=900.0,
        windowed=True,
        per_requests=True,
    ),
    "expiry": Kind(
        FLEET,
        "s",
        "time to the end of the repository's metadata; above means: ends within",
        7 * 86_400.0,
        None,
        clear_for_s=0.0,
    ),
    "board-expiry": Kind(
        BOARD,
        "s",
        "time to the end of what a board holds: metadata, certificate; above means: ends within",
        7 * 86_400.0,
        None,
        clear_for_s=0.0,
    ),
    "ingest": Kind(
        FLEET, None, "the server has no connection to the broker", None, None, "critical", 60.0, 60.0
    ),
    "malformed": Kind(
        FLEET,
        "messages",
        "messages dropped within the window: malformed, or beyond what a board may send",
        100.0,
        10.0,
        clear_for_s=600.0,
        windowed=True,
    ),
    "disk": Kind(FLEET, None, "the store has reached its disk budget", None, None, clear_for_s=600.0),
    "rollout": Kind(FLEET, None, "a rollout stopped and waits for a person", None, None, clear_for_s=0.0),
}
_DEFAULT_CLEAR = {"p99": 0.9, "expiry": 1.1, "board-expiry": 1.1}  # times `above`
MIN_REQUESTS = {"p99": 200, "energy-after-update": 500, "exit-mix": 500}


@dataclass(frozen=True)
class Rule:
    """One rule. above, clear: in the kind's unit; None above: a yes or no, or the bundle's limit (bundle_limit).

    selector: which boards (core.selector). group_by: what a message brings together. repeat_s: after how long somebody
    is told again of what goes on; None: never.
    """

    name: str
    kind: str
    selector: str = "all"
    severity: str = "warning"
    above: float | None = None
    clear: float | None = None
    bundle_limit: bool = False
    window_s: float = 600.0
    for_s: float = 0.0
    clear_for_s: float = 60.0
    min_requests: int = 100
    group_by: str = "rule"
    repeat_s: float | None = 86_400.0

    @property
    def about(self) -> str:
        """What its alerts are about."""
        return KINDS[self.kind].about


@dataclass(frozen=True)
class Sending:
    """How messages go out. urls: apprise's, secret. per_minute: at most so many messages within 60 s.

    wait_s: how long the first alert of a message waits for others. timeout_s: an attempt that takes longer has failed.
    """

    urls: tuple[str, ...] = field(default=(), repr=False)
    per_minute: int = 6
    wait_s: float = 30.0
    timeout_s: float = 20.0


@dataclass(frozen=True)
class Rules:
    """Everything alerts.toml says."""

    rules: tuple[Rule, ...]
    sending: Sending = Sending()

    def rule(self, name: str) -> Rule | None:
        """The rule of that name."""
        return next((rule for rule in self.rules if rule.name == name), None)


DEFAULT = """\
# Who is told. Addresses are apprise's: json://HOST/PATH (a webhook), mailtos://USER:PASSWORD@HOST?to=..., mqtt://...
[send]
# urls = ["json://127.0.0.1:9000/hook"]
# urls_file = "alert-urls"      # one address a line, nobody else's to read (mode 600)
# per_minute = 6                # at most so many messages a minute; what is left waits, and is told together
# wait = "30s"                  # how long the first alert of a message waits for others
# timeout = "20s"               # of one attempt

[rules.offline]
kind = "offline"
for = "10m"

[rules.latency]                 # of boards that run a bundle with a limit (edgekit convert --max-latency-ms)
kind = "p99"
above = "bundle"

[rules.energy-after-update]
kind = "energy-after-update"
above = 20                      # percent
clear = 10

[rules.throttled]
kind = "throttled"
for = "10m"

[rules.deadline-misses]
kind = "deadline-misses"
above = 0.05                    # of the requests
clear = 0.02

[rules.errors]
kind = "errors"
above = 0.01
clear = 0.005

[rules.exit-mix]
kind = "exit-mix"
above = 0.2                     # total variation
clear = 0.15

[rules.metadata]
kind = "expiry"
above = "3d"                    # ends within

[rules.board-expiry]
kind = "board-expiry"
above = "3d"

[rules.ingest]
kind = "ingest"
for = "1m"

[rules.malformed]
kind = "malformed"
above = 100                     # messages within the window
clear = 10

[rules.disk]
kind = "disk"

[rules.rollout]
kind = "rollout"
"""


def read_rules(path: Path | None) -> Rules:
    """Read alerts.toml; the default rules where there is none. Raises BadInput (one line: file, key), WorldFailed."""
    if path is None:
        return default_rules()
    return rules_of(read_toml(path), str(path), path.parent)


def default_rules() -> Rules:
    """What holds where fleet.toml names no file."""
    from edgekit.core.toml import parse_toml

    return rules_of(parse_toml(DEFAULT, "default rules"), "default rules", Path())


def rules_of(data: Mapping[str, object], where: str, folder: Path) -> Rules:
    """What a parsed file says. folder: what urls_file is relative to."""
    top = Table(data, where)
    sending = _sending(top.optional_table("send"), folder)
    found = top.optional_table("rules")
    names = list(found.data)
    if len(names) > MOST_RULES:
        raise BadInput(f"{where}: rules must be at most {MOST_RULES}, got {len(names)}")
    rules = tuple(_rule(name, found) for name in names)
    top.close()
    if top.extra:
        raise BadInput(f"{where}: does not know the key {', '.join(sorted(top.extra))}")
    return Rules(rules, sending)


def _rule(name: str, rules: Table) -> Rule:
    if not NAME.fullmatch(name):
        raise rules.wrong(name, "called by a name (letters, digits, '_' and '-', at most 64)", name)
    table = rules.table(name)
    word = table.choice("kind", tuple(KINDS))
    kind = KINDS[word]
    selector = table.optional_text("to") or "all"
    try:
        parse_selector(selector)
    except BadInput as err:
        raise BadInput(f"{table.where}: {table.key('to')}: {one_line(err).removeprefix('--to ')}") from err
    rule = Rule(
        name,
        word,
        selector,
        _choice(table, "severity", SEVERITIES, kind.severity),
        for_s=_duration(table, "for", kind.for_s),
        clear_for_s=_duration(table, "clear_for", kind.clear_for_s),
        group_by=_choice(table, "group_by", GROUPS, "rule"),
        repeat_s=_repeat(table),
    )
    if kind.about != BOARD and selector != "all":
        raise table.wrong("to", f"left out: a rule of kind {word} is not about boards", selector)
    if kind.windowed:
        window = _duration(table, "window", rule.window_s)
        if not 60.0 <= window <= LONGEST_WINDOW_S:
            raise table.wrong("window", "from 1m to 3h", table.data.get("window"))
        rule = replace(rule, window_s=window)
    if kind.per_requests:
        rule = replace(rule, min_requests=table.optional_count("min_requests") or MIN_REQUESTS.get(word, 100))
    return rule if kind.unit is None else _thresholds(rule, kind, table)


def _thresholds(rule: Rule, kind: Kind, table: Table) -> Rule:
    if rule.kind == "p99" and table.data.get("above") == BUNDLE_LIMIT:
        table.take("above")
        return replace(rule, bundle_limit=True)
    above = _amount(table, "above", kind, kind.above)
    if above is None:
        raise table.wrong("above", 'a number of ms, or "bundle" for the limit the bundle was made for', None)
    usual = kind.clear
    if table.data.get("above") is not None or usual is None:
        usual = above * _DEFAULT_CLEAR.get(rule.kind, 0.8)
    clear = _amount(table, "clear", kind, usual) or 0.0
    if kind.unit == "s":
        if clear < above:
            raise table.wrong("clear", "not shorter than above", table.data.get("clear"))
    elif clear > above:
        raise table.wrong("clear", f"not above {above:g}, which is `above`", clear)
    return replace(rule, above=above, clear=clear)


def _amount(table: Table, key: str, kind: Kind, default: float | None) -> float | None:
    if kind.unit == "s":
        return _duration(table, key, default or 0.0)
    value = table.take(key)
    if value is None:
        return default
    highest = 1.0 if kind.unit == "share" else 1e9
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= highest:
        raise table.wrong(key, f"a number from 0 to {highest:g} ({kind.unit})", value)
    return float(value)


def _choice(table: Table, key: str, allowed: tuple[str, ...], default: str) -> str:
    return default if table.take(key) is None else table.choice(key, allowed)


def _repeat(table: Table) -> float | None:
    if table.take("repeat") == "never":
        return None
    seconds = _duration(table, "repeat", 86_400.0)
    if seconds < 60.0:
        raise table.wrong("repeat", '"never", or at least "1m"', table.data.get("repeat"))
    return seconds


def _duration(table: Table, key: str, default: float) -> float:
    """Seconds of a text such as "10m"."""
    value = table.take(key)
    if value is None:
        return default
    seconds = parse_duration(value)
    if seconds is None:
        raise table.wrong(key, 'a duration such as "30s", "10m", "2h" or "7d"', value)
    return seconds


def parse_duration(value: object) -> float | None:
    """Seconds of "30s", "10m", "2h", "7d"; None of anything else, and of more than a year."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(match[1]) * _SECONDS[match[2]] if match else None
    return None if seconds is None or seconds > _LONGEST_S else seconds


def _sending(table: Table, folder: Path) -> Sending:
    given = table.take("urls")
    if given is not None and not (isinstance(given, list) and all(isinstance(u, str) and u for u in given)):
        raise BadInput(
            f"{table.where}: {table.key('urls')} must be a list of texts"
        )  # not shown: they are secret
    urls = [*table.texts("urls")]
    name = table.optional_text("urls_file")
    if name is not None:
        urls += _urls_of(folder / name, table)
    if len(urls) > 20:
        raise table.wrong("urls", "at most 20 addresses", len(urls))
    wait, timeout = _duration(table, "wait", 30.0), _duration(table, "timeout", 20.0)
    if not 1.0 <= timeout <= 300.0:
        raise table.wrong("timeout", "from 1s to 5m", table.data.get("timeout"))
    if wait > 3600.0:
        raise table.wrong("wait", "at most 1h", table.data.get("wait"))
    return Sending(tuple(dict.fromkeys(urls)), table.optional_count("per_minute") or 6, wait, timeout)


def _urls_of(path: Path, table: Table) -> list[str]:
    """One address a line; a `#` begins a comment line. The error never shows a line."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = path.stat().st_mode & 0o077
            if mode:
                raise table.wrong(
                    "urls_file", f"a file that is nobody else's to read: chmod 600 {path}", f"{mode:o}"
                )
            lines = [line.strip() for line in file.read(1 << 20).splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        why = (err.strerror if isinstance(err, OSError) else None) or "not text"
        raise BadInput(f"{table.where}: {table.key('urls_file')} {path} could not be read: {why}") from err
    return [line for line in lines if line and not line.startswith("#")]
