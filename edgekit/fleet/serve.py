"""`fleet serve`: keep the web, ingest and background processes running. Does none's work itself.

The listening socket is opened here and handed down, so that a web process that died is replaced behind the same port.
A child ends when the pipe it holds closes: also when this process is killed, nobody is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.fleet.broker import Reminder, reload_broker
from edgekit.fleet.config import FleetConfig, on_this_machine
from edgekit.fleet.enroll import prepare
from edgekit.fleet.keeper import Keeper
from edgekit.fleet.store import open_store
from edgekit.fleet.tls import keep_certificates, now_utc

log = logging.getLogger("edgekit.fleet.serve")

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
HEALTHY_S = 60.0  # a child that lived so long starts again without delay
GRACE_S = 5.0
RENEW_EVERY_S, LOOK_EVERY_S = 3600.0, 1.0
_POLL_S = 0.1


@dataclass
class Child:
    """One supervised process and when it may start again."""

    name: str
    arguments: Sequence[str]
    descriptors: tuple[int, ...]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    delay_s: float = field(default=FIRST_DELAY_S)
    next_start: float = 0.0

    def start(self, now: float) -> None:
        """Start the process; it dies when our end of `descriptors[0]`'s pipe closes."""
        safe = (
            ["-P"] if sys.version_info >= (3, 11) else []
        )  # -m imports nothing from the current folder then
        command = [sys.executable, *safe, "-m", "edgekit.fleet.child", self.name, *self.arguments]
        self.process = subprocess.Popen(command, pass_fds=self.descriptors, stdin=subprocess.DEVNULL)
        self.started = now

    def watch(self, now: float) -> None:
        """Start what is due; note what died."""
        if self.process is None:
            if now >= self.next_start:
                self.start(now)
            return
        code = self.process.poll()
        if code is None:
            return
        if now - self.started >= HEALTHY_S:
            self.delay_s = FIRST_DELAY_S
        log.warning("the %s process ended with %d; it starts again in %.1f s", self.name, code, self.delay_s)
        self.process, self.next_start = None, now + self.delay_s
        self.delay_s = min(2 * self.delay_s, MAX_DELAY_S)


def serve(config: FleetConfig, stop: threading.Event, say: Callable[[str], None] = lambda _: None) -> None:
    """Serve until told to stop; `say` gets the address once requests are answered, "" from a machine that has none.

    Raises BadInput (no repository), WorldFailed (the port is taken, the disk is full).
    """
    prepare(config)
    if not config.ingest.leader:
        _ingest_alone(config, stop, say)
        return
    with _alone(config), _listening(config) as listener, _lifeline() as lifeline:
        config.address_file.unlink(missing_ok=True)
        host, port = listener.getsockname()[:2]
        host = on_this_machine(host)
        scheme = "https" if config.web.tls else "http"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        children = [
            Child(
                "web",
                (str(config.path), str(lifeline), str(listener.fileno()), url),
                (lifeline, listener.fileno()),
            ),
            *_ingesters(config, lifeline),
            Child("background", (str(config.path), str(lifeline)), (lifeline,)),
        ]
        keeper, next_look, next_renewal, said = Keeper(config), 0.0, 0.0, False
        passwd = config.broker.files_dir / "passwd"
        reminder = Reminder(passwd, lambda: reload_broker(config.broker.pid_file))
        try:
            while not stop.is_set():
                for child in children:
                    child.watch(time.monotonic())
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_EVERY_S
                    keeper.look()
                if time.monotonic() >= next_renewal:
                    next_renewal = time.monotonic() + RENEW_EVERY_S
                    renew_certificates(config)
                if not said and config.address_file.exists():
                    said = True
                    say(url)
                reminder.look(time.monotonic())
                stop.wait(_POLL_S)
        finally:
            keeper.close()
            _end(children)
            config.address_file.unlink(missing_ok=True)


def _ingesters(config: FleetConfig, lifeline: int) -> list[Child]:
    """ingest, ingest-2, ...: by their numbers, which are the accounts' as well."""
    names = ["ingest" if number == 1 else f"ingest-{number}" for number in config.ingest.numbers]
    return [Child(name, (str(config.path), str(lifeline)), (lifeline,)) for name in names]


def _ingest_alone(config: FleetConfig, stop: threading.Event, say: Callable[[str], None]) -> None:
    """A machine that does not lead: ingesters, and no page, no API, no roll-ups, which the leader's has."""
    with _alone(config), _lifeline() as lifeline:
        children, next_renewal = _ingesters(config, lifeline), 0.0
        say("")
        try:
            while not stop.is_set():
                for child in children:
                    child.watch(time.monotonic())
                if time.monotonic() >= next_renewal:
                    next_renewal = time.monotonic() + RENEW_EVERY_S
                    renew_certificates(config)
                stop.wait(_POLL_S)
        finally:
            _end(children)


def renew_certificates(config: FleetConfig) -> None:
    """Keep the server's own certificates from ending. A failure is said and tried again."""
    try:
        store = open_store(config.database_url)
        try:
            renewed = keep_certificates(config, store, now_utc())
        finally:
            store.close()
        if renewed:
            told = reload_broker(config.broker.pid_file)
            log.info("the server's certificates were renewed%s", "" if told else "; the broker was not told")
    except (BadInput, WorldFailed) as err:
        log.warning("the server's certificates could not be renewed: %s", one_line(err))
    except Exception:  # the server serves on
        log.exception("renewing the server's certificates met a defect")


@contextlib.contextmanager
def _alone(config: FleetConfig) -> Iterator[None]:
    """One server on a data folder; the lock ends with this process, however it ends."""
    with (config.data_dir / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise WorldFailed(f"{config.data_dir}: another fleet server works on it") from err
        yield


@contextlib.contextmanager
def _listening(config: FleetConfig) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in config.web.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.web.host, config.web.port))
        except OSError as err:
            where = f"{config.web.host}:{config.web.port}"
            raise WorldFailed(f"cannot listen on {where}: {err.strerror or err}") from err
        listener.listen(512)
        yield listener


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
    """The reading end of a pipe that closes when this process ends, however that happens."""
    reading, writing = os.pipe()  # neither is inherited unless it is passed
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _end(children: Sequence[Child]) -> None:
    """SIGTERM to all, and SIGKILL to those that are still there after a grace."""
    running = [child.process for child in children if child.process is not None]
    for process in running:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
