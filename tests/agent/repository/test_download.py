"""Files fetched by members and spans: broken off anywhere, served by whom you like, always the signed bytes or none."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.agent.config import Repository
from edgekit.agent.jobs import Superseded
from edgekit.agent.repository import download, http, members
from edgekit.agent.repository.base import CHUNK, Found, NetworkFailed
from edgekit.agent.repository.download import Downloader, Throttle
from edgekit.agent.repository.http import HttpFiles, open_pool
from edgekit.core.bundle import members_of, stored_zip
from edgekit.core.errors import Refused, WorldFailed
from edgekit.core.layout import HEADER_BYTES
from edgekit.core.manifest import MANIFEST, REPORT
from edgekit.core.target import Target

Members = Mapping[str, bytes]


TRULY: Any = object()


def bundle(files: Members, listed: Any = TRULY, padding: str = "") -> bytes:
    """A bundle as far as a download looks at one. listed: what the manifest says of files."""
    said = listing(files) if listed is TRULY else listed
    manifest = json.dumps({"files": said, "padding": padding}).encode()
    return stored_zip(
        {MANIFEST: manifest, **{name: files[name] for name in sorted(files)}, REPORT: b'{"v":1}'}
    )


def listing(files: Members) -> list[Any]:
    return [member.to_json() for member in members_of(files)]


def found_for(data: bytes, use: str = "run") -> Found:
    target = Target("toy", 2, ("host",), use, "current", "0" * 64)
    return Found(target, target.path, len(data), hashlib.sha256(data).hexdigest())


@dataclass
class Memory:
    """A server in memory. cuts: bytes after which each answer in turn breaks off. spans: whether it knows them."""

    data: bytes
    cuts: list[int] = field(default_factory=list)
    spans: bool = True
    requests: list[tuple[int, int | None]] = field(default_factory=list)
    sent: int = 0

    def open(self, path: str, start: int = 0, end: int | None = None) -> Answer:
        self.requests.append((start, end))
        return Answer(self, start if self.spans else 0, end if self.spans else None)


class Answer:
    def __init__(self, server: Memory, start: int, end: int | None) -> None:
        self.server, self.start, self.end = server, start, end

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        body = self.server.data[self.start : self.end]
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        for at in range(0, min(cut, len(body)), size):
            chunk = body[at : min(at + size, cut)]
            self.server.sent += len(chunk)
            yield chunk
        if cut < len(body):
            raise NetworkFailed("broken off")


@dataclass
class Board:
    folder: Path
    held: list[Path] = field(default_factory=list)

    @property
    def part(self) -> Path:
        return self.folder / "part"

    def hold(self, data: bytes) -> Path:
        path = self.folder / f"slot-{len(self.held)}"
        path.write_bytes(data)
        self.held.append(path)
        return path

    def fetch(
        self, server: Memory, found: Found | None = None, check: Callable[[], None] = lambda: None
    ) -> bytes:
        """Fetch until it is there, as a job does."""
        downloader = Downloader(server, lambda: self.held)
        while True:
            try:
                downloader.fetch(found or found_for(server.data), self.part, check)
            except NetworkFailed:
                continue
            return self.part.read_bytes()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


BIG = {f"stages/{index}.onnx": os.urandom(30_000) for index in range(4)}


def cost(files: Members, *names: str) -> int:
    """Bytes of these members with what stands before them."""
    return sum(HEADER_BYTES + len(name) + len(files[name]) for name in names)


def ends_of(data: bytes, files: Members) -> int:
    """Bytes of manifest and report, which are always fetched."""
    manifest = members.FIRST + members.manifest_size(data[: members.FIRST])
    return manifest + HEADER_BYTES + len(REPORT) + len(b'{"v":1}')


def test_only_the_members_that_changed_are_fetched(board: Board) -> None:
    board.hold(bundle(BIG))
    new = {**BIG, "stages/2.onnx": os.urandom(31_000)}
    server = Memory(bundle(new))
    assert board.fetch(server) == server.data
    changed = cost(new, "stages/2.onnx") + ends_of(server.data, new)
    assert server.sent <= changed + 64 + 512, "besides a guess of the manifest's length and a gap"
    assert server.sent <= 1.05 * changed


def test_neighbours_that_are_missing_come_in_one_request(board: Board) -> None:
    board.hold(bundle(BIG))
    new = {**BIG, "stages/1.onnx": b"a" * 9000, "stages/2.onnx": b"b" * 9000}
    server = Memory(bundle(new))
    assert board.fetch(server) == server.data
    assert len(server.requests) == 3  # manifest, both stages, report


def test_a_member_that_moved_to_another_name_is_not_fetched(board: Board) -> None:
    board.hold(bundle(BIG))
    new = {f"other/{name[-6:]}": data for name, data in BIG.items()}
    server = Memory(bundle(new))
    assert board.fetch(server) == server.data
    assert server.sent < 2000


def test_a_small_gap_costs_less_than_a_request(board: Board) -> None:
    old = {"a": b"a" * 5000, "b": b"b" * 100, "c": b"c" * 5000}
    board.hold(bundle(old))
    server = Memory(bundle({**old, "a": b"A" * 5000, "c": b"C" * 5000}))
    assert board.fetch(server) == server.data
    assert len(server.requests) == 2


def test_what_an_interrupted_download_of_another_bundle_left_is_taken_too(board: Board) -> None:
    board.hold(bundle(BIG)[:70_000])  # two stages are whole
    server = Memory(bundle({**BIG, "notes": b"new"}))
    assert board.fetch(server) == server.data
    assert server.sent < cost(BIG, "stages/2.onnx", "stages/3.onnx") + 2000


def test_a_round_of_candidates_is_fetched_as_it_is(board: Board) -> None:
    board.hold(bundle(BIG))
    server = Memory(bundle(BIG))
    board.fetch(server, found_for(server.data, "measure"))
    assert server.requests == [(0, None)]


member_sets = st.dictionaries(
    st.text("abcd", min_size=1, max_size=4), st.binary(max_size=2000).map(lambda data: data * 3), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(
    old=st.lists(member_sets, max_size=2),
    new=member_sets,
    cuts=st.lists(st.integers(0, 9000), max_size=6),
    lost=st.integers(0, 300),
    spans=st.booleans(),
    damage=st.integers(0, 20_000) | st.none(),
)
@example([{"a": b"x" * 100}], {"a": b"x" * 100}, [0, 1, 43], 0, True, None)
def test_whatever_breaks_wherever_the_file_is_the_signed_one_in_the_end(
    old: list[Members], new: Members, cuts: list[int], lost: int, spans: bool, damage: int | None
) -> None:
    """Cut anywhere, the part's end lost by a power cut, a slot damaged anywhere, a server with spans or without."""
    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder))
        for files in old:
            shared = {name: new.get(name, data) for name, data in files.items()}
            data = bytearray(bundle(shared))
            if damage is not None:
                data[damage % len(data)] ^= 1
            board.hold(bytes(data))
        server = Memory(bundle(new), list(cuts), spans)
        found = found_for(server.data)
        for _ in range(len(cuts) + 1):
            try:
                Downloader(server, lambda: board.held).fetch(found, board.part, lambda: None)
            except NetworkFailed:
                os.truncate(board.part, max(0, board.part.stat().st_size - lost))
        assert board.part.read_bytes() == server.data


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 5000), new=st.binary(min_size=1, max_size=40), spans=st.booleans())
@example(at=26, new=b"\xff\xff", spans=True)  # the manifest's size
@example(at=30, new=b"other.json", spans=True)  # its name
def test_a_server_that_lies_anywhere_is_found_out(at: int, new: bytes, spans: bool) -> None:
    files = {"a": b"a" * 1000, "b": b"b" * 1000, "c": b"c" * 1000}
    signed = bundle(files)
    lie = bytearray(signed)
    lie[at % len(signed) : at % len(signed) + len(new)] = new
    if bytes(lie) == signed:
        return
    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder))
        board.hold(bundle({"a": files["a"], "b": files["b"]}))
        server = Memory(bytes(lie), spans=spans)
        reason = None
        try:
            board.fetch(server, found_for(signed))
        except Refused as err:
            reason = err.reason
        if reason is None:  # the lie was in what this board has itself
            assert board.part.read_bytes() == signed
        else:
            assert reason == "tampered"
            assert not board.part.exists()


@pytest.mark.parametrize(
    "files",
    [
        None,
        "all of them",
        [{}],
        [{"name": "../a", "size": 1, "sha256": "0" * 64}],
        [{"name": "a", "size": 2**60, "sha256": "0" * 64}],
        [{"name": "a", "size": -1, "sha256": "0" * 64}],
        [{"name": "a", "size": 1, "sha256": "0" * 64}] * 2,
        [{"name": f"a{n}", "size": 0, "sha256": "0" * 64} for n in range(10_001)],
    ],
)
def test_a_signed_file_whose_manifest_lists_nonsense_is_fetched_as_it_comes(
    board: Board, files: object
) -> None:
    """Whether it is a bundle is decided when it is opened."""
    board.hold(bundle(BIG))
    server = Memory(bundle({"a": b"a" * 1000}, files))
    assert board.fetch(server) == server.data


def test_a_manifest_that_names_another_content_than_the_file_holds_costs_one_full_fetch(board: Board) -> None:
    board.hold(bundle(BIG))
    server = Memory(bundle({**BIG, "stages/1.onnx": os.urandom(30_000)}, listing(BIG)))
    assert board.fetch(server) == server.data
    assert server.requests[-1] == (0, None)


def test_that_full_fetch_goes_on_after_a_break_and_reuses_nothing_again(board: Board) -> None:
    board.hold(bundle(BIG))
    server = Memory(bundle({**BIG, "stages/1.onnx": os.urandom(30_000)}, listing(BIG)))
    downloader, found = Downloader(server, lambda: board.held), found_for(server.data)
    server.cuts = [10**6, 10**6, 50_000, 30_000]
    for _ in range(2):
        with pytest.raises(NetworkFailed):
            downloader.fetch(found, board.part, lambda: None)
    downloader.fetch(found, board.part, lambda: None)
    assert board.part.read_bytes() == server.data
    assert server.requests[-3:] == [(0, None), (50_000, None), (80_000, None)]


def test_a_manifest_too_large_to_be_read_unbelieved_is_not_read(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_MANIFEST_BYTES", 2000)
    board.hold(bundle(BIG))
    server = Memory(bundle(BIG, padding="x" * 5000))
    assert board.fetch(server) == server.data
    assert len(server.requests) == 2
    assert server.sent == len(server.data)


def test_a_damaged_slot_costs_only_the_member_that_is_damaged(board: Board) -> None:
    data = bundle(BIG)
    slot = board.hold(data)
    at = data.index(BIG["stages/1.onnx"]) + 15_000
    slot.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    server = Memory(bundle({**BIG, "notes": b"new"}))
    assert board.fetch(server) == server.data
    assert server.sent < cost(BIG, "stages/1.onnx") + 2000


def test_a_slot_that_vanishes_or_breaks_off_while_it_is_copied_does_not_matter(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = board.hold(bundle(BIG))
    server = Memory(bundle({**BIG, "notes": b"new"}))
    monkeypatch.setattr(members.Source, "holds", lambda *_: True)
    looked = [0]

    def check() -> None:
        looked[0] += 1
        if looked[0] == 5:
            os.truncate(slot, 40_000)

    assert board.fetch(server, check=check) == server.data


def test_a_slot_changed_between_being_checked_and_being_copied_is_found_out(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**BIG, "stages/1.onnx": bytes(30_000)}
    data = bundle(BIG).replace(BIG["stages/1.onnx"], wrong["stages/1.onnx"])
    board.hold(data)
    monkeypatch.setattr(members.Source, "holds", lambda *_: True)
    server = Memory(bundle(BIG))
    assert board.fetch(server) == server.data
    assert server.requests[-1] == (0, None)


def test_a_server_without_spans_is_not_asked_again_and_again(board: Board) -> None:
    board.hold(bundle({"stages/0.onnx": BIG["stages/0.onnx"]}))
    server = Memory(bundle(BIG), spans=False)
    assert board.fetch(server) == server.data
    assert len(server.requests) == 2


# --- on the disk ---


def test_what_came_is_synced_now_and_then_and_at_the_end(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SYNC_EVERY", 50_000)
    sizes: list[int] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        real(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    server = Memory(bundle(BIG))
    board.fetch(server)
    assert sizes[-1] == len(server.data)
    assert all(after - before <= 50_000 + CHUNK for before, after in zip([0, *sizes], sizes, strict=False))


@pytest.mark.parametrize("held", [True, False])
def test_a_full_disk_is_one_line(board: Board, monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    if held:
        board.hold(bundle(BIG))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download._Part, "sync", full)
    with pytest.raises(WorldFailed, match="could not be written: No space left on device"):
        board.fetch(Memory(bundle(BIG)))


@pytest.mark.parametrize("held", [True, False])
def test_who_must_not_go_on_is_heard_while_copying_and_while_hashing_what_is_there(
    board: Board, held: bool
) -> None:
    server = Memory(bundle(BIG))
    if held:
        board.hold(server.data)
    else:
        board.part.write_bytes(server.data[:-100])

    def check() -> None:
        raise Superseded("newer")

    with pytest.raises(Superseded):
        board.fetch(server, check=check)
    assert server.sent < 2000


# --- the rate ---


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def test_a_download_keeps_its_rate_and_is_asked_often_whether_to_go_on(board: Board) -> None:
    clock, server, asked = Clock(), Memory(bundle(BIG)), [0]

    def check() -> None:
        asked[0] += 1

    throttle = Throttle(lambda: 10_000.0, lambda: clock.now, clock.sleep)
    Downloader(server, throttle=throttle).fetch(found_for(server.data), board.part, check)
    took = clock.now - 100.0
    assert took == pytest.approx((len(server.data) - 10_000) / 10_000, rel=0.01)
    assert max(clock.slept) <= 0.25
    assert asked[0] >= len(clock.slept)


def test_a_rate_may_change_or_go_while_it_is_waited_for() -> None:
    clock, rate = Clock(), [1000.0]
    throttle = Throttle(lambda: rate[0], lambda: clock.now, clock.sleep)

    def faster() -> None:
        if len(clock.slept) >= 4:
            rate[0] = 10_000.0

    throttle.take(100_000, faster)
    assert clock.now - 100 == pytest.approx(1 + 9.6, abs=0.1)
    unlimited = Throttle(lambda: None, lambda: clock.now, clock.sleep)
    before = clock.now
    unlimited.take(10**9, lambda: None)
    assert clock.now == before


def test_nobody_saves_up_more_than_a_second_of_the_rate() -> None:
    clock = Clock()
    throttle = Throttle(lambda: 1000.0, lambda: clock.now, clock.sleep)
    clock.now += 3600
    before = clock.now
    throttle.take(3000, lambda: None)
    assert clock.now - before == pytest.approx(2.0)


# --- over HTTP ---


@dataclass
class Server:
    """Says what a test wants, keeps connections, and remembers what it was asked."""

    say: Callable[[BaseHTTPRequestHandler, str | None], None]
    asked: list[str | None] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:  # noqa: N805
                self.asked.append(handler.headers.get("Range"))
                self.connections.add(handler.client_address)
                self.say(handler, handler.headers.get("Range"))

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def files(self) -> HttpFiles:
        url = f"http://127.0.0.1:{self.http.server_port}/repo"
        return HttpFiles(open_pool(Repository(url, "token")), url)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler, str | None], None]], Server]]:
    made: list[Server] = []

    def start(say: Callable[[BaseHTTPRequestHandler, str | None], None]) -> Server:
        made.append(Server(say))
        return made[-1]

    yield start
    for server in made:
        server.close()


Serve = Callable[[Callable[[BaseHTTPRequestHandler, "str | None"], None]], Server]


def answer(
    handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", length: int | None = None, **headers: str
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def span(wanted: str | None, size: int) -> tuple[int, int]:
    first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1 if last else size


def test_spans_go_over_one_connection(board: Board, serve: Serve) -> None:
    data = bundle({**BIG, "stages/1.onnx": b"new" * 1000})
    board.hold(bundle(BIG))

    def say(handler: BaseHTTPRequestHandler, wanted: str | None) -> None:
        start, end = span(wanted, len(data))
        answer(handler, 206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")

    server = serve(say)
    Downloader(server.files, lambda: board.held).fetch(found_for(data), board.part, lambda: None)
    assert board.part.read_bytes() == data
    assert len(server.asked) == 3
    assert len(server.connections) == 1


def attempt(server: Server, board: Board, data: bytes) -> NetworkFailed:
    with pytest.raises(NetworkFailed) as caught:
        Downloader(server.files, lambda: board.held).fetch(found_for(data), board.part, lambda: None)
    assert "\n" not in str(caught.value)
    return caught.value


DATA = bundle(BIG)


@pytest.mark.parametrize("status", [401, 403, 404, 416, 429, 500, 502, 503])
def test_whatever_a_server_answers_is_worth_another_try_and_costs_nothing_that_came(
    board: Board, serve: Serve, status: int
) -> None:
    board.part.write_bytes(DATA[:1000])
    err = attempt(serve(lambda handler, _: answer(handler, status)), board, DATA)
    assert (err.status, err.retry_after_s, err.progressed) == (status, None, False)
    assert board.part.read_bytes() == DATA[:1000]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), ("99999999", 600.0), ("Thu, 01 Jan 2099 00:00:00 GMT", 600.0),
     ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None), ("-5", None), ("9" * 5000, None)],
)  # fmt: skip
def test_how_long_a_busy_server_asks_to_wait_is_heard_within_bounds(
    board: Board, serve: Serve, value: str, seconds: float | None
) -> None:
    err = attempt(serve(lambda handler, _: answer(handler, 503, Retry_After=value)), board, DATA)
    assert err.retry_after_s == seconds


def test_a_redirect_is_not_followed_and_sees_no_token(board: Board, serve: Serve) -> None:
    elsewhere = serve(lambda handler, _: answer(handler, 200, DATA))
    url = f"http://127.0.0.1:{elsewhere.http.server_port}/"
    err = attempt(serve(lambda handler, _: answer(handler, 302, Location=url)), board, DATA)
    assert err.status == 302
    assert elsewhere.asked == []


def test_a_server_that_brings_crumbs_is_not_asked_at_once_again(board: Board, serve: Serve) -> None:
    """Each attempt begins with the hash of all that is there."""

    def say(handler: BaseHTTPRequestHandler, wanted: str | None) -> None:
        start, end = span(wanted, len(DATA))
        answer(handler, 206 if wanted else 200, DATA[start : start + 10], end - start)
        handler.close_connection = True

    server = serve(say)
    assert [attempt(server, board, DATA).progressed for _ in range(2)] == [False, False]
    assert board.part.read_bytes() == DATA[:20]


def test_a_body_cut_short_is_gone_on_with(board: Board, serve: Serve) -> None:
    def say(handler: BaseHTTPRequestHandler, wanted: str | None) -> None:
        start, end = span(wanted, len(DATA))
        answer(handler, 206 if wanted else 200, DATA[start : start + 70_000], end - start)
        handler.close_connection = True

    server = serve(say)
    assert attempt(server, board, DATA).progressed
    Downloader(server.files).fetch(found_for(DATA), board.part, lambda: None)
    assert server.asked == [None, "bytes=70000-"]
    assert board.part.read_bytes() == DATA


@pytest.mark.parametrize("given", ["bytes 0-9/10", "bytes 1001-5000/5001", "lines 1000-2000", "bytes */5000"])
def test_other_bytes_than_asked_for_are_not_taken(board: Board, serve: Serve, given: str) -> None:
    board.part.write_bytes(DATA[:1000])
    server = serve(lambda handler, _: answer(handler, 206, b"x" * 5000, Content_Range=given))
    assert "asked for bytes=1000-" in str(attempt(server, board, DATA))
    assert board.part.read_bytes() == DATA[:1000]


def test_a_server_that_answers_a_span_with_everything_is_gone_on_with_where_the_part_ends(
    board: Board, serve: Serve
) -> None:
    board.part.write_bytes(DATA[:1000])
    server = serve(lambda handler, _: answer(handler, 200, DATA))
    Downloader(server.files).fetch(found_for(DATA), board.part, lambda: None)
    assert board.part.read_bytes() == DATA
    assert server.asked == ["bytes=1000-"]


def test_more_than_was_asked_for_is_left_alone(board: Board, serve: Serve) -> None:
    board.hold(bundle({**BIG, "stages/3.onnx": b"old"}))

    def say(handler: BaseHTTPRequestHandler, wanted: str | None) -> None:
        start, _ = span(wanted, len(DATA))
        answer(handler, 206, DATA[start:], Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")

    Downloader(serve(say).files, lambda: board.held).fetch(found_for(DATA), board.part, lambda: None)
    assert board.part.read_bytes() == DATA


def test_a_download_that_only_crawls_after_a_good_start_is_given_up_for_now(
    board: Board, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_WINDOW_S", 0.2)
    monkeypatch.setattr(http, "_SLOWEST", 2000)
    ended = threading.Event()

    def say(handler: BaseHTTPRequestHandler, _wanted: str | None) -> None:
        answer(handler, 200, DATA[:100_000], len(DATA))
        for at in range(100_000, len(DATA)):
            if ended.wait(0.01):
                return
            handler.wfile.write(DATA[at : at + 1])

    server = serve(say)
    err = attempt(server, board, DATA)
    ended.set()
    assert "too slow" in str(err)
    assert err.progressed
    assert board.part.stat().st_size >= 100_000


def test_a_name_that_is_not_known_is_a_network_that_failed(board: Board) -> None:
    url = "http://no-such-host.invalid/repo"
    with pytest.raises(NetworkFailed, match="no-such-host"):
        Downloader(HttpFiles(open_pool(Repository(url, None)), url)).fetch(
            found_for(DATA), board.part, lambda: None
        )


def held_of(paths: Sequence[Path]) -> set[bytes]:
    """What members_held finds, read back."""
    found = set()
    for source in members.members_held(paths).values():
        data = source.path.read_bytes()
        found.add(data[source.at : source.at + source.size])
    return found


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=300), cut=st.integers(0, 3000))
def test_whatever_lies_in_a_slot_is_only_looked_through(noise: bytes, cut: int) -> None:
    files = {"a": b"a" * 900, "b": b"b" * 900}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("noise", "cut", "none")]
        paths[0].write_bytes(noise)
        paths[1].write_bytes(bundle(files)[:cut])
        assert held_of(paths) <= set(files.values())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_away_is_said_without_the_librarys_objects(scheme: str) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        files = HttpFiles(open_pool(Repository(url, None)), url)
        with pytest.raises(NetworkFailed) as failed:
            files.open("timestamp.json")
    assert "onnection refused" in str(failed.value)
    for leak in ("host=", "object at"):
        assert leak not in str(failed.value)
