"""Settings that may be changed from outside: which keys, within which bounds. Applies nothing.

What stands in agent.toml is the board's own word: under [limits] a command may only ask for less than that, elsewhere
it may choose what the file could say. All else (addresses, keys, paths, what code may run) is for the file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.agent.config import Config
from edgekit.core import checks
from edgekit.core.checks import integer, number
from edgekit.core.errors import BadInput, one_line

Check = Callable[[Config, object, str], Any]


@dataclass(frozen=True)
class Effective:
    """config: with the settings in force. taken, refused: the others, and why not."""

    config: Config
    taken: Mapping[str, Any]
    refused: Mapping[str, str]


def effective(config: Config, wanted: Mapping[str, Any] | None) -> Effective:
    """What `wanted` (dotted key -> value) makes of the board's own config. A bad setting leaves the others alone."""
    taken: dict[str, Any] = {}
    refused: dict[str, str] = {}
    changed = config
    for key, value in sorted((wanted or {}).items()):
        section, _, name = key.partition(".")
        try:
            if key not in SETTINGS:
                raise BadInput(f"{key}: only the file on the board sets it")
            parsed = SETTINGS[key](config, value, key)
        except BadInput as err:
            refused[key] = one_line(err)
            continue
        taken[key] = value
        changed = replace(changed, **{section: replace(getattr(changed, section), **{name: parsed})})
    return Effective(changed, taken, refused)


def _whole(low: int, high: int) -> Check:
    return lambda config, value, where: integer(value, where, low, high)


def _number(low: float, high: float) -> Check:
    return lambda config, value, where: number(value, where, low, high)


def _at_most(key: str, parse: Callable[[object, str], float]) -> Check:
    """A number that may not exceed the file's own."""

    def check(config: Config, value: object, where: str) -> float:
        most, asked = getattr(config.limits, key), parse(value, where)
        if asked > most:
            raise checks.wrong(where, f"at most {most:g}, this board's own limit", value)
        return asked

    return check


def _at_least(key: str, high: float) -> Check:
    """A number that may not fall below the file's own."""

    def check(config: Config, value: object, where: str) -> float:
        least, asked = getattr(config.limits, key), number(value, where, 0.0, high)
        if asked < least:
            raise checks.wrong(where, f"at least {least:g}, this board's own limit", value)
        return asked

    return check


def _only_off(key: str) -> Check:
    """Something that the file allows may be forbidden, not the other way round."""

    def check(config: Config, value: object, where: str) -> bool:
        if checks.flag(value, where) and not getattr(config.limits, key):
            raise checks.wrong(where, "false: this board's own file does not allow it", value)
        return bool(value)

    return check


SETTINGS: Mapping[str, Check] = {
    "limits.accepts_code": _only_off("accepts_code"),
    "limits.accepts_measure": _only_off("accepts_measure"),
    "limits.min_interval_s": _at_least("min_interval_s", 86_400),
    "limits.threads": _at_most("threads", lambda value, where: integer(value, where, 1)),
    "limits.throttled_factor": _at_most("throttled_factor", lambda value, where: number(value, where, 0.01)),
    "log.verbose": lambda config, value, where: checks.flag(value, where),
    "sensors.sample_s": _number(0.01, 60),
    "trial.live_requests": _whole(0, 10**6),
    "trial.live_seconds": _number(0.0, 86_400),
    "trial.requests": _whole(1, 10**6),
    "trial.seconds": _number(0.01, 86_400),
    "update.jitter_s": _number(0.0, 86_400),
    "update.rate_kb_s": _number(1.0, 1e7),
    "update.refresh_h": _number(0.001, 24 * 14),
}


class Settings:
    """The config in force: the board's file, with what it takes of the settings from outside."""

    def __init__(self, config: Config, wanted: Mapping[str, Any] | None) -> None:
        self._file = config
        self._wanted = wanted
        self.effective = effective(config, wanted)

    @property
    def config(self) -> Config:
        """What holds now."""
        return self.effective.config

    def judge(self, wanted: Mapping[str, Any] | None) -> Mapping[str, str]:
        """The settings that would be refused, and why."""
        return effective(self._file, wanted).refused

    def take(self, wanted: Mapping[str, Any] | None) -> bool:
        """Let these hold from now on; whether they are others than before."""
        if wanted == self._wanted:
            return False
        self._wanted, self.effective = wanted, effective(self._file, wanted)
        return True
