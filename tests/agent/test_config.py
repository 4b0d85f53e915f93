from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.agent.config import load_config
from edgekit.agent.sources import open_source
from edgekit.core.errors import BadInput

GOOD: dict[str, dict[str, str]] = {
    "device": {"fleet": '"demo"', "name": '"pi5-a"', "profile": '"raspberrypi5"'},
    "broker": {"host": '"127.0.0.1"', "password_file": '"mqtt.password"'},
    "repository": {"url": '"http://127.0.0.1:8080/repo/"', "token_file": '"repo.token"'},
}


def write(folder: Path, **changes: dict[str, str | None]) -> Path:
    """agent.toml with `changes`: section -> key -> TOML text, or None to take it out."""
    (folder / "root.json").write_text("{}")
    (folder / "control.pub").write_text("pem")
    (folder / "mqtt.password").write_text("sesame\n")
    (folder / "repo.token").write_text("open-says-me\n")
    sections = {name: dict(keys) for name, keys in GOOD.items()}
    for name, keys in changes.items():
        sections[name] = {**sections.get(name, {}), **keys}  # type: ignore[dict-item]  # None is dropped below
    lines: list[str] = []
    for name, texts in sections.items():
        lines += [f"[{name}]", *(f"{key} = {text}" for key, text in texts.items() if text is not None)]
    path = folder / "agent.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_config_as_enrolment_writes_it_has_sensible_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert (config.address, config.broker.username, config.broker.port) == ("demo/pi5-a", "demo/pi5-a", 8883)
    assert (config.broker.password, config.repository.token) == ("sesame", "open-says-me")
    assert config.repository.url == "http://127.0.0.1:8080/repo"
    assert config.state_dir == tmp_path / "state"
    assert (config.telemetry.interval_s, config.telemetry.ack) == (60.0, "server")
    assert config.sensors.power == "rpi5_pmic"
    assert (config.policy.kind, config.source.kind, config.limits.accepts_code) == ("full", "none", False)
    assert config.unknown == ()


def test_secrets_do_not_show_when_a_config_is_printed(tmp_path: Path) -> None:
    shown = repr(load_config(write(tmp_path)))
    assert "sesame" not in shown
    assert "open-says-me" not in shown


def test_unknown_keys_are_kept_by_name(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, broker={"hots": '"x"'}, nonsense={"a": "1"})).unknown == (
        "broker.hots",
        "nonsense",
    )


BAD: list[tuple[dict[str, dict[str, Any]], str]] = [
    (
        {"device": {"fleet": None}},
        "device.fleet must be a name (letters, digits, '_' and '-', at most 64), got nothing",
    ),
    ({"device": {"name": '"a/b"'}}, "device.name must be a name"),
    ({"device": {"profile": '"raspberrypi9"'}}, "device.profile: unknown profile 'raspberrypi9'; known: "),
    ({"broker": {"host": "7"}}, "broker.host must be a text, got 7"),
    ({"broker": {"port": "0"}}, "broker.port must be a whole number from 1 to 65535, got 0"),
    ({"broker": {"tls": '"yes"'}}, 'broker.tls must be true or false, got "yes"'),
    ({"broker": {"protocol": '"4"'}}, 'broker.protocol must be one of auto, 5, 3.1.1, got "4"'),
    ({"broker": {"password_file": '"no.file"'}}, "broker.password_file must be a file that can be read"),
    (
        {"repository": {"url": '"fleet"'}},
        'repository.url must be an http:// or https:// address, got "fleet"',
    ),
    ({"repository": {"url": None}}, "repository.url must be a text, got nothing"),
    (
        {"trust": {"root": '"gone.json"'}},
        'trust.root must be a file that can be read (No such file or directory), got "gone',
    ),
    ({"telemetry": {"interval_s": "0"}}, "telemetry.interval_s must be a number from 0.1 to 86400, got 0"),
    ({"telemetry": {"ack": '"nobody"'}}, 'telemetry.ack must be one of server, broker, got "nobody"'),
    (
        {"policy": {"kind": '"fast"'}},
        'policy.kind must be one of full, anytime, budget, confidence, got "fast"',
    ),
    ({"policy": {"kind": '"budget"'}}, "policy budget: a budget goes with the budget policy"),
    ({"limits": {"throttled_factor": "2"}}, "limits.throttled_factor must be a number from 0.01 to 1, got 2"),
    ({"source": {"rate_hz": "-1"}}, "source.rate_hz must be a number from"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[said[:24] for _, said in BAD])
def test_an_error_says_file_key_what_was_wanted_and_what_came(
    tmp_path: Path, changes: dict[str, dict[str, Any]], said: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(BadInput) as caught:
        load_config(path)
    text = str(caught.value)
    assert "\n" not in text
    assert "agent.toml" in text
    assert said in text


def test_a_missing_file_and_one_that_is_no_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.toml: must be an existing TOML file"):
        load_config(tmp_path / "nothing.toml")
    path = tmp_path / "agent.toml"
    path.write_text("not toml at all")
    with pytest.raises(BadInput, match="must be a TOML file"):
        load_config(path)


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "repo.token").write_text("\n")
    with pytest.raises(BadInput, match=r"repository\.token_file must name a file with a secret in it"):
        load_config(path)


def test_an_unknown_source_lists_the_known_ones(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, source={"kind": '"radio"'}))
    with pytest.raises(BadInput, match="unknown source 'radio'; known: camera, folder, mqtt, none, stdin"):
        open_source(config.source)
