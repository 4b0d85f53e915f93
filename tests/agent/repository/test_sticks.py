"""Sticks: what may lie on one, what is taken from it, and that nothing on it is believed."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agents import Repository

from edgekit.agent.config import Repository as Address
from edgekit.agent.repository import metadata
from edgekit.agent.repository.base import Found, NetworkFailed
from edgekit.agent.repository.client import RepositoryClient
from edgekit.agent.repository.sticks import FolderFiles, Sticks, StickWatch
from edgekit.agent.state import State, StateFile
from edgekit.core.errors import Refused


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a stick's repository."""
    for name, data in files.items():
        path = folder / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository()
    made.add(tmp_path, version=1, padding=200_000)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path, repository: Repository) -> Path:
    """A stick with the repository as it is now."""
    folder = tmp_path / "media" / "me" / "STICK" / "edgekit"
    put(folder, repository.files)
    return folder


@pytest.fixture
def sticks(tmp_path: Path) -> Sticks:
    return Sticks([str(tmp_path / "media/*/*/edgekit")])


class Board:
    def __init__(self, folder: Path, repository: Repository, sticks: Sticks) -> None:
        folder.mkdir()
        self.state = StateFile(folder / "state.json", State)
        self.part = folder / "part"
        self.client = RepositoryClient(
            Address(repository.url, repository.TOKEN),
            repository.root_json,
            folder / "metadata",
            self.state,
            sticks=sticks,
        )

    def fetch(self, found: Found) -> bytes:
        self.client.fetch(found, self.part, lambda: None)
        return self.part.read_bytes()


@pytest.fixture
def board(tmp_path: Path, repository: Repository, sticks: Sticks, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(metadata, "_RETRY_S", 0.0)
    return Board(tmp_path / "board", repository, sticks)


BUNDLE = "targets/run/toy/1.edge"


def test_without_a_network_a_stick_is_where_bundles_come_from(
    board: Board, repository: Repository, folder: Path
) -> None:
    repository.close()
    found = board.client.find("toy", 1)
    assert board.fetch(found) == repository.files[BUNDLE]
    assert board.state.current.metadata["targets"] == 2
    assert board.client.standing(["toy/1", "toy/7"]) == {"toy/1": "current", "toy/7": None}


def test_with_a_network_the_server_says_what_is_signed_and_the_stick_saves_the_way(
    board: Board, repository: Repository, folder: Path
) -> None:
    found = board.client.find("toy", 1)
    asked = {path for path, _ in repository.requests}
    assert "metadata/timestamp.json" in asked
    assert board.fetch(found) == repository.files[BUNDLE]
    assert BUNDLE not in {path for path, _ in repository.requests}


def test_a_stick_that_is_older_than_what_the_board_has_seen_does_not_end_a_job(
    board: Board, repository: Repository, folder: Path, tmp_path: Path
) -> None:
    repository.add(tmp_path, version=2)
    board.client.find("toy", 2)
    repository.close()
    with pytest.raises(NetworkFailed, match="older than what this board has seen"):
        board.client.find("toy", 1)
    assert board.state.current.metadata["targets"] == 3


def test_a_stick_that_somebody_else_signed_is_no_use(
    board: Board, repository: Repository, folder: Path, tmp_path: Path
) -> None:
    other = Repository()
    other.add(tmp_path, version=1)
    other.close()
    put(folder, other.files)
    repository.close()
    with pytest.raises(NetworkFailed, match="not signed by enough trusted keys"):
        board.client.find("toy", 1)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: bytes(len(data))]
)
def test_a_file_that_is_not_the_signed_one_is_never_copied(
    board: Board, repository: Repository, folder: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "repository" / BUNDLE).write_bytes(change(repository.files[BUNDLE]))
    found = board.client.find("toy", 1)
    board.part.write_bytes(repository.files[BUNDLE][:100])
    assert board.fetch(found) == repository.files[BUNDLE]
    assert (BUNDLE, "bytes=100-") in repository.requests


def test_a_stick_pulled_out_half_way_is_gone_on_with(
    board: Board, repository: Repository, folder: Path
) -> None:
    repository.close()
    found = board.client.find("toy", 1)
    away = folder.with_name("away")
    looked = [0]

    def pull() -> None:
        looked[0] += 1
        if looked[0] == 6:  # after hashing it; the open file goes as on a real one
            os.truncate(folder / "repository" / BUNDLE, 140_000)
            folder.rename(away)

    with pytest.raises(NetworkFailed):
        board.client.fetch(found, board.part, pull)
    assert board.part.stat().st_size == 140_000
    away.rename(folder)
    put(folder, repository.files)
    assert board.fetch(found) == repository.files[BUNDLE]


def evil(kind: str, path: Path) -> None:
    """Something that is no regular file, where one is looked for."""
    if kind == "link":
        secret = path.with_name("elsewhere")
        secret.write_bytes(path.read_bytes() if path.exists() else b"{}")
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
        return
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path)[-100:]) if len(str(path)) < 100 else path.mkdir()
    elif kind == "endless link":
        path.symlink_to(path)


KINDS = ["link", "folder", "fifo", "socket", "endless link"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [BUNDLE, "metadata/timestamp.json"])
def test_only_regular_files_are_opened(
    board: Board, repository: Repository, folder: Path, kind: str, name: str
) -> None:
    evil(kind, folder / "repository" / name)
    with pytest.raises(NetworkFailed):
        FolderFiles(folder).open(name)
    found = board.client.find("toy", 1)
    assert board.fetch(found) == repository.files[BUNDLE]
    assert BUNDLE in {path for path, _ in repository.requests} or name != BUNDLE


@pytest.mark.parametrize("part", ["", "repository", "repository/targets", "repository/targets/run/toy"])
def test_no_link_is_followed_on_the_way(folder: Path, sticks: Sticks, part: str) -> None:
    inner = folder / part
    away = folder.parent / "real"
    inner.rename(away)
    inner.symlink_to(away)
    with pytest.raises(NetworkFailed):
        FolderFiles(folder).open(BUNDLE)
    assert part.endswith("toy") or sticks.present() == []


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "metadata/../../x", "a//b", "", ".", "x" * 500, "a\nb"]
)
def test_a_name_that_leads_elsewhere_is_no_file(folder: Path, name: str) -> None:
    with pytest.raises(NetworkFailed, match="no file is called"):
        FolderFiles(folder).open(name)


def test_what_is_no_stick_is_not_looked_into(tmp_path: Path, sticks: Sticks, folder: Path) -> None:
    (tmp_path / "media/me/EMPTY/edgekit").mkdir(parents=True)
    (tmp_path / "media/me/HALF/edgekit/repository/metadata").mkdir(parents=True)
    (tmp_path / "media/me/FILE").mkdir()
    (tmp_path / "media/me/FILE/edgekit").write_text("a file")
    assert [files.folder for files in sticks.present()] == [folder]
    assert Sticks([]).present() == []


def test_more_folders_than_anybody_puts_in_are_left_alone(tmp_path: Path, sticks: Sticks) -> None:
    for number in range(30):
        put(tmp_path / f"media/me/S{number}/edgekit", {"metadata/a": b"", "targets/b": b""})
    assert len(sticks.present()) == 8


# --- commands ---


class Watched:
    """A watch whose commands are kept."""

    def __init__(self, sticks: Sticks, newest: int = 0) -> None:
        self.got: list[Mapping[str, Any]] = []
        self.newest, self.appeared = newest, 0
        self.watch = StickWatch(
            sticks, "demo/pi5", lambda kind, payload: self.got.append({"kind": kind, **payload}),
            lambda: self.newest, self.came,
        )  # fmt: skip

    def came(self) -> None:
        self.appeared += 1


def command(folder: Path, data: bytes | Mapping[str, Any]) -> Path:
    path = folder / "commands/demo/pi5.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def test_a_command_is_handed_on_once_and_again_when_it_is_another(folder: Path, sticks: Sticks) -> None:
    watched = Watched(sticks)
    command(folder, {"v": 1, "n": 5})
    for _ in range(3):
        watched.watch.look()
    assert watched.got == [{"kind": "desired", "v": 1, "n": 5}]
    command(folder, {"v": 1, "n": 60})
    watched.watch.look()
    assert [payload["n"] for payload in watched.got] == [5, 60]


def test_a_command_that_is_known_or_overtaken_is_no_event(folder: Path, sticks: Sticks) -> None:
    """A stick that stays in the board for months would be refused as replayed at every start."""
    watched = Watched(sticks, newest=7)
    command(folder, {"v": 1, "n": 7})
    watched.watch.look()
    assert watched.got == []


def test_a_stick_that_comes_again_may_help_a_job_that_waits(folder: Path, sticks: Sticks) -> None:
    watched = Watched(sticks)
    watched.watch.look()
    watched.watch.look()
    assert watched.appeared == 1
    folder.rename(folder.with_name("away"))
    watched.watch.look()
    folder.with_name("away").rename(folder)
    watched.watch.look()
    assert watched.appeared == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"[1]",
        b'{"v":2}',
        b"{" + b" " * 70_000 + b"}",
        b"x\x9c" + b"\xff" * 50,
        b"[" * 60_000,
    ],
)
def test_a_command_that_cannot_be_read_is_said_once_and_does_nothing(
    folder: Path, sticks: Sticks, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(sticks)
    command(folder, data)
    watched.watch.look()
    watched.watch.look()
    assert watched.got == []
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_that_is_no_regular_file_is_none(folder: Path, sticks: Sticks, kind: str) -> None:
    watched = Watched(sticks)
    evil(kind, command(folder, {"v": 1, "n": 5}))
    watched.watch.look()
    watched.watch.look()
    assert watched.got == []


def test_the_watch_ends_at_once_when_told(sticks: Sticks) -> None:
    watched = Watched(sticks)
    watched.watch.start()
    watched.watch.stop(5.0)
    assert not watched.watch.is_alive()
    assert threading.active_count() < 100


def test_a_file_that_was_refused_once_is_not_hashed_again_until_it_changes(
    board: Board, repository: Repository, folder: Path
) -> None:
    path = folder / "repository" / BUNDLE
    path.write_bytes(bytes(len(repository.files[BUNDLE])))
    found, looked = board.client.find("toy", 1), [0]

    def check() -> None:
        looked[0] += 1

    files = FolderFiles(folder)
    assert not files.holds(found, check)
    once = looked[0]
    assert not files.holds(found, check)
    assert looked[0] == once > 0
    path.write_bytes(repository.files[BUNDLE])
    os.utime(path, ns=(1, 1))
    assert files.holds(found, check)


def test_what_a_stick_says_against_a_target_is_refused_only_by_the_server(
    board: Board, repository: Repository, folder: Path
) -> None:
    with pytest.raises(Refused) as caught:
        board.client.find("toy", 9)
    assert caught.value.reason == "unknown-target"
    repository.close()
    with pytest.raises(NetworkFailed, match="does not name this target"):
        board.client.find("toy", 9)
