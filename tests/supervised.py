"""A supervisor with made-up agents: environments whose `python` is a script that behaves as its environment is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents import until

from edgekit.agent import supervisor

SCRIPT = Path(supervisor.__file__)

# What every made-up agent does; what comes after is its own behaviour.
AGENT = """#!{python} -IS
import json, os, signal, socket, sys, time
root, me, job = (os.environ["EDGEKIT_" + k] for k in ("SUPERVISOR", "ENVIRONMENT", "TRIAL"))
def note(word):
    with open(root + "/log", "a") as file:
        file.write(me + " " + word + " " + str(os.getpid()) + "\\n")
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
def put(name, value):
    with open(root + "/." + name, "w") as file:
        json.dump(value, file)
    os.replace(root + "/." + name, root + "/" + name)
def get(name):
    try:
        with open(root + "/" + name) as file:
            return json.load(file)
    except OSError:
        return None
def end(*_):
    note("stop")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
note("start")
"""

# Serves; asks for the environment in `wanted` until that was tried; confirms itself where it is on trial.
GOOD = """
tell("READY=1\\nSTATUS=serves")
note("ready")
if job:
    put("confirmed.json", {"id": me, "job": job})
while True:
    tell("WATCHDOG=1")
    wanted, state = get("wanted"), get("state.json")
    if wanted and not job and state and state["current"] == me != wanted["id"]:
        if (state["last"] or {}).get("job") != wanted["job"]:
            put("order.json", wanted)
            sys.exit(82)
    time.sleep(0.02)
"""
ENDS = "sys.exit(7)"
MUTE = (
    'tell("READY=1\\nSTATUS=waits for the broker")\nwhile True:\n    tell("WATCHDOG=1")\n    time.sleep(0.02)'
)
HANGS_AT_ONCE = "time.sleep(60)"
HANGS = 'tell("READY=1")\nnote("hangs")\ntime.sleep(60)'


class Root:
    """A supervisor's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "environments").mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []

    def add(self, name: str, behaviour: str = GOOD) -> str:
        """An environment of that name."""
        home = self.folder / "environments" / name
        (home / "bin").mkdir(parents=True)
        python = home / "bin/python"
        python.write_text(AGENT.format(python=sys.executable) + behaviour)
        python.chmod(0o755)
        (home / "environment.json").write_text(json.dumps({"entry": "made_up"}))
        return name

    def want(self, name: str, job: str = "job-1") -> None:
        part = self.folder / ".wanted.part"
        part.write_text(json.dumps({"id": name, "job": job}))
        part.replace(self.folder / "wanted")

    def start(
        self, *options: str, before: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The supervisor. before: lines of Python run first."""
        code = f"{before}\nimport runpy, sys\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        code = code.replace("sys.argv[0]", repr(str(SCRIPT)))
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code, str(self.folder), *options, "--", "agent"],
            stderr=(self.folder / "supervisor.log").open("ab"),
            env={**os.environ, **(env or {})},
        )
        self.processes.append(process)
        return process

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return supervisor.read(path)

    @property
    def log(self) -> list[list[str]]:
        """What agents noted: environment, word, process id."""
        path = self.folder / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, name: str, word: str) -> int:
        return sum(line[:2] == [name, word] for line in self.log)

    def running(self) -> str | None:
        """The environment whose agent is alive."""
        alive = [line[0] for line in self.log if line[1] == "start" and _lives(line[2])]
        assert len(alive) <= 1, "two agents at a time"
        return alive[0] if alive else None

    def settled(self, current: str) -> None:
        """Wait until that environment is confirmed and its agent runs."""
        until(
            lambda: (
                self.state.get("current") == current
                and self.state["trial"] is None
                and self.running() == current
            ),
            f"{current} ({self.state}, {self.log[-4:]})",
        )

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        until(lambda: self.running() is None, "the agent's end with its supervisor")


def _lives(pid: str) -> bool:
    """Whether it is there and no zombie: those have no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
