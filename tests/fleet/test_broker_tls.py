"""Mosquitto with TLS, certificates and ACL as the server writes them: who gets in, and what is delivered to whom."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from agents import Mosquitto, free_port, until
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from servers import FLEET, write_config

from edgekit.agent.identity import key_pem, new_key, request
from edgekit.fleet.broker import REVOKED, reload_broker
from edgekit.fleet.certificates import (
    BOARD_LIFE,
    Authority,
    for_boards,
    issue,
    keep_authorities,
    read_authorities,
    revoked_in,
)
from edgekit.fleet.config import FleetConfig, read_secret
from edgekit.fleet.enroll import enroll, new_certificate, prepare, revoke, write_broker_files
from edgekit.fleet.store import Store, open_store
from edgekit.fleet.tls import keep_certificates

BASE = f"edgekit/v1/{FLEET}"
SERVER = "edgekit-server"
KINDS = ("status", "info", "reported", "job/event", "telemetry", "event", "answer")
TO_BOARD = ("desired", "job", "ack", "input")


class Served(Mosquitto):
    """The broker on the conf that the server wrote."""

    def __init__(self, config: FleetConfig) -> None:
        self.port, self._config = config.broker.port, config.broker.files_dir / "mosquitto.conf"
        self.start()


@dataclass
class Member:
    """What one client shows: a certificate with its key, a user name, a password."""

    user: str
    password: str
    pair: Path | None


class Talker:
    """A connection and what it hears; `let_in` is False where broker or TLS refuse it."""

    def __init__(
        self,
        fleet: Fleet,
        member: Member,
        *topics: str,
        client_id: str | None = None,
        will: str | None = None,
        trusts: Path | None = None,
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.answers: list[str] = []
        self.ended = self.subscribed = False
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or member.user,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        context = ssl.create_default_context(cafile=str(trusts or fleet.config.ca_file))
        if member.pair is not None:
            context.load_cert_chain(member.pair)
        self.client.tls_set_context(context)
        self.client.username_pw_set(member.user, member.password)
        self.client.on_message = lambda _c, _d, message: self.heard.append((message.topic, message.payload))
        self.client.on_connect = lambda _c, _d, _f, reason, _p: self.answers.append(str(reason))
        self.client.on_disconnect = lambda *_: setattr(self, "ended", True)
        self.client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        if will is not None:
            self.client.will_set(will, "will", 1, retain=True)
        try:
            self.client.connect("127.0.0.1", fleet.config.broker.port)
        except ssl.SSLError as err:
            self.answers.append(str(err))
        else:
            self.client.loop_start()
            # TLS 1.3: a refused certificate is only heard of after the handshake
            until(lambda: self.answers or self.ended, "the broker's answer")
        self.let_in = self.answers[:1] == ["Success"]
        if topics and self.let_in:
            self.client.subscribe([(topic, 1) for topic in topics])
            until(lambda: self.subscribed, "the subscription")

    def say(self, topic: str, payload: str, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, 1, retain).wait_for_publish(10)

    def die(self) -> None:
        """End without a word: the broker sends the will."""
        self.client._sock_close()
        self.client.loop_stop()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.client.disconnect()
        self.client.loop_stop()


@dataclass
class Fleet:
    """A prepared server with its broker, and enrolled boards."""

    config: FleetConfig
    store: Store
    folder: Path
    broker: Served | None = None
    talkers: list[Talker] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def server(self) -> Member:
        return Member(
            SERVER, read_secret(self.config.broker.password_file), self.config.tls_dir / "client.pem"
        )

    def enroll(self, name: str, *, again: bool = False) -> Member:
        key = new_key()
        issued = new_certificate(self.config, name, request(key, f"{FLEET}/{name}"))
        assert issued is not None
        with self.store.write() as connection:
            told = enroll(connection, name, None, [], time.time(), again=again, certificate=issued)
        write_broker_files(self.config, self.store)
        pair = self.write_pair(f"{name}-{issued.serial}", key_pem(key), issued.pem)
        self.members[name] = Member(f"{FLEET}/{name}", told.mqtt_password, pair)
        return self.members[name]

    def write_pair(self, name: str, key: bytes, certificate: str) -> Path:
        path = self.folder / f"{name}.pair"
        path.write_bytes(key + certificate.encode())
        return path

    def revoke(self, name: str) -> None:
        with self.store.write() as connection:
            revoke(connection, name, time.time())
        assert write_broker_files(self.config, self.store)

    def talk(self, member: Member, *topics: str, **options: Any) -> Talker:
        talker = Talker(self, member, *topics, **options)
        self.talkers.append(talker)
        return talker

    def certificate_of(self, authority: Authority, address: str, now: datetime) -> Path:
        """A pair for any name by any authority."""
        key = new_key()
        return self.write_pair(
            f"made-{len(self.talkers)}-{now.timestamp()}",
            key_pem(key),
            issue([authority], request(key, address), address, now).pem,
        )


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    config = write_config(tmp_path, free_port(), tls=True)
    prepare(config)
    store = open_store(config.database_url)
    made = Fleet(config, store, tmp_path)
    made.broker = Served(config)
    for name in ("a", "b"):
        made.enroll(name)

    def let_in() -> bool:
        reload_broker(config.broker.pid_file)  # a signal during a reload is lost; `fleet serve` sends another
        return Talker(made, made.members["b"]).let_in

    until(let_in, "the broker to have read its files")
    yield made
    for talker in made.talkers:
        talker.close()
    made.broker.stop()
    store.close()


def authority(fleet: Fleet) -> Authority:
    return for_boards(read_authorities(fleet.config.tls_dir), datetime.now(timezone.utc))


def test_whatever_a_board_tries_reaches_nobody_else_and_it_hears_nobody_else(fleet: Fleet) -> None:
    a, b = fleet.members["a"], fleet.members["b"]
    everything = tuple(f"{BASE}/+/{kind}" for kind in KINDS)
    server = fleet.talk(fleet.server, *everything)
    other = fleet.talk(b, *(f"{BASE}/b/{kind}" for kind in TO_BOARD))
    wild = (
        "#",
        "+/+/+/+/+",
        f"{BASE}/#",
        f"{BASE}/+/desired",
        *(f"{BASE}/b/{kind}" for kind in (*TO_BOARD, *KINDS)),
        "$share/thieves/#",
        f"$share/thieves/{BASE}/b/desired",
        "$SYS/#",
        "$SYS/broker/clients/connected",
    )
    own = tuple(f"{BASE}/a/{kind}" for kind in TO_BOARD)
    thief = fleet.talk(a, *wild, *own, will=f"{BASE}/b/status")
    for kind in (*KINDS, *TO_BOARD):
        thief.say(f"{BASE}/b/{kind}", "forged")
        thief.say(f"{BASE}/b/{kind}", "forged and kept", retain=True)
    for topic in (
        f"{BASE}/a/desired",
        f"{BASE}/a/ack",
        "$SYS/broker/uptime",
        "edgekit/v1/another/b/status",
        "x",
    ):
        thief.say(topic, "forged")
    for kind in TO_BOARD:
        server.say(f"{BASE}/b/{kind}", "for b")
        server.say(f"{BASE}/a/{kind}", "for a")
    for kind in KINDS:
        thief.say(f"{BASE}/a/{kind}", "mine")
    until(lambda: len(server.heard) >= 7 and len(other.heard) >= 4 and len(thief.heard) >= 4, "delivery")
    thief.die()
    other.say(f"{BASE}/b/event", "the last word")
    until(lambda: (f"{BASE}/b/event", b"the last word") in server.heard, "the last word")
    assert sorted(server.heard[:-1]) == sorted((f"{BASE}/a/{kind}", b"mine") for kind in KINDS)
    assert sorted(other.heard) == sorted((f"{BASE}/b/{kind}", b"for b") for kind in TO_BOARD)
    assert set(thief.heard) == {(f"{BASE}/a/{kind}", b"for a") for kind in TO_BOARD}
    late = fleet.talk(fleet.server, *everything)  # nothing forged was kept, nor the will
    other.say(f"{BASE}/b/event", "marker")
    until(lambda: (f"{BASE}/b/event", b"marker") in late.heard, "the marker")
    assert [heard for heard in late.heard if heard[1] != b"marker"] == []


def test_a_board_cannot_be_another_by_client_id_or_by_anothers_name(fleet: Fleet) -> None:
    a, b = fleet.members["a"], fleet.members["b"]
    first = fleet.talk(a)
    thief = fleet.talk(b, client_id=f"{FLEET}/a")
    assert thief.let_in  # under its own id, whatever it asked for
    thief.say(f"{BASE}/b/status", "here")
    assert not first.ended
    assert not fleet.talk(Member(a.user, b.password, b.pair)).let_in


@pytest.mark.parametrize(
    "shown", ["none", "another authority", "another fleet", "ended", "not a client", "self-made authority"]
)
def test_who_shows_no_good_certificate_is_not_let_in_whatever_he_knows(
    fleet: Fleet, shown: str, tmp_path: Path
) -> None:
    a, now = fleet.members["a"], datetime.now(timezone.utc)
    folder = tmp_path / "other"
    folder.mkdir()
    (stranger,) = keep_authorities(folder, FLEET, now)  # of the same name
    pair = {
        "none": None,
        "another authority": fleet.certificate_of(stranger, a.user, now),
        "another fleet": fleet.certificate_of(keep_authorities(folder, "other", now)[0], "other/a", now),
        "ended": fleet.certificate_of(authority(fleet), a.user, now - BOARD_LIFE - timedelta(hours=2)),
        "not a client": fleet.config.broker.files_dir / "server.pem",
        "self-made authority": folder / "ca-1.pem",
    }[shown]
    talker = fleet.talk(Member(a.user, a.password, pair))
    assert not talker.let_in
    assert fleet.talk(a).let_in


def test_a_revoked_board_is_hung_up_on_at_once_and_neither_key_nor_password_helps(fleet: Fleet) -> None:
    a, b = fleet.members["a"], fleet.members["b"]
    board, other = fleet.talk(a), fleet.talk(b)
    fleet.revoke("a")
    until(lambda: board.ended, "the broker to hang up")
    assert not fleet.talk(a).let_in
    assert not fleet.talk(Member(b.user, b.password, a.pair)).let_in  # the certificate alone
    assert not fleet.talk(Member(a.user, a.password, b.pair)).let_in  # the password alone
    assert not other.ended
    fleet.revoke("b")  # a second list within the same second counts as well
    until(lambda: other.ended, "the broker to hang up on the second")
    again = fleet.enroll("a", again=True)
    until(lambda: fleet.talk(again).let_in, "the board to be back")
    assert not fleet.talk(Member(again.user, again.password, a.pair)).let_in
    assert not fleet.talk(Member(again.user, again.password, b.pair)).let_in


def test_the_broker_is_checked_by_its_authority_and_its_name(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    keep_authorities(folder, FLEET, datetime.now(timezone.utc))
    (folder / "ca.pem").write_bytes((folder / "ca-1.pem").read_bytes())
    talker = fleet.talk(fleet.members["a"], trusts=folder / "ca.pem")
    assert "certificate verify failed" in talker.answers[0]


def test_a_broker_of_plain_mqtt_is_not_spoken_to_on_the_encrypted_port(fleet: Fleet) -> None:
    client = Client(CallbackAPIVersion.VERSION2, client_id="x", reconnect_on_failure=False)
    client.username_pw_set(fleet.members["a"].user, fleet.members["a"].password)
    codes: list[Any] = []
    ended: list[Any] = []
    client.on_connect = lambda *given: codes.append(given)
    client.on_disconnect = lambda *given: ended.append(given)
    client.connect("127.0.0.1", fleet.config.broker.port)
    client.loop_start()
    until(lambda: ended, "the end")
    client.loop_stop()
    assert codes == []


def test_the_servers_certificates_are_renewed_and_the_broker_shows_the_new_one(fleet: Fleet) -> None:
    def shown() -> bytes | None:
        context = ssl.create_default_context(cafile=str(fleet.config.ca_file))
        context.load_cert_chain(fleet.server.pair or "")
        with contextlib.suppress(OSError):
            import socket

            with (
                socket.create_connection(("127.0.0.1", fleet.config.broker.port), 5) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
            ):
                return secured.getpeercert(binary_form=True)
        return None

    before, now = shown(), datetime.now(timezone.utc)
    assert not keep_certificates(fleet.config, fleet.store, now + timedelta(days=50))
    assert keep_certificates(fleet.config, fleet.store, now + timedelta(days=62))
    # valid from then: the machine's clock says otherwise, so only the bytes are compared
    assert (fleet.config.broker.files_dir / "server.pem").read_bytes() != before
    assert keep_certificates(fleet.config, fleet.store, now)  # a clock that was ahead is set right again
    write_broker_files(fleet.config, fleet.store)
    until(lambda: shown() not in (None, before), "the new certificate")


def test_the_list_of_the_revoked_is_written_only_when_it_changes(fleet: Fleet) -> None:
    path = fleet.config.broker.files_dir / REVOKED
    before = path.read_bytes()
    write_broker_files(fleet.config, fleet.store)
    assert path.read_bytes() == before
    fleet.revoke("a")
    assert len(revoked_in(path.read_bytes())) == len(revoked_in(before)) + 1


def test_every_ingester_comes_in_with_the_servers_certificate_and_an_account_of_its_own(fleet: Fleet) -> None:
    server = fleet.server
    others = [replace(server, user=f"{SERVER}-{number}") for number in (2, 16)]
    first, *talkers = [Talker(fleet, member) for member in (server, *others)]
    assert [talker.let_in for talker in (first, *talkers)] == [True] * 3
    assert not first.ended
    beyond = Talker(fleet, replace(server, user=f"{SERVER}-17"))
    assert not beyond.let_in
    for talker in (first, *talkers, beyond):
        talker.close()
