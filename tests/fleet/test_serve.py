"""The real server as processes, with a real broker: supervised, pushed to, looked at with a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import until
from servers import Broker, FakeBoard, FleetServer, write_config

from edgekit.client import Client, Conflict
from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.schemas import OUTPUTS
from edgekit.fleet.config import FleetConfig
from edgekit.repo.keys import make_key

MakeBundle = Callable[..., Bundle]


class Site:
    """Broker and server as processes, and boards in this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = Broker(folder / "broker")
        self.config = write_config(folder, self.broker.port)
        self.server = FleetServer(self.config)
        self.boards: list[FakeBoard] = []
        self.enrolled: dict[str, Any] = {}  # name -> what `fleet enroll --json` printed
        self.key = folder / "repository/keys/targets.pem"

    @property
    def client(self) -> Client:
        return Client(self.server.url, self.server.token)

    def run(self, *arguments: object, code: int = 0) -> Any:
        """One of our commands with --json, as a process; what it printed."""
        main = "from edgekit.cli.main import main; main()"
        command = [sys.executable, "-c", main, *(str(argument) for argument in arguments), "--json"]
        known = {"EDGEKIT_SERVER": self.server.url, "EDGEKIT_TOKEN_FILE": str(self.config.token_file)}
        done = subprocess.run(
            command, env=os.environ | known, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    def enroll(self, name: str, profile: str = "host", *tags: str) -> FakeBoard:
        """`edgekit fleet enroll`, and a board made from the folder it wrote."""
        folder = self.folder / name
        tagged = [word for tag in tags for word in ("--tag", tag)]
        self.enrolled[name] = self.run("fleet", "enroll", name, "--profile", profile, *tagged, "-o", folder)
        password = (folder / "mqtt.password").read_text().strip()
        control_key = (folder / "control.pub").read_text()
        board = FakeBoard(self.broker.port, name, password, control_key, profile=profile)
        self.boards.append(board)
        return board.start()

    def push(self, bundle: Bundle, *more: object, code: int = 0) -> Any:
        return self.run("push", bundle.path, "--key", self.key, *more, code=code)

    def end(self) -> None:
        for board in self.boards:
            board.close()
        self.server.end()
        self.broker.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for the tests that leave it as it was."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        yield site
    finally:
        site.end()


@pytest.fixture(scope="module")
def board(site: Site) -> FakeBoard:
    return site.enroll("pi5-a", "host", "site-a")


# --- enrolment ---


def test_enrolment_writes_a_folder_for_the_board_with_its_secrets_closed(
    site: Site, board: FakeBoard
) -> None:
    folder = site.folder / "pi5-a"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes) == {"agent.toml", "root.json", "control.pub", "mqtt.password", "repo.token"}
    assert modes["mqtt.password"] == modes["repo.token"] == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    text = (folder / "agent.toml").read_text()
    assert f'url = "{site.server.url}/repo"' in text
    assert f"port = {site.broker.port}" in text
    for secret in ("mqtt.password", "repo.token"):
        assert (folder / secret).read_text().strip() not in text


def test_the_enrolled_folder_is_what_the_agent_reads(site: Site, board: FakeBoard) -> None:
    from edgekit.agent.config import load_config

    load_config(site.folder / "pi5-a" / "agent.toml")


def test_a_name_that_is_taken_ends_with_2_and_writes_no_secret(site: Site, board: FakeBoard) -> None:
    said = site.run("fleet", "enroll", "pi5-a", "-o", site.folder / "again", code=2)
    assert said.startswith("edgekit: a board called 'pi5-a' is enrolled already")
    assert not (site.folder / "again").exists()
    said = site.run("fleet", "enroll", "other", "-o", site.folder / "pi5-a", code=2)
    assert "holds agent.toml already; give a new or an empty folder" in said


def test_what_serve_and_enroll_print_is_what_their_schemas_say(site: Site, board: FakeBoard) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    lines = site.server.log.read_text().splitlines()
    served = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(served) == 1
    jsonschema.validate(served[0], OUTPUTS["fleet serve"])
    assert (served[0]["url"], served[0]["token_file"]) == (site.server.url, str(site.config.token_file))
    answer = site.enrolled[board.name]
    jsonschema.validate(answer, OUTPUTS["fleet enroll"])
    assert {path.name for path in Path(answer["folder"]).iterdir()} == set(answer["files"])


# --- push ---


def test_a_push_reaches_the_board_and_a_second_one_uploads_nothing(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(name="first")
    answer = site.push(bundle, "--to", "name=pi5-a", "--budget", "3ms", "--wait", 30)
    assert (answer["v"], answer["published"], answer["target"]) == (1, True, "first/1")
    assert answer["devices"]["pi5-a"]["state"] == "active"
    assert str(board.desired[-1].policy) == "budget 3ms"
    again = site.push(bundle, "--to", "name=pi5-a", "--wait", 30)
    assert again["published"] is False
    assert again["devices"]["pi5-a"]["state"] == "active"
    assert [job["job_id"] for job in site.client.jobs()][:2] == [again["job_id"], answer["job_id"]]


def test_a_refusal_on_the_board_ends_with_1_and_its_reason(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    usual = board.answer
    board.answer, board.reason = ("received", "downloading", "refused"), "tampered"
    try:
        answer = site.push(make_bundle(name="second"), "--to", "tag=site-a", "--wait", 30, code=1)
    finally:
        board.answer, board.reason = usual, None
    assert (answer["devices"]["pi5-a"]["state"], answer["devices"]["pi5-a"]["reason"]) == (
        "refused",
        "tampered",
    )


def test_a_board_that_says_nothing_in_time_ends_with_1(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    usual, board.answer = board.answer, None
    try:
        answer = site.push(make_bundle(name="third"), "--to", "name=pi5-a", "--wait", 0.5, code=1)
    finally:
        board.answer = usual
    assert (answer["devices"]["pi5-a"]["state"], answer["devices"]["pi5-a"]["reason"]) == (
        "pending",
        "silent",
    )


# --- configure ---


def test_settings_reach_the_board_as_commanded_and_a_refused_one_ends_with_1(
    site: Site, board: FakeBoard
) -> None:
    asked = ("update.rate_kb_s=64", "log.verbose=true", "trial.requests=")
    where = ("--to", "name=pi5-a", "--interval", 5, "--wait", 30)
    answer = site.run("fleet", "configure", *asked, *where)
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(answer, OUTPUTS["fleet configure"])
    assert answer["devices"]["pi5-a"]["state"] == "active"
    told = board.desired[-1]
    assert (told.config, told.interval_s) == ({"update.rate_kb_s": 64, "log.verbose": True}, 5.0)
    assert (answer["action"], answer["target"]) == ("configure", None)
    board.reason = "settings-refused"
    try:
        site.run("fleet", "configure", "limits.threads=99", *where, code=1)
    finally:
        board.reason = None
    site.run("fleet", "configure", "--reset", "--to", "name=pi5-a", "--wait", 30)
    assert board.desired[-1].config is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("threads",), "must be KEY=VALUE"),
        ((), "settings must be given"),
        (("a=NaN",), "a finite number"),
    ],
)
def test_settings_that_say_nothing_are_refused_in_one_line(
    site: Site, arguments: tuple[str, ...], says: str
) -> None:
    said = site.run("fleet", "configure", *arguments, "--to", "all", code=2)
    assert says in said
    assert said.count("\n") == 1


def test_boards_of_another_profile_are_listed_and_the_push_ends_with_1(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    answer = site.push(make_bundle(name="fourth", profiles=("raspberrypi5",)), "--to", "all", code=1)
    assert answer["devices"]["pi5-a"]["reason"] == "wrong-profile"


def test_a_key_that_is_not_the_repositorys_signs_nothing(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    make_key(site.folder / "stranger.pem")
    bundle = make_bundle(name="fifth")
    said = site.run("push", bundle.path, "--key", site.folder / "stranger.pem", "--to", "all", code=2)
    assert "stranger.pem: is not the key that signs this server's targets" in said
    assert "fifth/1" not in {target["label"] for target in site.client.repository()["targets"]}


def test_a_changed_bundle_is_refused_before_anything_is_sent(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(name="sixth")
    data = bytearray(bundle.path.read_bytes())
    data[-200] ^= 1
    bundle.path.write_bytes(data)
    said = site.push(bundle, "--to", "all", code=2)
    assert said.count("\n") == 1
    assert "sixth/1" not in {target["label"] for target in site.client.repository()["targets"]}


def test_the_same_version_with_other_content_is_refused(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    site.push(make_bundle(name="seventh"), "--to", "all")
    said = site.push(make_bundle("changed.edge", name="seventh", padding=9), "--to", "all", code=2)
    assert "seventh/1 is published with other content" in said
    assert "give the bundle a higher version" in said


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (("--to", "nonsense"), "--to must be", 2),
        (("--to", "tag=nowhere"), "means no board", 2),
        (("--to", "all", "--policy", "budget"), "needs one", 2),
        (("--to", "all", "--server", "http://127.0.0.1:9"), "no answer from the fleet server", 3),
        (("--to", "all", "--server", "nonsense"), "--server must be an address", 2),
        (("--to", "all", "--token-file", "/nowhere/token"), "must be a file with the server's token", 2),
    ],
)
def test_what_is_wrong_with_a_push_is_one_line(
    site: Site, board: FakeBoard, make_bundle: MakeBundle, options: tuple[str, ...], says: str, code: int
) -> None:
    said = site.push(make_bundle(name="eighth"), *options, code=code)
    assert says in said
    assert said.count("\n") == 1


def test_a_bundle_is_revoked_through_the_server_and_boards_are_told_to_look(
    site: Site, board: FakeBoard, make_bundle: MakeBundle
) -> None:
    site.push(make_bundle(name="taken-back"), "--to", "name=pi5-a", "--wait", 20)
    found = site.run("repo", "revoke", "taken-back/1", "--key", site.key)
    assert (found["target"], found["revoked"]) == ("taken-back/1", True)
    until(lambda: [shot.action for shot in board.shots] == ["refresh"], "the word to look")
    assert board.shots[0].target == "taken-back/1"
    board.job_event(board.shots[0].job_id, "done")
    again = site.run("repo", "revoke", "taken-back/1", "--key", site.key)
    assert not again["revoked"]
    said = site.run(
        "repo", "revoke", "taken-back/1", "--key", site.folder / "repository/keys/online.pem", code=2
    )
    assert "is not the key that signs this server's targets" in said
    assert "was revoked: no board runs it" in site.push(make_bundle(name="taken-back"), "--to", "all", code=2)


def test_a_wrong_token_is_said(site: Site) -> None:
    (site.folder / "wrong.token").write_text("wrong\n")
    said = site.run("fleet", "status", "--token-file", site.folder / "wrong.token", code=2)
    assert "the token is not this server's" in said


# --- looking ---


def test_the_fleet_verbs_show_what_boards_sent(site: Site, board: FakeBoard) -> None:
    for _ in range(3):
        board.record(10)
    board.send()
    until(lambda: not board.outbox, "the acks")
    found = site.run("fleet", "status")
    counts = {key: found["boards"][key] for key in ("enrolled", "online", "offline", "revoked")}
    assert counts == {"enrolled": 1, "online": 1, "offline": 0, "revoked": 0}
    assert (found["v"], found["ingest"]["connected"]) == (1, True)
    devices = site.run("fleet", "devices")["devices"]
    assert [device["name"] for device in devices] == ["pi5-a"]
    assert devices[0]["requests"] >= 30
    one = site.run("fleet", "devices", "pi5-a")["device"]
    assert one["energy_mj"]["provenance"] == "simulated"
    assert one["series"]
    assert "jobs" in site.run("fleet", "jobs")
    assert site.run("fleet", "devices", "nobody", code=2) == "edgekit: there is no board called 'nobody'\n"


# --- the client ---


def test_the_client_tells_the_world_from_the_input(site: Site, board: FakeBoard) -> None:
    with pytest.raises(Conflict, match="is enrolled already"):
        site.client.enroll("pi5-a")
    with pytest.raises(BadInput, match="the token is not this server's"):
        Client(site.server.url, "wrong").devices()
    with pytest.raises(WorldFailed, match="no answer from the fleet server"):
        Client("http://127.0.0.1:9", "x").devices()


def test_a_server_of_another_kind_is_not_believed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(WorldFailed, match="no answer from the fleet server"):
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "x").devices()


def test_the_reason_for_an_upload_that_is_cut_off_is_heard(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(b'HTTP/1.1 400 Bad\r\nContent-Length: 21\r\n\r\n{"error":"too large"}')
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        (tmp_path / "large.edge").write_bytes(bytes(32 * 2**20))
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "x")
        with pytest.raises(BadInput, match="too large"):
            client.upload_bundle(tmp_path / "large.edge", "0" * 64)


# --- processes ---


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_dies_is_replaced_behind_the_same_address(site: Site) -> None:
    url = site.server.url
    before = site.server.children()
    assert set(before) == {"web", "ingest", "background"}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    until(
        lambda: (
            len(site.server.children()) == 3
            and set(site.server.children().values()).isdisjoint(before.values())
        )
    )
    assert (
        site.client.status()["fleet"] == "demo"
    )  # the socket was never closed: this waits for the new process
    until(lambda: site.client.status()["ingest"]["connected"], "the new ingester")
    assert site.server.url == url


def test_a_second_server_on_the_same_folder_is_refused(site: Site) -> None:
    said = site.run("fleet", "serve", "--config", site.config.path, code=3)
    assert "another fleet server works on it" in said
    assert site.client.status()["fleet"] == "demo"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whichever_way_the_server_ends_nobody_is_left(number: signal.Signals, tmp_path: Path) -> None:
    server = FleetServer(write_config(tmp_path, 1))
    try:
        until(lambda: len(server.children()) == 3, "all children")
        children = server.children()
        server.process.send_signal(number)
        code = server.process.wait(20)
    finally:
        server.end()
    until(lambda: not any(alive(pid) for pid in children.values()), "the children's end")
    if number != signal.SIGKILL:
        assert code == 0
        assert not server.config.address_file.exists()


def serve_in_vain(config: FleetConfig) -> subprocess.CompletedProcess[str]:
    """A server that ends by itself."""
    command = [
        sys.executable,
        "-c",
        "from edgekit.cli.main import main; main()",
        "fleet",
        "serve",
        "--config",
    ]
    return subprocess.run([*command, config.path], capture_output=True, text=True, check=False, timeout=60)


def test_a_port_that_is_taken_ends_with_3(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        config.path.write_text(config.path.read_text().replace("port = 0", f"port = {port}"))
        done = serve_in_vain(config)
    assert done.returncode == 3
    assert f"edgekit: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_a_server_without_a_repository_says_how_to_make_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1)
    (tmp_path / "repository").rename(tmp_path / "elsewhere")
    done = serve_in_vain(config)
    assert done.returncode == 2
    assert "make one with: edgekit repo init" in done.stderr
    assert done.stderr.count("\n") == 1
