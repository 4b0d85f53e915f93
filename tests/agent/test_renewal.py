"""The board's certificate: which pair counts, when another is asked for, and what a failure does."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import Maker
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.agent import identity as identity_module
from edgekit.agent.config import Identity, Repository
from edgekit.agent.identity import FILE, Identities, jitter_of, new_key
from edgekit.agent.renewal import EXPIRING, FIRST_RETRY_S, LOOK_S, MAX_RETRY_S, Renewer, signer
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.tls import Tls
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.fleet.certificates import issue, trusted_pem

ADDRESS = "demo/pi5"
BEGUN = datetime.now(timezone.utc) - timedelta(days=100)
DAY = 86_400.0
LIFE = 180 * DAY + 3600.0  # it begins an hour early


class Board:
    """An enrolled identity, a clock, and a server that signs in this process."""

    def __init__(self, folder: Path) -> None:
        self.maker = Maker(folder)
        self.enrolled = self.maker.board(ADDRESS, BEGUN)
        self.state = folder / "state"
        self.state.mkdir()
        self.identities = Identities(Identity(self.enrolled, self.enrolled), self.state)
        self.now = BEGUN.timestamp()
        self.fails: Exception | None = None
        self.asked: list[Mapping[str, str]] = []
        self.told: list[tuple[str, Mapping[str, object]]] = []
        self.changes = 0
        self.renewer = Renewer(
            identities=self.identities,
            address=ADDRESS,
            sign=self.sign,
            time_at_least=lambda: self.now,
            tell=lambda kind, detail: self.told.append((kind, detail)),
            changed=self.changed,
            draw=lambda: 0.5,
        )

    def changed(self) -> None:
        self.changes += 1

    def sign(self, body: Mapping[str, str]) -> tuple[str, str]:
        self.asked.append(body)
        if self.fails is not None:
            raise self.fails
        now = datetime.fromtimestamp(self.now, timezone.utc)
        pem = issue(self.maker.authorities, body["csr"], ADDRESS, now).pem
        return pem, trusted_pem(self.maker.authorities).decode()

    def reopened(self) -> Identities:
        return Identities(Identity(self.enrolled, self.enrolled), self.state)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_certificate_is_renewed_at_two_thirds_of_its_life_and_not_before(board: Board) -> None:
    for days in (0, 60, 100):
        board.now = BEGUN.timestamp() + days * DAY
        assert board.renewer.look() == LOOK_S
    assert board.asked == []
    board.now = BEGUN.timestamp() + 120 * DAY + 3600
    before = board.identities.current
    assert board.renewer.look() == LOOK_S
    after = board.identities.current
    assert (len(board.asked), board.changes, board.told) == (1, 1, [])
    assert after.serial != before.serial
    assert after.expires - board.now == pytest.approx(180 * DAY, abs=2)
    assert board.renewer.look() == LOOK_S
    assert len(board.asked) == 1
    assert board.reopened().current == after
    assert stat.S_IMODE((board.state / FILE).stat().st_mode) == 0o600
    assert board.enrolled.exists()


def test_boards_of_one_day_do_not_ask_on_one_day(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    dues = []
    for _ in range(20):
        path = maker.board(ADDRESS, BEGUN)
        pair = identity_module.read_pair(Identity(path, path))
        dues.append((pair.due(jitter_of(pair)) - pair.issued) / LIFE)
    assert all(2 / 3 - 0.1 - 1e-6 <= due <= 2 / 3 + 1e-6 for due in dues)
    assert max(dues) - min(dues) > 0.02


def test_each_renewal_has_a_new_key_and_is_signed_with_the_old_one(board: Board) -> None:
    old = x509.load_pem_x509_certificate(board.identities.current.pem.encode())
    board.renewer.renew()
    (asked,) = board.asked
    csr = x509.load_pem_x509_csr(asked["csr"].encode())
    assert csr.public_key() != old.public_key()
    assert asked["certificate"] in board.enrolled.read_text()
    key = old.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(base64.b64decode(asked["signature"]), asked["csr"].encode(), ec.ECDSA(hashes.SHA256()))
    assert "PRIVATE" not in json.dumps(asked)


def test_a_failure_is_tried_again_and_below_a_third_somebody_hears_of_it_once_a_day(board: Board) -> None:
    board.fails = NetworkFailed("no route")
    pair = board.identities.current
    board.now = pair.due(jitter_of(pair)) + 1.0
    waits = [board.renewer.look() for _ in range(12)]
    assert waits[0] == FIRST_RETRY_S
    assert waits[1] == 2 * FIRST_RETRY_S
    assert waits[-1] == MAX_RETRY_S
    assert board.told == []
    board.now = pair.alarm + 1.0
    for _ in range(5):
        board.renewer.look()
    assert [kind for kind, _ in board.told] == [EXPIRING]
    assert board.told[0][1] == {"expires": pair.expires, "why": "no route"}
    board.now += DAY
    board.renewer.look()
    assert len(board.told) == 2
    board.now = pair.expires + 1000 * DAY  # it was in a drawer: it still asks
    board.fails = None
    board.renewer.look()
    assert board.identities.current.serial != pair.serial


def test_an_answer_that_does_not_fit_changes_nothing(board: Board) -> None:
    before = board.identities.current
    _, stranger = board.maker.certify(ADDRESS, datetime.now(timezone.utc))
    key, of_another = board.maker.certify("demo/other", datetime.now(timezone.utc))
    _, older = board.maker.certify(ADDRESS, BEGUN - timedelta(days=5))
    for answer in (stranger, older, "nonsense"):
        with pytest.raises(BadInput):
            board.identities.replace(new_key(), answer, "")
    with pytest.raises(BadInput, match="another name"):
        board.identities.replace(key, of_another, "")
    assert board.identities.current == before
    assert list(board.state.iterdir()) == []


def test_a_disk_that_takes_nothing_leaves_the_old_pair_in_force(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = board.identities.current
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldFailed, match="No space left"):
        board.renewer.renew()
    monkeypatch.setattr(os, "fsync", real)
    assert board.identities.current == before == board.reopened().current


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_renewed_file_that_is_damaged_is_left_for_the_enrolled_one(board: Board, share: float) -> None:
    enrolled = board.identities.current
    board.now += 121 * DAY
    board.renewer.renew()
    path = board.state / FILE
    data = path.read_bytes()
    own = data[: data.index(b"-----END CERTIFICATE") + 26]
    path.write_bytes(own[: int(len(own) * share)])
    assert board.reopened().current == enrolled


def test_a_board_that_is_enrolled_again_uses_that_and_not_what_was_renewed_before(board: Board) -> None:
    board.now += 61 * DAY
    board.renewer.renew()
    again = board.maker.board(ADDRESS, datetime.fromtimestamp(board.now + DAY, timezone.utc))
    pair = Identities(Identity(again, again), board.state).current
    assert pair.certificate == again


def test_key_and_certificate_may_be_two_files_and_must_fit(board: Board, tmp_path: Path) -> None:
    text = board.enrolled.read_text()
    cut = text.index("-----BEGIN CERT")
    (tmp_path / "board.key").write_text(text[:cut])
    (tmp_path / "board.pem").write_text(text[cut:])
    identity = Identity(tmp_path / "board.pem", tmp_path / "board.key")
    assert Identities(identity, board.state).current.serial == board.identities.current.serial
    other = board.maker.board(ADDRESS).read_text()
    (tmp_path / "board.key").write_text(other[: other.index("-----BEGIN CERT")])
    with pytest.raises(BadInput, match="not of the key beside it"):
        Identities(identity, board.state)


# --- over the wire ---


class Answering(HTTPServer):
    """Answers every POST with one status and body."""

    status, body = 201, b"{}"
    seen: list[tuple[str, str, Any]]


@pytest.fixture
def server() -> Iterator[Answering]:
    class Handler(BaseHTTPRequestHandler):
        server: Answering

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            self.server.seen.append((self.path, self.headers["authorization"], json.loads(data)))
            self.send_response(self.server.status)
            self.send_header("content-length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *_: object) -> None:
            pass

    made = Answering(("127.0.0.1", 0), Handler)
    made.seen = []
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_the_request_goes_beside_the_repository_as_the_board(server: Answering) -> None:
    server.body = json.dumps({"v": 1, "certificate": "c", "ca": "a", "new": 1}).encode()
    sign = signer(Repository(f"http://127.0.0.1:{server.server_port}/repo", "token"), Tls())
    assert sign({"csr": "x"}) == ("c", "a")
    assert server.seen == [("/certificate", "Bearer token", {"csr": "x"})]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b'{"error": "the token of an enrolled board"}', "answered 401: the token of an enrolled board"),
        (500, b"<html>", "answered 500: no reason given"),
        (302, b"", "answered 302"),
        (201, b"<html>", "did not answer with a certificate"),
        (201, b'{"certificate": 1, "ca": ""}', "did not answer with a certificate"),
        (201, b"[" * 100_000, "did not answer with a certificate"),
    ],
)
def test_what_is_no_certificate_is_said_in_one_line(
    server: Answering, status: int, body: bytes, says: str
) -> None:
    server.status, server.body = status, body
    sign = signer(Repository(f"http://127.0.0.1:{server.server_port}/repo", "token"), Tls())
    with pytest.raises((NetworkFailed, WorldFailed), match=says) as raised:
        sign({"csr": "x"})
    assert "\n" not in str(raised.value)
    assert 'token"' not in str(raised.value)
