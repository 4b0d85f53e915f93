"""The whole overlay in Verilator: built on first use, kept in a cache, opened with ctypes. A Device for the driver.

Simulated cycles are exact for the Verilog as it stands; no clock frequency and no power follow from them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadBundle, BadInput, MissingExtra, WorldFailed, one_line
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.sources import overlay_sources
from edgekit.runtime.overlay.units import rtl_version
from edgekit.runtime.overlay.verilog import TOP, top

CACHE = "EDGEKIT_CACHE"
KEPT = 64  # simulations in the cache; the longest unused go first
COMPILER = "CXX"
# -O1 compiles in half the time of -O3 and runs at nine tenths of its speed
FLAGS = ("-O1", "-std=c++17", "-fPIC", "-DVERILATOR=1", "-DVM_TRACE=0", "-DVL_TIME_CONTEXT", "-w")
VERILATOR_FLAGS = ("--cc", "-O3", "--x-assign", "unique", "--x-initial", "unique", "-Wno-fatal", "-Wno-lint")
_BUILD_S = 900.0
_UINT64 = np.dtype("<u8")
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ek_sim_new": (ctypes.c_void_p, [ctypes.c_uint64]),
    "ek_sim_delete": (None, [ctypes.c_void_p]),
    "ek_sim_stall": (None, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]),
    "ek_sim_send": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
    "ek_sim_drop": (None, [ctypes.c_void_p]),
    "ek_sim_irq": (ctypes.c_int32, [ctypes.c_void_p]),
    "ek_sim_cycle": (ctypes.c_uint64, [ctypes.c_void_p]),
    "ek_sim_taken": (ctypes.c_uint64, [ctypes.c_void_p]),
    "ek_sim_tick": (None, [ctypes.c_void_p, ctypes.c_uint64]),
    "ek_sim_write": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t],
    ),
    "ek_sim_read": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]),
    "ek_sim_receive": (
        ctypes.c_size_t,
        [ctypes.c_void_p] * 3 + [ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p],
    ),
}


class Simulation:
    """A device.Device that runs in this process. seed: of stalls and of what registers hold before their reset.

    cycles_of: the cycle in which each beat that was received had passed.
    """

    name = "overlay simulated by Verilator"
    longest_transfer = 2**26

    def __init__(self, library: Path, seed: int = 0) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._handle = ctypes.c_void_p(self._library.ek_sim_new(seed))
        self.cycles_of: NDArray[np.uint64] = np.zeros(0, np.uint64)

    def close(self) -> None:
        """See device.Device."""
        if self._handle.value is not None:
            self._library.ek_sim_delete(self._handle)
            self._handle = ctypes.c_void_p()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.close()

    def read(self, address: int) -> int:
        """See device.Device."""
        value = ctypes.c_uint32()
        if self._library.ek_sim_read(self._handle, address, ctypes.byref(value)):
            raise WorldFailed(f"the simulated overlay does not answer a read of register {address:#x}")
        return value.value

    def write(self, address: int, values: NDArray[np.uint32]) -> None:
        """See device.Device."""
        words = np.ascontiguousarray(values, np.uint32)
        if self._library.ek_sim_write(self._handle, address, words.ctypes.data, words.size):
            raise WorldFailed(f"the simulated overlay does not answer a write to register {address:#x}")

    def send(self, data: NDArray[np.uint8]) -> None:
        """See device.Device."""
        beats = np.ascontiguousarray(data).view(_UINT64)
        self._library.ek_sim_send(self._handle, beats.ctypes.data, beats.size)

    def receive(self, data: NDArray[np.uint8], limit_cycles: int) -> int:
        """See device.Device: the clock runs until the transfer's last beat has come, or for so many cycles."""
        beats = data.view(_UINT64)
        cycles = np.zeros(beats.size, np.uint64)
        last = ctypes.c_int32()
        got = int(
            self._library.ek_sim_receive(
                *(self._handle, beats.ctypes.data, cycles.ctypes.data, beats.size),
                *(limit_cycles, ctypes.byref(last)),
            )
        )
        self.cycles_of = cycles[:got]
        return got * _UINT64.itemsize

    def abort(self) -> None:
        """See device.Device."""
        self._library.ek_sim_drop(self._handle)

    def stall(self, in_percent: int, out_percent: int) -> None:
        """Let the streams pause in so many of 100 cycles, drawn from the seed."""
        self._library.ek_sim_stall(self._handle, in_percent, out_percent)

    def tick(self, cycles: int) -> None:
        """Let the clock run."""
        self._library.ek_sim_tick(self._handle, cycles)

    @property
    def cycle(self) -> int:
        """Clock cycles since the start."""
        return int(self._library.ek_sim_cycle(self._handle))

    @property
    def beats_taken(self) -> int:
        """Input beats that went in since the start."""
        return int(self._library.ek_sim_taken(self._handle))

    @property
    def irq(self) -> bool:
        """The interrupt line."""
        return bool(self._library.ek_sim_irq(self._handle))


def simulate(design: Design, seed: int = 0) -> Simulation:
    """The simulation of a design, built where the cache has none yet (seconds to minutes, once for each design_id).

    Raises MissingExtra where Verilator or a C++ compiler is missing, BadBundle where the design was made for other
    Verilog sources than are installed, BadInput where Verilator refuses them, WorldFailed where the cache cannot be
    written.
    """
    if design.rtl != rtl_version():
        raise BadBundle("the design was made for other Verilog sources than this edgekit has: convert again")
    verilog = top(design)
    library = build(verilog)
    try:
        return Simulation(library, seed)
    except OSError:  # a disk that ran full, or a crash, left half of it
        library.unlink(missing_ok=True)
        return Simulation(build(verilog), seed)


def build(verilog: str, flags: Sequence[str] = FLAGS) -> Path:
    """The shared library of a top module's text, from the cache or built into it."""
    sources = _sources() | {f"{TOP}.v": verilog.encode()}
    tools = _tools()
    folder = cache_folder()
    library = folder / f"{_key(sources, tools, flags)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if library.exists():
            os.utime(library)
            return library
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as build_folder:
            _compile(Path(build_folder), sources, tools, flags, library)
        _forget(folder)
    except OSError as err:
        raise WorldFailed(f"{folder}: cannot keep the overlay's simulation: {one_line(err)}") from err
    return library


def missing() -> str | None:
    """What is missing to simulate here, as one line; None where nothing is."""
    for tool in ("verilator", _compiler()):
        if shutil.which(tool) is None:
            return f"simulating an overlay needs {tool}, which is not on PATH: apt-get install verilator g++"
    return None


def _compiler() -> str:
    return os.environ.get(COMPILER, "g++")


def cache_folder() -> Path:
    """$EDGEKIT_CACHE/overlay-sim, by default below ~/.cache/edgekit."""
    named = os.environ.get(CACHE)
    return (Path(named) if named else Path.home() / ".cache" / "edgekit") / "overlay-sim"


def _sources() -> dict[str, bytes]:
    """File name -> content of the hand-written Verilog and the harness."""
    folder = overlay_sources()
    entries = [*(folder / "rtl").iterdir(), *(folder / "sim").iterdir()]
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.endswith((".v", ".vh", ".cpp"))
    }


@functools.cache
def _tools() -> Mapping[str, str]:
    """verilator, compiler, Verilator's folder and both versions. Raises MissingExtra."""
    if (lacks := missing()) is not None:
        raise MissingExtra(lacks)
    compiler = _compiler()
    return {
        "verilator": "verilator",
        "compiler": compiler,
        "root": _run(["verilator", "--getenv", "VERILATOR_ROOT"]).strip(),
        "versions": _run(["verilator", "--version"]) + _run([compiler, "--version"]),
    }


def _key(sources: Mapping[str, bytes], tools: Mapping[str, str], flags: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join([*tools.values(), *flags, *VERILATOR_FLAGS]).encode())
    for name, content in sources.items():
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:40]


def _compile(
    work: Path, sources: Mapping[str, bytes], tools: Mapping[str, str], flags: Sequence[str], library: Path
) -> None:
    for name, content in sources.items():
        (work / name).write_bytes(content)
    made = work / "made"
    _run(
        [
            tools["verilator"],
            *VERILATOR_FLAGS,
            f"-I{work}",
            "--Mdir",
            str(made),
            "--top-module",
            TOP,
            f"{TOP}.v",
        ],
        work,
    )
    include = Path(tools["root"]) / "include"
    headers = [f"-I{made}", f"-I{include}", f"-I{include / 'vltstd'}"]
    runtime = _runtime(work, include, tools, flags, library.parent)
    units = sorted(made.glob("*.cpp"))
    ours = [str(work / name) for name in sources if name.endswith(".cpp")]
    one = work / "all.cpp"
    one.write_text("".join(f'#include "{unit}"\n' for unit in units))
    built = work / library.name
    _run(
        [
            tools["compiler"],
            *flags,
            *headers,
            "-shared",
            "-o",
            str(built),
            *ours,
            str(one),
            *map(str, runtime),
        ]
    )
    built.replace(library)


def _runtime(
    work: Path, include: Path, tools: Mapping[str, str], flags: Sequence[str], folder: Path
) -> list[Path]:
    """Verilator's own part, compiled once for all designs."""
    digest = hashlib.sha256("\n".join([*tools.values(), *flags]).encode()).hexdigest()[:40]
    objects = []
    for name in ("verilated", "verilated_threads"):
        kept = folder / f"{name}-{digest}.o"
        if not kept.exists():
            made = work / f"{name}.o"
            _run(
                [
                    tools["compiler"],
                    *flags,
                    f"-I{include}",
                    f"-I{include / 'vltstd'}",
                    "-c",
                    "-o",
                    str(made),
                    str(include / f"{name}.cpp"),
                ]
            )
            made.replace(kept)
        objects.append(kept)
    return objects


def _forget(folder: Path) -> None:
    """Keep the KEPT libraries used last."""
    found = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[KEPT:]:
        path.unlink(missing_ok=True)


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_BUILD_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as err:
        raise WorldFailed(
            f"{command[0]} took longer than {_BUILD_S:.0f} s for the overlay's simulation"
        ) from err
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr.strip()[:300])
        raise BadInput(f"{command[0]} refuses the overlay's simulation: {said}")
    return done.stdout
