"""Settings from outside: what a board lets others change, and how far."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agents import make_board

from edgekit.agent.config import Config, load_config
from edgekit.agent.settings import SETTINGS, Settings, effective


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    class Key:
        root_json = b"{}"
        TOKEN = "t"
        url = "http://127.0.0.1:1/repo"

        @staticmethod
        def public_pem() -> bytes:
            return b""

    folder = tmp_path_factory.mktemp("settings") / "board"
    made = make_board(folder, 1, Key(), Key())  # type: ignore[arg-type]
    loaded = load_config(made.config)
    limits = replace(loaded.limits, threads=4, throttled_factor=0.6, min_interval_s=5.0, accepts_code=True)
    return replace(loaded, limits=limits)


GOOD: dict[str, Any] = {
    "limits.accepts_code": False,
    "limits.accepts_measure": False,
    "limits.min_interval_s": 10,
    "limits.threads": 2,
    "limits.throttled_factor": 0.5,
    "log.verbose": True,
    "sensors.sample_s": 2.0,
    "trial.live_requests": 0,
    "trial.live_seconds": 0.0,
    "trial.requests": 7,
    "trial.seconds": 1.5,
    "update.jitter_s": 0.0,
    "update.rate_kb_s": 64.0,
    "update.refresh_h": 1.0,
}


def test_every_setting_has_a_case() -> None:
    assert set(GOOD) == set(SETTINGS)


@pytest.mark.parametrize("key", GOOD)
def test_a_setting_within_the_boards_limits_holds_and_nothing_else_changes(config: Config, key: str) -> None:
    found = effective(config, {key: GOOD[key]})
    section, _, name = key.partition(".")
    assert getattr(getattr(found.config, section), name) == GOOD[key]
    assert (dict(found.taken), dict(found.refused)) == ({key: GOOD[key]}, {})
    own = getattr(config, section)
    assert replace(found.config, **{section: own}) == config  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limits.accepts_measure", True),
        ("limits.min_interval_s", 1),
        ("limits.threads", 5),
        ("limits.threads", 0),
        ("limits.throttled_factor", 0.7),
        ("limits.throttled_factor", 0.0),
        ("sensors.sample_s", "often"),
        ("trial.requests", -1),
        ("update.refresh_h", 10_000),
        ("log.verbose", 1),
        ("limits.max_bundle_mb", 1e9),
        ("broker.host", "evil.example"),
        ("trust.root", "x"),
        ("device.name", "other"),
        ("__class__", "x"),
        ("limits", 1),
        ("", 1),
    ],
)
def test_what_goes_beyond_them_is_refused_with_a_reason_and_leaves_the_rest_alone(
    config: Config, key: str, value: object
) -> None:
    found = effective(config, {key: value, "trial.requests": 9} if key != "trial.requests" else {key: value})
    assert key in found.refused
    assert "\n" not in found.refused[key]
    assert key not in found.taken
    if key != "trial.requests":
        assert found.config == replace(config, trial=replace(config.trial, requests=9))


def test_settings_are_taken_once_and_taken_back_by_none(config: Config) -> None:
    settings = Settings(config, None)
    assert not settings.take(None)
    assert settings.take({"limits.threads": 1})
    assert settings.config.limits.threads == 1
    assert not settings.take({"limits.threads": 1})
    assert settings.judge({"limits.threads": 99}) == settings.judge({"limits.threads": 99}) != {}
    assert settings.config.limits.threads == 1, "judging changes nothing"
    assert settings.take(None)
    assert settings.config == config
