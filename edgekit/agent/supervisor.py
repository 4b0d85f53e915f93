"""Keep the agent running; where a new environment does not stand its trial, go back to the one before.

One file for a bare Python: it is copied out when a board is set up (`edgekit agent set-up`) and never updated in place,
so it imports nothing but the standard library and changes as rarely as the files below. It installs nothing.

    python3 supervisor.py ROOT [options] -- agent --config FILE       (with its whole path)

    ROOT/environments/ID/environment.json  says what `python -m` starts there: entry, and python where not bin/python
    ROOT/state.json      ours: current, previous, trial {id, job, starts}, last {id, job, passed, reason, detail}
    ROOT/current         link to the environment that was confirmed last: what a lost state is repaired from
    ROOT/order.json      the agent's: {id, job}, written before it ends with SWITCH: try that environment
    ROOT/confirmed.json  the agent's: {id, job}, written on trial, once it is healthy: keep this environment

On its way to the new agent is nothing but these files: whoever is killed, at whatever moment, the next start finds a
state that names a confirmed environment, and counts a trial that was begun and not confirmed as a failed start.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SWITCH = 82  # the agent's exit code for "I have written an order"
STATE, ORDER, CONFIRMED, CURRENT, LOCK = "state.json", "order.json", "confirmed.json", "current", "lock"
INBOX = "notify"  # a socket: what its folder and mode keep out cannot crowd out the agent's own messages
MESSAGES = 64  # that are read at a time
FOLDER, MANIFEST = "environments", "environment.json"
ROOT_KEY, ID_KEY, JOB_KEY = (
    "EDGEKIT_SUPERVISOR",
    "EDGEKIT_ENVIRONMENT",
    "EDGEKIT_TRIAL",
)  # in the agent's environ
STARTS = 3  # of an environment on trial, before it has failed
CRASHES = 5  # in a row, of a confirmed one, before the one before it is taken back
FIRST_DELAY_S, MAX_DELAY_S, HEALTHY_S, GRACE_S, LOCK_S = 0.25, 60.0, 60.0, 4.0, 15.0
_OWN_ENDS = (0, 2, 3)  # done, bad config, the world failed: another environment would do no better
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def say(text: str) -> None:
    """One line of the log."""
    sys.stderr.write(f"supervisor: {text}\n")
    sys.stderr.flush()


def write(path: Path, value: dict[str, Any]) -> None:
    """Replace a file so that a power cut leaves the old one or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make a folder's entries last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    return {}


def command(root: Path, name: object) -> list[str] | None:
    """What starts the environment of that name; None where there is none that is whole."""
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        return None
    folder = root / FOLDER / name
    manifest = read(folder / MANIFEST)
    entry, python = manifest.get("entry"), manifest.get("python", "bin/python")
    if not isinstance(entry, str) or not isinstance(python, str) or not os.access(folder / python, os.X_OK):
        return None
    return [
        str(folder / python),
        "-I",
        "-m",
        entry,
    ]  # -I: nothing from the current folder or PYTHONPATH gets in


def installed(root: Path) -> list[str]:
    """The names of all that is there, the oldest (set-up's own) first. A link that leads nowhere keeps nobody."""
    with contextlib.suppress(OSError):
        entries = [
            (entry.stat(follow_symlinks=False).st_mtime, entry.name) for entry in os.scandir(root / FOLDER)
        ]
        return [name for _, name in sorted(entries)]
    return []


def inbox(root: Path) -> socket.socket:
    """Where the agent's messages come in: in our own folder, for our own user; where that cannot be, abstract."""
    made, path = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), root / INBOX
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        made.bind(str(path))
    except OSError:  # a disk that is full or read-only, a path of more than 107 bytes
        made.bind("")  # a name of the kernel's choice
    finally:
        os.umask(before)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    made.setblocking(False)
    return made


def load(root: Path) -> dict[str, Any]:
    """The state, with a current environment that is there. Raises SystemExit where the board has none at all."""
    found = read(root / STATE)
    if not found and os.path.lexists(root / STATE):  # set-up leaves none
        say("no state that can be read: repaired from what is there")
    trial, last = found.get("trial"), found.get("last")
    if (
        not isinstance(trial, dict)
        or not isinstance(trial.get("starts"), int)
        or trial["starts"] < 0
        or not isinstance(trial.get("job"), str)
        or not command(root, trial.get("id"))
    ):
        trial = None
    link = (root / CURRENT).readlink().name if (root / CURRENT).is_symlink() else None
    named = [found.get("current"), link, found.get("previous")]
    whole = [name for name in (*named, *installed(root)) if command(root, name)]
    if not whole:
        say(f"{root / FOLDER} holds no environment: run edgekit agent set-up again")
        raise SystemExit(3)
    previous = found.get("previous") if command(root, found.get("previous")) else None
    return {
        "v": 1,
        "current": whole[0],
        "previous": None if previous == whole[0] else previous,
        "trial": trial,
        "last": last if isinstance(last, dict) else None,
    }


class Supervisor:
    """One agent at a time, under the environment that the state names."""

    def __init__(
        self,
        root: Path,
        arguments: list[str],
        lock: int,
        *,
        trial_s: float,
        start_s: float,
        watchdog_s: float,
    ) -> None:
        self.root, self.arguments, self.lock = root, arguments, lock
        self.trial_s, self.start_s, self.watchdog_s = trial_s, start_s, watchdog_s
        self.state = load(root)
        self.stopping = False
        self.said = ""  # the agent's last STATUS
        self.upwards = os.environ.pop("NOTIFY_SOCKET", "")  # systemd's
        os.environ.pop("WATCHDOG_PID", None)
        self.inbox = inbox(root)
        self.woken, wake = socket.socketpair()
        self.woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        self.wake = wake
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def save(self, **changes: Any) -> bool:
        """Change the state; False where the disk does not take it (then it is as it was)."""
        state = {**self.state, **changes}
        try:
            write(self.root / STATE, state)
        except OSError as err:
            say(f"{self.root / STATE}: could not be written: {err.strerror}")
            return False
        self.state = state
        link = self.root / f".{CURRENT}"
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            link.symlink_to(f"{FOLDER}/{state['current']}")
            link.replace(self.root / CURRENT)
            sync(self.root)
        return True

    def run(self) -> int:
        """Until told to stop; the agent's exit code."""
        delay, crashes = FIRST_DELAY_S, 0
        self.save()
        while not self.stopping:
            trial = self._settle()
            name = trial["id"] if trial else self.state["current"]
            begun = time.monotonic()
            code, why = self._live(name, trial)
            if self.stopping or (code == 0 and not why and self.state["trial"] is None):
                return max(code, 0)
            on_trial = self.state["trial"] is not None
            if on_trial:
                self._not_confirmed(why or f"it ended with {code}", over=why is not None)
            if on_trial or (code == SWITCH and self._begin_trial()):
                delay, crashes = FIRST_DELAY_S, 0
                continue
            if time.monotonic() - begun > HEALTHY_S:
                delay, crashes = FIRST_DELAY_S, 0
            crashes += code not in _OWN_ENDS and code != SWITCH
            if crashes >= CRASHES and self.state["previous"]:
                self._fail(
                    name, None, "crash", f"it died {crashes} times in a row", back=self.state["previous"]
                )
                delay, crashes = FIRST_DELAY_S, 0
            say(f"the agent {why or f'ended with {code}'}; it starts again in {delay:g} s")
            self._wait(delay)
            delay = min(2 * delay, MAX_DELAY_S)
        return 0

    # --- a trial -------------------------------------------------------------------------------------------------

    def _settle(self) -> dict[str, Any] | None:
        """The trial to go on with, its start counted; what was confirmed, or tried too often, is settled first."""
        self._look_for_confirmation()
        trial: dict[str, Any] | None = self.state["trial"]
        if trial is not None and trial["starts"] >= STARTS:
            self._fail(
                trial["id"], trial["job"], "crash", f"it was started {STARTS} times: {trial.get('why')}"
            )
        elif trial is not None and not self.save(trial={**trial, "starts": trial["starts"] + 1}):
            self._fail(trial["id"], trial["job"], "disk", "its start could not be noted")
        for file in (ORDER, CONFIRMED):
            with contextlib.suppress(OSError):  # a read-only disk says so even where there is none
                (self.root / file).unlink(missing_ok=True)
        return self.state["trial"]  # type: ignore[no-any-return]

    def _begin_trial(self) -> bool:
        order = read(self.root / ORDER)
        name, job = order.get("id"), order.get("job")
        if command(self.root, name) is None or name == self.state["current"]:
            self._fail(name, job, "runtime", f"{ORDER} names no other environment that is there")
            return False
        say(f"{name} goes on trial")
        return self.save(trial={"id": name, "job": job, "starts": 0}, last=None)

    def _look_for_confirmation(self) -> None:
        trial, said = self.state["trial"], read(self.root / CONFIRMED)
        if trial is None or (said.get("id"), said.get("job")) != (trial["id"], trial["job"]):
            return
        last = {"id": trial["id"], "job": trial["job"], "passed": True, "reason": None, "detail": None}
        if self.save(current=trial["id"], previous=self.state["current"], trial=None, last=last):
            say(f"{trial['id']} is confirmed")

    def _not_confirmed(self, why: str, *, over: bool) -> None:
        """A start that came to nothing. over: it need not be tried again."""
        trial = self.state["trial"]
        if over:
            self._fail(trial["id"], trial["job"], "timeout", f"{why}; it last said: {self.said or 'nothing'}")
            return
        say(f"{trial['id']} on trial, start {trial['starts']}: {why}")
        self.state["trial"] = {**trial, "why": why}
        self._wait(FIRST_DELAY_S)

    def _fail(self, name: object, job: object, reason: str, detail: str, back: str | None = None) -> None:
        say(f"{name} has failed ({reason}): {detail}")
        last = {"id": name, "job": job, "passed": False, "reason": reason, "detail": detail}
        changes: dict[str, Any] = {"trial": None, "last": last}
        if back is not None:
            changes |= {"current": back, "previous": None}
        if not self.save(**changes):
            self.state = {**self.state, **changes}

    # --- the agent's process -------------------------------------------------------------------------------------

    def _live(self, name: str, trial: dict[str, Any] | None) -> tuple[int, str | None]:
        """Run the agent to its end: its exit code, and why it was ended where it did not end by itself."""
        start = command(self.root, name) or []
        extra = {ROOT_KEY: str(self.root), ID_KEY: name, JOB_KEY: str(trial["job"]) if trial else ""}
        extra |= {"NOTIFY_SOCKET": self._address(), "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6))}
        library = ctypes.CDLL(None)
        try:
            child = subprocess.Popen(
                [*start, *self.arguments],
                env={**os.environ, **extra},
                cwd=self.root,
                preexec_fn=lambda: library.prctl(_DEATH_SIGNAL, signal.SIGKILL),  # noqa: PLW1509  (one thread here)
                pass_fds=(self.lock,),
            )
        except OSError as err:
            return 127, f"could not be started: {err.strerror}" if trial is None else None
        begun = heard = time.monotonic()
        ready, why, asked = False, None, None
        self.said = ""
        while (code := child.poll()) is None:
            now = time.monotonic()
            if self.stopping and asked is None:
                asked = now
                self._tell("STOPPING=1")
                child.terminate()
            for text in self._heard(child.pid):
                ready = ready or "READY=1" in text
                heard = now if "READY=1" in text or "WATCHDOG=1" in text else heard
                self._pass_on(text)
            if trial is not None and self.state["trial"] is not None:
                self._look_for_confirmation()
            if why is None and asked is None:
                why = self._overdue(now - begun, now - heard, ready=ready)
                if why is not None:
                    say(f"{why}: it is ended")
                    child.send_signal(signal.SIGABRT)  # Python's fault handler says where it hangs
                    asked = now
            if asked is not None and now - asked > GRACE_S:
                child.kill()
            self._tell("WATCHDOG=1")
            self._wait(0.2 if self.state["trial"] or asked else 1.0, once=True)
        if trial is not None and self.state["trial"] is not None:
            self._look_for_confirmation()
        return code, why

    def _overdue(self, lived_s: float, silent_s: float, *, ready: bool) -> str | None:
        if not ready and lived_s > self.start_s:
            return f"it was not ready within {self.start_s:g} s"
        if ready and silent_s > self.watchdog_s:
            return f"it was silent for {self.watchdog_s:g} s"
        if self.state["trial"] is not None and lived_s > self.trial_s:
            return f"it did not confirm itself within {self.trial_s:g} s"
        return None

    # --- what is said to us, and by us, as sd_notify(3) has it ---------------------------------------------------

    def _address(self) -> str:
        name = self.inbox.getsockname()
        return name if isinstance(name, str) else "@" + os.fsdecode(name[1:])

    def _heard(self, pid: int) -> list[list[str]]:
        """What the agent itself has sent: others may know the address as well."""
        found = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(MESSAGES):  # nobody keeps us here by sending on and on
                data, extra, *_ = self.inbox.recvmsg(4096, socket.CMSG_SPACE(12))
                sender = next((struct.unpack("3i", part)[0] for *_, part in extra if len(part) == 12), None)
                if sender == pid:
                    found.append(data.decode(errors="replace").splitlines())
        return found

    def _pass_on(self, lines: list[str]) -> None:
        for line in lines:
            if line.startswith("STATUS="):
                self.said = line.removeprefix("STATUS=")
            if line == "READY=1" or line.startswith("STATUS="):
                self._tell(line)

    def _tell(self, text: str) -> None:
        if self.upwards:
            address = "\0" + self.upwards[1:] if self.upwards.startswith("@") else self.upwards
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(text.encode(), address)

    def _wait(self, seconds: float, *, once: bool = False) -> None:
        """Until a signal or a message, or that long. once: whatever comes first."""
        end = time.monotonic() + seconds
        while (once or not self.stopping) and (left := end - time.monotonic()) > 0:
            files = (self.woken, self.inbox) if once else (self.woken,)
            ready, _, _ = select.select(files, (), (), left)
            with contextlib.suppress(BlockingIOError):
                self.woken.recv(4096)
            if ready and once:
                return


def hold(root: Path) -> int:
    """Be the only one on `root`. The agent holds the lock as well, so that no second one starts beside it."""
    try:
        descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # a disk that has become read-only: what is installed runs on
        descriptor = os.open(root / LOCK, os.O_RDONLY)
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > end:
                say(f"{root}: another supervisor or its agent is running")
                raise SystemExit(3) from None
            time.sleep(0.05)
        else:
            return descriptor


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="supervisor.py", description="Keep an edgekit agent running.")
    parser.add_argument("root", type=Path)
    parser.add_argument(
        "--trial-s", type=float, default=300.0, help="what a new environment has to confirm itself"
    )
    parser.add_argument("--start-s", type=float, default=120.0, help="what an agent has to become ready")
    parser.add_argument("--watchdog-s", type=float, default=90.0, help="an agent silent for so long hangs")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    lock = hold(options.root)
    limits = {"trial_s": options.trial_s, "start_s": options.start_s, "watchdog_s": options.watchdog_s}
    return Supervisor(options.root.absolute(), arguments[cut + 1 :], lock, **limits).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
