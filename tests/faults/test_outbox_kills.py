"""A day of Records with the broker away, and SIGKILL again and again: the server gets all of them, once."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import Mosquitto, Server, free_port, until

from edgekit.agent.outbox import EVENT, MIN_CAP_BYTES, RECORD, Outbox

DAY = 1440  # Records at the default interval
BIG = 64 * 2**20

# A process with an outbox and an uplink. It puts `count` Records from number `first` on, a minute of its own clock
# apart, and says of each that it is in; an event now and then. Then it stays until it is killed.
CHILD = """
import logging, sys, time
from pathlib import Path
from edgekit.agent.config import Broker
from edgekit.agent.outbox import Outbox
from edgekit.agent.uplink import Uplink
from edgekit.core.messages import Event
from outboxes import Clock, record

folder, boot, cap, port, first, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
logging.basicConfig()
clock = Clock()
box = Outbox(Path(folder) / "outbox.db", boot, cap, lambda: line.wake(), clock)
broker = Broker("127.0.0.1", port, "demo/pi5", None, False, None, "auto", 30)
line = Uplink(broker, "demo/pi5", box, ack="server", resend_s=1.0, current={}, on_message=lambda *_: None)
line.start()
for number in range(first, first + count):
    clock.now += 60
    print("record", number, box.put(record(number)), flush=True)
    if number % 100 == 50:
        print("event", number, box.put(Event(boot, 1, "throttle", None, {"number": number})), flush=True)
print("end", 0, 0, flush=True)
time.sleep(3600)
"""


@dataclass
class Boards:
    """Starts of the process, one after the other, on one outbox; what each said it had put."""

    folder: Path
    random: random.Random
    cap: int = BIG
    starts: int = 0

    def __post_init__(self) -> None:
        self.put: dict[tuple[str, int], tuple[str, int]] = {}  # (boot, seq) -> (kind, number)
        self.next = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self, port: int, upto: int) -> None:
        self.starts += 1
        self.boot = f"boot{self.starts}"
        given = (self.folder, self.boot, self.cap, port, self.next, max(0, upto - self.next))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *map(str, given)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )

    def read(self, lines: int) -> bool:
        """Take so many lines of what it says. False: it has put everything."""
        assert self.process is not None
        assert self.process.stdout is not None
        for _ in range(lines):
            kind, number, seq = self.process.stdout.readline().split()
            if kind == "end":
                return False
            self.note(kind, int(number), int(seq))
        return True

    def note(self, kind: str, number: int, seq: int) -> None:
        self.put[self.boot, seq] = (kind, number)
        self.next = max(self.next, number + 1)

    def kill(self, after_ms: float = 0.0) -> None:
        """SIGKILL; what it had said until then counts as put."""
        assert self.process is not None
        assert self.process.stdout is not None
        try:
            self.process.wait(after_ms / 1e3)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        for line in self.process.stdout.read().splitlines(keepends=True):
            if line.endswith("\n") and not line.startswith("end"):
                kind, number, seq = line.split()
                self.note(kind, int(number), int(seq))
        self.process.stdout.close()
        self.process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Boards]:
    made = Boards(tmp_path, random.Random(20))
    yield made
    if made.process is not None:
        made.kill()


def a_day_without_a_broker(boards: Boards, records: int, kills: int) -> None:
    """Put so many Records, killed so often at random points, mostly within or around a commit."""
    nowhere = free_port()
    for left in range(kills, 0, -1):
        boards.start(nowhere, records)
        more = boards.read(boards.random.randint(0, 2 * (records - boards.next) // (left + 1)))
        boards.kill(boards.random.uniform(0, 4) if more else 0)
    boards.start(nowhere, records)
    while boards.read(1):
        pass
    boards.kill()


def everything_arrives(
    boards: Boards, broker: Mosquitto, kills: int
) -> Mapping[tuple[str, int], tuple[str, int]]:
    """Now the broker and the server are there, and the board is killed on; what the server has, once each."""
    server = Server(broker.port)
    for _ in range(kills):
        boards.start(broker.port, 0)
        heard = len(server.heard)
        until(lambda: len(server.heard) > heard + boards.random.randint(1, 6), "something")  # noqa: B023
        boards.kill(boards.random.uniform(0, 4))
    boards.start(broker.port, 0)
    boards.read(1)
    path = boards.folder / "outbox.db"
    until(lambda: released(server), "the release of everything", 30.0)
    boards.kill()
    box = Outbox(path, "reader", BIG)
    assert box.boots() == (), "what the server has is gone from the board"
    box.close()
    server.close()
    got: dict[tuple[str, int], tuple[str, int]] = {}
    for kind, payload in server.heard:
        for name, seq, number in said(kind, payload):
            key = (str(payload["boot_id"]), seq)
            assert got.setdefault(key, (name, number)) == (name, number), "one number, two things"
    return got


def said(kind: str, payload: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    if kind == "telemetry":
        return [("record", entry["seq"], entry["requests"]) for entry in payload["records"]]
    if kind == "event" and payload["kind"] == "throttle":
        return [("event", payload["seq"], payload["detail"]["number"])]
    return []


def released(server: Server) -> bool:
    """Whether the board has nothing more to send: it was silent for a second after the last acknowledgement."""
    before = len(server.heard)
    try:
        until(lambda: len(server.heard) > before, "something more", 1.5)
    except AssertionError:
        return before > 0
    return False


def check_nothing_is_lost(
    got: Mapping[tuple[str, int], tuple[str, int]], boards: Boards, records: int
) -> None:
    assert boards.put.items() <= got.items(), "everything that was put arrived under its number"
    extra = got.keys() - boards.put.keys()
    assert len(extra) <= boards.starts, "beyond it only what a kill kept from being said"
    numbers = [number for kind, number in got.values() if kind == "record"]
    assert set(numbers) == set(range(records))
    assert len(numbers) <= records + boards.starts


def test_nothing_is_lost_or_counted_twice_over_kills_with_the_broker_away(
    boards: Boards, broker: Mosquitto
) -> None:
    a_day_without_a_broker(boards, 200, kills=6)
    check_nothing_is_lost(everything_arrives(boards, broker, kills=2), boards, 200)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_day_with_fifty_kills_loses_nothing(boards: Boards, broker: Mosquitto) -> None:
    a_day_without_a_broker(boards, DAY, kills=50)
    got = everything_arrives(boards, broker, kills=10)
    check_nothing_is_lost(got, boards, DAY)
    unsaid = len(got) - len(boards.put)
    logging.getLogger(__name__).info(
        "%d Records, %d starts: %d items arrived, %d of them put but not yet said",
        DAY,
        boards.starts,
        len(got),
        unsaid,
    )


@pytest.mark.parametrize(
    ("records", "kills"),
    [(800, 3), pytest.param(DAY, 50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_drops_are_those_of_the_cap_and_counted_over_kills(
    boards: Boards, broker: Mosquitto, records: int, kills: int
) -> None:
    boards.cap = MIN_CAP_BYTES
    a_day_without_a_broker(boards, records, kills)
    box = Outbox(boards.folder / "outbox.db", "reader", MIN_CAP_BYTES)
    counts, events = box.counts(RECORD), box.counts(EVENT)
    box.close()
    assert counts.dropped > 100
    assert (counts.made, counts.acked, events.dropped) == (counts.held + counts.dropped, 0, 0)
    got = everything_arrives(boards, broker, kills=0)
    records_got = sorted(number for kind, number in got.values() if kind == "record")
    assert len(records_got) == counts.held
    assert set(records_got) == set(range(records_got[0], records)), "the oldest went, and nothing between"
    put = {key for key, (kind, _) in boards.put.items() if kind == "event"}
    assert put <= got.keys(), "events outlast telemetry"
    extra = counts.made - sum(kind == "record" for kind, _ in boards.put.values())
    assert 0 <= extra <= boards.starts
