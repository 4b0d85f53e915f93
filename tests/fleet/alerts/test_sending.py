"""Messages through apprise to real receivers: a webhook, an SMTP sink, a broker; and through the API."""

from __future__ import annotations

import json
import logging
import shutil
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from agents import Mosquitto, until
from fleet.alerts.conftest import Ward
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from servers import NOW
from starlette.testclient import TestClient

from edgekit.fleet.alerts.sending import Sender, deliver, receivers_of, shown_address
from edgekit.fleet.alerts.task import Alerts
from edgekit.fleet.api import Context
from edgekit.fleet.store import Store, put_fact

V1 = "/api/v1"


class Hook:
    """A webhook that keeps what it is posted. codes: its answers in turn, the last one for ever."""

    def __init__(self, *codes: int) -> None:
        self.bodies: list[dict[str, Any]] = []
        answers = list(codes or (200,))
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = answers.pop(0) if len(answers) > 1 else answers[0]
                if code == 200:
                    hook.bodies.append(json.loads(body))
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


class _Smtp(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as a client needs to leave one message."""

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        for line in self.rfile:
            word = line[:4].upper().strip()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b""
                for part in self.rfile:
                    if part == b".\r\n":
                        break
                    text += part
                self.server.mails.append(text.decode())  # type: ignore[attr-defined]
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 good\r\n")
            if word == b"QUIT":
                return


def test_a_webhook_gets_title_and_body(hook: Hook) -> None:
    assert deliver(f"json://127.0.0.1:{hook.port}/x", "critical", "gone", "two boards", 5.0) is None
    (body,) = hook.bodies
    assert (body["title"], body["message"], body["type"]) == ("gone", "two boards", "failure")


def test_an_smtp_server_gets_a_mail() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        server.mails = []  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        port = server.server_address[1]
        url = f"mailto://localhost:{port}?from=fleet@example.org&to=eva@example.org&smtp=127.0.0.1&mode=insecure"
        assert deliver(url, "warning", "[warning] slow", "p99 is high", 5.0) is None
        server.shutdown()
        (mail,) = server.mails  # type: ignore[attr-defined]
    assert "slow" in mail
    assert "eva@example.org" in mail


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs mosquitto")
def test_a_broker_gets_a_message(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    try:
        heard: list[bytes] = []
        ready = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2)
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = lambda _c, _d, message: heard.append(message.payload)
        client.connect("127.0.0.1", broker.port)
        client.subscribe("alerts/demo")
        client.loop_start()
        assert ready.wait(10)
        url = f"mqtt://127.0.0.1:{broker.port}/alerts/demo"
        assert deliver(url, "info", "gone", "b0000", 5.0) is None
        until(lambda: bool(heard), "the message")
        client.disconnect()
        client.loop_stop()
    finally:
        broker.stop()
    assert b"b0000" in heard[0]


def test_a_failure_says_its_code_and_no_secret() -> None:
    class Kept(logging.Handler):
        lines: ClassVar[list[str]] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(record.getMessage())

    root, kept, hook = logging.getLogger(), Kept(), Hook(503)
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.INFO)
    try:
        why = deliver(f"json://user:secret-word@127.0.0.1:{hook.port}/secret-path", "info", "a", "b", 5.0)
    finally:
        root.removeHandler(kept)
        root.setLevel(level)
        hook.close()
    assert why == "did not take it (HTTP 503)"
    assert "secret" not in "".join(kept.lines)


def test_a_wrong_address_is_a_failure_and_not_an_error() -> None:
    assert "does not know" in (deliver("nonsense://x", "info", "a", "b", 1.0) or "")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("json://me:pass@example.org:99/path", "json://example.org:99 (address 3)"),
        ("tgram://123:TOKEN/chat", "tgram (address 3)"),
        ("mailtos://me:pass@example.org?to=x", "mailtos://example.org (address 3)"),
        ("json://[::", "json (address 3)"),
        ("<x>://y", "address (address 3)"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_address(url, 3) == shown


def test_a_receiver_that_hangs_keeps_no_other_waiting_and_no_evaluation(ward: Ward) -> None:
    heard: list[str] = []
    release, hangs = threading.Event(), threading.Event()

    def give(url: str, *_: Any) -> str | None:
        if "hangs" in url:
            hangs.set()
            release.wait(30)
        heard.append(url)
        return None

    ward.enroll(1)
    ward.rules(
        '[rules.gone]\nkind = "offline"\nfor = "0s"\n',
        send='urls = ["json://hangs", "json://good"]\nwait = "0s"\n',
    )
    sender = Sender(ward.store, lambda: ward.now, give)
    ward.alerts._sender = sender
    ward.presence(online=False)
    ward.alerts.step()
    until(lambda: heard == ["json://good"] and hangs.is_set(), "the other receiver")
    ward.presence(online=True, last_seen=ward.now + 500)
    ward.now += 500
    ward.alerts.step()
    ward.now += 100
    ward.alerts.step()
    until(lambda: heard == ["json://good"] * 2, "the next message")
    assert ward.page()["counts"]["resolved"] == 1
    release.set()
    until(lambda: heard.count("json://hangs") == 2, "what waited")
    sender.close()


def test_threads_end_with_their_receiver(store: Store) -> None:
    sender = Sender(store, time.time, lambda *_: None)
    sender.serve(receivers_of(store, ["json://a", "json://b"]), 1.0)
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("alerts-")}
    assert len(names) == 2
    sender.close()
    assert not any(thread.name in names for thread in threading.enumerate())


def test_the_api_lists_alerts_rules_and_messages_and_sends_a_test(
    context: Context, web: TestClient, tmp_path: Path, hook: Hook
) -> None:
    assert web.post(f"{V1}/alerts/test").status_code == 400
    (tmp_path / "alerts.toml").write_text(
        f'[send]\nurls = ["json://u:secret-word@127.0.0.1:{hook.port}"]\n[rules.broker]\nkind = "ingest"\nfor = "0s"\n'
    )
    alerts = Alerts(context.store, "demo", tmp_path / "alerts.toml", context.config.repository, context.clock)
    with context.store.write() as connection:
        put_fact(connection, "ingest", {"connected": False, "why": "refused", "since": NOW})
    alerts.step()
    page = web.get(f"{V1}/alerts", params={"state": "open"}).json()
    assert [(row["rule"], row["state"]) for row in page["alerts"]] == [("broker", "firing")]
    rules = web.get(f"{V1}/alerts/rules")
    assert "secret-word" not in rules.text
    assert [row["name"] for row in rules.json()["rules"]] == ["broker"]
    made = web.post(f"{V1}/alerts/test")
    assert made.status_code == 201
    batch = made.json()["batch"]
    alerts.step()

    def sent() -> bool:
        (row,) = web.get(f"{V1}/alerts/messages", params={"batch": batch}).json()["messages"]
        return row["sent"] is not None

    until(sent, "the test message")
    alerts.close()
    assert "[info] demo: test" in [body["title"] for body in hook.bodies]
    for query in ("state=never", "limit=0", "limit=2000", "offset=-1"):
        assert web.get(f"{V1}/alerts?{query}").status_code == 400


def test_the_api_makes_and_ends_silences(web: TestClient) -> None:
    good = {"rule": None, "to": "tag=site-a", "for_s": 60.0, "why": "moving"}
    made = web.post(f"{V1}/silences", json=good)
    assert made.status_code == 201, made.text
    (row,) = web.get(f"{V1}/silences").json()["silences"]
    assert (row["selector"], row["why"]) == ("tag=site-a", "moving")
    for code in (200, 404):
        assert web.request("DELETE", f"{V1}/silences/{row['id']}", json={}).status_code == code
    for change in (
        {"to": "nonsense"},
        {"for_s": 0},
        {"why": ""},
        {"why": "  "},
        {"rule": "a b"},
        {"for_s": 1e9},
    ):
        assert web.post(f"{V1}/silences", json=good | change).status_code == 400, change
