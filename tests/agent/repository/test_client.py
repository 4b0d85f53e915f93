"""python-tuf's client behind our door, against real signed metadata: what an attacker or an accident can do to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from agents import Repository
from securesystemslib.signer import CryptoSigner

from edgekit.agent import clock
from edgekit.agent.config import Repository as Address
from edgekit.agent.jobs import Superseded
from edgekit.agent.repository import download, metadata
from edgekit.agent.repository.base import Found, NetworkFailed
from edgekit.agent.repository.client import RepositoryClient
from edgekit.agent.state import State, StateFile
from edgekit.core.errors import Refused, WorldFailed

PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


@dataclass
class Board:
    """A client with a cache and a state file of its own."""

    folder: Path
    repository: Repository

    def __post_init__(self) -> None:
        self.state = StateFile(self.folder / "state.json", State)
        self.cache = self.folder / "metadata"
        self.part = self.folder / "part"

    @property
    def client(self) -> RepositoryClient:
        return RepositoryClient(
            Address(self.repository.url, self.repository.TOKEN), self.root, self.cache, self.state
        )

    @property
    def root(self) -> bytes:
        path = self.folder / "root.json"
        if not path.exists():
            path.write_bytes(self.repository.root_json)
        return path.read_bytes()

    def find(self, version: int = 1) -> Found:
        return self.client.find("toy", version)

    def fetch(self, version: int = 1) -> bytes:
        self.client.fetch(self.find(version), self.part, lambda: None)
        return self.part.read_bytes()

    def refusal(self, version: int = 1) -> str:
        with pytest.raises(Refused) as caught:
            self.fetch(version)
        assert "\n" not in str(caught.value)
        return caught.value.reason


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_RETRY_S", 0.0)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository()
    made.add(tmp_path, version=1)
    yield made
    made.close()


@pytest.fixture
def board(tmp_path: Path, repository: Repository) -> Board:
    folder = tmp_path / "board"
    folder.mkdir()
    board = Board(folder, repository)
    assert board.root
    return board


def test_a_signed_target_is_found_and_fetched_and_its_versions_are_remembered(board: Board) -> None:
    assert board.fetch() == board.repository.files["targets/run/toy/1.edge"]
    assert board.state.current.metadata == {
        "root": 1,
        "timestamp": 2,
        "snapshot": 2,
        "targets": 2,
        "measure": 2,
    }
    assert board.state.current.good_time > 1.7e9


def test_a_target_nobody_signed_is_unknown(board: Board) -> None:
    assert board.refusal(version=9) == "unknown-target"


@pytest.mark.parametrize(
    "custom", [{"name": "other"}, {"version": 2}, {"profiles": "all"}, {"content_id": "x"}]
)
def test_an_entry_that_describes_something_else_is_unknown(
    board: Board, tmp_path: Path, custom: dict[str, object]
) -> None:
    board.repository.add(tmp_path, version=5, custom=custom)
    assert board.refusal(version=5) == "unknown-target"


@pytest.mark.parametrize("where", [0, 100, -1])
def test_a_file_with_a_changed_byte_is_tampered_and_nothing_of_it_stays(board: Board, where: int) -> None:
    data = bytearray(board.repository.files["targets/run/toy/1.edge"])
    data[where] ^= 1
    board.repository.files["targets/run/toy/1.edge"] = bytes(data)
    assert board.refusal() == "tampered"
    assert not board.part.exists()


def test_a_file_longer_than_signed_is_tampered(board: Board) -> None:
    board.repository.files["targets/run/toy/1.edge"] += b"more"
    assert board.refusal() == "tampered"
    assert not board.part.exists()


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_metadata_signed_with_another_key_is_unsigned(board: Board, role: str) -> None:
    stranger = CryptoSigner.generate_ed25519()
    signed = dict(board.repository.roles())[role]
    board.repository.files[f"metadata/{role}.json"] = board.repository.signed(role, signed, stranger)
    assert board.refusal() == "unsigned"


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "root"])
def test_expired_metadata_is_refused(board: Board, role: str) -> None:
    signed = board.repository.root if role == "root" else dict(board.repository.roles())[role]
    signed.expires = PAST
    if role == "root":
        (board.folder / "root.json").write_bytes(board.repository.signed("root", signed))
    board.repository.sign()
    assert board.refusal() == "expired"


def test_an_older_timestamp_is_a_rollback(board: Board, tmp_path: Path) -> None:
    old = {name: data for name, data in board.repository.files.items() if name.startswith("metadata/")}
    board.repository.add(tmp_path, version=2)
    board.fetch(2)
    board.repository.files.update(old)
    assert board.refusal() == "rollback"


def test_an_older_timestamp_is_a_rollback_even_when_the_cache_was_emptied(
    board: Board, tmp_path: Path
) -> None:
    old = {name: data for name, data in board.repository.files.items() if name.startswith("metadata/")}
    board.repository.add(tmp_path, version=2)
    board.fetch(2)
    board.repository.files.update(old)
    shutil.rmtree(board.cache)
    assert board.refusal() == "rollback"
    again = Board(board.folder, board.repository)  # and after a restart of the agent as well
    shutil.rmtree(again.cache)
    assert again.refusal() == "rollback"


def test_metadata_that_is_mixed_from_two_publications_is_refused(board: Board, tmp_path: Path) -> None:
    old_targets = board.repository.files["metadata/targets.json"]
    board.repository.add(tmp_path, version=2)
    board.repository.files["metadata/targets.json"] = old_targets
    assert board.refusal(2) == "rollback"


def test_endless_metadata_is_refused(board: Board) -> None:
    board.repository.files["metadata/timestamp.json"] += b" " * 20_000
    assert board.refusal() == "tampered"


def test_metadata_that_is_none_is_refused(board: Board) -> None:
    board.repository.files["metadata/timestamp.json"] = b"<html>please log in</html>"
    assert board.refusal() == "tampered"


def test_a_server_that_publishes_while_the_board_reads_is_read_again(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = board.repository
    old = repository.files["metadata/targets.json"]
    repository.add(tmp_path, version=2)
    new = repository.files["metadata/targets.json"]
    repository.files["metadata/targets.json"] = old

    def publish(_: float) -> None:
        repository.files["metadata/targets.json"] = new

    monkeypatch.setattr(metadata.time, "sleep", publish)
    assert board.find(2).target.version == 2


def test_a_server_that_is_away_is_worth_another_try(board: Board) -> None:
    board.repository.close()
    with pytest.raises(NetworkFailed):
        board.find()


def test_a_token_that_is_not_accepted_is_named_by_its_status(board: Board) -> None:
    client = RepositoryClient(Address(board.repository.url, "old"), board.root, board.cache, board.state)
    with pytest.raises(NetworkFailed, match="answered 401"):
        client.find("toy", 1)


def test_a_download_goes_on_where_it_broke_off(board: Board, tmp_path: Path) -> None:
    board.repository.add(tmp_path, version=2, padding=200_000)
    board.repository.break_after = 150_000
    with pytest.raises(NetworkFailed, match=r"2\.edge"):
        board.fetch(2)
    had = board.part.stat().st_size
    assert 0 < had <= 150_000
    board.repository.break_after = None
    assert board.fetch(2) == board.repository.files["targets/run/toy/2.edge"]
    assert board.repository.requests[-1] == ("targets/run/toy/2.edge", f"bytes={had}-")


@pytest.mark.parametrize("content", [b"\x00" * 5000, b"\x00" * 10**6])
def test_a_part_that_a_power_cut_left_full_of_zeros_is_fetched_anew(board: Board, content: bytes) -> None:
    board.part.write_bytes(content)
    assert board.fetch() == board.repository.files["targets/run/toy/1.edge"]


def test_a_whole_but_wrong_part_does_not_fail_for_ever(board: Board) -> None:
    board.part.write_bytes(bytes(len(board.repository.files["targets/run/toy/1.edge"])))
    assert board.fetch() == board.repository.files["targets/run/toy/1.edge"]


def test_a_download_that_is_given_up_stops_at_the_next_chunk(board: Board, tmp_path: Path) -> None:
    board.repository.add(tmp_path, version=2, padding=300_000)
    found, chunks = board.find(2), []

    def check() -> None:
        chunks.append(1)
        if len(chunks) == 2:
            raise Superseded("newer")

    with pytest.raises(Superseded):
        board.client.fetch(found, board.part, check)
    assert len(chunks) == 2


def test_a_full_disk_is_said_in_one_line(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    found = board.find()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(WorldFailed, match="could not be written: No space left on device"):
        board.client.fetch(found, board.part, lambda: None)


def test_a_clock_that_fell_back_does_not_revive_expired_metadata(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.state.commit(good_time=(datetime.now(timezone.utc) + timedelta(days=30)).timestamp())
    assert clock.trusted_now(board.state.current.good_time) is None
    assert board.refusal() == "expired"


def test_a_board_that_has_never_known_the_time_refuses_what_expired_before_this_agent_was_written(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "trusted_now", lambda good_time: None)
    board.repository.timestamp.expires = PAST
    board.repository.sign()
    assert board.state.current.good_time == 0.0
    assert board.refusal() == "expired"


def test_a_new_root_signed_by_the_old_one_is_followed(board: Board, tmp_path: Path) -> None:
    repository = board.repository
    new_key = CryptoSigner.generate_ed25519()
    repository.root.version = 2
    repository.root.revoke_key(repository.keys["timestamp"].public_key.keyid, "timestamp")
    repository.root.add_key(new_key.public_key, "timestamp")
    repository.files["metadata/2.root.json"] = repository.signed("root", repository.root)
    repository.keys["timestamp"] = new_key
    first = repository.files["metadata/1.root.json"]
    repository.publish()
    repository.files["metadata/1.root.json"] = first
    board.find()
    assert board.state.current.metadata["root"] == 2
