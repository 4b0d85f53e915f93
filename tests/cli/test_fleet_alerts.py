"""`edgekit fleet alerts` against a real server whose background process evaluates the rules."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from agents import until
from servers import FleetServer, write_config

from edgekit.cli.main import run
from edgekit.core.schemas import OUTPUTS
from edgekit.fleet.config import read_config

jsonschema = pytest.importorskip("jsonschema")
RULES = '[rules.no-ingest]\nkind = "ingest"\nfor = "0s"\n'

Verb = Callable[..., Any]


class Handler(BaseHTTPRequestHandler):
    """Takes what comes."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hook() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}/secret"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hook: str) -> Iterator[FleetServer]:
    """Its broker's port answers nobody: that is what there is to be told of."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "alerts.toml").write_text(f'[send]\nurls = ["{hook}", "json://127.0.0.1:9/x"]\n{RULES}')
    write_config(folder, 1)
    with (folder / "fleet.toml").open("a") as file:
        file.write('[alerts]\nrules = "alerts.toml"\n')
    server = FleetServer(read_config(folder / "fleet.toml"))
    yield server
    server.end()


@pytest.fixture
def text(server: FleetServer, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb as a person does: what it printed, or the error's one line with `code`."""

    def call(*words: str, code: int = 0) -> str:
        where = ("--server", server.url, "--token-file", str(server.config.token_file))
        capsys.readouterr()
        assert run(["fleet", "alerts", *words, *(() if words[0] == "check" else where)]) == code
        out, err = capsys.readouterr()
        if code >= 2:
            assert (out, err.count("\n")) == ("", 1)
            return err
        return out

    return call


@pytest.fixture
def alerts(text: Verb) -> Verb:
    """The same with --json, checked against its schema."""

    def call(*words: str, code: int = 0) -> Any:
        found = json.loads(text(*words, "--json", code=code))
        jsonschema.validate(found, OUTPUTS[f"fleet alerts {words[0]}"])
        return found

    return call


def test_an_alert_is_listed_silenced_and_heard_again(alerts: Verb, text: Verb) -> None:
    until(lambda: alerts("list", "--state", "firing")["total"] == 1, "the alert", 60)
    found = alerts("list")
    assert [row["rule"] for row in found["alerts"]] == ["no-ingest"]
    assert [rule["name"] for rule in found["rules"]] == ["no-ingest"]
    assert "no-ingest" in text("list")
    assert "no alert open" in text("list", "--rule", "another")
    assert alerts("list", "--state", "resolved")["total"] == 0

    made = alerts("silence", "--rule", "no-ingest", "--for", "2h", "--why", "we move")["silence"]
    assert alerts("list")["silences"][0]["why"] == "we move"
    shown = text("list")
    assert "silenced" in shown
    assert "we move" in shown
    assert alerts("unsilence", str(made["id"])) == {"v": 1, "id": made["id"]}
    assert alerts("list")["silences"] == []
    assert "silence" in text("unsilence", str(made["id"]), code=2)
    number = text("silence", "--for", "30m", "--why", "lunch").split()[1]
    assert "is taken back" in text("unsilence", number)


def test_a_test_message_says_who_took_it_and_ends_with_1_where_somebody_did_not(
    alerts: Verb, hook: str
) -> None:
    until(lambda: alerts("list")["rules"], "the rules are in force", 60)
    found = alerts("test", "--wait", "60", code=1)
    port = hook.rpartition("/")[0].rpartition(":")[2]
    assert {f":{port} " in row["to"]: row["sent"] is not None for row in found["messages"]} == {
        True: True,
        False: False,
    }
    assert "secret" not in json.dumps(found), "addresses are secret"


def test_rules_are_checked_without_a_server(alerts: Verb, text: Verb, tmp_path: Path) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text(text("check"))
    assert "good" in text("check", str(file))
    assert len(alerts("check", str(file))["rules"]) > 5
    file.write_text('[rules.hot]\nkind = "weather"\n')
    assert "rules.hot.kind" in text("check", str(file), code=2)
    assert "nothing.toml" in text("check", str(tmp_path / "nothing.toml"), code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("silence", "--for", "soon", "--why", "x"), "--for must be a duration"),
        (("silence", "--for", "2h", "--why", "x", "--to", "nowhere"), "must be"),
        (("silence", "--for", "2h", "--why", "x", "--rule", "no such rule!"), "rule"),
        (("unsilence", "999"), "999"),
    ],
    ids=["duration", "selector", "rule", "number"],
)
def test_what_is_wrong_is_one_line_and_2(words: tuple[str, ...], said: str, text: Verb) -> None:
    assert said in text(*words, code=2)
