"""What an open bundle takes of this machine's memory. Opens it in a child process, so that nothing else counts.

    python -m edgekit.runtime.memory BUNDLE    one JSON object on stdout: a Memory

Private memory is what the system cannot take back: `Anonymous` of /proc/self/smaps_rollup (proc(5)), which leaves out
mapped files. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgekit.core.errors import BadBundle, EdgekitError, WorldFailed, one_line
from edgekit.core.manifest import Manifest, Part

TIMEOUT_S = 120.0
_RUNS = 4
_TELLING = 2**20  # bytes of weights: with fewer, what a runtime needs anyway is more than they are
_PEAK_ANEW = "5"  # written to clear_refs: VmHWM begins again from what is resident now


@dataclass(frozen=True)
class Memory:
    """Bytes. What follows base_bytes comes on top of it; all but the first four were measured.

    parts_bytes: the part files. weights_file_bytes, weights_bytes: the constants in them, as stored and in the format
    that computes; None where a backend's files are not understood. buffers_bytes: tensors that cross a border between
    stages. base_bytes: private memory of a process that has imported the runtime and opened a network of nothing.
    opened_bytes, ran_bytes: private memory after opening and after running all stages. mapped_bytes: of files mapped,
    after running; the system may take it back. peak_bytes: most that was resident while opening, files as well.
    """

    parts_bytes: int
    weights_file_bytes: int | None
    weights_bytes: int | None
    buffers_bytes: int
    base_bytes: int
    opened_bytes: int
    ran_bytes: int
    mapped_bytes: int
    peak_bytes: int

    @property
    def times(self) -> float | None:
        """How often the weights are held; None where their bytes are unknown or too few to tell.

        What opening took, without buffers, over the weights in the format that computes.
        """
        if self.weights_bytes is None or self.weights_bytes < _TELLING:
            return None
        return round(max(0, self.opened_bytes - self.buffers_bytes) / self.weights_bytes, 3)

    @classmethod
    def parse(cls, text: str) -> Memory:
        """Read what the child printed. Raises WorldFailed."""
        try:
            data = json.loads(text)
            return cls(**{entry.name: data[entry.name] for entry in fields(cls)})
        except (ValueError, TypeError, KeyError) as err:
            raise WorldFailed(f"measuring memory: the child process gave no answer: {one_line(err)}") from err

    def to_json(self) -> dict[str, Any]:
        """The figures, with `times` and how they came about."""
        return {**asdict(self), "times": self.times, "provenance": "measured"}


def measure_memory(path: Path, *, threads: int = 1, timeout_s: float = TIMEOUT_S) -> Memory:
    """Open the bundle at `path` in a fresh process, run its golden inputs, and tell what that took.

    Raises BadBundle, MissingExtra and what else opening raises as BadBundle; WorldFailed where the child ran out of
    time, was killed, or this system does not tell a process's memory.
    """
    command = [sys.executable, "-m", __name__, str(path), "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as err:
        raise WorldFailed(f"{path}: measuring memory took longer than {timeout_s:g} s") from err
    except OSError as err:
        raise WorldFailed(f"measuring memory: no child process could be started: {err.strerror}") from err
    if done.returncode == 0:
        return Memory.parse(done.stdout)
    said = " ".join(done.stderr.split())[-300:]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise WorldFailed(f"{path}: measuring memory: the child process was ended by {name}: {said}")
    if done.returncode == BadBundle.exit_code:
        raise BadBundle(said)
    raise WorldFailed(said)


# --- the child's own side ---------------------------------------------------------------------------------------------


def _child(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgekit.runtime.memory")
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        made = _measured(options.path, options.threads)
    except EdgekitError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    sys.stdout.write(json.dumps(asdict(made)) + "\n")
    return 0


def _measured(path: Path, threads: int) -> Memory:
    from edgekit.core.bundle import open_bundle
    from edgekit.runtime import heap
    from edgekit.runtime.measure import golden_data
    from edgekit.runtime.session import open_session

    bundle = open_bundle(path)
    manifest = bundle.manifest
    parts = {part.file: part for stage in manifest.stages for part in stage.parts}
    data = golden_data(manifest, bundle.read)
    samples = [data.inputs(row % data.count) for row in range(_RUNS)]
    for backend in {part.backend for part in parts.values()}:
        warm_up(backend)
    heap.give_back()  # else what importing left behind would be filled first, and not be seen
    base = resident()
    _peak_anew()
    session = open_session(manifest, bundle.read, threads=threads)
    peak = _peak()
    opened = resident()
    for sample in samples:
        session.run_all(sample)
    ran = resident()
    stored, computed = _weights(parts, bundle.read)
    sizes = {member.name: member.size for member in manifest.files}
    return Memory(
        parts_bytes=sum(sizes[name] for name in parts),
        weights_file_bytes=stored,
        weights_bytes=computed,
        buffers_bytes=_buffers(manifest),
        base_bytes=base.private,
        opened_bytes=max(0, opened.private - base.private),
        ran_bytes=max(0, ran.private - base.private),
        mapped_bytes=max(0, ran.mapped - base.mapped),
        peak_bytes=max(0, peak - base.private - base.mapped),
    )


def warm_up(backend: str) -> None:
    """What the first session of a process takes besides its network is the runtime's."""
    from edgekit.runtime.backends import opener

    module = sys.modules[opener(backend).__module__]
    getattr(module, "warm_up", lambda: None)()


def _weights(parts: Mapping[str, Part], read: Any) -> tuple[int | None, int | None]:
    """Bytes of constants in these files, as stored and as they compute."""
    from edgekit.runtime.weights import weights_of

    found = [weights_of(read(name)) for name in parts]
    known = [entry for entry in found if entry is not None]
    if len(known) != len(found):
        return None, None
    return sum(entry.file_bytes for entry in known), sum(entry.computed_bytes for entry in known)


def _buffers(manifest: Manifest) -> int:
    from edgekit.runtime.backends import allocate

    parts = [part for stage in manifest.stages for part in stage.parts]
    tensors = [entry.tensor for entry in manifest.inputs] + [t for part in parts for t in part.outputs]
    return sum(math.prod(t.shape) * allocate(t.dtype, ()).itemsize for t in tensors)


@dataclass(frozen=True)
class Resident:
    """Bytes in memory. private: of this process alone, not to be taken back. mapped: of files."""

    private: int
    mapped: int


def resident() -> Resident:
    """What this process holds now, in bytes."""
    gc.collect()
    rows = _kilobytes(Path("/proc/self/smaps_rollup"), ("Rss", "Anonymous"))
    return Resident(rows["Anonymous"] * 1024, (rows["Rss"] - rows["Anonymous"]) * 1024)


def _peak() -> int:
    return _kilobytes(Path("/proc/self/status"), ("VmHWM",))["VmHWM"] * 1024


def _peak_anew() -> None:
    try:
        Path("/proc/self/clear_refs").write_text(_PEAK_ANEW, encoding="ascii")
    except OSError as err:
        raise WorldFailed(f"/proc/self/clear_refs: memory cannot be measured here: {err.strerror}") from err


def _kilobytes(path: Path, names: Sequence[str]) -> dict[str, int]:
    """`Name:   123 kB` lines of a file under /proc. Raises WorldFailed where they are not there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as err:
        raise WorldFailed(f"{path}: memory cannot be measured here: {err.strerror}") from err
    split = (line.split() for line in lines)
    found = {row[0].rstrip(":"): int(row[1]) for row in split if len(row) == 3 and row[2] == "kB"}
    if not set(names) <= set(found):
        raise WorldFailed(f"{path}: memory cannot be measured here: no {', '.join(names)}")
    return found


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
