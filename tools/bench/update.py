#!/usr/bin/env python3
"""What an update fetches: bundles by members over a real HTTP server, counted in bytes of bodies and of heads.

    python tools/bench/update.py [--quick] [--model models/fashion_mnist_3exit.onnx]
    python tools/bench/update.py OLD.edge NEW.edge

Converts the model, and again with one layer's weights changed, with other validation data (other thresholds) and with
nothing changed but the version; and makes up bundles of large members of which one, several neighbours or none changed.
Each new one is fetched by the agent's own download with the old one in a slot, from a server that counts; the members
that changed are those whose name, size or hash the old manifest does not list, and the manifest and the report, each
with the header that stands before it. Prints one JSON object; exit code 1 where a rebuilt file is not the same to the
byte, or more was fetched than the members that changed and 5 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgekit.agent.config import Repository
from edgekit.agent.repository.base import Found
from edgekit.agent.repository.download import Downloader
from edgekit.agent.repository.http import HttpFiles, open_pool
from edgekit.agent.repository.members import FIRST, listed, manifest_size
from edgekit.core.bundle import members_of, stored_zip
from edgekit.core.layout import pieces
from edgekit.core.manifest import MANIFEST, REPORT
from edgekit.core.target import Target

DEMO_MODEL = Path("models/fashion_mnist_3exit.onnx")
MOST = 1.05
MEMBER_BYTES = 4 << 20


class Server:
    """Serves one file with Range and keeps connections. bodies, heads, requests: what it has sent, and how often."""

    def __init__(self) -> None:
        self.data, self.bodies, self.heads, self.requests = b"", 0, 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
                start, end = int(first), int(last) + 1 if last else len(outer.data)
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(outer.data)}")
                self.send_header("Content-Length", str(end - start))
                lines: list[bytes] = self._headers_buffer  # type: ignore[attr-defined]
                outer.heads += sum(len(line) for line in lines) + 2
                self.end_headers()
                outer.requests += 1
                outer.bodies += end - start
                self.wfile.write(outer.data[start:end])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/repo"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serve(self, data: bytes) -> None:
        """From now on this file, counted from zero."""
        self.data, self.bodies, self.heads, self.requests = data, 0, 0, 0


@dataclass(frozen=True)
class Update:
    """A new bundle, and the one in the slot."""

    what: str
    old: bytes
    new: bytes


def changed_bytes(update: Update) -> int:
    """Bytes of the members that the old bundle does not hold, and of manifest and report."""

    def members(data: bytes) -> Any:
        size = manifest_size(data[:FIRST])
        return pieces(size, listed(data[FIRST : FIRST + size], "manifest"), len(data))

    held = {(piece.sha256, piece.size) for piece in members(update.old) if piece.sha256}
    return sum(
        piece.end - piece.at for piece in members(update.new) if (piece.sha256, piece.size) not in held
    )


def measure(update: Update, server: Server, folder: Path) -> dict[str, Any]:
    """Fetch it as a board would."""
    slot, part = folder / "slot.edge", folder / "part.edge"
    slot.write_bytes(update.old)
    part.unlink(missing_ok=True)
    server.serve(update.new)
    target = Target("bench", 2, ("host",), "run", "current", "0" * 64)
    found = Found(target, target.path, len(update.new), hashlib.sha256(update.new).hexdigest())
    files = HttpFiles(open_pool(Repository(server.url, None)), server.url)
    Downloader(files, lambda: [slot]).fetch(found, part, lambda: None)
    changed = changed_bytes(update)
    return {
        "update": update.what,
        "bundle": len(update.new),
        "changed": changed,
        "fetched": server.bodies,
        "over_changed": round(server.bodies / changed, 4),
        "over_bundle": round(server.bodies / len(update.new), 4),
        "requests": server.requests,
        "heads": server.heads,
        "identical": part.read_bytes() == update.new,
    }


def converted(folder: Path, model: Path, *, quick: bool) -> Iterator[Update]:
    """The model as edgekit converts it, and changes a team makes."""
    rng = np.random.default_rng(1)
    shape = [d.dim_value or 1 for d in onnx.load(model).graph.input[0].type.tensor_type.shape.dim]
    for name, count in (("calib", 64), ("val", 200), ("other", 200)):
        x = rng.integers(0, 256, (count, *shape[1:]), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", x=x.reshape(count, *shape[2:]) if shape[1] == 1 else x)
    layer = folder / "layer.onnx"
    change_one_layer(model, layer)

    def convert(name: str, source: Path, version: int, val: str) -> bytes:
        out = folder / f"{name}.edge"
        words = ["convert", source, "--profile", "raspberrypi5", "--name", "bench", "--version", version]
        words += ["--calib", folder / "calib.npz", "--val", folder / f"{val}.npz", "-o", out]
        words += ["--effort", "quick"] if quick else []
        code = "from edgekit.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"convert {name}: {done.stderr.strip().splitlines()[-1:]}")
        return out.read_bytes()

    first = convert("first", model, 1, "val")
    yield Update("converted: only the version", first, convert("again", model, 2, "val"))
    yield Update("converted: other validation data", first, convert("thresholds", model, 2, "other"))
    yield Update("converted: weights of the last layer", first, convert("layer", layer, 2, "val"))


def change_one_layer(model: Path, out: Path) -> None:
    """Other weights for the last layer that has some."""
    proto = onnx.load(model)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    tensor = weights[next(name for name in layers[-1].input if name in weights)]
    values = numpy_helper.to_array(tensor).copy()
    values += np.random.default_rng(2).normal(0, 0.1 * values.std(), values.shape).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, out)


def made_up() -> Iterator[Update]:
    """Bundles of eight members of 4 MiB."""
    old = {f"stages/{index}.bin": os.urandom(MEMBER_BYTES) for index in range(8)}

    def bundle(files: dict[str, bytes], note: str) -> bytes:
        manifest = json.dumps({"note": note, "files": [member.to_json() for member in members_of(files)]})
        return stored_zip({MANIFEST: manifest.encode(), **files, REPORT: note.encode() * 100})

    def new(*changed: int) -> dict[str, bytes]:
        return {
            name: os.urandom(len(data)) if index in changed else data
            for index, (name, data) in enumerate(old.items())
        }

    first = bundle(old, "first")
    longer = {**old, "stages/0.bin": old["stages/0.bin"] + bytes(100)}
    yield Update("8 x 4 MiB: none", first, bundle(new(), "second"))
    yield Update("8 x 4 MiB: one", first, bundle(new(3), "second"))
    yield Update("8 x 4 MiB: two neighbours", first, bundle(new(3, 4), "second"))
    yield Update("8 x 4 MiB: every other", first, bundle(new(0, 2, 4, 6), "second"))
    yield Update("8 x 4 MiB: the first longer by 100 bytes", first, bundle(longer, "second"))
    yield Update("8 x 4 MiB: all", first, bundle(new(*range(8)), "second"))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="OLD.edge NEW.edge")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--quick", action="store_true", help="convert --effort quick")
    arguments = parser.parse_args()
    if len(arguments.bundles) not in (0, 2):
        parser.error("give OLD.edge and NEW.edge, or nothing")
    server, rows = Server(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.bundles:
            old, new = (path.read_bytes() for path in arguments.bundles)
            updates: Iterator[Update] = iter([Update(" -> ".join(map(str, arguments.bundles)), old, new)])
        else:
            updates = (
                update
                for some in (converted(folder, arguments.model, quick=arguments.quick), made_up())
                for update in some
            )
        for update in updates:
            rows.append(measure(update, server, folder))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    good = all(row["identical"] and row["over_changed"] <= MOST for row in rows)
    print(json.dumps({"v": 1, "most": MOST, "met": good, "updates": rows}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
