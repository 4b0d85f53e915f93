"""The local API as a part of the agent: its config, its life and end with the daemon, what `agent check` says of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from agents import Site, free_port, until
from apis import UnixConnection, ask, question

from edgekit.agent.config import load_config
from edgekit.core.errors import BadInput

URL = "/v2/models/toy/infer"


def connection(port: int) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", port, timeout=20)


def status(port: int, path: str) -> int | None:
    """The answer's status; None where nobody listens."""
    try:
        return ask(connection(port), "GET", path)[0].status
    except OSError:
        return None


def test_an_agent_answers_locally_and_counts_it_in_its_records(site: Site) -> None:
    port = free_port()
    site.board.write(api={"listen": f"127.0.0.1:{port}"})
    site.board.start()
    assert status(port, "/v2/health/ready") == 503
    label = site.add(version=1)
    assert site.run(label, 1)["state"] == "active"
    assert status(port, "/v2/health/ready") == 200
    client = connection(port)
    for parameters in ({}, {"deadline_ms": 1e-3}, {"budget": "100%"}):
        response, body = ask(client, "POST", URL, question(**parameters))
        assert response.status == 200
        assert json.loads(body)["parameters"]["bundle"] == "toy/1"
    until(lambda: site.server.requests() == 3, "the records")
    counted = [r for r in site.server.records() if r["requests"]]
    assert {r["policy"] for r in counted} == {"full"}
    assert sum(r["exit_counts"]["exit1"] for r in counted) == 1
    client.close()
    assert site.board.stop().requests == 3
    assert status(port, "/v2/health/live") is None


def test_requests_go_on_through_a_switch_of_bundles(site: Site) -> None:
    port = free_port()
    site.board.write(api={"listen": f"127.0.0.1:{port}"})
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    seen: list[tuple[int, str]] = []
    enough = threading.Event()

    def client() -> None:
        made = connection(port)
        while not enough.is_set():
            response, body = ask(made, "POST", URL, question())
            seen.append((response.status, json.loads(body).get("model_version", "")))
        made.close()

    thread = threading.Thread(target=client)
    thread.start()
    try:
        assert site.run(site.add(version=2), 2)["state"] == "active"
        until(lambda: seen[-1][1] == "2", "answers of the second bundle")
    finally:
        enough.set()
        thread.join(20)
    assert {code for code, _ in seen} == {200}
    versions = [version for _, version in seen]
    assert versions == sorted(versions)


def test_sigterm_ends_it_while_requests_run(site: Site) -> None:
    path = site.board.folder / "api.sock"
    site.board.write(api={"listen": "unix:api.sock"}, telemetry={"interval_s": 60})
    label = site.add(version=1, delay_ms=5)
    process = site.board.spawn()
    assert site.run(label, 1)["state"] == "active"
    answered: list[int] = []

    def client() -> None:
        made = UnixConnection(path)
        try:
            while True:
                answered.append(ask(made, "POST", URL, question())[0].status)
        except (OSError, HTTPException):
            pass
        finally:
            made.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    until(lambda: len(answered) > 8, "answers")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - begun < 6  # two seconds, and what a busy machine makes of them
    for one in clients:
        one.join(10)
    assert process.returncode == 0
    assert set(answered) <= {200, 503}
    assert json.loads(out)["requests"] == answered.count(200)
    assert not path.exists()
    log = (site.board.folder / "agent.log").read_text()
    assert "local API on unix:" in log
    assert "Traceback" not in log


def test_without_the_section_nothing_of_it_is_loaded() -> None:
    code = "import sys, edgekit.agent.daemon; print([n for n in ('uvicorn', 'h11', 'asyncio') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "uvicorn" not in done.stdout
    assert "h11" not in done.stdout


NO_UVICORN = "import sys; sys.modules['uvicorn'] = None"


def test_a_board_without_the_extra_is_told_what_to_install(site: Site) -> None:
    site.board.write(api={"listen": f"127.0.0.1:{free_port()}"})
    process = site.board.spawn(NO_UVICORN)
    process.communicate(timeout=20)
    lines = (site.board.folder / "agent.log").read_text().splitlines()
    assert process.returncode == 2
    assert len(lines) == 1
    assert lines[0].endswith("agent.toml: api: the local API needs uvicorn: pip install 'edgekit[api]'")


def test_an_address_that_is_taken_ends_the_start_in_one_line(site: Site) -> None:
    site.board.write(api={"listen": f"127.0.0.1:{site.broker.port}"})
    process = site.board.spawn()
    process.communicate(timeout=20)
    lines = (site.board.folder / "agent.log").read_text().splitlines()
    assert (process.returncode, len(lines)) == (3, 1)
    assert f"127.0.0.1:{site.broker.port} cannot be listened on: Address already in use" in lines[0]


def checked(site: Site, *before: str) -> tuple[int, dict[str, str]]:
    process = site.board.spawn(*before, command="check")
    out, _ = process.communicate(timeout=30)
    return process.returncode, {p["what"]: p["detail"] for p in json.loads(out)["problems"]}


def test_check_says_what_it_listens_on_and_for_whom(site: Site) -> None:
    port = free_port()
    site.board.write(api={"listen": f"127.0.0.1:{port}"})
    code, found = checked(site)
    assert (code, found["api"]) == (0, f"listens on 127.0.0.1:{port}, for this machine only")
    code, found = checked(site, NO_UVICORN)
    assert (code, found["api"]) == (2, "the local API needs uvicorn: pip install 'edgekit[api]'")
    site.board.write(api={"listen": f"127.0.0.1:{site.broker.port}"})
    assert "Address already in use" in checked(site)[1]["api"]


def test_check_leaves_no_socket_behind(site: Site) -> None:
    site.board.write(api={"listen": "unix:api.sock", "socket_mode": "0600"})
    code, found = checked(site)
    assert code == 0
    assert found["api"].endswith("api.sock, for whom the permissions 0600 let in")
    assert not (site.board.folder / "api.sock").exists()
    site.board.write(api={"listen": "unix:nowhere/api.sock"})
    assert checked(site)[0] == 3


# --- config ---

ENROLLED = """\
device = {fleet = "demo", name = "pi5-a", profile = "raspberrypi5"}
broker = {host = "127.0.0.1"}
repository = {url = "http://127.0.0.1:8080/repo"}
"""


def write(folder: Path, api: dict[str, str] | None = None) -> Path:
    """agent.toml with a section `api` of these keys, as TOML text."""
    for name in ("root.json", "control.pub"):
        (folder / name).write_text("{}")
    lines = [] if api is None else ["[api]", *(f"{key} = {text}" for key, text in api.items())]
    path = folder / "agent.toml"
    path.write_text("\n".join([ENROLLED, *lines]) + "\n")
    return path


def test_there_is_no_api_unless_the_section_is_there_and_it_is_local_then(tmp_path: Path) -> None:
    assert load_config(write(tmp_path)).api is None
    api = load_config(write(tmp_path, api={})).api
    assert api is not None
    assert (api.address, api.allow_remote, api.openness) == ("127.0.0.1:8000", False, "for this machine only")


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("localhost:9000", "127.0.0.1:9000"),
        ("[::1]:9000", "[::1]:9000"),
        ("127.0.0.2:80", "127.0.0.2:80"),
        ("unix:/run/edgekit/api.sock", "unix:/run/edgekit/api.sock"),
    ],
)
def test_addresses_of_this_machine_are_taken(tmp_path: Path, listen: str, address: str) -> None:
    api = load_config(write(tmp_path, api={"listen": f'"{listen}"'})).api
    assert api is not None
    assert api.address == address


def test_other_addresses_need_a_word(tmp_path: Path) -> None:
    listen = {"listen": '"0.0.0.0:8000"'}
    with pytest.raises(
        BadInput, match=r"api.listen must be an address of this machine only \(api.allow_remote"
    ):
        load_config(write(tmp_path, api=listen))
    api = load_config(write(tmp_path, api={**listen, "allow_remote": "true"})).api
    assert api is not None
    assert api.openness == "for everybody who can reach it: nobody is asked who he is"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"listen": '"board.local:8000"'}, "api.listen must be ADDRESS:PORT"),
        ({"listen": '"127.0.0.1"'}, "api.listen must be ADDRESS:PORT"),
        ({"listen": '"127.0.0.1:0"'}, "api.listen must be ADDRESS:PORT"),
        ({"listen": '"127.0.0.1:99999"'}, "api.listen must be ADDRESS:PORT"),
        ({"listen": '"unix:"'}, "api.listen must be unix:PATH"),
        ({"listen": f'"unix:/{"x" * 120}"'}, "at most 100 bytes"),
        ({"socket_mode": '"rw"'}, 'api.socket_mode must be permissions such as "0660"'),
        ({"timeout_s": "0"}, "api.timeout_s must be a number from 0.1"),
        ({"max_connections": "0"}, "api.max_connections must be a whole number from 1"),
    ],
)
def test_an_error_names_the_key(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_config(write(tmp_path, api=keys))
    assert said in str(caught.value)
