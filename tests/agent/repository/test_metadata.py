"""The attacks of The Update Framework's specification on a board's metadata, and accidents of its own cache."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path

import pytest
from agents import Repository
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from tuf.ngclient._internal import trusted_metadata_set

from edgekit.agent import clock
from edgekit.agent.config import Repository as Address
from edgekit.agent.repository import http, metadata
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.repository.client import RepositoryClient
from edgekit.agent.state import State, StateFile
from edgekit.core.errors import Refused, WorldFailed
from edgekit.core.trust import LIVES_S, near_expiry


class Board:
    """A client that was enrolled with the repository's first root."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.repository, self.cache = repository, folder / "metadata"
        self.root = repository.root_json
        self.state = StateFile(folder / "state.json", State)

    def find(self, version: int = 1) -> int:
        address = Address(self.repository.url, self.repository.TOKEN)
        client = RepositoryClient(address, self.root, self.cache, self.state)
        return client.find("toy", version).target.version

    def standing(self, *labels: str) -> dict[str, str | None]:
        address = Address(self.repository.url, self.repository.TOKEN)
        return dict(RepositoryClient(address, self.root, self.cache, self.state).standing(labels))

    def refusal(self, version: int = 1) -> str:
        with pytest.raises(Refused) as caught:
            self.find(version)
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
    return Board(folder, repository)


def rotate(repository: Repository, *roles: str, signer: CryptoSigner | None = None) -> None:
    """The next root, in which these roles have new keys, signed by the old root key (and the new one)."""
    old = repository.keys["root"]
    first = {path: data for path, data in repository.files.items() if path.endswith("root.json")}
    for role in roles:
        new = CryptoSigner.generate_ed25519()
        repository.root.revoke_key(repository.keys[role].public_key.keyid, role)
        repository.root.add_key(new.public_key, role)
        repository.keys[role] = new
    repository.root.version += 1
    signed = metadata_of(repository, signer or old)
    repository.publish()
    repository.files.update(first)
    repository.files[f"metadata/{repository.root.version}.root.json"] = signed


def metadata_of(repository: Repository, old: CryptoSigner) -> bytes:
    root = Metadata(repository.root)
    root.sign(old)
    root.sign(repository.keys["root"], append=True)
    return root.to_bytes()


def test_a_chain_of_new_roots_is_followed_from_the_enrolled_one(board: Board) -> None:
    for _ in range(3):
        rotate(board.repository, "root", "timestamp")
    assert board.find() == 1
    assert board.state.current.metadata["root"] == 4


def test_a_new_root_that_the_old_key_did_not_sign_is_refused(board: Board) -> None:
    rotate(board.repository, "root", signer=CryptoSigner.generate_ed25519())
    assert board.refusal() == "unsigned"


def test_a_root_below_one_that_was_seen_is_refused_although_the_cache_was_emptied(board: Board) -> None:
    before = dict(board.repository.files)
    rotate(board.repository, "root")
    board.find()
    shutil.rmtree(board.cache)
    board.repository.files = before
    assert board.refusal() == "rollback"


@pytest.mark.parametrize("roles", [("timestamp",), ("snapshot", "timestamp"), ("targets",)])
def test_versions_that_a_thief_drove_up_count_no_more_once_his_keys_are_replaced(
    board: Board, roles: tuple[str, ...]
) -> None:
    repository = board.repository
    repository.targets.version += 1000 if roles == ("targets",) else 0
    repository.snapshot.version += 1000
    repository.timestamp.version += 1000
    repository.publish()
    board.find()
    assert board.state.current.metadata["timestamp"] > 1000
    repository.timestamp.version = repository.snapshot.version = 5
    repository.targets.version = 5
    rotate(repository, *roles, *(("snapshot", "timestamp") if roles == ("targets",) else ()))
    if roles == ("timestamp",):
        assert board.refusal() == "rollback", "the snapshot's key is still the stolen one"
        return
    assert board.find() == 1
    assert board.state.current.metadata["timestamp"] < 1000


def test_versions_under_the_same_keys_still_count_after_a_new_root(board: Board) -> None:
    board.find()
    before = dict(board.repository.files)
    board.repository.publish()
    board.find()
    board.repository.files = before
    board.repository.timestamp.version -= 2
    rotate(board.repository, "root")
    assert board.refusal() == "rollback"


def test_the_same_metadata_for_ever_is_refused_once_it_has_expired(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freeze: whoever stands in between hands out what was true once."""
    board.find()
    later = datetime.now(timezone.utc) + timedelta(days=2)
    real = clock.trusted_now
    monkeypatch.setattr(clock, "trusted_now", lambda good: later.timestamp() if real(good) else None)
    board.state.commit(good_time=later.timestamp())
    assert board.refusal() == "expired"


def test_a_targets_file_of_another_publication_than_the_snapshot_names_is_refused(board: Board) -> None:
    """Mix and match: each file is signed, together they never were in force."""
    old = board.repository.files["metadata/targets.json"]
    board.repository.publish()
    board.repository.files["metadata/targets.json"] = old
    assert board.refusal() in ("rollback", "tampered")


def test_a_snapshot_that_forgets_the_targets_is_refused(board: Board) -> None:
    board.find()
    board.repository.publish()
    del board.repository.snapshot.meta["targets.json"]
    board.repository.sign()
    assert board.refusal() in ("tampered", "rollback")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "2.root"])
def test_endless_metadata_ends_at_its_limit(board: Board, role: str) -> None:
    board.repository.files[f"metadata/{role}.json"] = b"{" + b" " * 6_000_000
    begun = time.monotonic()
    assert board.refusal() in ("tampered", "rollback")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX: ", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x"),
    ],
)
def test_a_server_that_drips_for_ever_is_a_network_that_failed(
    board: Board, head: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then, in the body, in the head, or around chunks: no single read of the socket takes long."""
    monkeypatch.setattr(http, "_WINDOW_S", 0.3)
    ended = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            while not ended.is_set():
                peer, _ = listener.accept()
                with peer, suppress(OSError):
                    peer.recv(65536)
                    peer.sendall(head)
                    while not ended.wait(0.02):
                        peer.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        board.repository.url = f"http://127.0.0.1:{listener.getsockname()[1]}/repo"
        with pytest.raises(NetworkFailed):
            board.find()
        ended.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        assert not thread.is_alive()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff{[" * 100)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [empty, zeros, torn, garbage, a_folder, gone])
@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "root.json", "root_history/1.root.json"]
)
def test_a_cache_that_a_power_cut_damaged_is_no_reason_to_fail(
    board: Board, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    rotate(board.repository, "timestamp")
    board.find()
    damage(board.cache / name)
    board.repository.add(tmp_path, version=2)
    assert board.find(2) == 2
    assert board.find(1) == 1


def test_a_cache_folder_that_is_a_file_is_begun_anew(board: Board) -> None:
    board.cache.write_text("no folder")
    assert board.find() == 1


def test_a_disk_that_takes_nothing_is_said_in_one_line(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metadata.Path, "mkdir", full)
    with pytest.raises(WorldFailed, match="No space left"):
        board.find()


def test_what_became_of_bundles_that_are_here_is_read_from_the_signed_metadata(
    board: Board, tmp_path: Path
) -> None:
    board.repository.add(tmp_path, version=2)
    board.repository.set_state("toy/1", "revoked")
    assert board.standing("toy/1", "toy/2", "toy/9") == {
        "toy/1": "revoked",
        "toy/2": "current",
        "toy/9": None,
    }


def test_when_updates_would_stop_is_remembered(board: Board) -> None:
    expires = board.repository.timestamp.expires + timedelta(hours=1)
    board.repository.targets.expires = expires
    board.repository.publish()
    board.find()
    known = board.state.current.metadata_expires
    assert known["targets"] == expires.timestamp()
    assert set(known) == set(LIVES_S)


@pytest.mark.parametrize("role", LIVES_S)
def test_a_role_is_near_its_end_with_less_than_a_third_of_its_life(role: str) -> None:
    assert not near_expiry(role, LIVES_S[role] / 3 + 1, 0.0)
    assert near_expiry(role, LIVES_S[role] / 3 - 1, 0.0)
    assert near_expiry(role, -1.0, 0.0)


def test_a_clock_that_boots_in_1970_takes_what_is_valid_and_refuses_what_had_expired_before(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock.time, "time", lambda: 42.0)
    assert board.find() == 1
    assert board.state.current.good_time == 0.0, "1970 is nothing to remember"
    board.state.commit(good_time=board.repository.timestamp.expires.timestamp() + 1)
    assert board.refusal() == "expired"


def test_a_clock_that_jumps_ahead_is_not_remembered_as_good(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every update would be refused for ever, also once the clock is right again."""
    board.find()
    good = board.state.current.good_time

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(4e9, tz)

    with monkeypatch.context() as patch:
        patch.setattr(clock.time, "time", lambda: 4e9)
        patch.setattr(trusted_metadata_set.datetime, "datetime", Ahead)
        assert board.refusal() == "expired"
    assert board.state.current.good_time == good
    assert board.find() == 1
