"""The line to a real broker: birth and will, the outbox's promises, lost connections, 3.1.1, passwords."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from agents import FLEET, Mosquitto, Server, make_certificate, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgekit.agent import outbox, uplink
from edgekit.agent.config import Broker
from edgekit.agent.outbox import MIN_CAP_BYTES, RECORD, Outbox
from edgekit.agent.uplink import Uplink
from edgekit.core import messages
from edgekit.core.messages import Event
from edgekit.core.record import Record

NAME = "pi5"


def record(requests: int) -> Record:
    return Record(1, 1.0, None, False, 1.0, "toy/1", "full", requests=requests)


class Line:
    """An outbox and an uplink on it."""

    def __init__(self, folder: Path, port: int, boot_id: str = "boot1", **options: Any) -> None:
        self.commands: list[Mapping[str, Any]] = []
        self.info = {"n": 1}
        self.outbox = Outbox(folder / "outbox.db", boot_id, options.pop("cap", 10**9), self._wake)
        broker = {
            "username": f"{FLEET}/{NAME}",
            "password": None,
            "tls": False,
            "ca": None,
            "protocol": "auto",
        }
        broker |= {"keepalive_s": 30, **options.pop("broker", {})}
        self.uplink = Uplink(
            Broker("127.0.0.1", port, **broker),
            f"{FLEET}/{NAME}",
            self.outbox,
            ack=options.pop("ack", "server"),
            resend_s=options.pop("resend_s", 0.3),
            current={"info": lambda: self.info},
            on_message=lambda kind, payload: self.commands.append(payload),
            jitter=lambda: 0.0,
        )
        self.links: list[Any] = []  # of which the broker has acknowledged something
        published = self.uplink._published

        def confirm(link: Any, mid: int, code: Any) -> None:
            published(link, mid, code)
            self.links.append(link)

        self.uplink._published = confirm  # type: ignore[method-assign]

    def _wake(self) -> None:
        self.uplink.wake()

    def start(self) -> Line:
        self.uplink.start()
        assert self.uplink.connected.wait(10.0)
        return self

    def fill(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.outbox.put(record(number))

    @property
    def confirmed(self) -> bool:
        """Whether everything was sent, and the broker has acknowledged all of it."""
        last = self.outbox.after("boot1", 0, 10**4)[-1].seq
        return any(not link.waiting and link.boots["boot1"].sent == last for link in self.links)

    @property
    def held(self) -> int:
        return self.outbox.counts(RECORD).held


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def server(broker: Mosquitto) -> Iterator[Server]:
    made = Server(broker.port)
    yield made
    made.close()


@pytest.fixture
def line(tmp_path: Path, broker: Mosquitto) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(boot_id: str = "boot1", **options: Any) -> Line:
        made.append(Line(tmp_path, options.pop("port", broker.port), boot_id, **options))
        return made[-1]

    yield make
    for entry in made:
        entry.uplink.finish(0.1)


def numbers(server: Server) -> list[int]:
    return sorted(int(entry["requests"]) for entry in server.records())


def test_birth_and_what_is_in_force_are_retained(
    broker: Mosquitto, server: Server, line: Callable[..., Line]
) -> None:
    line().start()
    until(lambda: server.last("status") == {"boot_id": "boot1", "online": True, "v": 1}, "the birth")
    late = Server(broker.port)
    until(lambda: late.last("status") is not None, "the retained birth")
    until(lambda: late.last("info") == {"n": 1, "v": 1}, "what is in force")
    late.close()


def test_what_is_put_arrives_and_leaves_the_outbox_only_when_acknowledged(
    server: Server, line: Callable[..., Line]
) -> None:
    server.acks = False
    made = line().start()
    made.fill(5)
    made.outbox.put(Event("?", 1, "throttle", None))
    until(lambda: numbers(server) == [0, 1, 2, 3, 4] and server.events("throttle"), "the items")
    assert made.held == 5
    server.acks = True
    until(lambda: made.held == 0, "the release")
    assert made.outbox.boots() == ()


def test_without_an_answer_everything_is_sent_again_and_nothing_is_counted_twice(
    server: Server, line: Callable[..., Line]
) -> None:
    server.acks = False
    made = line(resend_s=0.2).start()
    made.fill(3)
    until(
        lambda: len([1 for kind, p in server.heard if kind == "telemetry" and p["records"]]) >= 3,
        "three tries",
    )
    assert numbers(server) == [0, 1, 2]
    server.acks = True
    until(lambda: made.held == 0, "the release")


def test_a_broker_that_was_away_costs_nothing(
    broker: Mosquitto, server: Server, line: Callable[..., Line]
) -> None:
    made = line().start()
    made.fill(3)
    until(lambda: made.held == 0)
    broker.stop()
    until(lambda: not made.uplink.connected.is_set(), "the loss of the connection")
    made.fill(4, first=3)
    assert made.held == 4
    broker.start()
    until(lambda: numbers(server) == list(range(7)), "all records")
    until(lambda: made.held == 0)
    assert [p["online"] for k, p in server.heard if k == "status"][-1] is True


def test_a_session_taken_over_by_another_client_of_that_name_is_taken_back(
    broker: Mosquitto, server: Server, line: Callable[..., Line]
) -> None:
    made = line().start()
    until(lambda: server.last("status"), "the birth")
    thief = mqtt.Client(CallbackAPIVersion.VERSION2, f"{FLEET}/{NAME}", protocol=MQTTProtocolVersion.MQTTv5)
    thief.connect("127.0.0.1", broker.port)
    thief.loop_start()
    until(lambda: not made.uplink.connected.is_set(), "the loss of the connection")
    made.fill(3)
    thief.loop_stop()  # it says nothing more, and does not come back
    until(lambda: numbers(server) == [0, 1, 2], "all records")
    until(lambda: made.held == 0, "the release: the topics are subscribed to again")
    assert server.last("status") == {"boot_id": "boot1", "online": True, "v": 1}


def test_a_broker_that_acknowledges_and_forgets_costs_nothing(
    broker: Mosquitto, line: Callable[..., Line]
) -> None:
    """Nobody hears what the broker takes; then it dies with everything it had, the board's session and birth too."""
    made = line(resend_s=60.0).start()
    made.fill(3)
    made.outbox.put(Event("?", 1, "throttle", None))
    until(lambda: made.confirmed, "the broker's word for all of it")
    broker.stop()
    until(lambda: not made.uplink.connected.is_set(), "the loss of the connection")
    broker.start()
    server = Server(broker.port)
    until(lambda: numbers(server) == [0, 1, 2] and server.events("throttle"), "the items")
    until(lambda: made.outbox.boots() == (), "the release")
    server.close()


def test_records_are_written_when_no_answer_comes_and_when_the_line_breaks(
    tmp_path: Path,
    broker: Mosquitto,
    server: Server,
    line: Callable[..., Line],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def written() -> set[bytes]:
        data = b"".join(file.read_bytes() for file in tmp_path.glob("outbox.db*"))
        return set(re.findall(rb'"requests":\d', data))

    made = line(resend_s=60.0).start()
    made.fill(1)
    until(lambda: made.held == 0, "the first acknowledgement")
    server.acks = False
    monkeypatch.setattr(outbox, "LINGER_S", 0.3)
    made.fill(1, first=1)
    until(lambda: b'"requests":1' in written(), "the Record on disk")
    monkeypatch.setattr(outbox, "LINGER_S", 3600.0)
    made.fill(1, first=2)
    assert b'"requests":2' not in written()
    broker.stop()
    until(lambda: b'"requests":2' in written(), "the other one on disk")


def test_items_of_earlier_boots_go_first_under_their_own_numbers(
    tmp_path: Path, server: Server, line: Callable[..., Line]
) -> None:
    before = Outbox(tmp_path / "outbox.db", "boot0", 10**9)
    before.put(record(100))
    before.put(record(101))
    before.close()
    made = line("boot1")
    made.fill(1)
    made.start()
    until(lambda: made.held == 0, "the release")
    assert [(r["boot_id"], [e["seq"] for e in r["records"]]) for k, r in server.heard if k == "telemetry"][
        :2
    ] == [
        ("boot0", [1, 2]),
        ("boot1", [1]),
    ]


def test_numbers_that_the_cap_dropped_do_not_hold_up_those_behind_them(
    server: Server, line: Callable[..., Line]
) -> None:
    made = line(cap=MIN_CAP_BYTES)
    made.outbox.put(Event("?", 1, "throttle", None))
    made.fill(700)
    made.outbox.put(Event("?", 1, "throttle", None))
    kept = made.held
    assert 0 < kept < 600
    made.start()
    until(lambda: made.outbox.boots() == (), "the release of all that is held")
    assert numbers(server) == list(range(700 - kept, 700))
    assert len(server.events("throttle")) == 2


def test_more_than_a_window_arrives_in_full(server: Server, line: Callable[..., Line]) -> None:
    made = line()
    made.fill(1500)
    made.start()
    until(lambda: made.held == 0, "the release")
    assert numbers(server) == list(range(1500))


def test_an_acknowledgement_of_what_was_never_sent_releases_nothing(
    server: Server, line: Callable[..., Line]
) -> None:
    server.acks = False
    made = line(resend_s=60.0).start()
    made.fill(1)
    until(lambda: numbers(server) == [0])
    payload = messages.encode({"boot_id": "boot1", "upto": 10**9})
    server.client.publish(messages.topic(FLEET, NAME, "ack"), payload, qos=1).wait_for_publish(5.0)
    until(lambda: made.held == 0)
    made.fill(1, first=1)
    until(lambda: numbers(server) == [0, 1])
    assert made.held == 1


def test_a_server_that_comes_back_without_what_was_sent_gets_it_at_once(
    server: Server, line: Callable[..., Line]
) -> None:
    """It says how far it got, and that is not what was sent a while ago."""

    def sendings() -> int:
        return sum(1 for kind, payload in server.heard if kind == "telemetry" and payload["records"])

    server.acks = False
    made = line(resend_s=60.0).start()
    made.fill(2)
    until(lambda: numbers(server) == [0, 1])
    before = sendings()
    payload = messages.encode({"boot_id": "boot1", "upto": 0})

    def sent_again() -> bool:
        server.client.publish(messages.topic(FLEET, NAME, "ack"), payload, qos=1)
        return sendings() > before

    until(sent_again, "the second sending")
    assert numbers(server) == [0, 1]
    assert made.held == 2


def test_an_older_boot_is_sent_again_while_a_newer_one_gets_on(
    tmp_path: Path, server: Server, line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements are per boot: those of one say nothing of the other."""
    true_ack = server.ack
    monkeypatch.setattr(server, "ack", lambda device, boot: boot == "boot1" and true_ack(device, boot))
    before = Outbox(tmp_path / "outbox.db", "boot0", 10**9)
    before.put(record(100))
    before.close()
    made = line("boot1", resend_s=0.3).start()
    sent = iter(range(10**6))

    def sendings() -> int:
        made.fill(1, next(sent))
        return sum(1 for kind, p in list(server.heard) if kind == "telemetry" and p["boot_id"] == "boot0")

    until(lambda: sendings() >= 3, "three sendings of the older boot")
    monkeypatch.setattr(server, "ack", true_ack)
    until(lambda: made.held == 0, "the release")


def test_a_number_the_server_never_takes_is_sent_more_and_more_rarely(
    server: Server, line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "_AGAIN_S", 0.05)
    stuck = messages.encode({"boot_id": "boot1", "upto": 0})
    topic = messages.topic(FLEET, NAME, "ack")
    monkeypatch.setattr(server, "ack", lambda *_: server.client.publish(topic, stuck, qos=1))
    made = line(resend_s=60.0).start()
    sent = iter(range(10**6))

    def resent() -> bool:
        made.fill(1, next(sent))
        heard = [p["records"] for kind, p in list(server.heard) if kind == "telemetry"]
        return sum(records[0]["seq"] == 1 for records in heard if records) >= 6

    begun = time.monotonic()
    until(resent, "the fifth sending again")
    assert time.monotonic() - begun > 0.05 * (1 + 2 + 4 + 8 + 16)


def test_with_ack_broker_the_brokers_word_is_enough(server: Server, line: Callable[..., Line]) -> None:
    server.acks = False
    made = line(ack="broker").start()
    made.fill(20)
    made.outbox.put(Event("?", 1, "throttle", None))
    until(lambda: made.outbox.boots() == (), "the release")


def test_rubbish_from_the_broker_is_ignored_and_the_line_goes_on(
    server: Server, line: Callable[..., Line]
) -> None:
    made = line().start()
    for kind in ("ack", "desired", "job"):
        for rubbish in (b"", b"{", b"\x00" * 100, b'{"v":2}', b'{"v":1}', b"x" * 5000):
            server.client.publish(messages.topic(FLEET, NAME, kind), rubbish, qos=1).wait_for_publish(5.0)
    made.fill(1)
    until(lambda: made.held == 0)
    assert made.commands == [{"v": 1}, {"v": 1}]


def test_commands_arrive_and_are_subscribed_again_after_a_reconnect(
    broker: Mosquitto, server: Server, line: Callable[..., Line]
) -> None:
    made = line().start()
    server.desire(NAME, "toy/1", 1)
    until(lambda: len(made.commands) == 1)
    broker.stop()
    until(lambda: not made.uplink.connected.is_set())
    broker.start()
    assert made.uplink.connected.wait(10.0)
    until(server.client.is_connected)
    server.desire(NAME, "toy/2", 2)
    until(lambda: made.commands[-1]["target"] == "toy/2")


def test_what_changes_is_published_again_and_retained(server: Server, line: Callable[..., Line]) -> None:
    made = line().start()
    until(lambda: server.last("info") == {"n": 1, "v": 1})
    made.info = {"n": 2}
    made.uplink.announce("info")
    until(lambda: server.last("info") == {"n": 2, "v": 1})


def answers(server: Server) -> list[int]:
    return [int(payload["n"]) for kind, payload in list(server.heard) if kind == messages.ANSWER]


@pytest.mark.parametrize("qos", [0, 1])
def test_answers_go_out_in_order_and_the_end_waits_for_them(
    server: Server, line: Callable[..., Line], qos: int
) -> None:
    made = line().start()
    for number in range(50):
        until(lambda number=number: made.uplink.post(messages.encode({"n": number}), qos))
    assert made.uplink.finish(5.0)
    until(lambda: server.last("status") == {"boot_id": "boot1", "online": False, "v": 1})
    assert answers(server) == list(range(50))


def test_without_a_connection_no_answer_is_taken(line: Callable[..., Line]) -> None:
    made = line()
    assert not made.uplink.post(b"{}", 0)
    assert made.uplink._posted == 0


def test_only_so_many_answers_are_on_their_way_and_those_not_confirmed_go_again(
    broker: Mosquitto, server: Server, line: Callable[..., Line]
) -> None:
    made = line(broker={"keepalive_s": 5}).start()
    broker._process.send_signal(signal.SIGSTOP)
    taken = 0
    while made.uplink.post(messages.encode({"n": taken}), 1):
        taken += 1
    assert taken == uplink.POSTS
    broker.stop()
    until(lambda: not made.uplink.connected.is_set(), "the loss of the connection")
    assert made.uplink._posted == taken
    broker.start()
    until(server.client.is_connected)
    until(lambda: set(answers(server)) >= set(range(taken)) or made.uplink._posted == 0, "the answers")
    until(lambda: made.uplink._posted == 0, "the broker's word")
    assert made.uplink._posted_bytes == 0


def test_finishing_waits_for_the_acknowledgement_and_says_goodbye(
    server: Server, line: Callable[..., Line]
) -> None:
    made = line().start()
    made.fill(2)
    assert made.uplink.finish(5.0)
    until(lambda: server.last("status") == {"boot_id": "boot1", "online": False, "v": 1})
    made.uplink.join(5.0)
    assert not made.uplink.is_alive()


def test_finishing_without_a_server_ends_in_time_and_keeps_everything(
    server: Server, line: Callable[..., Line]
) -> None:
    server.acks = False
    made = line().start()
    made.fill(2)
    assert not made.uplink.finish(0.3)
    until(lambda: server.last("status") == {"boot_id": "boot1", "online": False, "v": 1})
    assert made.held == 2


def test_a_broker_that_speaks_only_3_1_1_is_spoken_to_in_it(
    tmp_path: Path, line: Callable[..., Line]
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    broker = OldBroker()
    made = line(port=broker.port).start()
    until(lambda: broker.protocols[:2] == [5, 4], "the second try")
    made.uplink.finish(0.1)
    broker.close()


def test_mqtt_3_1_1_carries_everything_too(server: Server, line: Callable[..., Line]) -> None:
    made = line(broker={"protocol": "3.1.1"}).start()
    made.fill(3)
    until(lambda: made.held == 0)
    assert numbers(server) == [0, 1, 2]


def test_a_wrong_password_is_logged_without_it_and_tried_again(
    tmp_path: Path, line: Callable[..., Line], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "passwd").write_text("")
    broker = Mosquitto(folder, folder / "passwd")
    made = line(port=broker.port, broker={"password": "wrong-sesame"})
    made.uplink.start()
    until(
        lambda: "Not authorized" in caplog.text or "Bad user name or password" in caplog.text, "the complaint"
    )
    assert "wrong-sesame" not in caplog.text
    assert f"refuses {FLEET}/{NAME}" in caplog.text
    made.uplink.finish(0.0)
    broker.stop()


def test_tls_is_verified(tmp_path: Path, line: Callable[..., Line], caplog: pytest.LogCaptureFixture) -> None:
    folder, other = tmp_path / "tls", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    broker = Mosquitto(folder, tls=True)
    make_certificate(other)
    stranger = line("boot1", port=broker.port, broker={"tls": True, "ca": other / "ca.pem"})
    stranger.uplink.start()
    until(lambda: "certificate verify failed" in caplog.text, "the refusal")
    assert not stranger.uplink.connected.is_set()
    stranger.uplink.finish(0.0)
    line("boot2", port=broker.port, broker={"tls": True, "ca": folder / "ca.pem"}).start()
    broker.stop()


class OldBroker:
    """As much of MQTT 3.1.1 as a connection needs; other versions are refused as that standard says."""

    def __init__(self) -> None:
        self.protocols: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError), link:
            packet = link.recv(4096)
            self.protocols.append(packet[packet.index(b"MQTT") + 4])
            if self.protocols[-1] != 4:
                link.sendall(b"\x20\x02\x00\x01")
                return
            link.sendall(b"\x20\x02\x00\x00")
            while link.recv(4096):
                pass

    def close(self) -> None:
        self._listener.close()
