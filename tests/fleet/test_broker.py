"""Mosquitto itself, with the files we write: who gets in, and what reaches whom."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Mosquitto, free_port, until
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from servers import Broker, write_config

from edgekit.fleet.broker import Reminder, password_hash, reload_broker, write_acl, write_conf, write_passwd
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import prepare

SERVER = "edgekit-server"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    write_passwd(folder, {name: password_hash(name) for name in (SERVER, "demo/a", "demo/b")})
    write_acl(folder, "demo", [SERVER])
    broker = Broker(folder)
    yield broker
    broker.stop()


class Served(Mosquitto):
    """The broker as the fleet server's help says: nothing but the file that the server wrote."""

    def __init__(self, config: FleetConfig) -> None:
        self.port, self._config = config.broker.port, config.broker.files_dir / "mosquitto.conf"
        self.start()


class Talker:
    """A connection and what it hears."""

    def __init__(
        self,
        broker: Mosquitto,
        user: str,
        password: str | None = None,
        *topics: str,
        client_id: str | None = None,
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.answers: list[str] = []
        self.client = Client(
            CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, client_id=client_id or user
        )
        self.client.username_pw_set(user, password if password is not None else user)
        self.client.on_message = lambda _c, _d, message: self.heard.append((message.topic, message.payload))
        self.client.on_connect = lambda _c, _d, _f, reason, _p: self.answers.append(str(reason))
        self.ended = False
        self.client.on_disconnect = lambda *_: setattr(self, "ended", True)
        self.subscribed = False
        self.client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        until(lambda: self.answers, "the broker's answer")
        if topics and self.answers == ["Success"]:
            self.client.subscribe([(topic, 1) for topic in topics])
            until(lambda: self.subscribed, "the subscription")

    def say(self, topic: str, payload: str) -> None:
        self.client.publish(topic, payload, 1).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_a_password_of_ours_lets_in_and_a_wrong_one_does_not(broker: Broker) -> None:
    good, bad = Talker(broker, "demo/a"), Talker(broker, "demo/b", "demo/a")
    assert good.answers == ["Success"]
    assert bad.answers[0] == "Not authorized"
    good.close()
    bad.close()


def test_a_board_speaks_and_hears_on_its_own_topics_alone(broker: Broker) -> None:
    base = "edgekit/v1/demo"
    server = Talker(
        broker, SERVER, None, *(f"{base}/+/{kind}" for kind in ("status", "telemetry", "job/event"))
    )
    a = Talker(broker, "demo/a", None, "#", f"{base}/a/desired", f"{base}/b/desired", f"{base}/+/desired")
    b = Talker(broker, "demo/b", None, f"{base}/b/desired")
    a.say(f"{base}/b/telemetry", "forged")
    a.say(f"{base}/b/desired", "forged")
    a.say(f"{base}/a/desired", "forged")
    server.say(f"{base}/b/desired", "for b")
    server.say(f"{base}/a/desired", "for a")
    a.say(f"{base}/a/telemetry", "mine")
    a.say(f"{base}/a/job/event", "mine too")
    until(lambda: len(server.heard) == 2 and b.heard and a.heard, "delivery")
    assert server.heard == [(f"{base}/a/telemetry", b"mine"), (f"{base}/a/job/event", b"mine too")]
    assert set(a.heard) == {(f"{base}/a/desired", b"for a")}
    assert b.heard == [(f"{base}/b/desired", b"for b")]
    for talker in (server, a, b):
        talker.close()


def test_inputs_reach_their_board_alone_and_answers_come_back(broker: Broker) -> None:
    base = "edgekit/v1/demo"
    server = Talker(broker, SERVER, None, f"{base}/+/answer")
    a = Talker(broker, "demo/a", None, f"{base}/a/input", f"{base}/b/input", f"{base}/b/answer")
    b = Talker(broker, "demo/b", None, f"{base}/b/input")
    a.say(f"{base}/b/input", "forged")
    a.say(f"{base}/a/input", "forged")
    a.say(f"{base}/b/answer", "forged")
    server.say(f"{base}/b/input", "for b")
    server.say(f"{base}/a/input", "for a")
    b.say(f"{base}/b/answer", "of b")
    a.say(f"{base}/a/answer", "of a")
    until(lambda: len(server.heard) == 2 and a.heard and b.heard, "delivery")
    assert server.heard == [(f"{base}/b/answer", b"of b"), (f"{base}/a/answer", b"of a")]
    assert (a.heard, b.heard) == ([(f"{base}/a/input", b"for a")], [(f"{base}/b/input", b"for b")])
    for talker in (server, a, b):
        talker.close()


def test_a_board_added_later_gets_in_after_a_reload(broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    write_passwd(folder, {name: password_hash(name) for name in (SERVER, "demo/late")})
    assert reload_broker(folder / "pid")

    def let_in() -> bool:
        talker = Talker(broker, "demo/late")
        talker.close()
        return talker.answers[0] == "Success"

    until(let_in, "the reload")


def test_the_conf_that_the_server_writes_is_all_its_own_user_needs_to_start_mosquitto(tmp_path: Path) -> None:
    config = write_config(tmp_path, free_port())
    prepare(config)
    broker = Served(config)
    try:
        good = Talker(broker, SERVER, config.broker.password_file.read_text().strip())
        bad = Talker(broker, SERVER, "wrong")
        assert good.answers == ["Success"]
        assert bad.answers[0] == "Not authorized"
        assert reload_broker(config.broker.pid_file)
        good.close()
        bad.close()
    finally:
        broker.stop()


def test_a_board_cannot_take_anothers_session_by_its_client_id(broker: Broker) -> None:
    a = Talker(broker, "demo/a")
    b = Talker(broker, "demo/b", client_id="demo/a")
    b.say("edgekit/v1/demo/b/status", "here")
    assert not a.ended
    second = Talker(broker, "demo/a", client_id="another")
    until(lambda: a.ended, "the end of its older connection: a user is one session")
    for talker in (a, b, second):
        talker.close()


def test_mosquitto_stays_root_only_where_the_server_is(tmp_path: Path) -> None:
    for as_root in (True, False):
        write_conf(tmp_path, "127.0.0.1", 1883, None, as_root=as_root)
        text = (tmp_path / "mosquitto.conf").read_text()
        assert ("user root\n" in text) == as_root
        assert "pid_file" not in text


def test_nobody_but_a_mosquitto_is_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for content in (str(other.pid), "0", "-1", "many", "", "999999999"):
            (tmp_path / "pid").write_text(content)
            assert not reload_broker(tmp_path / "pid")
        assert not reload_broker(tmp_path / "missing")
        assert not reload_broker(None)
        time.sleep(0)
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


def test_the_files_are_not_for_everybody(tmp_path: Path) -> None:
    write_passwd(tmp_path, {"demo/a": password_hash("x")})
    write_acl(tmp_path, "demo", [SERVER])
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("passwd", "acl")} == {0o640}
    assert "$7$101$" in (tmp_path / "passwd").read_text()


def test_mosquitto_is_told_again_after_a_change_since_it_forgets_a_signal_during_a_reload(
    tmp_path: Path,
) -> None:
    told: list[float] = []
    now = 0.0
    passwd = tmp_path / "passwd"
    write_passwd(tmp_path, {"demo/a": "1"})
    reminder = Reminder(passwd, lambda: told.append(now))

    def look(*times: float) -> None:
        nonlocal now
        for now in times:
            reminder.look(now)

    look(0.0, 5.0)
    assert told == []  # what was there at the start was told then
    write_passwd(tmp_path, {"demo/a": "2"})
    look(6.0, 6.5)
    write_passwd(tmp_path, {"demo/a": "3"})  # another change: the time runs anew
    look(6.6, 7.2)
    assert told == []
    look(7.7, 8.0, 20.0)
    assert told == [7.7]
    passwd.unlink()
    write_passwd(tmp_path, {"demo/a": "4"})
    look(21.0, 22.5)
    assert told == [7.7, 22.5]
