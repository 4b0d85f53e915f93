"""The supervisor as a process, with made-up agents: trials, signals, hangs, and what others can send it."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import until
from supervised import ENDS, GOOD, HANGS, HANGS_AT_ONCE, MUTE, SCRIPT, Root

from edgekit.agent.supervisor import Supervisor

QUICK = ("--start-s", "1", "--trial-s", "1", "--watchdog-s", "1")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path / "root")
    made.add("old")
    yield made
    made.end()


def test_it_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(SCRIPT.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"__future__"}


def test_a_confirmed_environment_stays_and_the_one_before_is_kept(root: Root) -> None:
    root.add("new")
    root.start()
    root.settled("old")
    root.want("new")
    root.settled("new")
    assert root.state["previous"] == "old"
    assert root.state["last"] == {"id": "new", "job": "job-1", "passed": True, "reason": None, "detail": None}
    until(lambda: (root.folder / "current").readlink() == Path("environments/new"), "the link")
    assert root.count("new", "start") == root.count("old", "start") == 1


@pytest.mark.parametrize(
    ("behaviour", "reason", "detail", "starts"),
    [
        (ENDS, "crash", "it was started 3 times: it ended with 7", 3),
        ("os.kill(os.getpid(), 9)", "crash", "it was started 3 times: it ended with -9", 3),
        (MUTE, "timeout", "it did not confirm itself within 1 s; it last said: waits for the broker", 1),
        (HANGS_AT_ONCE, "timeout", "it was not ready within 1 s; it last said: nothing", 1),
        (HANGS, "timeout", "it was silent for 1 s", 1),
        ('put("confirmed.json", {"id": me, "job": "another"})\nsys.exit(0)', "crash", "it ended with 0", 3),
        ('put("order.json", {"id": "old", "job": job})\nsys.exit(82)', "crash", "it ended with 82", 3),
    ],
)
def test_one_that_does_not_confirm_itself_goes_back_with_the_reason(
    root: Root, behaviour: str, reason: str, detail: str, starts: int
) -> None:
    root.add("new", behaviour)
    root.start(*QUICK)
    root.settled("old")
    root.want("new")
    until(lambda: root.state["last"], "the verdict")
    root.settled("old")
    last = root.state["last"]
    assert (last["id"], last["job"], last["passed"], last["reason"]) == ("new", "job-1", False, reason)
    assert detail in last["detail"]
    assert root.count("new", "start") == starts
    assert root.count("old", "start") == 2


def test_an_order_for_what_is_not_there_fails_and_the_old_one_goes_on(root: Root) -> None:
    root.start()
    root.settled("old")
    root.want("../../etc")
    until(lambda: root.state["last"], "the verdict")
    assert root.state["last"]["reason"] == "runtime"
    root.settled("old")


def test_a_confirmed_agent_that_hangs_is_killed_and_started_again(root: Root) -> None:
    root.end()
    other = Root(root.folder.parent / "other")
    other.add("old", HANGS)
    other.start(*QUICK)
    until(lambda: other.count("old", "start") >= 2, "the second start")
    other.end()
    assert "it was silent for 1 s: it is ended" in (other.folder / "supervisor.log").read_text()


def test_a_confirmed_agent_that_dies_over_and_over_gives_way_to_the_one_before(root: Root) -> None:
    root.add("bad", GOOD.replace('tell("READY', 'if not job:\n    sys.exit(9)\ntell("READY'))
    root.start()
    root.settled("old")
    root.want("bad")
    until(lambda: root.state["current"] == "bad", "the new one")
    (root.folder / "wanted").unlink()
    until(lambda: root.running() == "bad", "its agent")
    os.kill(int(root.log[-1][2]), signal.SIGKILL)
    until(lambda: root.count("bad", "start") >= 3, "a few starts")
    until(lambda: root.state["current"] == "old", "the way back", 30)
    assert root.state["last"]["reason"] == "crash"
    root.settled("old")


def test_sigterm_reaches_the_agent_and_ends_both_in_time(root: Root) -> None:
    process = root.start()
    root.settled("old")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 2.5
    assert root.count("old", "stop") == 1
    assert root.running() is None


def test_a_killed_supervisor_takes_its_agent_along_and_the_next_one_goes_on(root: Root) -> None:
    process = root.start()
    root.settled("old")
    process.kill()
    process.wait()
    root.start()
    until(lambda: root.count("old", "start") == 2, "the agent again")
    root.settled("old")


def test_a_second_supervisor_waits_for_the_first_ones_agent(root: Root) -> None:
    root.start()
    root.settled("old")
    second = root.start(
        before="import time\ntime.monotonic = (lambda true: lambda: true() * 100)(time.monotonic)"
    )
    assert second.wait(10) == 3
    assert "another supervisor or its agent is running" in (root.folder / "supervisor.log").read_text()
    assert root.running() == "old"


def test_a_stale_order_or_confirmation_is_not_believed(root: Root) -> None:
    root.add("new")
    (root.folder / "order.json").write_text(json.dumps({"id": "new", "job": "j"}))
    (root.folder / "confirmed.json").write_text(json.dumps({"id": "new", "job": "j"}))
    root.start()
    root.settled("old")
    assert not (root.folder / "order.json").exists()
    assert not (root.folder / "confirmed.json").exists()
    assert root.state["last"] is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"current": 5, "trial": 3}',
        '{"current": "gone", "last": []}',
        '{"current": "old", "trial": {"id": "newer", "starts": 0}}',
        '{"current": "old", "trial": {"id": "newer", "starts": -9, "job": "j"}}',
    ],
)
def test_a_state_that_cannot_be_read_is_repaired_from_what_is_there(root: Root, content: str) -> None:
    root.add("newer")
    (root.folder / "state.json").write_text(content)
    (root.folder / "current").symlink_to("environments/old")
    root.start()
    root.settled("old")


def test_what_nobody_should_have_left_in_its_folder_keeps_no_agent_from_running(root: Root) -> None:
    (root.folder / "environments/astray").symlink_to("nowhere")
    for name in ("lock", "order.json", "confirmed.json", "state.json", "notify"):
        (root.folder / name).mkdir()
    root.start()
    until(lambda: root.running() == "old", "the agent")


def test_messages_without_end_keep_it_from_nothing() -> None:
    class Flooded:
        def recvmsg(self, *_: int) -> tuple[bytes, list[object], int, None]:
            self.read = getattr(self, "read", 0) + 1
            assert self.read < 10_000, "it reads on and on"
            return b"WATCHDOG=1", [], 0, None

    own = Supervisor.__new__(Supervisor)
    own.inbox = Flooded()  # type: ignore[assignment]
    assert own._heard(1) == []


def test_an_environment_that_is_gone_is_replaced_by_one_that_is_there(root: Root) -> None:
    (root.folder / "state.json").write_text(json.dumps({"current": "gone", "previous": "gone-too"}))
    (root.folder / "current").symlink_to("environments/gone")
    (root.folder / "environments/broken").mkdir()
    root.start()
    root.settled("old")
    assert root.state["previous"] is None


def test_without_any_environment_it_says_what_to_do(tmp_path: Path) -> None:
    empty = Root(tmp_path / "empty")
    process = empty.start()
    assert process.wait(10) == 3
    assert "run edgekit agent set-up again" in (empty.folder / "supervisor.log").read_text()


def test_it_tells_systemd_what_the_agent_says_and_believes_nobody_else(root: Root) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("")
        systemd.settimeout(10)
        address = os.fsdecode(systemd.getsockname()[1:])
        process = root.start(*QUICK, env={"NOTIFY_SOCKET": "@" + address, "WATCHDOG_USEC": "1000000"})
        heard = ""
        while not ("READY=1" in heard and "STATUS=serves" in heard and "WATCHDOG=1" in heard):
            heard += systemd.recv(4096).decode() + "\n"
        pid = next(line[2] for line in root.log if line[1] == "start")
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        inbox = next(entry.partition("=")[2] for entry in environ if entry.startswith("NOTIFY_SOCKET="))
        assert inbox != "@" + address
        assert Path(inbox).stat().st_mode & 0o777 == 0o600  # no other user writes there
        systemd.sendto(b"STATUS=forged\nREADY=1", inbox)
        process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard += systemd.recv(4096).decode() + "\n"
        assert process.wait(10) == 0
    assert "forged" not in heard
