"""SIGTERM ends the agent within two seconds, cleanly, whatever it is busy with."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents import Site, until

LIMIT_S = 2.5  # two seconds, and what the interpreter needs to end
SLOW_DISK = """
import os, time
true = os.fsync
def slow(descriptor):
    while os.path.exists({armed!r}):
        time.sleep(0.05)
    return true(descriptor)
os.fsync = slow
"""


def ends_in_time(process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - begun < LIMIT_S
    assert process.returncode == 0
    assert json.loads(out)["v"] == 1


def children(process: subprocess.Popen[str]) -> list[str]:
    """Processes that this one started."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() + [
        child
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        if task.name != str(process.pid)
        for child in (task / "children").read_text().split()
    ]


@contextmanager
def mute_port() -> Iterator[int]:
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []
        ended = threading.Event()
        listener.settimeout(0.05)

        def accept() -> None:
            while not ended.is_set():
                try:
                    held.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield int(listener.getsockname()[1])
        ended.set()
        thread.join()
        for one in held:
            one.close()


def test_while_a_bundle_is_downloaded(site: Site) -> None:
    process = site.board.spawn()
    site.repository.gate.clear()
    site.server.desire("pi5", site.add(version=1, padding=1_000_000), 1)
    until(lambda: list((site.board.folder / "state/slots").glob(".part-*/*")), "a part of it")
    ends_in_time(process)
    assert site.board.state["job"]["state"] == "downloading", "the next start goes on there"


def test_while_a_bundle_is_on_trial(site: Site) -> None:
    process = site.board.spawn()
    site.server.desire("pi5", site.add(version=1, delay_ms=500.0), 1)
    until(lambda: "trial" in site.server.states("job-1") and children(process), "the trial's child")
    started = children(process)
    ends_in_time(process)
    assert site.board.state["job"]["state"] == "trial"
    until(lambda: not any(Path(f"/proc/{pid}/environ").exists() for pid in started), "the child's end")


def test_while_the_broker_takes_the_connection_and_says_nothing(site: Site) -> None:
    with mute_port() as port:
        site.board.write(broker={"port": port})
        process = site.board.spawn()
        until(lambda: "is ready" in (site.board.folder / "agent.log").read_text(), "readiness")
        ends_in_time(process)


def test_while_the_repository_takes_the_connection_and_says_nothing(site: Site) -> None:
    with mute_port() as port:
        site.board.write(repository={"url": f"http://127.0.0.1:{port}/repo"})
        process = site.board.spawn()
        site.server.desire("pi5", site.add(version=1), 1)
        until(lambda: site.server.states("job-1") or site.board.state.get("job"), "the job")
        ends_in_time(process)


def test_while_the_disk_takes_its_time(site: Site) -> None:
    armed = site.board.folder / "armed"
    process = site.board.spawn(SLOW_DISK.format(armed=str(armed)))
    until(lambda: site.server.last("reported"), "the birth")
    armed.touch()
    site.server.desire("pi5", site.add(version=1), 1)
    state = site.board.folder / "state"
    until(lambda: list(state.glob(".state.json.*.part")), "a write that hangs")
    ends_in_time(process)


def test_while_a_library_hangs_for_good_it_ends_as_in_a_power_cut(site: Site) -> None:
    """Nothing asks such a thing to stop; what is on the disk is whole at any moment."""
    hung = "import edgekit.agent.daemon as d, threading\nd.Agent._end = lambda self: threading.Event().wait()"
    process = site.board.spawn(hung)
    until(lambda: site.server.last("reported"), "the birth")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert time.monotonic() - begun < LIMIT_S
    assert process.returncode == 3
    assert "something hangs" in (site.board.folder / "agent.log").read_text()
