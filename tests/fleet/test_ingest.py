"""Ingest against a real Mosquitto and boards made of paho."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agents import until
from paho.mqtt.client import Client
from servers import FLEET, Broker, FakeBoard, write_config

from edgekit.core.bench import BenchReport
from edgekit.core.errors import WorldFailed
from edgekit.core.policy import policy_from_options
from edgekit.core.target import Target
from edgekit.fleet import ingest as ingest_module
from edgekit.fleet import jobs, views
from edgekit.fleet import schema as db
from edgekit.fleet.enroll import enroll, prepare, write_broker_files
from edgekit.fleet.ingest import Ingest
from edgekit.fleet.store import Store, get_fact, open_store
from edgekit.repo.keys import read_key

TARGET = Target("toy", 1, ("host",), "run", "current", "a" * 64)


class Site:
    """A broker, an ingester in a thread of this process, and boards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = Broker(folder / "broker")
        self.config = write_config(folder, self.broker.port)
        prepare(self.config)
        self.store = open_store(self.config.database_url)
        self.boards: list[FakeBoard] = []
        self.stop = threading.Event()
        self.thread = threading.Thread()

    def start(self) -> Ingest:
        self.stop = threading.Event()
        key = read_key(self.config.control_key_file)
        self.ingest = Ingest(self.config, self.store, key, self.stop)
        self.thread = threading.Thread(target=self.ingest.run, daemon=True)
        self.thread.start()
        until(self.ingest.connected.is_set, "the ingester's connection")
        return self.ingest

    def halt(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def board(self, name: str, **more: Any) -> FakeBoard:
        """Enroll and start a board."""
        with self.store.write() as connection:
            credentials = enroll(connection, name, "host", [], 0.0)
        write_broker_files(self.config, self.store)
        key = self.config.control_public_file.read_text()
        board = FakeBoard(self.broker.port, name, credentials.mqtt_password, key, **more)
        self.boards.append(board)
        return board.start()

    def end(self) -> None:
        for board in self.boards:
            board.close()
        if self.thread.is_alive():
            self.halt()
        self.store.close()
        self.broker.stop()

    def seqs(self, table: sa.Table = db.records) -> list[int]:
        with self.store.read() as connection:
            return list(
                connection.execute(sa.select(table.c.seq).order_by(table.c.boot, table.c.seq)).scalars()
            )

    def device(self, name: str) -> Any:
        with self.store.read() as connection:
            return connection.execute(
                sa.select(db.devices, *(c for c in db.presence.c if c.name != "device"))
                .join(db.presence, db.presence.c.device == db.devices.c.id)
                .where(db.devices.c.name == name)
            ).one()

    def push(self, now: float, **order: Any) -> str:
        with self.store.write() as connection:
            chosen = jobs.known_devices(connection)
            return jobs.create_job(connection, jobs.Order(TARGET, "all", **order), chosen, now)

    def job(self, job_id: str) -> dict[str, Any]:
        with self.store.read() as connection:
            found: dict[str, Any] = views.job_detail(connection, job_id)["devices"]
            return found

    def fact(self) -> Any:
        with self.store.read() as connection:
            return get_fact(connection, "ingest")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.end()


def test_what_boards_send_is_stored_and_acknowledged_so_that_they_let_go_of_it(site: Site) -> None:
    site.start()
    boards = [site.board("a"), site.board("b")]
    for board in boards:
        for _ in range(5):
            board.record()
        board.event("throttle", temperature_c=81.0)
        board.send()
    until(lambda: not any(board.outbox for board in boards), "the acks")
    assert site.seqs() == [1, 2, 3, 4, 5] * 2
    assert site.seqs(db.events) == [6, 6]
    until(lambda: site.device("a").online and site.device("a").info, "its birth")
    assert json.loads(site.device("a").info)["profile"] == "host"
    assert site.fact()["connected"] is True


def test_nothing_is_acknowledged_before_its_commit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, waiting = threading.Event(), threading.Event()
    acknowledged: list[tuple[int, int]] = []  # records in the store when a broker ack was sent
    write, ack = Store.write, Client.ack

    @contextlib.contextmanager
    def slow(self: Store) -> Iterator[sa.Connection]:
        with write(self) as connection:
            yield connection
            if threading.current_thread() is site.thread and connection.scalar(
                sa.select(sa.func.count(db.records.c.seq))
            ):
                waiting.set()
                assert gate.wait(20)

    def spy(self: Client, mid: int, qos: int) -> Any:
        acknowledged.append((mid, len(site.seqs())))
        return ack(self, mid, qos)

    monkeypatch.setattr(Client, "ack", spy)
    site.start()
    board = site.board("a")
    until(lambda: len(acknowledged) == 3, "the acks of its birth: status, info, reported")
    acknowledged.clear()
    monkeypatch.setattr(Store, "write", slow)
    board.record()
    board.send()
    assert waiting.wait(20)
    assert 1 not in board.acks
    assert acknowledged == []
    assert site.seqs() == []
    gate.set()
    until(lambda: 1 in board.acks, "the ack")
    assert [stored for _, stored in acknowledged] == [1]


def test_replayed_and_reordered_messages_are_counted_once_and_gaps_are_not_acknowledged(site: Site) -> None:
    site.start()
    board = site.board("a")
    for _ in range(6):
        board.record()
    board.send([4, 5])
    until(lambda: site.seqs() == [4, 5], "the first message")
    assert not any(board.acks)
    board.send([5, 2])
    board.send([6])
    board.send([1])
    until(lambda: board.acks[-1:] == [2], "the ack up to the gap")
    assert set(board.outbox) == {3, 4, 5, 6}
    board.send()
    board.send()
    until(lambda: not board.outbox, "the rest")
    assert site.seqs() == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_keeps_messages_waiting_and_loses_none(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.start()
    board = site.board("a")
    until(lambda: site.device("a").reported, "its birth")
    full, refused = threading.Event(), threading.Event()
    full.set()
    real = ingest_module.commit_batch

    def commit(connection: sa.Connection, *args: Any) -> Any:
        if full.is_set():
            refused.set()
            raise WorldFailed("database: database or disk is full")
        return real(connection, *args)

    monkeypatch.setattr(ingest_module, "commit_batch", commit)
    for _ in range(3):
        board.record()
    board.send()
    assert refused.wait(20)
    assert not any(board.acks)
    full.clear()
    until(lambda: not board.outbox, "the acks")
    assert site.seqs() == [1, 2, 3]


def test_a_message_that_breaks_the_store_is_dropped_alone_and_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ingest_module.commit_batch

    def commit(connection: sa.Connection, batch: Any, malformed: Any, *more: Any) -> Any:
        if any(event.kind == "poison" for message in batch for event in message.events):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return real(connection, batch, malformed, *more)

    monkeypatch.setattr(ingest_module, "commit_batch", commit)
    site.start()
    a, b = site.board("a"), site.board("b")
    a.event("poison")
    b.record()
    b.send()
    until(lambda: not b.outbox, "the other board's ack")
    until(lambda: site.device("a").malformed == 1, "the count")
    assert "too large" in site.device("a").malformed_why
    assert site.thread.is_alive()
    until(lambda: not a.outbox, "the ack of what is stored in its place")
    a.record()
    a.send()
    until(lambda: not a.outbox, "the ack of what follows")
    with site.store.read() as connection:
        left = connection.execute(sa.select(db.events)).one()
    assert (left.seq, left.kind) == (1, "unreadable")
    assert "too large" in json.loads(left.detail)["why"]


def test_a_record_that_breaks_the_store_takes_no_other_of_its_message_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ingest_module.commit_batch

    def commit(connection: sa.Connection, batch: Any, malformed: Any, *more: Any) -> Any:
        if any(record.bundle == "poison/1" for message in batch for record in message.records):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return real(connection, batch, malformed, *more)

    monkeypatch.setattr(ingest_module, "commit_batch", commit)
    site.start()
    board = site.board("a")
    for bundle in ("toy/1", "poison/1", "toy/1"):
        board.record(bundle=bundle)
    board.send()
    until(lambda: not board.outbox, "the acks")
    assert (site.seqs(), site.seqs(db.events)) == ([1, 3], [2])
    assert site.device("a").malformed == 1


def test_what_the_broker_kept_of_a_dead_board_does_not_show_it_as_seen(site: Site) -> None:
    site.start()
    dead, alive = site.board("dead"), site.board("alive")
    until(lambda: site.device("dead").reported and site.device("alive").reported, "their births")
    dead.die()
    until(lambda: not site.device("dead").online, "its will")
    site.halt()
    with site.store.write() as connection:
        connection.execute(sa.update(db.presence).values(last_seen=1.0))
        connection.execute(sa.update(db.devices).values(info=None))
    site.start()
    until(lambda: site.device("dead").info and site.device("alive").info, "what the broker kept")
    assert (site.device("dead").last_seen, site.device("alive").last_seen) == (1.0, 1.0)
    alive.record()
    alive.send()
    until(lambda: site.device("alive").last_seen > 1.0, "the live board's record")
    assert site.device("dead").last_seen == 1.0


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "bomb": zlib.compress(bytes(64 * 2**20), 9),
    "deep": b'{"v":1,"a":' + b"[" * 100_000,
    "wrong types": b'{"v":1,"boot_id":7,"floor":"x","records":{}}',
    "digits": b'{"v":1,"boot_id":"b","floor":' + b"9" * 5000 + b',"records":[]}',
    "large": b"x" * (2**20 + 1),
}


def test_hostile_payloads_are_counted_and_stop_nothing(site: Site) -> None:
    site.start()
    bad, good = site.board("bad"), site.board("good")
    sent = 0
    for data in HOSTILE.values():
        for kind in ("status", "info", "reported", "telemetry", "job/event", "event"):
            bad.say(kind, data)
            sent += 1
    good.record()
    good.send()
    until(lambda: not good.outbox, "the good board's ack")
    # Mosquitto keeps no retained message without payload: an empty one is still delivered to those who listen.
    until(
        lambda: site.device("bad").malformed == sent, f"{sent} counted, {site.device('bad').malformed} so far"
    )
    assert site.device("good").malformed == 0
    assert site.seqs() == [1]


def test_a_board_that_nobody_enrolled_leaves_no_trace_but_a_count(site: Site) -> None:
    site.start()
    board = site.board("a")
    with site.store.write() as connection:
        connection.execute(sa.update(db.devices).values(name="somebody-else"))
    board.record()
    board.send()

    def counted() -> bool:
        with site.store.read() as connection:
            return bool(connection.scalar(sa.select(sa.func.count()).select_from(db.counters)))

    until(counted, "the count")
    assert site.seqs() == []
    assert not any(board.acks)


def test_a_desired_state_reaches_the_board_signed_and_its_way_is_mirrored(site: Site) -> None:
    site.start()
    board = site.board("a")
    job_id = site.push(1000.0, policy=policy_from_options(None, "3ms", None), interval_s=5.0)
    until(lambda: site.job(job_id)["a"]["state"] == "active", "the job's end")
    found = board.desired[0]
    assert (found.to, found.rev, found.target, found.job_id) == (f"{FLEET}/a", 1, "toy/1", job_id)
    assert (str(found.policy), found.interval_s, found.expires) == ("budget 3ms", 5.0, 87_400.0)
    until(lambda: not board.outbox, "the acks of its job events")
    assert site.seqs(db.job_events) == [1, 2, 3, 4, 5, 6]

    def confirmed() -> bool:
        with site.store.read() as connection:
            return connection.scalar(sa.select(db.desired.c.pending)) is False

    until(confirmed, "the broker's confirmation")


def test_a_boards_refusal_is_shown_with_its_reason(site: Site) -> None:
    site.start()
    board = site.board("a")
    board.answer, board.reason = ("received", "refused"), "tampered"
    job_id = site.push(1000.0)
    until(lambda: site.job(job_id)["a"]["state"] == "refused", "the refusal")
    assert site.job(job_id)["a"]["reason"] == "tampered"


def test_a_command_that_waits_reaches_a_board_that_comes_later(site: Site) -> None:
    site.start()
    with site.store.write() as connection:
        credentials = enroll(connection, "late", "host", [], 0.0)
    write_broker_files(site.config, site.store)
    job_id = site.push(1000.0)
    key = site.config.control_public_file.read_text()
    board = FakeBoard(site.broker.port, "late", credentials.mqtt_password, key)
    site.boards.append(board.start())
    until(lambda: site.job(job_id)["late"]["state"] == "active", "the job's end")


def test_a_broker_that_forgets_everything_is_told_again(site: Site) -> None:
    site.start()
    board = site.board("a")
    site.push(1000.0)
    until(lambda: board.bundle == "toy/1", "the first command")
    until(lambda: not board.outbox, "its acks")
    commands = len(board.desired)
    board.online.clear()
    site.broker.stop()
    until(lambda: site.fact()["connected"] is False, "the loss to be noted")
    assert not site.device("a").online
    for _ in range(4):
        board.record()
    site.broker.start()
    assert board.online.wait(20)
    until(lambda: not board.outbox, "what was made meanwhile")
    until(lambda: len(board.desired) > commands, "the command again")
    until(lambda: site.device("a").online, "its birth")
    assert len(site.seqs()) == 4
    assert board.desired[-1] == board.desired[0]


def test_a_new_ingester_takes_up_where_a_lost_one_ended(site: Site) -> None:
    site.start()
    board = site.board("a")
    board.record()
    board.send()
    until(lambda: not board.outbox, "the first ack")
    site.halt()
    assert site.fact()["connected"] is False
    board.record()
    board.send()
    job_id = site.push(1000.0)
    site.start()
    until(lambda: site.device("a").online, "the retained birth")
    board.send()
    until(lambda: not board.outbox, "the second ack")
    assert site.seqs() == [1, 2]
    until(lambda: site.job(job_id)["a"]["state"] == "active", "the command made meanwhile")


def test_a_board_that_dies_is_offline_and_one_that_was_replaced_is_not(site: Site) -> None:
    site.start()
    board = site.board("a")
    until(lambda: site.device("a").online, "its birth")
    board.die()
    until(lambda: not site.device("a").online, "its will")


def test_a_wrong_password_is_said_and_tried_again(site: Site) -> None:
    site.config.broker.password_file.write_text("wrong\n")
    key = read_key(site.config.control_key_file)
    ingest = Ingest(site.config, site.store, key, site.stop)
    site.thread = threading.Thread(target=ingest.run, daemon=True)
    site.thread.start()
    until(
        lambda: (site.fact() or {}).get("why") == "the broker says: Not authorized", "the reason in the store"
    )
    write_broker_files(site.config, site.store)
    until(ingest.connected.is_set, "the connection, once the broker knows the password")


def test_attempts_get_rarer_and_are_spread(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = Ingest(site.config, site.store, read_key(site.config.control_key_file), site.stop)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    waits = []
    for _ in range(12):
        ingest._failed("no")
        waits.append(ingest.next_attempt)
    assert max(waits[:2]) <= 0.75
    assert 7.5 <= waits[-1] <= 22.5
    assert len({wait / 15 for wait in waits[-4:]}) == 4


# --- one-shots ---

REPORT = BenchReport("c" * 64, turns_ms=(1.0, 1.1), provenance="simulated", device="a")


def ask(site: Site, life_s: float = 600.0) -> str:
    """Have the only board measure."""
    with site.store.write() as connection:
        (device,) = jobs.known_devices(connection)
        target = Target("a", 2, ("host",), "measure", "current", "b" * 64)
        return jobs.create_measure(connection, target, device, life_s, time.time())


def give_birth(board: FakeBoard) -> None:
    board.say("status", {"online": True, "boot_id": board.boot}, retain=True)


def test_a_one_shot_is_sent_signed_and_after_every_birth_until_the_board_has_ended_it(site: Site) -> None:
    site.start()
    board = site.board("a")
    job_id = ask(site)
    until(lambda: board.shots, "the command")
    first = board.shots[0]
    assert (first.to, first.job_id, first.action, first.target) == (f"{FLEET}/a", job_id, "measure", "a/2")
    give_birth(board)
    until(lambda: len(board.shots) > 1, "the command again")
    assert board.shots[1] == first
    board.job_event(job_id, "done", reports=[REPORT.to_json()])
    until(lambda: site.job(job_id)["a"]["state"] == "done", "the end")
    assert site.job(job_id)["a"]["reports"] == [REPORT.to_json()]
    sent = len(board.shots)
    site.push(time.time())
    until(lambda: board.desired, "a desired state")
    count = len(board.desired)
    give_birth(board)
    until(lambda: len(board.desired) > count, "what is sent at the birth")
    site.push(time.time())
    until(lambda: board.desired[-1].rev == 2, "what is sent after that")
    assert len(board.shots) == sent


def test_a_one_shot_that_has_expired_is_sent_to_nobody(site: Site) -> None:
    site.start()
    board = site.board("a")
    ask(site, life_s=-1.0)
    site.push(time.time())
    until(lambda: board.desired, "a later command")
    assert board.shots == []


def test_reports_that_cannot_be_read_hold_up_nothing(site: Site) -> None:
    site.start()
    board = site.board("a")
    job_id = ask(site)
    board.job_event(job_id, "done", reports=[{"content_id": "?"}])
    board.job_event(job_id, "failed", reason="crash")
    until(lambda: site.job(job_id)["a"]["state"] == "failed", "the event after it")
    until(lambda: not board.outbox, "the acks of both")
