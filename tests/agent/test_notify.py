"""What the agent tells the service manager: when it is ready, and that its threads get on, for as long as they do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Site, until

from edgekit.agent.config import load_config
from edgekit.agent.daemon import Agent
from edgekit.agent.notify import Guard, Notifier, Watched, notifier
from edgekit.agent.runner import Runner
from edgekit.agent.threads import Pulse


class Manager:
    """A service manager's socket, abstract or in a folder."""

    def __init__(self, path: Path | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("" if path is None else str(path))
        self.socket.settimeout(0.05)
        name = self.socket.getsockname()
        self.address = "@" + os.fsdecode(name[1:]) if path is None else str(path)
        self.heard: list[str] = []

    def lines(self) -> list[str]:
        """Everything so far."""
        try:
            while True:
                self.heard += self.socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return self.heard


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    made.socket.close()


def test_a_message_goes_to_a_path_or_an_abstract_name(tmp_path: Path, manager: Manager) -> None:
    for one in (manager, Manager(tmp_path / "notify")):
        Notifier(one.address).say("READY=1", "STATUS=two\nlines")
        assert one.lines() == ["READY=1", "STATUS=two lines"]
    Notifier("@nobody-listens-here").say("READY=1")
    Notifier().status("nobody asked")


def test_what_the_manager_wants_is_taken_out_of_the_environment() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7", "HOME": "/"}
    mine = notifier(dict(environ), pid=7)
    assert (mine.address, mine.watchdog_s) == ("@x", 30.0)
    assert notifier(dict(environ), pid=8).watchdog_s is None, "it means another process"
    assert notifier({"NOTIFY_SOCKET": "vsock:2:3"}).address == ""
    assert notifier({"WATCHDOG_USEC": "5"}).watchdog_s is None
    notifier(environ, pid=7)
    assert environ == {"HOME": "/"}


def test_a_thread_that_does_not_get_on_stops_the_watchdog_until_it_does(manager: Manager) -> None:
    time = [0.0]
    slow, quick = Pulse(lambda: time[0]), Pulse(lambda: time[0])
    guard = Guard(
        Notifier(manager.address, 1.0),
        {"slow": Watched(slow, lambda: None, 10.0), "quick": Watched(quick, quick.beat, 10.0)},
    )
    guard.step()
    time[0] = 9.0
    guard.step()
    assert manager.lines() == ["WATCHDOG=1"] * 2
    time[0] = 11.0
    quick.beat()
    guard.step()
    guard.step()
    assert manager.lines()[2:] == ["STATUS=slow has not got on for 11 s"]
    slow.beat()
    guard.step()
    assert manager.lines()[-1] == "WATCHDOG=1"


def test_a_waiting_runner_shows_that_it_gets_on_and_one_in_a_hung_inference_does_not(runner: Runner) -> None:
    release, begun = threading.Event(), threading.Event()
    runner.pulse._beat_s = 0.0
    runner.poke()
    until(lambda: runner.pulse.silent_s < 5, "a beat")

    def hang(*_: object) -> None:
        begun.set()
        release.wait(20)

    runner._orders.append(hang)
    runner.poke()
    assert begun.wait(5)
    runner.pulse._beat_s = 0.0
    runner.poke()
    assert runner.pulse.silent_s > 100, "poking makes no beat where nothing gets on"
    release.set()
    until(lambda: runner.pulse.silent_s < 5, "a beat after it")


def test_an_agent_says_ready_once_it_serves_then_that_it_gets_on_and_that_it_ends(
    site: Site, manager: Manager
) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    agent = Agent(load_config(site.board.config), "test", environ)
    thread = threading.Thread(target=agent.run)
    assert not manager.lines()
    thread.start()
    until(lambda: manager.lines().count("WATCHDOG=1") >= 3, "beats")
    assert manager.heard[:2] == ["READY=1", "STATUS=serves nothing yet"]
    release, begun = threading.Event(), threading.Event()
    agent._runner._orders.append(lambda: (begun.set(), release.wait(20)))
    agent._runner.poke()
    assert begun.wait(10), "an inference that hangs"
    agent._runner.pulse._beat_s -= 1000
    until(lambda: any("runner has not got on" in line for line in manager.lines()), "the silence")
    release.set()
    agent.stop()
    until(lambda: "STOPPING=1" in manager.lines(), "the end")
    thread.join(10)
    assert not thread.is_alive()
