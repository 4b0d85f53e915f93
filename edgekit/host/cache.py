"""Results of long work by the hash of all that went into them, on disk: interrupted work goes on where it was.

An entry that is damaged, or was never finished, is as good as none. Times are never kept: they belong to their moment.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir

from edgekit.core.errors import WorldFailed
from edgekit.core.files import write_atomic
from edgekit.host.graph import Graph, GraphExit, model_bytes

FOLDER = "EDGEKIT_CACHE"
MAX_BYTES = 2 * 2**30
_DIGEST = 32
_PACKAGES = ("edgekit", "numpy", "onnx", "onnx-ir", "onnxruntime")
_BLOCK = 2**20


@dataclass(frozen=True)
class Cache:
    """Entries by key in `folder`, the longest unused removed beyond `max_bytes`. folder None: remembers nothing."""

    folder: Path | None = None
    max_bytes: int = MAX_BYTES

    def get(self, key: str) -> bytes | None:
        """What was put under the key, None where there is nothing whole."""
        if self.folder is None:
            return None
        path = self.folder / key
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        body = content[_DIGEST:]
        return body if hashlib.sha256(body).digest() == content[:_DIGEST] else None

    def put(self, key: str, body: bytes) -> None:
        """Keep it. A full disk is no reason to stop: then it is not kept."""
        if self.folder is None or len(body) > self.max_bytes:
            return
        with contextlib.suppress(OSError, WorldFailed):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / key, hashlib.sha256(body).digest() + body)
            self._forget()

    def _forget(self) -> None:
        entries = sorted(
            ((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(self.folder)),
            reverse=True,
        )
        total = 0
        for _, size, path in entries:
            total += size
            if total > self.max_bytes:
                with contextlib.suppress(OSError):
                    Path(path).unlink()


def cache_root() -> Path:
    """$EDGEKIT_CACHE, by default ~/.cache/edgekit."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else Path.home() / ".cache" / "edgekit"


def default_cache() -> Cache:
    """Of conversions, below cache_root."""
    return Cache(cache_root() / "convert")


def key_of(kind: str, *parts: str) -> str:
    """A name for a result of `kind` from all that went into it, the versions of what computes it included."""
    whole = json.dumps([kind, _code(), parts])
    return f"{kind}-{hashlib.sha256(whole.encode()).hexdigest()[:40]}"


@functools.cache
def _code() -> list[str]:
    """The versions of all that computes, and our own files' times: whoever changes a pass wants it taken anew."""
    here = Path(__file__).parents[1]
    files = sorted(path for folder in ("core", "host", "runtime") for path in (here / folder).rglob("*.py"))
    times = [f"{path.relative_to(here)} {path.stat().st_mtime_ns}" for path in files]
    return [*(version(name) for name in _PACKAGES), hashlib.sha256("\n".join(times).encode()).hexdigest()]


def content_key(path: Path) -> str:
    """sha256 of a file's bytes, or of all files in a folder with their names. What cannot be read counts as empty."""
    digest = hashlib.sha256()
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{file.relative_to(path)}\n".encode())
        with contextlib.suppress(OSError), file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def graph_bytes(graph: Graph) -> bytes:
    """The model and its exits; inputs and labels are the same for all that is made of one network."""
    exits = [[e.name, e.output, e.confidence, list(e.also)] for e in graph.exits]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("exits.json", json.dumps(exits))
        archive.writestr("model.onnx", model_bytes(graph.model))
    return buffer.getvalue()


def graph_from(content: bytes, like: Graph) -> Graph:
    """The inverse of graph_bytes, with the inputs and labels of `like`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        exits = json.loads(archive.read("exits.json"))
        model = ir.from_proto(onnx.load_model_from_string(archive.read("model.onnx")))
    rows = tuple(GraphExit(name, output, confidence, tuple(also)) for name, output, confidence, also in exits)
    return Graph(model, rows, like.inputs, like.labels)
