#!/usr/bin/env python3
"""How far the cost model's predictions are from measured latencies, each network left out of the fit in turn.

    python tools/bench/cost_model.py [--quick] [--rounds 16] [--float-only]

Fits the coefficients of this machine as `edgekit profile measure` does, from generated networks; then times real ones,
in float32 and in int8 (the better type of activation here), through the Session on one thread, in turns, in thread CPU
time. Each network is predicted from the generated ones and all other real ones ("left out"), and from the generated
ones alone, which is what `edgekit profile measure` gives a user ("generated only"). Real networks: those of
tools/fetch_models.py that are in the cache, the demo model, and the architectures that come with the onnx package, with
random weights in place of its constant ones. Prints one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from edgekit.core.cost import predict
from edgekit.core.errors import EdgekitError, one_line
from edgekit.core.profile import Backend, Profile
from edgekit.host.fit_cost import Sample, errors, fit, general_only, leave_one_out
from edgekit.host.graph import Graph, GraphExit
from edgekit.host.load import InputSpec, Shapes, load
from edgekit.host.lower import backend_for
from edgekit.host.measure_costs import (
    Opened,
    Skipped,
    as_one_stage,
    measure,
    open_draft,
    random_input,
    seconds_per_run,
)
from edgekit.host.micro import cases, count_cases
from edgekit.host.passes import Context, run_steps, step
from edgekit.runtime.data import Data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import machine_name
from edgekit.runtime.quiet_ort import onnxruntime

CACHE = Path(os.environ.get("EDGEKIT_CACHE", "~/.cache/edgekit")).expanduser()
DEMO_MODEL = Path("models/fashion_mnist_3exit.onnx")
LIMIT = 0.15  # BENCHMARKS: median relative error
FEWEST = 10  # real networks
BEFORE = ("opset", "confidence", "fold")
QUICK_BYTES, QUICK_MOST, QUICK_ROUNDS = 4_000_000, 2, 3
OPSET = 17


@dataclass(frozen=True)
class Real:
    """A real network. shape: of its input, where the file leaves it open. output: the one that counts.

    architecture_only: one of the onnx package's, which gets weights here.
    """

    name: str
    path: Path
    shape: tuple[int, ...] | None = None
    output: str | None = None
    architecture_only: bool = False


SHAPES: dict[str, tuple[int, ...]] = {
    "text_detector": (1, 3, 320, 320),
    "text_recognizer": (1, 3, 48, 320),
    "text_direction": (1, 3, 48, 192),
    "text_orientation": (1, 3, 224, 224),
    "magika": (1, 2048),
    "basic_pitch": (1, 43844, 1),
}
OUTPUTS = {"basic_pitch": "StatefulPartitionedCall:0"}
ARCHITECTURES = (
    *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2"),
    *("resnet50", "shufflenet", "squeezenet"),
)


def real_networks(quick: bool) -> Iterator[Real]:
    """What is there: the cache, the demo model, the onnx package."""
    for path in sorted((CACHE / "models").glob("*/model.onnx")):
        name = path.parent.name
        if not quick or path.stat().st_size <= QUICK_BYTES:
            yield Real(name, path, SHAPES.get(name), OUTPUTS.get(name))
    if DEMO_MODEL.exists():
        yield Real(DEMO_MODEL.stem, DEMO_MODEL)
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    for name in ("squeezenet",) if quick else ARCHITECTURES:
        path = folder / f"light_{name}.onnx"
        if path.exists():
            yield Real(name, path, architecture_only=True)


def with_random_weights(path: Path) -> onnx.ModelProto:
    """One of the onnx package's architectures: its weights are constants made by an operator; here they are random."""
    model, random = onnx.load(path), np.random.default_rng(0)
    known = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    readers = {name: (node, place) for node in model.graph.node for place, name in enumerate(node.input)}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(size) for size in known[node.input[0]])
        reader, place = readers[node.output[0]]
        if reader.op_type in ("Conv", "Gemm") and place == 1:
            value = random.standard_normal(shape, np.float32) * np.float32(
                math.sqrt(2 / math.prod(shape[1:]))
            )
        elif reader.op_type == "BatchNormalization":
            value = np.full(shape, (0, 1, 0, 0, 1)[place], np.float32)
        else:
            value = np.zeros(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    used = {name for node in kept for name in node.input}
    weights = [entry for entry in model.graph.initializer if entry.name in used]
    names = {entry.name for entry in weights}
    inputs = [entry for entry in model.graph.input if entry.name in used - names]
    for field, entries in (("node", kept), ("initializer", weights), ("input", inputs)):
        mine = getattr(model.graph, field)
        del mine[:]
        mine.extend(entries)
    model.ir_version = 8
    return version_converter.convert_version(model, OPSET)


def opened_networks(
    networks: list[Real], backend: Backend, activation: str | None
) -> tuple[dict[str, list[Opened]], dict[str, str]]:
    """Each network in its formats, opened; and what cannot be used, with the reason."""
    found: dict[str, list[Opened]] = {}
    failed: dict[str, str] = {}
    for network in networks:
        begun = time.perf_counter()
        mine: list[Opened] = []
        try:
            plain = float_graph(network)
            mine.append(open_draft(f"{network.name} float32", as_one_stage(plain, backend)))
            if activation is not None:
                made = as_one_stage(int8_graph(plain, activation), backend)
                mine.append(open_draft(f"{network.name} int8", made))
        except EdgekitError as err:
            failed[f"{network.name} {'int8' if mine else 'float32'}"] = one_line(err)
        if mine:
            found[network.name] = mine
        print(f"{network.name}: open after {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    return found, failed


def float_graph(network: Real) -> Graph:
    """The network as the converter sees it before it chooses formats."""
    spec = InputSpec() if network.output is None else InputSpec(exits=(GraphExit("final", network.output),))
    shapes: Shapes = {} if network.shape is None else {"": network.shape}
    if network.architecture_only:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            onnx.save(with_random_weights(network.path), file.name)
            loaded = load(Path(file.name), shapes, spec)
    else:
        loaded = load(network.path, shapes, spec)
    return run_steps(loaded.graph, [step(name) for name in BEFORE], Context())


def int8_graph(graph: Graph, activation: str) -> Graph:
    """All of it in int8 that can be. Ranges come from random inputs: what is computed does not matter here."""
    sample = {entry.tensor.name: random_input(entry) for entry in graph.inputs}
    data = Data("random", range(2), None, [sample, sample].__getitem__, str)
    return run_steps(graph, [step("quantize_static", activation=activation)], Context(data=data))


def timed(networks: dict[str, list[Opened]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each network in each format, one figure a round, in turns."""
    flat = [entry for formats in networks.values() for entry in formats]
    times = seconds_per_run(flat, time.thread_time, rounds)
    return dict(zip([entry.name for entry in flat], times, strict=True))


def samples_of(networks: dict[str, list[Opened]], times: dict[str, list[float]]) -> list[list[Sample]]:
    """The samples of each network's formats: medians of rounds."""
    return [
        [Sample(entry.name, entry.work, statistics.median(times[entry.name])) for entry in formats]
        for formats in networks.values()
    ]


def generated(backend: Backend, activation: str | None, quick: bool, rounds: int) -> list[Sample]:
    """The networks of `edgekit profile measure`."""
    formats = ("float32",) if activation is None else ("float32", activation)
    most = QUICK_MOST if quick else None
    total, done = count_cases(formats, most=most), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if done % 50 == 0:
            print(f"{done} of {total} generated networks", file=sys.stderr)

    return list(measure(cases(formats, most=most), backend, 1, tick, rounds, Skipped()))


def roofline_errors(profile: Profile, samples: list[Sample]) -> dict[str, float]:
    """What the same fit says without classes of operators: one rate of MACs a format, one of bytes, one of calls."""
    found = {}
    for sample in samples:
        value = predict(profile, sample.work).value
        if value is not None:
            found[sample.name] = value / 1e3 / sample.seconds - 1
    return found


def median(values: Iterator[float] | list[float]) -> float:
    return statistics.median(map(abs, values))


def target(name: str, values: list[float], text: str, met: bool | None) -> dict[str, Any]:
    """One line of the result: the median of absolute relative errors, and their span."""
    sizes = sorted(map(abs, values))
    return {
        "name": name,
        "value": round(statistics.median(sizes), 4),
        "min": round(sizes[0], 4),
        "max": round(sizes[-1], 4),
        "unit": "relative error",
        "target": text,
        "met": met,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small networks only, fewer generated ones")
    parser.add_argument("--rounds", type=int, default=16, help="of the real networks")
    parser.add_argument("--float-only", action="store_true", help="leave int8 out")
    wanted = parser.parse_args()
    backend = backend_for(find_profile("host"))
    activation = None if wanted.float_only else backend.int8_activation
    networks, failed = opened_networks(list(real_networks(wanted.quick)), backend, activation)
    if len(networks) < FEWEST:
        print(f"{len(networks)} real networks, {FEWEST} wanted: tools/fetch_models.py --all", file=sys.stderr)
    rounds = max(16, wanted.rounds)
    before = timed(networks, rounds // 2)
    begun = time.perf_counter()
    base = generated(backend, activation, wanted.quick, QUICK_ROUNDS if wanted.quick else 7)
    measure_s = time.perf_counter() - begun
    after = timed(networks, rounds // 2)  # around the generated ones: a machine's pace drifts
    times = {name: before[name] + after[name] for name in before}
    held = samples_of(networks, times)
    flat = [sample for samples in held for sample in samples]
    alone = errors(fit(base), flat)
    left_out = leave_one_out(base, held)
    costs = fit([*base, *flat]).costs(1, machine_name(), None)
    roofline = roofline_errors(replace(find_profile("host"), cost=general_only(costs)), flat)
    result = {
        "machine": machine_name(),
        "versions": {each.__name__: each.__version__ for each in (np, onnx, onnxruntime)},
        "rounds": rounds // 2 * 2,
        "threads": 1,
        "activation": activation,
        "generated_networks": len(base),
        "generated_s": round(measure_s, 1),
        "networks": [
            {
                "name": sample.name,
                "measured_ms": round(sample.seconds * 1e3, 4),
                "spread": round(spread(times[sample.name]), 3),
                "left_out": round(left_out[sample.name], 3),
                "generated_only": round(alone[sample.name], 3),
                "roofline": round(roofline[sample.name], 3) if sample.name in roofline else None,
            }
            for sample in flat
        ],
        "not_used": failed,
        "targets": targets(left_out, alone, roofline),
    }
    print(json.dumps(result, indent=2))
    return 0


def targets(
    left_out: dict[str, float], alone: dict[str, float], roofline: dict[str, float]
) -> list[dict[str, Any]]:
    """The target and, beside it, what the parts say. Its `max` is the worst network's error."""
    enough = len({name.rpartition(" ")[0] for name in left_out}) >= FEWEST
    every = list(left_out.values())
    found = [
        target(
            f"each of {len(every)} left out of the fit",
            every,
            f"<= {LIMIT}",
            enough and median(every) <= LIMIT,
        )
    ]
    for fmt in ("float32", "int8"):
        mine = [error for name, error in left_out.items() if name.endswith(fmt)]
        if mine:
            found.append(target(f"of these, {fmt}", mine, "", None))
    found.append(target("fitted to generated networks only", list(alone.values()), "", None))
    found.append(target("general roofline only", list(roofline.values()), "", None))
    return found


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles, over the median: how well a time is known."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


if __name__ == "__main__":
    sys.exit(main())
