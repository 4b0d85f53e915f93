"""The local API over HTTP: what it answers, what it refuses, and that nothing a client does ends it."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from apis import FULL, IMAGE, Running, UnixConnection, ask, make_serving, question, running
from bundles import SHAPE, write_null_bundle
from PIL import Image

from edgekit.agent.api.listen import listen
from edgekit.agent.config import Api as Settings
from edgekit.agent.runner import Runner
from edgekit.agent.serving import Server
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.policy import PolicySpec, parse_budget
from edgekit.runtime import command
from edgekit.runtime.policy import make_policy
from edgekit.runtime.power import open_sensor
from edgekit.runtime.session import open_session


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def open_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests that leave nothing behind: whatever they send, the next ones are answered."""
    with running(tmp_path_factory.mktemp("board")) as made:
        yield made


def binary(array: Any, **more: Any) -> tuple[bytes, str]:
    """A request with its tensor behind the JSON, and the length of the JSON."""
    given = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    head = json.dumps({"inputs": [given], **more}).encode()
    return head + array.tobytes(), str(len(head))


def expected(folder: Path, array: Any) -> Any:
    """What the session itself answers."""
    bundle = write_null_bundle(folder / "expected.edge")
    with_session = open_session(bundle.manifest, bundle.read)
    return with_session.run({"x": array}, make_policy(FULL, bundle.manifest, None)).outputs["exit3"]


# --- what it tells ---


def test_server_and_model_describe_themselves_as_the_protocol_has_it(open_board: Running) -> None:
    assert open_board.get("/v2")[1]["name"] == "edgekit"
    assert "binary_tensor_data" in open_board.get("/v2")[1]["extensions"]
    assert open_board.get("/v2/health/live") == (200, {"live": True})
    assert open_board.get("/v2/health/ready") == (200, {"ready": True})
    assert open_board.get("/v2/models/toy") == (
        200,
        {
            "name": "toy",
            "versions": ["1"],
            "platform": "edgekit_null",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 4, 4]}],
            "outputs": [{"name": "exit3", "datatype": "FP32", "shape": [1, 3]}],
        },
    )
    assert open_board.get("/v2/models/toy/versions/1/ready") == (200, {"name": "toy", "ready": True})
    config = open_board.get("/v2/models/toy/config")[1]
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [1, 1, 4, 4])
    _, index = open_board.once("POST", "/v2/repository/index", b"")
    assert json.loads(index) == [{"name": "toy", "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/toy/versions/2", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/toy/infer", 405),
        ("POST", "/v2/models/toy", 405),
        ("POST", "/v2/repository/models/toy/load", 400),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    open_board: Running, method: str, path: str, status: int
) -> None:
    response, body = open_board.once(method, path, b"{}" if method == "POST" else None)
    assert response.status == status
    assert "\n" not in json.loads(body)["error"]


def test_statistics_count_what_came_through_the_api(board: Running) -> None:
    for _ in range(3):
        board.infer()
    board.infer({"inputs": []})
    (row,) = board.get("/v2/models/toy/stats")[1]["model_stats"]
    assert (row["inference_count"], row["inference_stats"]["fail"]["count"]) == (3, 1)
    assert row["inference_stats"]["success"]["ns"] > row["inference_stats"]["compute_infer"]["ns"] > 0


# --- answers ---


@pytest.mark.parametrize("compression", ["", "gzip", "deflate"])
def test_answers_are_those_of_the_session_in_json_and_in_binary(
    open_board: Running, tmp_path: Path, compression: str
) -> None:
    wanted = expected(tmp_path, IMAGE)
    squeeze = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[compression]
    headers = {"Content_Encoding": compression} if compression else {}
    _, data = open_board.infer(squeeze(json.dumps(question()).encode()), **headers)
    assert data["outputs"][0]["shape"] == [1, 3]
    assert np.array_equal(np.float32(data["outputs"][0]["data"]).reshape(1, 3), wanted)
    body, length = binary(IMAGE, parameters={"binary_data_output": True})
    response, content = open_board.once(
        "POST",
        "/v2/models/toy/versions/1/infer",
        squeeze(body),
        Inference_Header_Content_Length=length,
        **headers,
    )
    head = int(response.headers["Inference-Header-Content-Length"])
    assert json.loads(content[:head])["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert content[head:] == wanted.tobytes()


def test_large_answers_are_compressed_for_who_asks(open_board: Running) -> None:
    long = {**question(), "id": "i" * 1000}
    for accept, used in (("gzip, br", "gzip"), ("deflate", "deflate"), ("br, gzip;q=0", None), ("", None)):
        response, body = open_board.once("POST", "/v2/models/toy/infer", long, Accept_Encoding=accept)
        assert response.headers["Content-Encoding"] == used
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[used](body)
        assert json.loads(plain)["id"] == "i" * 1000


def test_the_response_says_exit_confidence_policy_and_bundle(open_board: Running) -> None:
    _, data = open_board.infer({**question(), "id": "42"})
    said = data["parameters"]
    assert data["id"] == "42"
    assert (said["exit"], said["exit_index"], said["policy"], said["bundle"]) == ("exit3", 2, "full", "toy/1")
    assert 0 < said["confidence"] < 1
    assert said["latency_ms"] > 0
    assert said["deadline_missed"] is False


@pytest.mark.parametrize(
    ("parameters", "exit_name", "policy"),
    [
        ({"deadline_ms": 10_000}, "exit3", "anytime 10000ms"),
        ({"deadline_ms": 1e-3}, "exit1", "anytime 0.001ms"),
        ({"policy": "full"}, "exit3", "full"),
        ({"policy": "budget", "budget": "25%"}, "exit1", "budget 25%"),
        ({"budget": "100%"}, "exit3", "budget 100%"),
        ({"max_drop": 10}, "exit1", "confidence 10pt"),
    ],
)
def test_a_request_brings_its_own_policy(
    open_board: Running, parameters: dict[str, Any], exit_name: str, policy: str
) -> None:
    _, data = open_board.infer(question(**parameters))
    said = data["parameters"]
    assert (said["exit"], said["policy"]) == (exit_name, policy)
    assert data["outputs"][0]["name"] == "exit3", "whichever exit answers, the output has the model's name"


def test_the_mean_of_requests_that_bring_one_budget_is_held(open_board: Running) -> None:
    exits = [open_board.infer(question(budget="50%"))[1]["parameters"]["exit"] for _ in range(40)]
    assert len(set(exits)) > 1, "the controller alternates between operating points"


def test_requests_with_their_own_policy_are_counted_but_do_not_steer_the_boards(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched:
        deadline_ms = None

        def leave(self, *_: float) -> bool:
            return True

        def observe(self, exit_index: int, *_: float) -> None:
            seen.append(exit_index)

    with running(tmp_path, serving=replace(make_serving(tmp_path), policy=Watched())) as board:
        board.infer(question(policy="full"))
        assert seen == []
        assert board.infer()[1]["parameters"]["exit"] == "exit1"
        assert seen == [0]
        assert board.runner.collect()[-1].exit_counts == {"exit1": 1, "exit2": 0, "exit3": 1}


def test_time_in_the_queue_counts_against_a_deadline_and_the_answer_still_comes(board: Running) -> None:
    with board.hold():
        thread, got = board.in_thread(deadline_ms=50)
        board.until_waiting(1)
        begun = time.monotonic()
        until(lambda: time.monotonic() - begun > 0.06, "the deadline")
    thread.join(20)
    ((status, data),) = got
    said = data["parameters"]
    assert (status, said["exit"], said["deadline_missed"]) == (200, "exit1", True)
    assert said["latency_ms"] > 50


def test_classes_come_with_labels_where_asked_for(open_board: Running) -> None:
    outputs = [{"name": "exit3", "parameters": {"classification": 2}}]
    _, data = open_board.infer({**question(), "outputs": outputs})
    (output,) = data["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2])
    values = (IMAGE.ravel()[:3] * 4).tolist()
    assert output["data"] == [f"{values[2]:f}:2:two", f"{values[1]:f}:1:one"]


def test_an_encoded_image_goes_through_the_bundles_preprocessing(open_board: Running) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content = struct.pack("<I", len(file.getvalue())) + file.getvalue()

    def send(content: bytes) -> tuple[int, Any]:
        given = {
            "name": "x",
            "shape": [1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(content)},
        }
        head = json.dumps({"inputs": [given]}).encode()
        response, data = open_board.infer(head + content, Inference_Header_Content_Length=str(len(head)))
        return response.status, data

    _, image = send(content)
    _, tensor = open_board.infer(question((pixels / np.float32(255)).astype(np.float32).reshape(SHAPE)))
    assert np.allclose(image["outputs"][0]["data"], tensor["outputs"][0]["data"])
    status, data = send(struct.pack("<I", 4) + b"nope")
    assert status == 400
    assert "input 'x': not an image" in data["error"]


def test_a_throttled_board_tightens_what_requests_ask_for(tmp_path: Path) -> None:
    sensor = open_sensor("none", tmp_path, command.runner(tmp_path))
    with running(tmp_path) as board:
        server = Server(
            board.runner, FULL, 0.5, 1, ("CPUExecutionProvider",), accepts_code=False, sensor=sensor
        )
        server.serve(
            server.open(write_null_bundle(tmp_path / "served.edge")), PolicySpec("anytime", deadline_ms=9e3)
        )
        server.throttle(throttled=True)
        for asked, used in (
            ({"policy": "full"}, "budget 50%"),
            ({"budget": "80%"}, "budget 40%"),
            ({"deadline_ms": 5000}, "anytime 5000ms"),
        ):
            assert board.infer(question(**asked))[1]["parameters"]["policy"] == used
        server.throttle(throttled=False)
        assert board.infer(question(policy="full"))[1]["parameters"]["policy"] == "full"


# --- refusals ---


def raw(**changes: Any) -> dict[str, Any]:
    """A request whose only input is changed."""
    given = {**question()["inputs"][0], **changes}
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


GOOD = IMAGE.ravel().tolist()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"[]", "must be a table"),
        (b'{"inputs": NaN}', "non-number NaN"),
        (b'{"inputs": 1' + b"0" * 5000 + b"}", "JSON"),
        ({}, "inputs must be a list"),
        ({"inputs": []}, "input 'x' must be FP32 [1, 1, 4, 4] (one sample a request), got nothing"),
        ({"inputs": [1]}, "inputs[0] must be a table"),
        ({"inputs": [{}] * 100}, "inputs must be at most 64, got 100"),
        ({**question(), "id": 42}, "id must be a text"),
        ({**question(), "parameters": 3}, "parameters must be a table"),
        (raw(name="y"), "input 'x' must be"),
        ({"inputs": [*question()["inputs"], {**raw(name="y")["inputs"][0]}]}, "unknown input 'y'"),
        ({"inputs": question()["inputs"] * 2}, "each name may stand there once"),
        (raw(shape=[2, 1, 4, 4], data=GOOD * 2), "one sample a request), got FP32 [2, 1, 4, 4]"),
        (raw(shape=[16]), "got FP32 [16]"),
        (raw(shape=[-1]), "whole number"),
        (raw(shape=[1] * 9), "rank"),
        (raw(shape=[2**31] * 8), "takes"),
        (raw(datatype="FP64"), "datatype must be one of FP32"),
        (raw(datatype="INT32", data=[1] * 16), "must be FP32"),
        (raw(datatype="BYTES"), "must come as binary data"),
        (raw(data=None), "needs data"),
        (raw(data="x"), "needs data"),
        (raw(data=GOOD[:-1]), "takes 16 values, data has 15"),
        (raw(data=[GOOD]), "must be flat or nested"),
        (raw(data=[[[GOOD[:8], GOOD[8:]]]]), "must be flat or nested"),
        (raw(data=[*GOOD[:-1], None]), "must be numbers, got null"),
        (raw(data=["a" * 10_000, *[""] * 15]), "must be numbers, got str"),
        (raw(data=[*GOOD[:-1], 1e39]), "cannot hold"),
        (raw(data=[*GOOD[:-1], 10**400]), "cannot hold"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1e999]}]}', "cannot hold"),
        (raw(parameters={"binary_data_size": 64}), "needs data or binary_data_size, got both"),
        (raw(data=None, parameters={"binary_data_size": 64}), "says 64 bytes, 0 are left"),
        (raw(parameters={"shared_memory_region": "r"}), "shared memory"),
        ({**question(), "outputs": [{"name": "exit1"}]}, "unknown output 'exit1'; the bundle gives exit3"),
        ({**question(), "outputs": [{"name": "exit3"}] * 2}, "each name may stand there once"),
        (
            {**question(), "outputs": [{"name": "exit3", "parameters": {"classification": -1}}]},
            "whole number",
        ),
        (question(policy="fast"), "parameters.policy must be one of full, anytime"),
        (question(policy="anytime"), "needs one"),
        (question(deadline_ms="5"), "deadline_ms must be a finite number"),
        (question(deadline_ms=-1), "deadline_ms must be a number from"),
        (question(budget="3 apples"), "budget must be a positive amount"),
        (question(budget="5mJ"), "power sensor"),
        (question(policy="budget", deadline_ms=5), "budget"),
        (question(max_drop=1, policy="full"), "max_drop goes with the confidence policy"),
    ],
)
def test_a_bad_request_is_told_in_one_line_what_is_wrong(open_board: Running, body: Any, said: str) -> None:
    response, data = open_board.infer(body)
    assert response.status == 400
    assert said in data["error"]
    assert "\n" not in data["error"]
    assert open_board.infer()[0].status == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({"Inference_Header_Content_Length": "x"}, b"{}", 400, "whole number"),
        ({"Inference_Header_Content_Length": "99"}, b"{}", 400, "at most the body's 2 bytes"),
        ({"Content_Encoding": "br"}, b"{}", 415, "gzip, deflate or identity"),
        ({"Content_Encoding": "gzip"}, b"{}", 400, "not gzip"),
        ({"Content_Encoding": "gzip"}, gzip.compress(b"{}", mtime=0)[:-5], 400, "not one whole gzip stream"),
        ({"Content_Encoding": "gzip"}, gzip.compress(bytes(2**24), mtime=0), 413, "bytes for this bundle"),
        ({}, b" " * 2**24, 413, "bytes for this bundle"),
        (
            {"Content_Encoding": "deflate"},
            zlib.compress(b"{}") + b"more",
            400,
            "not one whole deflate stream",
        ),
    ],
)
def test_headers_and_sizes_are_held_to_limits(
    open_board: Running, headers: dict[str, str], body: bytes, status: int, said: str
) -> None:
    response, data = open_board.infer(body, **headers)
    assert response.status == status
    assert said in data["error"]
    assert open_board.infer()[0].status == 200


def test_bytes_behind_the_json_that_no_input_names_are_refused(open_board: Running) -> None:
    body, length = binary(IMAGE)
    response, data = open_board.infer(body + b"more", Inference_Header_Content_Length=length)
    assert (response.status, "4 bytes behind the JSON" in data["error"]) == (400, True)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2**17 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_gets_a_400_or_the_end_of_the_connection(open_board: Running, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", open_board.api.port), 20) as client:
        answer = b""
        try:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(2**16):
                answer += part
        except OSError:  # it has closed already
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert open_board.infer()[0].status == 200


def test_slow_clients_are_given_up(tmp_path: Path) -> None:
    with running(tmp_path, timeout_s=0.2) as board:
        address = ("127.0.0.1", board.api.port)
        with socket.create_connection(address, 20) as body, socket.create_connection(address, 20) as header:
            body.sendall(b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
            header.sendall(b"GET /v2 HTTP/1.1\r\nHost:")
            answer = body.recv(2**16)
            assert answer.startswith(b"HTTP/1.1 408")
            with pytest.raises(ConnectionResetError):  # noqa: PT012  (an end and a reset are both an end)
                if header.recv(1) == b"":
                    raise ConnectionResetError
        assert board.infer()[0].status == 200


def test_a_client_that_never_reads_its_answers_is_given_up(tmp_path: Path) -> None:
    with running(tmp_path, timeout_s=0.2) as board:
        with socket.create_connection(("127.0.0.1", board.api.port), 60) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            many = b"GET /v2/models/toy/config HTTP/1.1\r\nHost: a\r\n\r\n" * 500_000
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                client.sendall(many)
        assert board.infer()[0].status == 200


def test_a_request_with_bytes_changed_here_and_there_does_no_harm(tmp_path: Path) -> None:
    body = json.dumps(question()).encode()
    good = b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    random = np.random.default_rng(11)
    with running(tmp_path, timeout_s=0.1) as board:
        for _ in range(60):
            sent = bytearray(good)
            for place in random.integers(len(good) - 20, size=random.integers(1, 6)):
                sent[place : place + int(random.integers(0, 9))] = random.bytes(int(random.integers(0, 9)))
            with socket.create_connection(("127.0.0.1", board.api.port), 20) as client:
                client.sendall(sent)
                with suppress(ConnectionResetError):
                    answer = client.recv(2**16)
                    assert answer == b"" or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4"))
        assert board.infer()[0].status == 200
        assert board.api.app._places == board.api.app._held == 0


def test_connections_are_bounded(tmp_path: Path) -> None:
    with running(tmp_path, max_connections=2) as board:
        kept = [board.connect() for _ in range(2)]
        for connection in kept:
            assert ask(connection, "GET", "/v2/health/live")[0].status == 200
        response, body = board.once("GET", "/v2/health/live")
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert "too many connections" in json.loads(body)["error"]
        kept[0].close()
        until(lambda: board.once("GET", "/v2/health/live")[0].status == 200, "a free connection")


# --- the queue ---


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(tmp_path: Path) -> None:
    with running(tmp_path, capacity=2) as board:
        with board.hold():
            asked = [board.in_thread() for _ in range(2)]
            board.until_waiting(2)
            response, data = board.infer()
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert "queue is full (2 requests)" in data["error"]
        for thread, got in asked:
            thread.join(20)
            assert got[0][0] == 200
        assert board.infer()[0].status == 200


def test_sources_do_not_take_the_places_of_callers(tmp_path: Path) -> None:
    from edgekit.agent.runner import Request

    with running(tmp_path, capacity=2) as board:
        order: list[str] = []

        def read(_manifest: object) -> Any:
            order.append("source")
            return {"x": IMAGE}, None

        with board.hold():
            for _ in range(2):
                assert board.runner.submit(Request(read), 1.0)
            assert not board.runner.submit(Request(read), 0.01)
            thread, got = board.in_thread()
            board.until_waiting(1)
            read_again = board.runner._calls[0].read
            object.__setattr__(
                board.runner._calls[0], "read", lambda m: (order.append("call"), read_again(m))[1]
            )
        thread.join(20)
        assert got[0][0] == 200
        assert board.runner.drain(5.0)
        assert "call" in order[:2], "they take turns"


def test_a_client_that_hangs_up_frees_its_place_and_is_no_error(tmp_path: Path) -> None:
    with running(tmp_path, capacity=2) as board:
        with board.hold():
            clients = [socket.create_connection(("127.0.0.1", board.api.port), 20) for _ in range(2)]
            body = json.dumps(question()).encode()
            for client in clients:
                head = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
            board.until_waiting(2)
            for client in clients:
                client.close()
            until(lambda: all(r.cancelled() for r in board.runner._calls if r.cancelled), "both hung up")
            thread, got = board.in_thread()
            until(lambda: board.waiting() == 1, "the place of one who hung up")
        thread.join(20)
        assert got[0][0] == 200
        interval = board.runner.collect()[-1]
        assert (interval.cancelled, interval.errors, interval.requests) == (2, 0, 2)


def test_who_hung_up_is_skipped_when_the_turn_comes(board: Running) -> None:
    with board.hold():
        client = socket.create_connection(("127.0.0.1", board.api.port), 20)
        body = json.dumps(question()).encode()
        head = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        board.until_waiting(1)
        client.close()
        until(board.runner._calls[0].cancelled, "the hang-up")
    assert board.runner.drain(5.0)
    assert board.infer()[0].status == 200
    assert board.runner.collect()[-1].cancelled == 1
    assert board.get("/v2/models/toy/stats")[1]["model_stats"][0]["inference_stats"]["cancel"]["count"] == 1


def test_a_thousand_requests_of_eight_clients_are_all_answered(board: Running) -> None:
    statuses: list[int] = []
    most = [0]

    def client() -> None:
        connection = board.connect()
        for _ in range(125):
            response, _ = ask(connection, "POST", "/v2/models/toy/infer", json.dumps(question()).encode())
            statuses.append(response.status)
            most[0] = max(most[0], board.waiting())

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 1000
    assert most[0] <= 8
    assert board.runner.collect()[-1].requests == 1000
    assert board.api.app._places == board.api.app._held == 0


# --- switches and ends ---


def test_nothing_installed_is_not_ready_and_refuses_with_retry_after(board: Running) -> None:
    board.runner.swap(None)
    assert board.get("/v2/health/ready") == (503, {"ready": False})
    assert board.get("/v2/health/live")[0] == 200
    response, data = board.infer()
    assert (response.status, int(response.headers["Retry-After"]) >= 1) == (503, True)
    assert data["error"] == "nothing is installed on this board yet"


def test_a_switch_of_bundles_loses_no_request(board: Running, tmp_path: Path) -> None:
    with board.hold():
        thread, got = board.in_thread()
        board.until_waiting(1)
        serving = make_serving(tmp_path, version=2)
        switch = threading.Thread(target=board.runner.swap, args=(serving,))
        switch.start()
        until(lambda: board.runner._orders, "the switch behind the running request")
    thread.join(20)
    switch.join(20)
    ((status, data),) = got
    assert (status, data["model_version"], data["parameters"]["bundle"]) == (200, "2", "toy/2")


@pytest.mark.parametrize(("what", "status"), [("other", 409), ("nothing", 503)])
def test_a_switch_to_what_cannot_answer_is_said_to_who_waits(
    board: Running, tmp_path: Path, what: str, status: int
) -> None:
    with board.hold():
        thread, got = board.in_thread()
        board.until_waiting(1)
        serving = make_serving(tmp_path, name="other") if what == "other" else None
        switch = threading.Thread(target=board.runner.swap, args=(serving,))
        switch.start()
        until(lambda: board.runner._orders, "the switch behind the running request")
    thread.join(20)
    switch.join(20)
    assert got[0][0] == status
    assert ("took over" in got[0][1]["error"]) == (what == "other")


def test_the_end_answers_what_runs_refuses_what_waits_and_does_not_hang(tmp_path: Path) -> None:
    with running(tmp_path) as board:
        idle = board.connect()
        assert ask(idle, "GET", "/v2")[0].status == 200
        with board.hold():
            waiting = [board.in_thread() for _ in range(3)]
            board.until_waiting(3)
            begun = time.monotonic()
            board.api.stop(60.0)
            assert time.monotonic() - begun < 20  # by itself, not by the time it is given
            for thread, got in waiting:
                thread.join(20)
                assert (got[0][0], got[0][1]["error"]) == (503, "the agent is stopping")
        with pytest.raises(OSError):  # noqa: PT011  (refused or reset)
            board.once("GET", "/v2")


def test_what_runs_when_the_end_comes_is_answered(tmp_path: Path) -> None:
    with running(tmp_path, serving=make_serving(tmp_path, delay_ms=30)) as board:
        thread, got = board.in_thread()
        until(lambda: board.api.app._waiting, "the request")
        board.api.stop(10.0)
        thread.join(20)
        assert got[0][0] == 200


def test_a_defect_is_a_500_in_one_line(board: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.agent.api import app

    def broken(*_: object) -> Any:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(app, "inputs_of", broken)
    response, data = board.infer()
    assert (response.status, data["error"]) == (500, "request failed: first line second line")
    monkeypatch.setattr(app, "write_answer", broken)
    monkeypatch.setattr(app, "inputs_of", lambda call, signature: {"x": IMAGE})
    response, data = board.infer()
    assert (response.status, "a defect of the agent" in data["error"]) == (500, True)
    monkeypatch.undo()
    assert board.infer()[0].status == 200


# --- where it listens ---


def test_a_unix_socket_answers_with_its_permissions_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with running(tmp_path, host=None, path=path, socket_mode=0o600) as board:
        assert path.stat().st_mode & 0o777 == 0o600
        connection = UnixConnection(path)
        board.opened.append(connection)
        response, body = ask(connection, "POST", "/v2/models/toy/infer", question())
        assert (response.status, json.loads(body)["model_name"]) == (200, "toy")
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    live = listen(Settings(path=path))
    with pytest.raises(WorldFailed, match="another process listens there"):
        listen(Settings(path=path))
    live.close()
    listen(Settings(path=path)).close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["api.sock"]


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(BadInput, match="is no socket"):
        listen(Settings(path=path))
    assert path.read_text() == "mine"


def test_an_address_in_use_is_one_line(open_board: Running) -> None:
    with pytest.raises(WorldFailed, match=r"127\.0\.0\.1:\d+ cannot be listened on: Address already in use"):
        listen(Settings("127.0.0.1", open_board.api.port))


def test_small_answers_do_not_wait_for_the_clients_acknowledgement(board: Running) -> None:
    assert ask(board.connect(), "GET", "/v2")[0].status == 200
    assert board.api._server is not None
    (connection,) = board.api._server.server_state.connections
    server_side = connection.transport.get_extra_info("socket")
    assert server_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), (
        "Nagle's algorithm costs 40 ms each"
    )


def test_a_runner_that_stopped_refuses(tmp_path: Path) -> None:
    with running(tmp_path) as board:
        board.runner.stop(5.0)
        response, _ = board.infer()
        assert response.status == 503


def test_the_runner_refuses_calls_it_cannot_keep() -> None:
    from edgekit.agent.runner import NothingServes, Request

    runner = Runner()
    runner.start()
    with pytest.raises(NothingServes):
        runner.call(Request(lambda manifest: ({}, None)))
    runner.stop(5.0)
    assert not runner.call(Request(lambda manifest: ({}, None)))


def test_a_budget_in_ms_is_made_from_the_boards_own_times(open_board: Running) -> None:
    _, data = open_board.infer(question(budget="1000ms"))
    assert (data["parameters"]["exit"], data["parameters"]["policy"]) == (
        "exit3",
        str(PolicySpec("budget", parse_budget("1000ms"))),
    )
