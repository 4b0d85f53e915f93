"""The systemd unit: what it allows follows from the config, and systemd itself finds nothing wrong with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.agent import supervisor
from edgekit.agent.config import Config, load_config
from edgekit.agent.set_up import FIRST, PROGRAM, set_up, start_command
from edgekit.agent.unit import Service, unit
from edgekit.cli.main import run

ANALYZE = shutil.which("systemd-analyze")
LINES = """\
[device]
fleet = "demo"
name = "pi5-a"
profile = "raspberrypi5"
[broker]
host = "127.0.0.1"
[repository]
url = "http://127.0.0.1:8080/repo"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return written(tmp_path, "")


def written(folder: Path, more: str, profile: str = "raspberrypi5") -> Config:
    for name in ("root.json", "control.pub"):
        (folder / name).write_text("{}")
    (folder / "agent.toml").write_text(LINES.replace("raspberrypi5", profile) + more)
    return load_config(folder / "agent.toml")


def keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def made(config: Config, root: Path | None = Path("/var/lib/edgekit/supervisor")) -> dict[str, list[str]]:
    return keys(unit(config, Service(start_command(root, config.path), "edgekit", root)))


def test_it_is_watched_hardened_and_limited(config: Config) -> None:
    found = made(config)
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    assert found["Restart"] == ["always"]
    assert float(found["WatchdogSec"][0]) > 90, "the supervisor ends a hung agent before systemd ends both"
    assert float(found["TimeoutStopSec"][0]) > 2 + supervisor.GRACE_S
    for key in (
        "NoNewPrivileges",
        "RestrictNamespaces",
        "LockPersonality",
        "ProtectKernelTunables",
        "PrivateTmp",
    ):
        assert found[key] == ["yes"], key
    assert found["LimitCORE"] == ["0"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["SystemCallFilter"] == ["@system-service"]
    assert found["User"] == ["edgekit"]
    assert (found["MemoryHigh"], found["MemoryMax"], found["OOMPolicy"]) == (["60%"], ["75%"], ["continue"])
    assert found["StateDirectory"] == ["edgekit"]
    assert f"-{config.state_dir}" in found["ReadWritePaths"]
    assert "-/var/lib/edgekit/supervisor" in found["ReadWritePaths"]
    assert found["ExecStart"][0].endswith(f"-- agent --config {config.path}")


def test_devices_and_paths_are_those_of_the_config(tmp_path: Path) -> None:
    camera = '[source]\nkind = "camera"\ndevice = 2\n[[sink]]\nkind = "file"\npath = "out/a.jsonl"\n'
    found = made(written(tmp_path, camera))
    assert found["DeviceAllow"] == ["/dev/vcio rw", "/dev/vchiq rw", "/dev/video2 rw", "char-video4linux rw"]
    assert found["DevicePolicy"] == ["closed"]
    assert f"-{tmp_path}/out" in found["ReadWritePaths"]
    nano = made(written(tmp_path, "", "jetson-nano"))
    assert "/dev/nvmap rw" in nano["DeviceAllow"]
    plain = made(written(tmp_path, "", "pynq-z1"))
    assert (plain["PrivateDevices"], plain["User"]) == (["yes"], ["edgekit"])
    pynq = made(written(tmp_path, "[limits]\naccepts_code = true\n", "pynq-z1"))
    assert "/dev/mem rw" in pynq["DeviceAllow"]
    assert pynq["User"] == ["root"]


def test_a_path_with_a_space_or_a_percent_sign_stays_one_word(tmp_path: Path) -> None:
    folder = tmp_path / "a b%c"
    folder.mkdir()
    found = made(written(folder, ""), None)
    assert found["ExecStart"][0].endswith(f'"{tmp_path}/a b%%c/agent.toml"')
    assert found["ExecStart"][0].startswith(sys.executable)
    assert any(path.startswith('-"') for path in found["ReadWritePaths"])


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here: apt-get install systemd")
@pytest.mark.parametrize("root", [Path("/var/lib/edgekit/supervisor"), None])
def test_systemd_finds_nothing_wrong_with_it_and_little_exposed(tmp_path: Path, root: Path | None) -> None:
    config = written(tmp_path, '[source]\nkind = "camera"\ndevice = 0\n')
    service = Service(start_command(root, config.path), "root", root)  # a user that is there
    file = tmp_path / "edgekit-agent.service"
    file.write_text(unit(config, service))
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    own = [line for line in done.stderr.splitlines() if "edgekit-agent" in line]
    assert own == []
    file.write_text(unit(config, replace(service, user="edgekit")))
    looked = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--json=short", "--no-pager", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "--offline" in looked.stderr:
        pytest.skip("this systemd does not judge files")
    exposed = {row["json_field"]: float(row["exposure"] or 0) for row in json.loads(looked.stdout)}
    overall = sum(exposed.values())
    assert overall < 3.0, {key: value for key, value in exposed.items() if value}


def test_set_up_makes_what_the_supervisor_starts(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "supervisor"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert run(["agent", "set-up", "--config", str(config.path), "--root", str(root)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{root}/{PROGRAM} {root} -- agent --config {config.path}" in said
    assert (root / PROGRAM).read_bytes() == Path(supervisor.__file__).read_bytes()
    assert supervisor.command(root, FIRST) == [sys.executable, "-I", "-m", "edgekit"]
    (root / PROGRAM).write_text("old")
    (root / "state.json").write_text("{}")
    set_up(root)
    assert (root / PROGRAM).read_bytes() == Path(supervisor.__file__).read_bytes()
    assert (root / "state.json").read_text() == "{}", "what updates left stays"


def test_the_command_prints_the_unit(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["agent", "unit", "--config", str(config.path), "--user", "me", "--memory-max", "400M"]
    assert run([*command, "--plain"]) == 0
    found = keys(capsys.readouterr().out)
    assert (found["User"], found["MemoryMax"]) == (["me"], ["400M"])
    assert found["ExecStart"] == [f"{sys.executable} -m edgekit agent --config {config.path}"]


def test_a_first_start_has_nothing_to_say_of_a_state_and_a_damaged_one_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(tmp_path)
    supervisor.load(tmp_path)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    (tmp_path / supervisor.STATE).write_text("{")
    supervisor.load(tmp_path)
    said = capsys.readouterr()
    assert "no state that can be read" in said.out + said.err


def test_set_up_for_a_user_who_is_not_there_makes_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    command = ["agent", "set-up", "--config", str(config.path), "--root", str(tmp_path / "supervisor")]
    assert run([*command, "--user", "nobody-is-called-so"]) == 2
    assert "useradd --system nobody-is-called-so" in capsys.readouterr().err
    assert not (tmp_path / "supervisor").exists()


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[Any]] = [
        ["agent", "unit"],
        ["agent", "set-up", "--config", str(tmp_path / "none.toml")],
    ]
    for command in commands:
        assert run(command) == 2
        assert capsys.readouterr().err.count("\n") == 1
