#!/usr/bin/env python3
"""Binary convolutions and dense layers: our plans against onnxruntime in fp32 and in int8 QDQ, per channel.

    OMP_NUM_THREADS=1 python tools/bench/binary.py [--quick] [--rounds N]

One process, one thread, batch 1, thread CPU time; ours and the peer take turns within each round; medians of rounds.
A layer's cost is chain-fair: (five layers in a row - one) / 4, for ours as for the peer. Plans run through the door
(edgekit.native.door.open_plan) with bound arrays, onnxruntime with I/O binding. Cycles: cycles.c is compiled by `cc`
and its loop of dependent additions, a cycle each, is timed in every round, as are loops of the kernels' own operations
on registers alone: what this machine could do at most. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.native import door
from edgekit.native import plan as p
from edgekit.native.plan_door import outside_dtype, outside_shape
from edgekit.runtime.backends import allocate
from edgekit.runtime.measure import machine_name
from edgekit.runtime.quiet_ort import onnxruntime

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools.bench.binary_networks import CNV, Layer, fp32_of, int8_of, plan_of
else:
    from binary_networks import CNV, Layer, fp32_of, int8_of, plan_of

SHAPES = ((56, 64), (28, 128), (14, 256), (7, 512))
CHAIN = 5
LIMIT, INT8_LIMIT = 341.3, 64.0  # MAC/cycle of the machine the targets were set on
ADDS, TILE_MACS, LOOKUP_MACS, VNNI_MACS, FMA_MACS = (
    64,
    24 * 512,
    8 * 256,
    24 * 64,
    24 * 16,
)  # rounds of cycles.c
DENSE = Layer(1, 4096, 4096, 1, 0)

Call = Callable[[], object]


class Clock:
    """cycles.c, compiled and loaded."""

    def __init__(self, folder: Path) -> None:
        library = folder / "cycles.so"
        source = Path(__file__).with_name("cycles.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def call(self, name: str, count: int) -> Call:
        function = getattr(self._library, name)
        function.argtypes, function.restype = [ctypes.c_int64], None
        return lambda: function(count)


def our_call(content: bytes, kernels: str | None = None) -> Call:
    """One run of a plan on arrays that are bound."""
    plan = door.open_plan(content, kernels=kernels)
    draw = np.random.default_rng(2)
    inputs = [draw.integers(0, 256, outside_shape(one), dtype=np.uint8) for one in plan.inputs]
    outputs = [allocate(outside_dtype(one).name, outside_shape(one)) for one in plan.outputs]
    plan.bind(inputs, outputs)
    return plan.run_bound


def peer_call(content: bytes) -> Call:
    """One run of an onnxruntime session, input and output bound once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    about = session.get_inputs()[0]
    draw = np.random.default_rng(2)
    if "float" in about.type:
        given = draw.normal(0, 1, about.shape).astype(np.float32)
    else:
        given = draw.integers(0, 64, about.shape).astype(np.uint8)
    binding = session.io_binding()
    binding.bind_ortvalue_input(about.name, onnxruntime.OrtValue.ortvalue_from_numpy(given))
    result = session.run(None, {about.name: given})[0]
    output = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(result))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, output)
    return lambda: session.run_with_iobinding(binding)


def times_of(calls: dict[str, Call], rounds: int, turn_s: float) -> dict[str, list[float]]:
    """CPU seconds of one run of each call, round by round; one turn of about turn_s a round each."""

    def turn(call: Call, count: int) -> float:
        start = time.thread_time()
        for _ in range(count):
            call()
        return time.thread_time() - start

    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(turn_s / max(turn(call, 3) / 3, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(turn(call, counts[name]) / counts[name])
    return found


class Times:
    """What times_of found, as lists of ratios by round."""

    def __init__(self, of: dict[str, list[float]]) -> None:
        self.of = of

    def layer(self, name: str) -> list[float]:
        """Chain-fair seconds of one layer."""
        long, short = self.of[f"{name} x{CHAIN}"], self.of[f"{name} x1"]
        return [(five - one) / (CHAIN - 1) for five, one in zip(long, short, strict=True)]

    def per_cycle(self, macs: int, seconds: list[float], adds: int) -> list[float]:
        """MAC a cycle; the cycles of the same round's additions."""
        return [macs / each * clock / adds for each, clock in zip(seconds, self.of["adds"], strict=True)]


def over(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def line(name: str, values: list[float], bound: str, unit: str, digits: int = 2) -> dict[str, Any]:
    """One target; bound: ">= 18", "<= 1.15", or "" for a figure that only stands beside the others."""
    value = statistics.median(values)
    limit = float(bound.split()[1]) if bound else math.nan
    met = None if not bound else bool(value >= limit if bound.startswith(">=") else value <= limit)
    rounded = {"value": value, "min": min(values), "max": max(values)}
    found = {key: round(each, digits) for key, each in rounded.items()}
    print(f"  {name}: {found['value']} {unit} ({bound or 'no target'})", file=sys.stderr)
    return {"name": name, **found, "unit": unit, "target": bound, "met": met}


def means(rows: Iterable[list[float]]) -> list[float]:
    """Geometric means, round by round."""
    return [math.exp(sum(map(math.log, row)) / len(row)) for row in zip(*rows, strict=True)]


ADD_ROUNDS = 20_000  # about 0.3 ms


def clocked(clock: Clock, calls: dict[str, Call]) -> dict[str, Call]:
    """Besides the calls, the additions that tell the frequency."""
    return {"adds": clock.call("dependent_adds", ADD_ROUNDS), **calls}


def limits(clock: Clock, rounds: int, turn_s: float, sets: set[str]) -> dict[str, list[float]]:
    """MAC/cycle of the kernels' operations on registers alone."""
    made = {
        "avx512": ("avx512_limit", TILE_MACS),
        "vnni": ("vnni_limit", VNNI_MACS),
        "fp32 fma": ("fma_limit", FMA_MACS),
        "avx2": ("avx2_limit", LOOKUP_MACS),
    }
    if "avx512" not in sets:
        made = {"avx2": made["avx2"]}
    calls = {name: clock.call(function, 2_000) for name, (function, _) in made.items()}
    times = Times(times_of(clocked(clock, calls), rounds, turn_s))
    return {
        name: times.per_cycle(2_000 * macs, times.of[name], ADD_ROUNDS * ADDS)
        for name, (_, macs) in made.items()
    }


def convolutions(
    clock: Clock, rounds: int, turn_s: float, most: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """The four shapes: cycles, onnxruntime, float output, AVX2."""
    found: list[dict[str, Any]] = []
    all_cycles: list[list[float]] = []
    gains: dict[str, list[list[float]]] = {"fp32": [], "int8": []}
    avx2: list[list[float]] = []
    for side, channels in SHAPES:
        layer = Layer(side, channels, channels)
        shape = f"{side}x{side}x{channels}"
        calls: dict[str, Call] = {}
        for count in (1, CHAIN):
            chain = (layer,) * count
            calls[f"bits x{count}"] = our_call(plan_of(chain))
            calls[f"avx2 x{count}"] = our_call(plan_of(chain), "avx2")
            calls[f"fp32 x{count}"] = peer_call(fp32_of(chain))
            calls[f"int8 x{count}"] = peer_call(int8_of(chain))
        calls["float x1"] = our_call(plan_of((layer,), last=p.SCALED))
        times = Times(times_of(clocked(clock, calls), rounds, turn_s))
        bits, wide = times.layer("bits"), times.layer("avx2")
        cycles = times.per_cycle(layer.macs, bits, ADD_ROUNDS * ADDS)
        all_cycles.append(cycles)
        share = [100 * each / LIMIT for each in cycles]
        us = 1e6 * statistics.median(bits)
        found.append(
            line(f"{shape}: share of {LIMIT:.0f} MAC/cycle ({us:.1f} us a layer)", share, ">= 80", "%", 1)
        )
        found.append(line(f"{shape}: MAC/cycle", cycles, "", "MAC/cycle", 1))
        if "avx512" in most:
            limit = statistics.median(most["avx512"])
            shares = [100 * each / limit for each in cycles]
            found.append(line(f"{shape}: share of this machine's {limit:.0f} MAC/cycle", shares, "", "%", 1))
        for peer, bound in (("fp32", ">= 18"), ("int8", ">= 5.2")):
            gains[peer].append(over(times.layer(peer), bits))
            found.append(line(f"{shape}: onnxruntime {peer} over ours", gains[peer][-1], bound, "ratio"))
            peer_cycles = times.per_cycle(layer.macs, times.layer(peer), ADD_ROUNDS * ADDS)
            found.append(line(f"{shape}: onnxruntime {peer}", peer_cycles, "", "MAC/cycle", 1))
        # One more layer of floats instead of bits: both plans have the same input and border.
        slower = [b + f - o for b, f, o in zip(bits, times.of["float x1"], times.of["bits x1"], strict=True)]
        found.append(
            line(f"{shape}: float output over bit output", over(slower, bits), "<= 1.15", "ratio", 3)
        )
        avx2.append(times.per_cycle(layer.macs, wide, ADD_ROUNDS * ADDS))
        found.append(line(f"{shape}: AVX2", avx2[-1], ">= 150", "MAC/cycle", 1))
        found.append(
            line(f"{shape}: onnxruntime fp32 over AVX2", over(times.layer("fp32"), wide), ">= 10", "ratio")
        )
    mean = [100 * each / LIMIT for each in means(all_cycles)]
    found.append(line(f"mean: share of {LIMIT:.0f} MAC/cycle", mean, ">= 85", "%", 1))
    found.append(line("mean: onnxruntime fp32 over ours", means(gains["fp32"]), ">= 21", "ratio"))
    found.append(line("mean: onnxruntime int8 over ours", means(gains["int8"]), ">= 5.6", "ratio"))
    found.append(line("mean: AVX2", means(avx2), ">= 150", "MAC/cycle", 1))
    return found


def cnv(clock: Clock, rounds: int, turn_s: float, most: dict[str, list[float]]) -> list[dict[str, Any]]:
    """BNN-PYNQ's CNV, one image from uint8 to ten sums. The floor: its products at the limits alone."""
    calls = {
        "ours": our_call(plan_of(CNV, first=p.U8, last=p.SUMS)),
        "fp32": peer_call(fp32_of(CNV)),
        "int8": peer_call(int8_of(CNV)),
    }
    for count in range(1, len(CNV)):
        calls[f"first {count}"] = our_call(plan_of(CNV[:count], first=p.U8))
    times = Times(times_of(clocked(clock, calls), rounds, turn_s))
    ours, clocks = times.of["ours"], times.of["adds"]
    binary, first = sum(layer.macs for layer in CNV[1:]), CNV[0].macs

    def floor(bits: float, bytes_: float) -> list[float]:
        cycles = binary / bits + first / bytes_
        return [cycles * clock / (ADD_ROUNDS * ADDS) for clock in clocks]

    us = 1e6 * statistics.median(ours)
    found = [
        line(
            f"CNV ({us:.1f} us): onnxruntime fp32 over ours", over(times.of["fp32"], ours), ">= 20", "ratio"
        ),
        line("CNV: onnxruntime int8 over ours", over(times.of["int8"], ours), ">= 6", "ratio"),
        line(
            f"CNV: ours over its floor at {LIMIT:.0f} and {INT8_LIMIT:.0f} MAC/cycle",
            over(ours, floor(LIMIT, INT8_LIMIT)),
            "<= 1.25",
            "ratio",
        ),
    ]
    before = [0.0] * rounds
    for count, layer in enumerate(CNV, 1):
        until = ours if count == len(CNV) else times.of[f"first {count}"]
        spent = [1e6 * (b - a) for a, b in zip(before, until, strict=True)]
        name = f"CNV: {layer.kernel}x{layer.kernel}, {layer.in_c} -> {layer.out_c}, {layer.out_side}x{layer.out_side}"
        found.append(line(name + (" and its pool" if layer.pool else ""), spent, "", "us"))
        before = until
    if "avx512" in most:
        here = statistics.median(most["avx512"]), statistics.median(most["vnni"])
        name = f"CNV: ours over its floor at this machine's {here[0]:.0f} and {here[1]:.0f} MAC/cycle"
        found.append(line(name, over(ours, floor(*here)), "", "ratio"))
    return found


def dense(clock: Clock, rounds: int, turn_s: float) -> list[dict[str, Any]]:
    """4096 x 4096, a single layer with its input and output."""
    calls = {
        "W1A1": our_call(plan_of((DENSE,))),
        "W1A8": our_call(plan_of((DENSE,), first=p.U8)),
        "fp32": peer_call(fp32_of((DENSE,))),
        "int8": peer_call(int8_of((DENSE,))),
    }
    times = Times(times_of(clocked(clock, calls), rounds, turn_s))
    found = []
    for name, bounds in (("W1A1", (">= 75", ">= 28")), ("W1A8", ("", ""))):
        us = 1e6 * statistics.median(times.of[name])
        for peer, bound in zip(("fp32", "int8"), bounds, strict=True):
            ratios = over(times.of[peer], times.of[name])
            found.append(
                line(f"dense 4096 {name} ({us:.1f} us): onnxruntime {peer} over ours", ratios, bound, "ratio")
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="15 rounds of short turns")
    parser.add_argument("--rounds", type=int, default=31)
    wanted = parser.parse_args()
    rounds = 15 if wanted.quick else max(15, wanted.rounds)
    turn_s = 0.005 if wanted.quick else 0.02
    sets = {row.name for row in door.kernels() if row.family == "xnor" and row.supported}
    if "avx2" not in sets:
        print("binary.py measures x86 with AVX2 at least; see docs/benchmarks for ARM", file=sys.stderr)
        return 3
    targets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(Path(folder))
        most = limits(clock, rounds, turn_s, sets)
        for name, values in most.items():
            targets.append(line(f"this machine's limit, {name}", values, "", "MAC/cycle", 1))
        targets += convolutions(clock, rounds, turn_s, most)
        targets += cnv(clock, rounds, turn_s, most)
        targets += dense(clock, rounds, turn_s)
        ghz = Times(times_of(clocked(clock, {}), rounds, turn_s)).of["adds"]
    result = {
        "machine": machine_name(),
        "ghz": round(ADD_ROUNDS * ADDS / statistics.median(ghz) / 1e9, 3),
        "versions": {each.__name__: each.__version__ for each in (np, onnxruntime)},
        "rounds": rounds,
        "targets": targets,
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
