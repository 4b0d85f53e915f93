"""Several ingesters on one broker and one store, as threads and as processes that are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from agents import until
from servers import Broker, FakeBoard, FleetServer, write_config

from edgekit.core.target import Target
from edgekit.fleet import jobs, views
from edgekit.fleet import schema as db
from edgekit.fleet.config import FleetConfig, read_config
from edgekit.fleet.enroll import enroll, prepare, write_broker_files
from edgekit.fleet.ingest import Ingest
from edgekit.fleet.store import get_fact, open_store
from edgekit.repo.keys import read_key

TARGET = Target("toy", 1, ("host",), "run", "current", "a" * 64)


class Site:
    """A broker, a store and boards; ingesters are started by the tests."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.broker = Broker(folder / "broker")
        more = {} if database_url.startswith("sqlite") else {"database_url": database_url}
        config = write_config(folder, self.broker.port, **more)
        with config.path.open("a") as file:
            file.write("[ingest]\nprocesses = 2\n")
        self.config: FleetConfig = read_config(config.path)
        prepare(self.config)
        self.store = open_store(self.config.database_url)
        self.boards: list[FakeBoard] = []
        self.threads: list[threading.Thread] = []
        self.stop = threading.Event()
        self.server: FleetServer | None = None

    def ingester(self, number: int) -> Ingest:
        """One in a thread; 1 leads."""
        key = read_key(self.config.control_key_file) if self.config.ingest.leads(number) else None
        ingest = Ingest(self.config, self.store, key, self.stop, number=number)
        self.threads.append(threading.Thread(target=ingest.run, daemon=True))
        self.threads[-1].start()
        until(ingest.connected.is_set, "the ingester's connection")
        return ingest

    def board(self, name: str) -> FakeBoard:
        with self.store.write() as connection:
            credentials = enroll(connection, name, "host", [], 0.0)
        write_broker_files(self.config, self.store)
        key = self.config.control_public_file.read_text()
        self.boards.append(FakeBoard(self.broker.port, name, credentials.mqtt_password, key))
        return self.boards[-1].start()

    def seqs(self) -> list[tuple[str, int]]:
        joined = sa.select(db.devices.c.name, db.records.c.seq).join(
            db.devices, db.devices.c.id == db.records.c.device
        )
        with self.store.read() as connection:
            return sorted((row.name, row.seq) for row in connection.execute(joined))

    def push(self) -> None:
        with self.store.write() as connection:
            chosen = jobs.known_devices(connection)
            jobs.create_job(connection, jobs.Order(TARGET, "all"), chosen, time.time())

    def fact(self, key: str) -> dict[str, object]:
        with self.store.read() as connection:
            return get_fact(connection, key) or {}

    def all_acknowledged(self) -> bool:
        """Boards send again what no ack covered."""
        for board in self.boards:
            if board.outbox:
                board.send()
        deadline = time.monotonic() + 1.0
        while any(board.outbox for board in self.boards) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not any(board.outbox for board in self.boards)

    def end(self) -> None:
        for board in self.boards:
            board.close()
        self.stop.set()
        for thread in self.threads:
            thread.join(10)
        if self.server is not None:
            self.server.end()
        self.store.close()
        self.broker.stop()


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    site = Site(tmp_path, database_url)
    try:
        yield site
    finally:
        site.end()


@pytest.mark.both_databases
def test_ingesters_share_what_boards_send_and_each_acknowledges_what_it_stored(site: Site) -> None:
    both = [site.ingester(1), site.ingester(2)]
    boards = [site.board(name) for name in ("a", "b", "c")]
    for _ in range(20):
        for board in boards:
            board.send([board.record()])
    until(site.all_acknowledged, "the acks")
    assert site.seqs() == [(name, seq) for name in ("a", "b", "c") for seq in range(1, 21)]
    assert sum(ingest.pace.records for ingest in both) == 60
    # not records: a board that had to connect again sends all of them to one ingester, and the other's are known
    assert all(ingest.pace.messages > 0 for ingest in both)
    assert both[1].pace.messages < 60  # it was not sent all of them


def test_only_the_leader_hears_births_and_tells_boards_what_to_do(site: Site) -> None:
    second = site.ingester(2)
    board = site.board("a")
    site.push()
    board.send([board.record()])
    until(site.all_acknowledged, "the ack of an ingester that does not lead")
    assert not board.desired
    assert site.fact("ingest") == {}
    with site.store.read() as connection:
        assert connection.scalar(sa.select(db.presence.c.online)) is False
    site.ingester(1)
    until(lambda: board.desired, "the leader's word")
    until(lambda: board.bundle == "toy/1", "the board's answer")
    until(lambda: site.fact("ingest").get("connected"), "the leader's connection in the store")
    assert second.teller is None
    with site.store.read() as connection:
        assert connection.scalar(sa.select(db.presence.c.online)) is True


def test_the_status_shows_each_ingester_with_its_rate_and_lag(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.fleet.ingest.EVERY_S", 0.1)
    site.ingester(1)
    site.ingester(2)
    board = site.board("a")
    for _ in range(4):
        board.send([board.record()])
    until(site.all_acknowledged, "the acks")

    def shown() -> bool:
        with site.store.read() as connection:
            rows = views.fleet_status(connection, time.time())["ingesters"]
        return [row["number"] for row in rows] == [1, 2] and sum(row["records"] for row in rows) == 4

    until(shown, "both in the store")
    with site.store.read() as connection:
        rows = views.ingesters(connection, time.time())
        assert views.ingesters(connection, time.time() + 61) == []
    assert sum(row["rate"] for row in rows) > 0
    assert 0 < max(row["lag_p99_ms"] or 0 for row in rows) < 5000


@pytest.mark.slow
@pytest.mark.both_databases
def test_a_killed_ingester_and_a_killed_leader_lose_nothing_and_the_new_one_tells_boards_again(
    site: Site,
) -> None:
    site.server = FleetServer(site.config)
    until(lambda: {"ingest", "ingest-2"} <= set(site.server.children()), "both processes")  # type: ignore[union-attr]
    boards = [site.board(name) for name in ("a", "b")]
    site.push()
    until(lambda: all(board.bundle == "toy/1" for board in boards), "the first command")
    for victim in ("ingest-2", "ingest"):
        for number in range(30):
            for board in boards:
                board.send([board.record()])
            if number == 15:
                heard = [len(board.desired) for board in boards]
                os.kill(site.server.children()[victim], signal.SIGKILL)
        until(site.all_acknowledged, f"acks after the end of {victim}")
    until(
        lambda: all(len(board.desired) > before for board, before in zip(boards, heard, strict=True)),
        "the new leader's word",
    )
    until(site.all_acknowledged, "the acks of all")
    found = site.seqs()
    assert len(found) == len(set(found)) == 120
    for board in boards:
        assert len({desired.rev for desired in board.desired}) == 1
