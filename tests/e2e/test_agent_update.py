"""`edgekit push` of an environment: real broker, server, repository and supervisor, and an enrolled board's agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import environment

from edgekit.cli.demo.processes import Processes, wait_for
from edgekit.cli.demo.steps import Demo, call, edgekit, start_server

WAIT_S = 60.0


@pytest.mark.slow
def test_a_pushed_environment_takes_over_and_a_broken_one_is_taken_back(tmp_path: Path) -> None:
    """EDGEKIT_WHEELS: a folder of real wheels, to be packed and installed in place of the ones made up here."""
    processes = Processes(tmp_path)
    try:
        client, address = start_server(Demo(tmp_path, 0, lambda text: None, processes))
        board, root = tmp_path / "board", tmp_path / "supervisor"
        where = ("--server", address, "--token-file", tmp_path / "server/api.token")
        call("fleet", "enroll", "pi5", "--profile", "raspberrypi5", "-o", board, *where)
        with (board / "agent.toml").open("a") as config:
            config.write("\n[trial]\nlive_seconds = 1\n[update]\njitter_s = 0\n")
        call("agent", "set-up", "--config", board / "agent.toml", "--root", root, "--user", "root")
        started = [sys.executable, str(root / "supervisor.py"), str(root)]
        agent = processes.start("agent", [*started, "--", "agent", "--config", str(board / "agent.toml")])
        wait_for("the board", lambda: client.device("pi5")["online"], WAIT_S, [agent])

        def push(file: Path) -> subprocess.CompletedProcess[str]:
            key = tmp_path / "repository/keys/targets.pem"
            words = edgekit("push", file, *where, "--key", key, "--to", "name=pi5", "--wait", WAIT_S)
            return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)

        good, bad = tmp_path / "agent-1.env", tmp_path / "agent-2.env"
        wheels = os.environ.get("EDGEKIT_WHEELS")
        if wheels:
            of = ("--profile", "raspberrypi5", "--version", 1)
            call("repo", "environment", wheels, "-o", good, *of)
        else:
            good.write_bytes(environment(1))
        done = push(good)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for("info", lambda: client.device("pi5")["info"]["environment"] == "agent/1", WAIT_S, [agent])
        bad.write_bytes(environment(2, "raise SystemExit(7)"))
        done = push(bad)
        assert done.returncode == 1
        assert "it ended with 7" in " ".join(done.stdout.split())
        wait_for("the old one", lambda: client.device("pi5")["online"], WAIT_S, [agent])
        assert client.device("pi5")["info"]["environment"] == "agent/1"
    finally:
        processes.end_all()
