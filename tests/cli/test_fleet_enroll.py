"""`edgekit fleet enroll`: the folder it writes, and what it leaves alone."""

from __future__ import annotations

import errno
import importlib
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.fleet import folder as folder_module
from edgekit.cli.fleet.folder import SECRETS, TOKEN
from edgekit.client import Client, Conflict
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.profile import known_profiles

verb = importlib.import_module("edgekit.cli.fleet.enroll")  # the package has the command under that name
FILES = {"agent.toml", "root.json", "control.pub", "ca.pem", "board.pem", *SECRETS}
NOBODY = "http://127.0.0.1:9"
ANSWER: dict[str, Any] = {
    "name": "pi5-a",
    "fleet": "demo",
    "profile": "raspberrypi5",
    "tags": [],
    "broker": {"host": "127.0.0.1", "port": 8883, "tls": True},
    "repository": {"url": "https://127.0.0.1:8080/repo", "tls": True},
    "ca": "authority",
    "certificate": "certificate",
    "root": "{}",
    "control_key": "key",
    "mqtt_password": "secret",
    "repo_token": "token",
    "broker_reloaded": True,
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server that enrolls everybody; the names it was asked for."""
    asked: list[str] = []

    def enroll(_client: Client, name: str, *_: object, **__: object) -> dict[str, Any]:
        asked.append(name)
        return ANSWER

    monkeypatch.setattr(Client, "fleet", lambda _client: {"fleet": "demo", "certificates": True})
    monkeypatch.setattr(Client, "enroll", enroll)
    return asked


def run(folder: Path, *more: str) -> Result:
    arguments = ["pi5-a", "-o", str(folder), "--server", NOBODY, *more]
    return CliRunner().invoke(verb.enroll, arguments, env={"EDGEKIT_TOKEN": "x"})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_server_that_cannot_be_reached_leaves_no_folder(tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "a" / "b").exception, WorldFailed)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_be_reached_leaves_an_existing_folder_and_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    folder.chmod(0o755)
    assert isinstance(run(folder).exception, WorldFailed)
    assert mode(folder) == 0o755


def test_a_folder_that_holds_anything_is_refused_before_the_server_is_asked(
    tmp_path: Path, answers: list[str]
) -> None:
    (tmp_path / "somebody-elses").touch()
    tmp_path.chmod(0o755)
    done = run(tmp_path)
    assert isinstance(done.exception, BadInput)
    assert "holds somebody-elses already; give a new or an empty folder" in str(done.exception)
    assert answers == []
    assert mode(tmp_path) == 0o755


def test_a_folder_that_enroll_made_is_closed_and_an_empty_one_keeps_its_mode(
    tmp_path: Path, answers: list[str]
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    for folder, wanted in ((tmp_path / "new" / "pi5-a", 0o700), (there, 0o755)):
        done = run(folder)
        assert done.exit_code == 0, done.output
        assert mode(folder) == wanted
        assert {path.name for path in folder.iterdir()} == FILES
        assert {mode(folder / name) for name in SECRETS} == {0o600}


@pytest.mark.parametrize("exists", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_that_was_made(
    tmp_path: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    folder = tmp_path / "new" / "pi5-a"
    if exists:
        folder.mkdir(parents=True)
    real = folder_module.write_atomic

    def full(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == TOKEN:
            raise WorldFailed(f"{path}: could not be written: {errno.errorcode[errno.ENOSPC]}")
        real(path, data, mode)

    monkeypatch.setattr(folder_module, "write_atomic", full)
    assert isinstance(run(folder).exception, WorldFailed)
    assert folder.exists() == exists
    assert not exists or list(folder.iterdir()) == []
    assert (tmp_path / "new").exists() == exists


def test_a_profile_nobody_knows_is_refused_with_those_that_are(tmp_path: Path, answers: list[str]) -> None:
    done = run(tmp_path / "new", "--profile", "nosuch")
    assert isinstance(done.exception, BadInput)
    for name in known_profiles():
        assert name in str(done.exception)
    assert answers == []
    assert run(tmp_path / "new", "--profile", "host").exit_code == 0


# --- many ---


def run_list(folder: Path, text: str, *more: str) -> Result:
    (folder / "boards.csv").write_text(text)
    arguments = ["--csv", str(folder / "boards.csv"), "-o", str(folder / "boards"), "--server", NOBODY, *more]
    return CliRunner().invoke(verb.enroll, arguments, env={"EDGEKIT_TOKEN": "x"}, standalone_mode=False)


LIST = "name,profile,tags\npi5-a,raspberrypi5,site-a lab\n\npi5-b,,site-b;lab\npi5-c\n"


def test_a_list_is_read_line_by_line_with_or_without_its_head(tmp_path: Path) -> None:
    wanted = [
        verb.Row("pi5-a", "raspberrypi5", ("site-a", "lab")),
        verb.Row("pi5-b", None, ("site-b", "lab")),
        verb.Row("pi5-c", None, ()),
    ]
    for text in (LIST, LIST.partition("\n")[2], "\ufeff" + LIST.replace("\n", "\r\n")):
        (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
        assert verb.read_list(tmp_path / "list.csv") == wanted


def test_a_list_with_anything_wrong_enrolls_nobody_and_says_every_line(
    tmp_path: Path, answers: list[str]
) -> None:
    text = "good\nbad name\nx,nosuch\ngood\ny,,not/a/tag\nz,raspberrypi5,a,b\n"
    done = run_list(tmp_path, text)
    assert isinstance(done.exception, BadInput)
    said = str(done.exception)
    assert "nobody was enrolled" in said
    for number in (2, 3, 4, 5, 6):
        assert f"line {number}: " in said
    assert "line 1" not in said
    assert (answers, (tmp_path / "boards").exists()) == ([], False)
    for text in ("", "name,profile,tags\n"):
        assert isinstance(run_list(tmp_path, text).exception, BadInput)


def test_a_list_goes_on_after_a_refusal_and_the_same_command_does_what_is_left(
    tmp_path: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"pi5-b"}

    def enroll(_client: Client, name: str, *_: object, **__: object) -> dict[str, Any]:
        answers.append(name)
        if name in known:
            raise Conflict(f"a board called {name!r} is enrolled already")
        return ANSWER | {"name": name}

    monkeypatch.setattr(Client, "enroll", enroll)
    done = run_list(tmp_path, LIST)
    assert done.return_value == 1
    assert "pi5-b: a board called 'pi5-b' is enrolled already" in done.output
    assert "2 enrolled, 0 were already, 1 failed" in done.output
    assert {path.name for path in (tmp_path / "boards").iterdir()} == {"pi5-a", "pi5-c"}
    known.clear()
    answers.clear()
    key = (tmp_path / "boards/pi5-a/board.key").read_bytes()
    done = run_list(tmp_path, LIST, "--again")
    assert (done.return_value, answers) == (0, ["pi5-b"])
    assert "1 enrolled, 2 were already, 0 failed" in done.output
    assert (tmp_path / "boards/pi5-a/board.key").read_bytes() == key
    assert len({path.read_bytes() for path in tmp_path.glob("boards/*/board.key")}) == 3


def test_a_list_stops_where_the_server_is_gone(
    tmp_path: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def enroll(_client: Client, name: str, *_: object, **__: object) -> dict[str, Any]:
        answers.append(name)
        if name == "pi5-b":
            raise WorldFailed("no answer")
        return ANSWER | {"name": name}

    monkeypatch.setattr(Client, "enroll", enroll)
    done = run_list(tmp_path, LIST)
    assert (done.return_value, answers) == (3, ["pi5-a", "pi5-b"])
    assert "1 failed, 1 not tried" in done.output


@pytest.mark.parametrize("more", [("pi5-a",), ("--profile", "host"), ("--tag", "x")])
def test_a_list_and_a_single_board_are_not_mixed(
    tmp_path: Path, answers: list[str], more: tuple[str, ...]
) -> None:
    assert isinstance(run_list(tmp_path, LIST, *more).exception, BadInput)
    assert answers == []


def test_the_authority_beside_the_token_file_is_used_unless_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []
    monkeypatch.setattr(Client, "fleet", lambda client: seen.append(client.ca) or {"certificates": False})
    monkeypatch.setattr(Client, "enroll", lambda *_, **__: ANSWER)
    (tmp_path / "api.token").write_text("x\n")
    token = ("--token-file", str(tmp_path / "api.token"))
    assert run(tmp_path / "1", *token).exit_code == 0
    (tmp_path / "ca.pem").touch()
    assert run(tmp_path / "2", *token).exit_code == 0
    assert run(tmp_path / "3", *token, "--ca", "other.pem").exit_code == 0
    assert run(tmp_path / "4").exit_code == 0
    assert seen == [None, tmp_path / "ca.pem", Path("other.pem"), None]
