"""`edgekit fleet rollout` and `push --canary` against a real server; the boards are rows that answer nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agents import until
from bundles import write_null_bundle
from servers import FleetServer, write_config

from edgekit.cli.main import run
from edgekit.cli.push import publish_bundle
from edgekit.client import Client
from edgekit.core.schemas import OUTPUTS
from edgekit.fleet import schema as db
from edgekit.fleet.enroll import enroll
from edgekit.fleet.store import open_store

jsonschema = pytest.importorskip("jsonschema")
PROFILES = ("raspberrypi5", "raspberrypi4b")
BOARDS = 20

Verb = Callable[..., Any]


def key_of(server: FleetServer) -> Path:
    return server.config.data_dir.parent / "repository/keys/targets.pem"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    folder = tmp_path_factory.mktemp("fleet")
    server = FleetServer(write_config(folder, 1))
    try:
        store = open_store(server.config.database_url)
        with store.write() as connection:
            for number in range(BOARDS):
                enroll(connection, f"b{number:02}", PROFILES[number % 2], ["site-a"], time.time())
            connection.execute(sa.update(db.devices).values(runs="toy/1"))
        store.close()
        for version in (1, 2):
            bundle = write_null_bundle(folder / f"toy-{version}.edge", version=version, profiles=PROFILES)
            publish_bundle(Client(server.url, server.token), bundle, key_of(server))
        yield server
    finally:
        server.end()


@pytest.fixture
def given(server: FleetServer) -> Iterator[tuple[str, ...]]:
    """Where the server is; what is under way at the end is aborted, so that its boards are free again."""
    yield ("--server", server.url, "--token-file", str(server.config.token_file))
    client = Client(server.url, server.token)
    for row in client.rollouts():
        if row["state"] not in {"completed", "aborted", "failed", "rolled_back"}:
            client.change_rollout(row["rollout_id"], "abort")


@pytest.fixture
def rollout(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb with --json, check it against its schema, and give its object; an error's line with `code`."""

    def call(name: str, *arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert run(["fleet", "rollout", name, *arguments, *given, "--json"]) == code
        out, err = capsys.readouterr()
        if code >= 2:
            assert (out, err.count("\n")) == ("", 1)
            return err
        jsonschema.validate(json.loads(out), OUTPUTS[f"fleet rollout {name}"])
        return json.loads(out)

    return call


@pytest.fixture
def text(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb as a person does, and give what it printed."""

    def call(name: str, *arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run(["fleet", "rollout", name, *arguments, *given]) == code
        return capsys.readouterr().out

    return call


def test_a_rollout_is_tried_begun_paused_accepted_aborted_and_listed(rollout: Verb, text: Verb) -> None:
    wave = ("--canary", "2", "--wave", "50%")
    preview = rollout("start", "toy/2", "--to", "all", *wave, "--dry-run")["preview"]
    assert [row["boards"] for row in preview["waves"]] == [2, 8, 10]
    assert "toy/2" not in text("list"), "a dry run begins nothing"
    shown = text("start", "toy/2", "--to", "all", *wave, "--dry-run")
    assert "canary" in shown
    assert "nothing was started" in shown

    begun = rollout("start", "toy/2", "--to", "all", *wave)["rollout"]
    number = begun["rollout_id"]
    assert rollout("list")["rollouts"][0]["rollout_id"] == number
    assert number in text("list")
    until(lambda: rollout("show", number)["rollout"]["boards"]["asked"] == 2, "the canary was asked")
    assert "in another rollout" in rollout("start", "toy/2", "--to", "name=b00,name=b01", code=2)

    assert rollout("pause", number)["rollout"]["state"] == "paused"
    assert "cannot be paused" in rollout("pause", number, code=2)
    accepted = rollout("resume", number, "--accept")["rollout"]
    assert "accept" in accepted["audit"][0]["action"]
    until(lambda: rollout("show", number)["rollout"]["boards"]["asked"] == 10, "the next wave was asked")
    assert "aborted" in text("abort", number)
    assert "cannot be resumed" in rollout("resume", number, code=2)
    shown = text("show", number)
    assert "aborted by" in shown
    assert "canary accepted by" in shown


def test_going_back_is_possible_after_an_abort(rollout: Verb, text: Verb) -> None:
    number = rollout("start", "toy/2", "--to", "all", "--canary", "2")["rollout"]["rollout_id"]
    until(lambda: rollout("show", number)["rollout"]["boards"]["asked"] == 2, "the canary was asked")
    rollout("abort", number)
    assert "rolling back" in text("rollback", number)
    assert rollout("show", number)["rollout"]["back"]["asked"] >= 0


def test_waiting_ends_with_1_where_time_is_up_and_with_130_where_interrupted(
    rollout: Verb, given: tuple[str, ...]
) -> None:
    found = rollout("start", "toy/2", "--to", "all", "--wait", "0.1", code=1)["rollout"]
    assert found["state"] != "completed"
    code = "from edgekit.cli.main import main; main()"
    words = ["fleet", "rollout", "show", found["rollout_id"], "--watch", *given]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert "boards in 3 waves" in watching.stderr.readline(), "it says what has happened"
        watching.send_signal(signal.SIGINT)
        out, errors = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "Traceback" not in out + errors
    rollout("pause", found["rollout_id"])
    assert rollout("show", found["rollout_id"], "--watch")["rollout"]["state"] == "paused"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "nothing"), "there is no rollout 'nothing'"),
        (("abort", "nothing"), "there is no rollout"),
        (("start", "--to", "all"), "needs a bundle (NAME/VERSION)"),
        (("start", "toy/2"), "needs boards (--to all"),
        (("start", "toy/9", "--to", "all"), "is not published"),
        (("start", "toy/2", "--to", "tag=nowhere"), "means no board"),
        (("start", "toy/2", "--to", "all", "--canary", "0%"), "canary"),
        (("start", "toy/2", "--to", "all", "--canary", "50%", "--wave", "20%"), "must grow"),
        (("start", "toy/2", "--to", "all", "--window", "always"), "DAYS@FROM-UNTIL"),
        (("start", "toy/2", "--to", "all", "--time-zone", "Moon/Base"), "time_zone"),
        (("start", "toy/2", "--to", "all", "--plan", "/nonexistent/plan.toml"), "plan.toml"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_one_line_and_2(words: tuple[str, ...], said: str, rollout: Verb) -> None:
    assert said in rollout(*words, code=2)


def test_a_server_that_is_not_there_is_one_line_and_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("t\n")
    where = ("--server", "http://127.0.0.1:9", "--token-file", str(token))
    assert run(["fleet", "rollout", "list", *where]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_push_with_a_canary_publishes_and_begins_a_rollout(
    server: FleetServer, given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "toy-3.edge"
    write_null_bundle(path, version=3, profiles=PROFILES)
    push = ["push", str(path), "--key", str(key_of(server)), "--to", "all", *given]
    assert run([*push, "--canary", "never"]) == 2
    assert "--canary must be a share in percent" in capsys.readouterr().err
    assert run([*push, "--canary", "10", "--wait", "0.1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, OUTPUTS["push"])
    assert found["published"]
    assert found["rollout"]["plan"]["canary"] == "10%"
    assert [wave["boards"] for wave in found["rollout"]["waves"]] == [2, 4, 14]
    assert run([*push, "--canary", "10"]) == 2, "its boards are in the first one"
    assert "in another rollout" in capsys.readouterr().err
