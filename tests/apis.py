"""A local API over a null bundle for tests, and a plain client of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
from agents import until
from bundles import SHAPE, write_null_bundle

from edgekit.agent.api.server import Api
from edgekit.agent.config import Api as Settings
from edgekit.agent.runner import Request, Runner, Serving
from edgekit.core.manifest import Manifest
from edgekit.core.policy import PolicySpec
from edgekit.runtime.measure import golden_data, stage_costs
from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import open_session

FULL = PolicySpec()
IMAGE = np.linspace(0, 1, 16, dtype=np.float32).reshape(SHAPE)


def make_serving(folder: Path, version: int = 1, **options: Any) -> Serving:
    bundle = write_null_bundle(
        folder / f"{options.get('name', 'toy')}-{version}.edge", version=version, **options
    )
    session = open_session(bundle.manifest, bundle.read)
    costs = stage_costs(session, golden_data(bundle.manifest, bundle.read), 2)
    return Serving(session, bundle.label, make_policy(FULL, bundle.manifest, costs), "full", costs)


class UnixConnection(HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def ask(
    connection: HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[HTTPResponse, bytes]:
    """One request; the response and its body."""
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    connection.request(method, path, data, {name.replace("_", "-"): text for name, text in headers.items()})
    response = connection.getresponse()
    return response, response.read()


def question(array: Any = IMAGE, **parameters: Any) -> dict[str, Any]:
    """An inference request as JSON."""
    given = {"name": "x", "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
    return {"inputs": [given], "parameters": parameters}


@dataclass
class Running:
    """A runner with an API on a port of its own. `hold` keeps the runner busy until the block is left."""

    folder: Path
    runner: Runner
    api: Api
    opened: list[HTTPConnection] = field(default_factory=list)

    def connect(self) -> HTTPConnection:
        made = HTTPConnection("127.0.0.1", self.api.port, timeout=20)
        self.opened.append(made)
        return made

    def once(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[HTTPResponse, bytes]:
        """One request on a connection of its own."""
        with closing(HTTPConnection("127.0.0.1", self.api.port, timeout=20)) as connection:
            return ask(connection, method, path, body, **headers)

    def get(self, path: str) -> tuple[int, Any]:
        response, body = self.once("GET", path)
        return response.status, json.loads(body)

    def infer(self, body: Any = None, model: str = "toy", **headers: str) -> tuple[HTTPResponse, Any]:
        data = question() if body is None else body
        response, content = self.once("POST", f"/v2/models/{model}/infer", data, **headers)
        return response, json.loads(content)

    def in_thread(self, **parameters: Any) -> tuple[threading.Thread, list[tuple[int, Any]]]:
        """Ask beside the test; the answer comes into the list."""
        got: list[tuple[int, Any]] = []

        def run() -> None:
            response, data = self.infer(question(**parameters))
            got.append((response.status, data))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, got

    def waiting(self) -> int:
        return len(self.runner._calls)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While inside, the runner is at work on something else."""
        begun, gate = threading.Event(), threading.Event()

        def read(manifest: Manifest) -> Any:
            begun.set()
            assert gate.wait(20)
            return {"x": IMAGE}, None

        assert self.runner.submit(Request(read), 5.0)
        assert begun.wait(20)
        try:
            yield
        finally:
            gate.set()

    def until_waiting(self, count: int) -> None:
        until(lambda: self.waiting() == count, f"{count} requests in the queue")


@contextmanager
def running(
    folder: Path, capacity: int = 32, serving: Serving | None = None, **settings: Any
) -> Iterator[Running]:
    """Started, and ended afterwards. serving: what answers, a null bundle unless told."""
    runner = Runner(capacity=capacity)
    runner.start()
    runner.swap(serving or make_serving(folder))
    settings = {"host": "127.0.0.1", **settings}
    made = Running(folder, runner, Api(Settings(**settings), runner, "test"))
    made.api.start()
    try:
        yield made
    finally:
        for connection in made.opened:
            connection.close()
        made.api.stop(10.0)
        runner.stop(5.0)
        assert not made.api._thread.is_alive()
