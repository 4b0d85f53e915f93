"""What the server does about its repository by itself: renew, go past what boards have seen, tell, warn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agents import until
from repositories import BoardClient
from servers import NOW, Broker, FakeBoard, FleetServer, write_config
from starlette.testclient import TestClient

from edgekit.client import Client
from edgekit.core.bundle import Bundle
from edgekit.fleet import jobs, keeper
from edgekit.fleet import schema as db
from edgekit.fleet.api import Context
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import enroll, prepare
from edgekit.fleet.keeper import MAX_STEPS, Board, Keeper, all_problems, board_alarms
from edgekit.fleet.store import get_fact, put_fact
from edgekit.repo.add import measure, sign_targets, with_bundle
from edgekit.repo.init import init
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import key_file, read_current
from edgekit.repo.publish import publish, renew
from edgekit.repo.refresh import versions
from edgekit.repo.revoke import with_revoked

MakeBundle = Callable[..., Bundle]
DAY = 86_400.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


class Server:
    """A prepared server folder whose repository was made at NOW, and its keeper under a clock of the test's own."""

    def __init__(self, folder: Path) -> None:
        init(folder / "repository", at(NOW))
        self.config = write_config(folder, 1)
        prepare(self.config)
        self.time, self.ticks = NOW, 0.0
        self.keeper = Keeper(self.config, lambda: self.time)
        self.context = Context(self.config, self.keeper._opened(), "token", lambda: "", lambda: self.time)

    def look(self, seconds: float = 0.0) -> None:
        """Let time pass, and the keeper look."""
        self.time += seconds
        self.ticks += max(seconds, keeper.CHECK_EVERY_S)
        self.keeper.look(self.ticks)

    def enroll(self, name: str, **info: Any) -> None:
        with self.context.store.write() as connection:
            enroll(connection, name, "host", [], self.time)
            self.says(connection, name, info)

    @staticmethod
    def says(connection: sa.Connection, name: str, info: dict[str, Any]) -> None:
        values = {"info": json.dumps({"profile": "host", "slots": [], **info})}
        connection.execute(sa.update(db.devices).where(db.devices.c.name == name).values(values))

    def saw(self, name: str, **versions: int) -> None:
        with self.context.store.write() as connection:
            self.says(connection, name, {"metadata": versions})

    def versions(self) -> dict[str, int]:
        return versions(read_current(self.config.repository))

    def problems(self) -> list[str]:
        with self.context.store.read() as connection:
            return all_problems(connection)

    def fact(self) -> dict[str, Any]:
        with self.context.store.read() as connection:
            return dict(get_fact(connection, keeper.FACT))

    def change(self, metadata: Any) -> None:
        key = read_key(key_file(self.config.repository, "targets"))
        publish(self.config.repository, sign_targets(metadata, key), {}, at(self.time))

    def add(self, bundle: Bundle) -> None:
        folder = self.config.repository
        data = sign_targets(
            with_bundle(read_current(folder).targets, bundle, at(self.time)),
            read_key(key_file(folder, "targets")),
        )
        publish(folder, data, {measure(bundle.path)[1]: bundle.path}, at(self.time))

    def revoke(self, label: str) -> None:
        self.change(with_revoked(read_current(self.config.repository).targets, label, at(self.time)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.keeper.close()


# --- renewing, warning ---


def test_the_timestamp_is_signed_anew_each_day_and_the_snapshot_each_ten(server: Server) -> None:
    server.look()
    assert server.versions()["timestamp"] == 1
    for _ in range(24):
        server.look(3600.0)
    assert server.versions()["timestamp"] == 2
    server.look(10 * DAY)
    assert (server.versions()["timestamp"], server.versions()["snapshot"]) == (3, 2)


def test_a_failure_is_said_and_tried_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    online = key_file(server.config.repository, "online")
    kept = online.read_bytes()
    online.unlink()
    server.look(2 * DAY)
    assert "could not be renewed" in caplog.text
    online.write_bytes(kept)
    online.chmod(0o600)
    server.look(3600.0)
    assert server.versions()["timestamp"] == 2


@pytest.mark.parametrize(
    ("role", "life"), [("root", 365), ("targets", 365), ("snapshot", 30), ("timestamp", 14)]
)
def test_an_alarm_is_raised_when_a_third_of_any_roles_life_remains(
    server: Server, role: str, life: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = life * DAY / 3
    if life < 365:
        monkeypatch.setattr(keeper, "renew", lambda *_: False)  # as if the online key was gone
    server.look(life * DAY - third - 60)
    assert not any(line.startswith(role) for line in server.problems())
    server.look(120)
    line = f"{role} expires on {at(NOW + life * DAY):%Y-%m-%d}: less than a third of its life is left"
    assert line in server.problems()
    assert line in caplog.text
    caplog.clear()
    server.look(60)
    assert line not in caplog.text
    server.look(DAY)
    assert line in caplog.text


def test_the_api_tells_every_alarm(web: TestClient, context: Context) -> None:
    fact = {"expiry": ["of the repository, read anew"], "problems": ["pi5: something"], "advanced": None}
    with context.store.write() as connection:
        put_fact(connection, keeper.FACT, fact)
        assert all_problems(connection) == ["of the repository, read anew", "pi5: something"]
    for path in ("/api/v1/status", "/api/v1/repo"):
        found = web.get(path).json()
        assert (found.get("repository") or found)["problems"] == ["pi5: something"]


def test_boards_whose_metadata_or_certificate_ends_soon_are_named(server: Server) -> None:
    server.enroll("fresh", metadata_expires={"timestamp": NOW + 13 * DAY, "root": NOW + 300 * DAY})
    server.enroll("stale", metadata_expires={"timestamp": NOW + 4 * DAY, "root": NOW + 300 * DAY})
    server.enroll("older", metadata_expires={"timestamp": NOW + 3 * DAY})
    certificates = {"fresh": NOW + 100 * DAY, "stale": NOW + 59 * DAY}
    with server.context.store.write() as connection:
        for name, expires in certificates.items():
            wanted = sa.update(db.devices).where(db.devices.c.name == name)
            connection.execute(wanted.values(certificate_expires=expires))
    server.look()
    certificate, timestamp = server.problems()
    assert certificate.startswith(f"stale: certificate ends on {at(NOW + 59 * DAY):%Y-%m-%d} or later")
    assert timestamp.startswith(f"older, stale: timestamp ends on {at(NOW + 3 * DAY):%Y-%m-%d} or later")


# --- a server that is older than its boards ---


def test_what_boards_have_seen_is_gone_past_with_the_online_key(server: Server, tmp_path: Path) -> None:
    board = BoardClient(server.config.repository, tmp_path / "cache")
    board.now = at(NOW)
    server.enroll("a")
    server.enroll("b")
    server.saw("a", timestamp=41, snapshot=7, targets=1, root=1, measure=1)
    server.saw("b", timestamp=40, snapshot=9)
    server.look()
    assert server.versions() == {"root": 1, "timestamp": 42, "snapshot": 10, "targets": 1, "measure": 1}
    assert server.problems() == []
    assert board.versions()["timestamp"] == 42
    server.look(10)
    assert server.versions()["timestamp"] == 42
    assert server.fact()["advanced"]["times"] == 1


@pytest.mark.parametrize("claim", [MAX_STEPS + 1, 2**31 - 1, 2**53])
def test_a_board_that_lies_pushes_no_version_out_of_range(server: Server, claim: int) -> None:
    server.enroll("liar")
    server.enroll("honest")
    server.saw("liar", timestamp=claim, snapshot=1)
    server.saw("honest", timestamp=30, snapshot=1)
    server.look()
    assert server.versions()["timestamp"] == 31
    (line,) = server.problems()
    assert line.startswith(f"liar: says it has seen timestamp {claim}, 1 is in force")
    for words in (f"--past timestamp={claim}", "edgekit repo rotate"):
        assert words in line


def test_all_boards_together_are_believed_so_many_versions_a_day(server: Server) -> None:
    server.enroll("liar")
    for _ in range(5):
        server.saw("liar", timestamp=server.versions()["timestamp"] + MAX_STEPS // 2 - 1)
        server.look(10)
    assert server.versions()["timestamp"] == 1 + MAX_STEPS
    assert len(server.problems()) == 1
    server.look(DAY)
    assert server.versions()["timestamp"] > 1 + MAX_STEPS
    assert server.problems() == []


def test_a_board_that_was_revoked_has_no_say(server: Server) -> None:
    server.enroll("thief")
    server.saw("thief", timestamp=41, targets=9)
    with server.context.store.write() as connection:
        connection.execute(sa.update(db.devices).values(revoked_at=NOW))
    server.look()
    assert server.versions()["timestamp"] == 1
    assert server.problems() == []


def test_for_what_the_server_has_no_key_it_says_what_to_do(server: Server) -> None:
    server.enroll("pi5")
    server.saw("pi5", timestamp=1, targets=12, measure=5, root=3)
    server.look()
    targets, measuring, root = server.problems()
    folder = server.config.repository
    assert f"edgekit repo refresh {folder} --past targets=12 --key targets.pem" in targets
    assert f"edgekit repo refresh {folder} --past measure=5 --key measure.pem" in measuring
    assert f"edgekit repo sign {folder} 3.root.json" in root
    assert server.versions()["targets"] == 1


# --- what was revoked ---


def shots(server: Server) -> list[tuple[str, str, str]]:
    with server.context.store.read() as connection:
        rows = connection.execute(
            sa.select(db.devices.c.name, db.commands.c.action, db.jobs.c.target)
            .join(db.commands, db.commands.c.device == db.devices.c.id)
            .join(db.jobs, db.jobs.c.id == db.commands.c.job)
            .order_by(db.commands.c.n, db.devices.c.name)
        )
        return [(row.name, row.action, row.target) for row in rows]


def test_boards_that_may_run_what_was_revoked_are_told_to_look_once(
    server: Server, make_bundle: MakeBundle
) -> None:
    for version in (1, 2):
        server.add(make_bundle(version=version))
    server.enroll("runs", slots=["toy/2", "toy/1"])
    server.enroll("other", slots=["toy/1"])
    server.enroll("environment", environment="toy/2")  # of its agent
    server.enroll("silent")
    with server.context.store.write() as connection:
        connection.execute(sa.update(db.devices).where(db.devices.c.name == "silent").values(info=None))
    server.look()
    assert shots(server) == []
    server.revoke("toy/2")
    server.keeper.look(server.ticks)  # at once: it sees that something was published
    told = [("environment", "refresh", "toy/2"), ("runs", "refresh", "toy/2"), ("silent", "refresh", "toy/2")]
    assert sorted(shots(server)) == told
    server.look(10)
    Keeper(server.config, lambda: server.time).look()
    assert sorted(shots(server)) == told


def test_a_board_that_is_told_to_look_may_measure_all_the_same(server: Server) -> None:
    server.enroll("pi5", slots=["toy/1"])
    with server.context.store.write() as connection:
        assert jobs.create_refresh(connection, "toy/1", NOW) == 1
        (device,) = jobs.known_devices(connection)
        jobs._refuse_second(connection, device)


# --- the whole of it, as processes ---


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[FleetConfig, Broker, list[FleetServer]]]:
    broker = Broker(tmp_path / "broker")
    config = write_config(tmp_path, broker.port)
    servers = [FleetServer(config)]
    try:
        yield config, broker, servers
    finally:
        servers[-1].end()
        broker.stop()


def test_boards_go_on_after_their_server_was_restored_from_an_old_backup(
    running: tuple[FleetConfig, Broker, list[FleetServer]], make_bundle: MakeBundle, tmp_path: Path
) -> None:
    config, broker, servers = running
    first = Client(servers[0].url, servers[0].token)
    enrolled = first.enroll("pi5", "host")
    now = datetime.now(timezone.utc)
    bundle = make_bundle()
    key = read_key(key_file(config.repository, "targets"))
    data = sign_targets(with_bundle(read_current(config.repository).targets, bundle, now), key)
    publish(config.repository, data, {measure(bundle.path)[1]: bundle.path}, now)
    servers[0].end()
    for part in ("repository", "server"):
        shutil.copytree(tmp_path / part, tmp_path / "backup" / part)
    for day in range(1, 6):  # what happens until the disk dies
        renew(config.repository, now + timedelta(days=2 * day))
    metadata = BoardClient(config.repository, tmp_path / "cache")
    metadata.now = now
    seen = metadata.versions()
    for part in ("repository", "server"):
        shutil.rmtree(tmp_path / part)
        shutil.copytree(tmp_path / "backup" / part, tmp_path / part)
    servers.append(FleetServer(config))
    board = FakeBoard(broker.port, "pi5", enrolled["mqtt_password"], enrolled["control_key"])
    board.info = {"metadata": seen}
    board.start()
    try:
        board.report(rev=17)
        until(
            lambda: read_current(config.repository).timestamp.signed.version > seen["timestamp"],
            "newer versions",
        )
        assert metadata.versions()["timestamp"] > seen["timestamp"]
        client = Client(servers[1].url, servers[1].token)
        until(lambda: client.device("pi5")["reported"]["rev"] == 17, "the board's report")
        client.create_job("toy/1", "all")
        until(lambda: board.desired, "the desired state")
        assert board.desired[-1].rev == 18
        assert client.status()["repository"]["problems"] == []
        new = with_revoked(read_current(config.repository).targets, "toy/1", datetime.now(timezone.utc))
        client.publish(sign_targets(new, key))
        until(lambda: [shot.action for shot in board.shots] == ["refresh"], "the word to look")
        assert board.shots[0].target == "toy/1"
    finally:
        board.close()
    assert "boards had seen newer versions: timestamp" in servers[1].log.read_text()


def test_a_board_raises_alarms_for_real_roles_alone() -> None:
    odd = {f"role-{number}\x1b[2J": 0.0 for number in range(1000)}
    (line,) = board_alarms([Board("pi5", {}, {"targets": 0.0, **odd})], 1.8e9)
    assert line.startswith("pi5: targets ends on 1970-01-01")


def test_a_defect_in_looking_at_the_repository_does_not_end_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Keeper) -> None:
        raise RecursionError("what a board said")

    monkeypatch.setattr(Keeper, "_check", broken)
    server.look(3600.0)
    assert "met a defect" in caplog.text
