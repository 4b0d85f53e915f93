#!/usr/bin/env python3
"""What the local API costs over the bare Session: one client, one request at a time, a network of about 1 ms.

    python tools/bench/api.py [--quick] [--ms 1.0]

In interleaved turns: the Session itself, the runner's queue, HTTP with binary tensors over TCP and over a Unix socket,
with JSON, and through tritonclient where it is installed. Prints one JSON object: median, p5 and p95 of a request,
requests a second, what the way adds to the bare Session's median, and the processor's time of a request, client and
network included: the figure to compare, with p5, where the machine has other work to do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.agent.api.server import Api
from edgekit.agent.config import Api as Settings
from edgekit.agent.runner import Request, Runner, Serving
from edgekit.core.policy import PolicySpec
from edgekit.core.profile import HOST
from edgekit.host.convert import whole_stage
from edgekit.host.load import load
from edgekit.host.lower import backend_for
from edgekit.host.pack import draft
from edgekit.host.passes import Context, run_steps, step
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import machine_name
from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import Session

SHAPE = (1, 3, 32, 32)
WIDTH, MAX_DEPTH = 48, 40
TURN = 25  # requests of one way before the next has its turn
Ask = Callable[[], Any]


def network(depth: int) -> onnx.ModelProto:
    """Convolutions with random weights; what they compute does not matter here."""
    random = np.random.default_rng(1)
    nodes, weights, last, channels = [], [], "x", SHAPE[1]
    for layer in range(depth):
        value = random.normal(0, 0.05, (WIDTH, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{layer}"))
        nodes.append(
            helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], kernel_shape=[3, 3], pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last, channels = f"r{layer}", WIDTH
    weights.append(numpy_helper.from_array(random.normal(size=(WIDTH, 10)).astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pool"]))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "bench", [image], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def open_network(folder: Path, depth: int) -> Session:
    """One exit, one thread."""
    path = folder / "bench.onnx"
    path.write_bytes(network(depth).SerializeToString())
    graph = run_steps(load(path).graph, (step("confidence"), step("fold")), Context())
    return draft(graph, [whole_stage(graph)], backend_for(find_profile(HOST)), "bench", 1, HOST).open()


def depth_for(folder: Path, ms: float) -> int:
    """Of the shallowest network that takes about `ms` of the processor's time here."""
    inputs, depth = {"x": np.ones(SHAPE, np.float32)}, 3  # the first layer alone is far too cheap
    while True:
        session = open_network(folder, depth)
        policy = make_policy(PolicySpec(), session.manifest, None)
        took = []
        for _ in range(40):
            begun = time.thread_time()
            session.run(inputs, policy)
            took.append(1e3 * (time.thread_time() - begun))
        median = statistics.median(took)
        if median >= 0.9 * ms or depth >= MAX_DEPTH:
            return depth
        depth = min(MAX_DEPTH, max(depth + 1, int(depth * ms / median)))


class UnixConnection(HTTPConnection):
    """http.client over a Unix socket."""

    def connect(self) -> None:
        """See HTTPConnection; `host` is the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.host)


def over_http(connection: HTTPConnection, name: str, body: bytes, json_length: int | None) -> Ask:
    headers = {} if json_length is None else {"Inference-Header-Content-Length": str(json_length)}

    def ask() -> None:
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(f"the API answered {response.status}: {content!r}")

    return ask


def through_runner(runner: Runner, inputs: dict[str, Any]) -> Ask:
    def ask() -> None:
        answered = threading.Event()
        request = Request(lambda _manifest: (inputs, None), lambda _answer: answered.set())
        if not runner.call(request):
            raise SystemExit("the runner's queue is full")
        answered.wait()

    return ask


def through_tritonclient(port: int, name: str, array: Any) -> Ask | None:
    try:
        triton = importlib.import_module("tritonclient.http")
    except ImportError:
        return None
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    given = triton.InferInput("x", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return lambda: client.infer(name, [given])


@contextmanager
def serving(session: Session, folder: Path) -> Iterator[tuple[Runner, int, Path]]:
    """The session behind a runner with an API on a TCP port and one on a Unix socket."""
    runner = Runner()
    runner.start()
    policy = make_policy(PolicySpec(), session.manifest, None)
    runner.swap(Serving(session, "bench/1", policy, "full"))
    path = folder / "api.sock"
    apis = [Api(Settings(host="127.0.0.1"), runner, "bench"), Api(Settings(path=path), runner, "bench")]
    for api in apis:
        api.start()
    try:
        yield runner, apis[0].port, path
    finally:
        for api in apis:
            api.stop(5.0)
        runner.stop(5.0)


def measure(ways: dict[str, Ask], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each request, and mean seconds of the processor of each turn's, way by way in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, ask in ways.items():
            took, before = [], time.process_time()
            for _ in range(TURN):
                begun = time.perf_counter()
                ask()
                took.append(time.perf_counter() - begun)
            if round_:  # the first one warms up
                spent[name].append((time.process_time() - before) / TURN)
                times[name] += took
    return times, spent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="4 turns instead of 16")
    parser.add_argument("--ms", type=float, default=1.0, help="about what the network takes")
    wanted = parser.parse_args()
    array = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    entry: dict[str, Any] = {"name": "x", "shape": list(SHAPE), "datatype": "FP32"}
    as_json = json.dumps({"inputs": [{**entry, "data": array.ravel().tolist()}]}).encode()
    head = {"inputs": [{**entry, "parameters": {"binary_data_size": array.nbytes}}]}
    head_json = json.dumps({**head, "parameters": {"binary_data_output": True}}).encode()
    body = head_json + array.tobytes()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        depth = depth_for(folder, wanted.ms)
        session, bare = open_network(folder, depth), open_network(folder, depth)
        policy, name = make_policy(PolicySpec(), bare.manifest, None), session.manifest.name
        runner, port, path = stack.enter_context(serving(session, folder))
        tcp, plain, unix = (
            HTTPConnection("127.0.0.1", port),
            HTTPConnection("127.0.0.1", port),
            UnixConnection(str(path)),
        )
        ways: dict[str, Ask] = {
            "session": lambda: bare.run({"x": array}, policy),
            "runner": through_runner(runner, {"x": array}),
            "http binary": over_http(tcp, name, body, len(head_json)),
            "unix binary": over_http(unix, name, body, len(head_json)),
            "http json": over_http(plain, name, as_json, None),
        }
        triton = through_tritonclient(port, name, array)
        if triton is not None:
            ways["tritonclient"] = triton
        times, spent = measure(ways, 4 if wanted.quick else 16)
        for connection in (tcp, plain, unix):
            connection.close()
    base = statistics.median(times["session"])
    rows = {}
    for way, seconds in times.items():
        median = statistics.median(seconds)
        rows[way] = {
            "median_ms": round(1e3 * median, 3),
            "p5_ms": round(1e3 * sorted(seconds)[int(0.05 * len(seconds))], 3),
            "p95_ms": round(1e3 * sorted(seconds)[int(0.95 * len(seconds))], 3),
            "per_s": round(len(seconds) / sum(seconds), 1),
            "added_ms": round(1e3 * (median - base), 3),
            "cpu_ms": round(1e3 * statistics.median(spent[way]), 3),
        }
        print(f"{way}: {rows[way]}", file=sys.stderr)
    print(json.dumps({"on": machine_name(), "input_bytes": array.nbytes, "ways": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
