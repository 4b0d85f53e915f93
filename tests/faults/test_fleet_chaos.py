"""SIGKILL of the server's processes, the broker and the database at random moments: every Record is stored once.

Simulated boards keep what they made until the server's ack. At the end every number that a board used must be in the
store exactly once, and the roll-ups must hold what the records hold.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from agents import until
from postgres import Postgres, make_postgres
from servers import Broker, FleetServer, write_config
from simulation import Simulation, check_all_stored_once, check_roll_ups, enroll_many

from edgekit.fleet.enroll import prepare

log = logging.getLogger(__name__)
CHILDREN = ("web", "ingest", "background")


class Site:
    """Everything that can be killed, and how it comes back. What comes back by itself is left to it."""

    def __init__(self, folder: Path, boards: int, interval_s: float, postgres: Postgres | None) -> None:
        self.folder, self.postgres = folder, postgres
        more = {} if postgres is None else {"database_url": postgres.url(postgres.new_database())}
        self.broker = Broker(folder / "broker")
        self.config = write_config(folder, self.broker.port, **more)
        prepare(self.config)
        enroll_many(self.config, boards, folder / "boards.jsonl", ["raspberrypi5", "raspberrypi4b"])
        self.server = FleetServer(self.config)
        self.boards = Simulation(
            folder / "boards.jsonl",
            self.broker.port,
            *("--control-key", str(self.config.control_public_file), "--interval-s", str(interval_s)),
            *("--ramp-s", "0.5", "--resend-s", "3", "--report-s", "0.1"),
        )

    def end(self) -> None:
        self.boards.process.kill()
        self.boards.stop()
        self.server.end()
        self.broker.stop()

    def kill_server(self) -> None:
        """The supervisor; its children end with it."""
        self.server.process.kill()
        self.server.process.wait()
        self.server.start()

    def keep_up(self) -> None:
        """Start the server again where it ended by itself, as systemd does: it met a database that was not up yet."""
        if self.server.process.poll() is not None:
            log.info("the server ended with %d; again", self.server.process.returncode)
            self.server.start()

    def has_acks_above(self, before: int) -> bool:
        self.keep_up()
        return bool(self.boards.progress["acked"] > before)

    def kill_child(self, kind: str) -> None:
        found = self.server.children().get(kind)
        if found is not None:
            os.kill(found, signal.SIGKILL)

    def kill_broker(self) -> None:
        self.broker.stop()
        self.broker.start()

    def kill_database(self) -> None:
        assert self.postgres is not None
        self.postgres.kill()
        self.postgres.start()

    @property
    def victims(self) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {
            kind: (lambda kind=kind: self.kill_child(kind)) for kind in CHILDREN
        }
        found |= {"server": self.kill_server, "broker": self.kill_broker}
        found["boards' connections"] = lambda: self.boards.do("hang_up", share=0.3)
        found["boards"] = lambda: self.boards.do("reboot", share=0.1)
        return found if self.postgres is None else found | {"database": self.kill_database}

    def check(self, timeout_s: float) -> int:
        """Wait until nothing is on its way, and compare; how many records there are."""
        acked = self.boards.progress["acked"]
        until(lambda: self.has_acks_above(acked), "an ack", timeout_s)  # boards still make Records
        self.boards.settle(timeout_s)
        records = check_all_stored_once(self.config, self.boards.made(self.folder))
        assert records == self.boards.progress["records"]
        check_roll_ups(self.config, records, timeout_s)
        return records


def wreak(site: Site, draw: random.Random, seconds: float, pause_s: float) -> Counter[str]:
    """Kill one thing after the other until the time is over, each once at least; what was killed how often."""
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    waiting = sorted(site.victims)
    draw.shuffle(waiting)
    while waiting or time.monotonic() < end:
        victim = waiting.pop() if waiting else draw.choice(sorted(site.victims))
        log.info("%.1f s left: %s", end - time.monotonic(), victim)
        site.victims[victim]()
        done[victim] += 1
        if draw.random() < 0.5:  # let it come to itself, or strike while it does
            acked = site.boards.progress["acked"]
            until(lambda: site.has_acks_above(acked), "an ack", 60)  # noqa: B023
        time.sleep(draw.random() * 2 * pause_s)
    return done


def run(
    folder: Path, postgres: Postgres | None, *, boards: int, interval_s: float, seconds: float, pause_s: float
) -> None:
    site = Site(folder, boards, interval_s, postgres)
    try:
        until(lambda: site.boards.progress.get("acked", 0) > boards, "the first acks", 60)
        done = wreak(site, random.Random(7), seconds, pause_s)
        records = site.check(120)
        log.info("killed %s; %d records, each once; %s", dict(done), records, site.boards.progress)
        assert set(done) == set(site.victims)
        assert records > boards
    finally:
        site.end()


def test_whatever_is_killed_every_record_is_stored_once(tmp_path: Path) -> None:
    run(tmp_path, None, boards=40, interval_s=0.5, seconds=0.0, pause_s=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_kills_with_sqlite(tmp_path: Path) -> None:
    run(tmp_path, None, boards=500, interval_s=5.0, seconds=600.0, pause_s=2.0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_kills_with_postgresql(tmp_path: Path) -> None:
    postgres = make_postgres(safe=True)
    run(tmp_path, postgres, boards=500, interval_s=5.0, seconds=600.0, pause_s=2.0)
