"""`edgekit fleet user|token|login-link|audit` against a real server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import FleetServer, write_config

from edgekit.cli.main import run
from edgekit.core.schemas import OUTPUTS

jsonschema = pytest.importorskip("jsonschema")
PASSWORD = "correct horse battery"

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    server = FleetServer(write_config(tmp_path_factory.mktemp("fleet"), 1))
    yield server
    server.end()


@pytest.fixture
def fleet(server: FleetServer, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a verb with --json, check it against its schema, and give its object."""

    def call(name: str, *arguments: str, token: Path | None = None, code: int = 0) -> Any:
        where = ["--server", server.url, "--token-file", str(token or server.config.token_file)]
        capsys.readouterr()
        assert run(["fleet", *name.split(), *arguments, *where, "--json"]) == code
        out, err = capsys.readouterr()
        if code:
            assert err.count("\n") == 1
            return err
        jsonschema.validate(json.loads(out), OUTPUTS[f"fleet {name}"])
        return json.loads(out)

    return call


def test_users_tokens_links_and_the_log(fleet: Command, server: FleetServer, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    given = ("--password-file", str(secret))
    assert fleet("user add", "anna", "--role", "viewer", *given)["role"] == "viewer"
    assert "already" in fleet("user add", "anna", "--role", "viewer", *given, code=2)
    assert fleet("user role", "anna", "operator")["role"] == "operator"
    fleet("user password", "anna", *given)
    assert [row["name"] for row in fleet("user list")["users"]] == ["anna"]
    fleet("user remove", "anna")
    assert "no user called" in fleet("user remove", "anna", code=2)

    file = tmp_path / "ci.token"
    made = fleet("token add", "ci", "--role", "viewer", "--days", "1", "-o", str(file))
    token = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert token not in json.dumps(made)
    assert "is there already" in fleet("token add", "ci2", "--role", "viewer", "-o", str(file), code=2)
    assert fleet("status", token=file)["fleet"] == "demo"
    assert "role operator" in fleet("user list", token=file, code=2)
    assert [row["name"] for row in fleet("token list")["tokens"]] == ["ci"]
    fleet("token remove", "ci")
    assert "token is not this server's" in fleet("status", token=file, code=2)

    url = fleet("login-link", "--path", "/jobs")["url"]
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(urllib.request.Request(url, headers={"accept": "text/html"}), timeout=10) as answer:
        assert answer.url.endswith("/jobs"), "the link did not let this browser in"
    first = fleet("audit", "--limit", "2")
    assert [line["action"] for line in first["lines"]] == ["login", "login.link"]
    older = fleet("audit", "--before", str(first["next"]), "--limit", "1")
    assert older["lines"][0]["action"] == "token.remove"
    about = fleet("audit", "--subject", "user:anna")["lines"]
    assert [line["action"] for line in about] == ["user.remove", "user.password", "user.role", "user.add"]


def test_a_password_is_never_an_argument_and_is_asked_for_only_on_a_terminal(fleet: Command) -> None:
    assert "--password-file" in fleet("user add", "bob", "--role", "viewer", code=2)
