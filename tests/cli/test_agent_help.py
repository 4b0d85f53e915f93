"""What `edgekit agent --help` shows of agent.toml is a config that the agent takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.agent.config import Api, Sink, Source, load_config
from edgekit.agent.settings import SETTINGS
from edgekit.cli.agent import EXAMPLE
from edgekit.cli.fleet.configure import configure

ENROLLED = """\
[device]
fleet = "demo"
name = "pi5-a"
profile = "raspberrypi5"
[broker]
host = "127.0.0.1"
[repository]
url = "http://127.0.0.1:8080/repo"
"""


def test_every_key_in_the_help_is_known_and_shows_its_default(tmp_path: Path) -> None:
    for name in ("root.json", "control.pub"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "agent.toml").write_text(ENROLLED)
    plain = load_config(tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_text(ENROLLED + EXAMPLE)
    shown = load_config(tmp_path / "agent.toml")
    assert shown.unknown == ()
    assert shown.telemetry == plain.telemetry
    assert shown.limits == plain.limits
    assert shown.update == replace(plain.update, rate_kb_s=250, sticks=("/media/*/*/edgekit",))
    assert shown.sensors == plain.sensors
    assert (plain.api, shown.api) == (None, Api("127.0.0.1", 8000))
    own = Source("folder", tmp_path / "images", rate_hz=10, device=0)
    assert shown.source == own
    assert shown.sinks == (Sink("file", path=tmp_path / "answers.jsonl"),)
    assert shown.policy.kind == "budget"


def test_the_help_of_configure_lists_every_setting_that_boards_take_from_outside() -> None:
    help_text = configure.help or ""
    listed = {
        f"{line.split()[0]}.{name.strip()}"
        for line in help_text.splitlines()
        if line.split() and line.split()[0] in {key.partition(".")[0] for key in SETTINGS}
        for name in line.split(maxsplit=1)[1].split(",")
    }
    assert listed == set(SETTINGS)
