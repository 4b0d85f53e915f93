"""TLS as a board speaks it: verified always, also where the clock says 1970."""

from __future__ import annotations

import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from agents import until
from certificates import Maker

from edgekit.agent.clock import EARLIEST
from edgekit.agent.config import Identity, Repository
from edgekit.agent.identity import Identities
from edgekit.agent.repository.http import open_pool
from edgekit.agent.tls import Tls
from edgekit.core.errors import WorldFailed

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)


class Peer:
    """A TLS server of one certificate; what clients showed it."""

    def __init__(
        self, maker: Maker, pair: Path, *, wants: bool = False, newest: ssl.TLSVersion | None = None
    ) -> None:
        self.seen: list[dict[str, object] | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        if wants:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(maker.ca)
        if newest is not None:
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = newest
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(plain, server_side=True) as secured:
                    self.seen.append(secured.getpeercert())
                    secured.recv(65_536)
                    secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except OSError:
                plain.close()

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.close()


def shake(tls: Tls, ca: Path, port: int, name: str = "127.0.0.1") -> None:
    """One handshake; raises what refuses it."""
    context = tls.context(ca)
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname=name),
    ):
        pass


def board(now: float, good_time: float = 0.0, *, synchronized: bool = False) -> Tls:
    return Tls(None, lambda: good_time, lambda: now, lambda: synchronized)


CLOCKS = {
    "1970": (0.0, False),
    "wrong but plausible": (EARLIEST + 5.0, False),
    "right": (NOW.timestamp(), True),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_good_server_is_spoken_to_whatever_the_clock_says(
    maker: Maker, peers: list[Peer], clock: str
) -> None:
    peers.append(Peer(maker, maker.server()))
    now, synchronized = CLOCKS[clock]
    shake(board(now, synchronized=synchronized), maker.ca, peers[0].port)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("what", ["another authority", "another name", "a board"])
def test_without_a_clock_everything_but_dates_is_checked_as_ever(
    maker: Maker, peers: list[Peer], tmp_path: Path, clock: str, what: str
) -> None:
    (tmp_path / "other").mkdir()
    pair = {
        "another authority": lambda: Maker(tmp_path / "other").server(),
        "another name": lambda: maker.server(names=["fleet.example"]),
        "a board": lambda: maker.board("demo/pi5"),
    }[what]()
    peers.append(Peer(maker, pair))
    now, synchronized = CLOCKS[clock]
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(board(now, synchronized=synchronized), maker.ca, peers[0].port)


def test_a_certificate_that_ended_is_refused_by_what_is_known_of_the_time(
    maker: Maker, peers: list[Peer]
) -> None:
    ended = NOW - 10 * DAY
    peers.append(Peer(maker, maker.server(now=ended - timedelta(days=90))))
    before, after = (ended - DAY).timestamp(), (ended + DAY).timestamp()
    port = peers[0].port
    shake(board(0.0, before), maker.ca, port)  # as far as that board can know it is good
    for tls in (board(0.0, after), board(after), board(NOW.timestamp(), synchronized=True)):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(tls, maker.ca, port)


def test_a_certificate_from_the_future_is_refused_only_by_a_clock_that_was_set(
    maker: Maker, peers: list[Peer]
) -> None:
    peers.append(Peer(maker, maker.server(now=NOW + DAY)))
    shake(board((NOW - DAY).timestamp()), maker.ca, peers[0].port)  # the clock is late, not the server early
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake(board(NOW.timestamp(), synchronized=True), maker.ca, peers[0].port)


def test_a_context_follows_the_clock_and_the_renewed_certificate(maker: Maker, peers: list[Peer]) -> None:
    peers.append(Peer(maker, maker.server(now=NOW - 100 * DAY), wants=True))  # ended ten days ago
    folder = maker.folder / "state"
    folder.mkdir()
    enrolled = maker.board("demo/pi5", now=NOW - 200 * DAY)
    times = [0.0]
    identities = Identities(Identity(enrolled, enrolled), folder)
    context = Tls(identities, now=lambda: times[0], synchronized=lambda: True).context(maker.ca)

    def connect() -> None:
        address = ("127.0.0.1", peers[0].port)
        with (
            socket.create_connection(address, 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.sendall(b"x")
            secured.recv(10)

    with pytest.raises(
        OSError, match=r"(?i)expired|reset|eof|broken"
    ):  # the board's own has ended: so says the peer
        connect()
    key, pem = maker.certify("demo/pi5", NOW - 50 * DAY)
    identities.replace(key, pem, maker.ca.read_text())
    connect()
    until(lambda: peers[0].seen, "a connection with the new certificate")
    times[0] = NOW.timestamp()
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        connect()


def test_an_older_protocol_than_tls_1_2_is_not_spoken(maker: Maker, peers: list[Peer]) -> None:
    peers.append(Peer(maker, maker.server(), newest=ssl.TLSVersion.TLSv1_1))
    with pytest.raises(ssl.SSLError):
        shake(board(0.0), maker.ca, peers[0].port)
    peers.append(Peer(maker, maker.server(), newest=ssl.TLSVersion.TLSv1_2))
    shake(board(0.0), maker.ca, peers[1].port)


def test_the_repositorys_connections_are_verified_the_same_way(
    maker: Maker, peers: list[Peer], tmp_path: Path
) -> None:
    import urllib3

    ended = NOW - 10 * DAY
    peers.append(Peer(maker, maker.server(now=ended - timedelta(days=90))))
    url = f"https://127.0.0.1:{peers[0].port}"
    for tls, good in ((board(0.0), True), (board(0.0, NOW.timestamp()), False)):
        with open_pool(Repository(url, "t", maker.ca), tls=tls) as http:
            if good:
                assert http.request("GET", f"{url}/x").data == b"ok"
            else:
                with pytest.raises(urllib3.exceptions.HTTPError, match="ended on"):
                    http.request("GET", f"{url}/x")
    with (
        open_pool(Repository(url, "t", None), tls=board(0.0)) as http,
        pytest.raises(urllib3.exceptions.HTTPError),
    ):
        http.request("GET", f"{url}/x")  # the system's authorities do not know it


def test_a_file_of_authorities_that_is_none_is_said_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(WorldFailed, match=f"broker.ca: .*{name}: cannot be used"):
            Tls().context(tmp_path / name, "broker.ca")
