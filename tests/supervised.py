"""A supervisor with made-up agents: environments whose `python` is a script that behaves as its environment is told."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import Site, until

from edgekit.agent import supervisor
from edgekit.agent.set_up import set_up
from edgekit.core.bundle import members_of
from edgekit.core.environment import Environment, pack_environment

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
        address = os.environ["NOTIFY_SOCKET"]
        out.sendto(text.encode(), address if address[0] == "/" else "\\0" + address[1:])
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


class Started:
    """A supervisor's folder, and the supervisors that were started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "environments").mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.arguments = ["agent"]

    def start(
        self, *options: str, before: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The supervisor. before: lines of Python run first."""
        code = f"{before}\nimport runpy\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code, str(self.folder), *options, "--", *self.arguments],
            stderr=(self.folder / "supervisor.log").open("ab"),
            stdout=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def state(self) -> dict[str, Any]:
        return supervisor.read(self.folder / "state.json")

    @property
    def said(self) -> str:
        """The log of supervisors and agents."""
        path = self.folder / "supervisor.log"
        return path.read_text() if path.exists() else ""


class Root(Started):
    """One with made-up agents."""

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
        self.kill()
        until(lambda: self.running() is None, "the agent's end with its supervisor")


class Supervised(Started):
    """One that runs the real agent of a site's board, at first in this very environment."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.folder / "supervised")
        set_up(self.folder)
        site.board.write(trial={"live_seconds": 0.1, "live_requests": 0, "seconds": 0.1})
        self.site = site
        self.arguments = ["agent", "--config", str(site.board.config)]

    def started(self) -> subprocess.Popen[bytes]:
        """The supervisor, once its agent hears: one-shots are not retained."""
        before = self.boot
        process = self.start()
        until(lambda: self.boot != before, "the birth")
        return process

    @property
    def boot(self) -> str | None:
        info = self.site.server.last("info")
        return None if info is None else str(info["boot_id"])

    def update(self, label: str, **changes: Any) -> Mapping[str, Any]:
        """Order it and wait for the end of the job; its last event."""
        shot = self.site.server.order(self.site.board.name, label, action="update-agent", **changes)
        return self.site.server.ended(shot.job_id)

    def add(self, version: int = 1, code: str = "", **changes: Any) -> str:
        """Publish an environment; code: lines that its agent runs first."""
        return self.site.repository.add_environment(self.site.folder, environment(version, code, **changes))

    @property
    def environments(self) -> set[str]:
        return {path.name for path in (self.folder / "environments").iterdir()}


def wheel(name: str, files: Mapping[str, str], **wrong: str) -> bytes:
    """A wheel of these files. wrong: path -> content that is not what RECORD says."""
    home = f"{name}-1.dist-info"
    files = {**files, f"{home}/WHEEL": "Wheel-Version: 1.0\n", f"{home}/METADATA": f"Name: {name}\n"}
    lines = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {**files, **wrong}.items():
            archive.writestr(path, content)
        archive.writestr(f"{home}/RECORD", "\n".join([*lines, f"{home}/RECORD,,"]))
    return buffer.getvalue()


def environment(
    version: int = 1, code: str = "", wheels: Mapping[str, bytes] | None = None, **changes: Any
) -> bytes:
    """The file of an environment that runs what is installed here. code: lines run before its agent.

    changes: fields of the manifest.
    """
    site = next(path for path in sys.path if path.endswith("site-packages"))
    agent = wheel(
        "this",
        {
            "this.pth": f"import site; site.addsitedir({site!r})",
            "new_agent/__main__.py": f"{code}\nfrom edgekit.cli.main import main\nmain()\n",
        },
    )
    contents = {"this-1-py3-none-any.whl": agent, **(wheels or {})}
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    made = Environment(
        "agent", version, ("raspberrypi5",), (python,), (), None, False, "new_agent", members_of(contents)
    )
    return pack_environment(replace(made, **changes), contents)


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def _lives(pid: str) -> bool:
    """Whether it is there and no zombie: those have no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
