#!/usr/bin/env python3
"""What stages and decisions cost: three int8 stages under each policy against bare onnxruntime, and one session.

    python tools/bench/stages.py [--quick] [--model models/fashion_mnist_3exit.onnx] [--rounds 25]

First the stages alone, run to the end, against one session that gives the same three exits; then whole requests through
Session.run under each policy, all answered at the last exit, against the same onnxruntime sessions called bare: inputs
copied into the bound buffers, one call a stage, and nothing else. Batch 1, one thread, interleaved, in thread CPU time;
medians of rounds. The networks are made up in three size classes, and the demo model. Prints one JSON object; exit code
1 where stages and one session differ in a single bit of their outputs.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.core.manifest import OperatingPoint
from edgekit.core.policy import Budget, PolicySpec
from edgekit.core.profile import HOST
from edgekit.host.convert import whole_stage
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.lower import backend_for
from edgekit.host.pack import draft
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.split import split
from edgekit.runtime.data import Data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import machine_name, stage_costs
from edgekit.runtime.policy import make_policy
from edgekit.runtime.quiet_ort import onnxruntime
from edgekit.runtime.session import Session

DEMO_MODEL = Path("models/fashion_mnist_3exit.onnx")
SAMPLES = 32
TURN_S = 0.02  # one network's turn in a round, about
FEWEST = 40  # requests of a call in a round where calls alternate
FIRST_EXIT_SLACK = 0.05
MOST_US, MOST_PERCENT, LARGE_US = 30.0, 2.0, 1000.0  # a request's decisions and copies, over bare onnxruntime
POINTS = 24  # as many operating points as convert keeps


@dataclass(frozen=True)
class SizeClass:
    """A made-up network: three blocks of `depth` 3x3 convolutions, each with its exit. limit: the target of stages."""

    name: str
    side: int
    width: int
    depth: int
    limit: float


CLASSES = (
    SizeClass("40 us", 14, 56, 1, 1.20),
    SizeClass("0.2 ms", 14, 80, 3, 1.10),
    SizeClass("1.4 ms", 28, 96, 4, 1.05),
)
DEMO_LIMIT = 1.20  # its class lies between 40 us and 0.2 ms


def made_up(size: SizeClass) -> onnx.ModelProto:
    """Random weights of a seed; what they compute does not matter here."""
    draw = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        value = draw.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(value, name))
        return name

    last, channels, outputs = "x", 8, []
    for block in range(3):
        for layer in range(size.depth):
            name = f"b{block}c{layer}"
            inputs = [last, weight(f"{name}w", size.width, channels, 3, 3)]
            nodes.append(
                helper.make_node("Conv", inputs, [f"{name}y"], name, kernel_shape=[3, 3], pads=[1] * 4)
            )
            nodes.append(helper.make_node("Relu", [f"{name}y"], [name], f"{name}r"))
            last, channels = name, size.width
        exit_name = f"exit{block + 1}"
        nodes.append(helper.make_node("GlobalAveragePool", [last], [f"{exit_name}p"], f"{exit_name}pool"))
        nodes.append(helper.make_node("Flatten", [f"{exit_name}p"], [f"{exit_name}f"], f"{exit_name}flat"))
        head = [f"{exit_name}f", weight(f"{exit_name}w", size.width, 10)]
        nodes.append(helper.make_node("Gemm", head, [exit_name], f"{exit_name}gemm"))
        outputs.append(helper.make_tensor_value_info(exit_name, TensorProto.FLOAT, [1, 10]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, size.side, size.side])
    graph = helper.make_graph(nodes, "made_up", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    exits = [{"name": value.name, "output": value.name} for value in outputs]
    helper.set_model_props(model, {"edgekit.exits": json.dumps(exits)})
    return model


def random_data(graph: Graph) -> Data:
    """Inputs that look like normalised ones."""
    draw = np.random.default_rng(2)
    samples = [
        {e.tensor.name: draw.normal(size=e.tensor.shape).astype(np.float32) for e in graph.inputs}
        for _ in range(SAMPLES)
    ]
    return Data("random", range(SAMPLES), None, samples.__getitem__, str)


def sessions(path: Path) -> tuple[Session, Session, Data]:
    """(all in one, stage by stage, inputs) of the same int8 network."""
    profile = find_profile(HOST)
    backend = backend_for(profile)
    plain = run_steps(load(path).graph, (step("confidence"), step("fold")), Context())
    data = random_data(plain)
    int8 = step("quantize_static", activation=backend.int8_activation or "uint8")
    quantized = run_steps(plain, (int8,), Context(data, plain))
    one = draft(quantized, [whole_stage(quantized)], backend, "one", 1, HOST)
    three = draft(quantized, split(quantized), backend, "three", 1, HOST)
    return one.open(), three.open(), data


def same_bits(one: Session, three: Session, data: Data) -> bool:
    """Whether every exit gives exactly the same on every input."""
    for index in range(data.count):
        whole, staged = one.run_all(data.inputs(index)), three.run_all(data.inputs(index))
        for leaving in three.exits:
            if not np.array_equal(whole[leaving.output], staged[leaving.output]):
                return False
    return True


Call = Callable[[Mapping[str, Any]], object]


def whole(session: Session) -> Call:
    """Every stage, no decision."""

    def call(inputs: Mapping[str, Any]) -> None:
        for _ in session.stages(inputs):
            pass

    return call


def bare(session: Session) -> Call:
    """What anybody must do to run the same onnxruntime sessions: put the inputs into the bound buffers, call each."""
    buffers = [(entry.tensor.name, session._buffers[entry.tensor.name]) for entry in session.manifest.inputs]  # noqa: SLF001
    runners = [run.__self__ for stage in session._runs for run in stage]  # type: ignore[attr-defined]  # noqa: SLF001
    calls = [each._run for each in runners]  # noqa: SLF001

    def call(inputs: Mapping[str, Any]) -> None:
        for name, buffer in buffers:
            np.copyto(buffer, inputs[name])
        for run in calls:
            run()

    return call


def decided(session: Session, data: Data) -> dict[str, Call]:
    """Whole requests under each policy. None of the operating points leaves early: all do the same work."""
    early = len(session.exits) - 1
    steps = [index / (POINTS - 1) for index in range(POINTS)]
    points = tuple(
        OperatingPoint((1.5,) * early, step, (1 - step, *(0.0,) * (early - 1), step), step) for step in steps
    )
    manifest = replace(session.manifest, operating_points=points)
    costs = stage_costs(session, data)
    policies = {
        str(spec.kind): make_policy(spec, manifest, costs)
        for spec in (
            PolicySpec(),
            PolicySpec("confidence"),
            PolicySpec("budget", Budget(0.7 * sum(costs.mean_ms), "ms")),
            PolicySpec("anytime", None, 1e6),
        )
    }
    return {
        kind: functools.partial(lambda policy, inputs: session.run(inputs, policy), policy)
        for kind, policy in policies.items()
    }


def times_of(calls: Mapping[str, Call], data: Data, rounds: int) -> dict[str, list[float]]:
    """Mean CPU seconds of a request in each call's turn, one turn a round each."""
    inputs = [data.inputs(index) for index in range(data.count)]

    def turn(call: Call, count: int) -> float:
        start = time.thread_time()
        for index in range(count):
            call(inputs[index % len(inputs)])
        return time.thread_time() - start

    counts = {}
    for name, call in calls.items():
        count = 1
        while (spent := turn(call, count)) < TURN_S:
            count = max(count + 1, min(10 * count, int(1.2 * count * TURN_S / max(spent, 1e-6))))
        counts[name] = count
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(turn(call, counts[name]) / counts[name])
    return found


def alternating(calls: Mapping[str, Call], data: Data, rounds: int) -> dict[str, list[float]]:
    """Each round's median CPU seconds of a request, the calls taking turns request by request.

    For calls of the same sessions, which do not drive each other's weights out of the caches: whatever else the machine
    does then meets all of them alike.
    """
    inputs = [data.inputs(index) for index in range(data.count)]
    found: dict[str, list[float]] = {name: [] for name in calls}
    clock, order, shuffle = time.thread_time, list(calls.items()), random.Random(1).shuffle
    for _ in range(rounds):
        spent: dict[str, list[float]] = {name: [] for name in calls}
        began, number = clock(), 0
        while number < FEWEST or clock() - began < len(calls) * TURN_S:
            for name, call in order:
                start = clock()
                call(inputs[number % len(inputs)])
                spent[name].append(clock() - start)
            shuffle(order)  # what ran before leaves its traces in the caches
            number += 1
        for name, values in spent.items():
            found[name].append(statistics.median(values))
    return found


def target(name: str, values: list[float], limit: float, unit: str = "ratio") -> dict[str, Any]:
    """One line of the result."""
    value = statistics.median(values)
    return {
        "name": name,
        "value": round(value, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "unit": unit,
        "target": f"<= {limit:g}",
        "met": value <= limit,
    }


def bench(name: str, path: Path, limit: float, rounds: int) -> tuple[list[dict[str, Any]], bool]:
    """The targets of one network, and whether both gave the same bits."""
    one, three, data = sessions(path)
    exact = same_bits(one, three, data)
    policies = decided(three, data)
    calls = {
        "one session": whole(one),
        "stages": whole(three),
        "first exit": lambda inputs: next(three.stages(inputs)),
        "bare one": bare(one),
        "full": policies["full"],
    }
    times = times_of(calls, data, rounds)
    same = alternating({"bare": bare(three), **policies}, data, rounds)

    def ratios(above: str, below: str) -> list[float]:
        return [a / b for a, b in zip(times[above], times[below], strict=True)]

    whole_us = 1e6 * statistics.median(times["one session"])
    share = three.exits[0].cost_share
    print(f"{name}: one session {whole_us:.1f} us, exact {exact}", file=sys.stderr)
    found = [
        target(
            f"{name}: three stages over one session ({whole_us:.0f} us)",
            ratios("stages", "one session"),
            limit,
        ),
        target(
            f"{name}: first exit's time over the whole (its MACs {share:.3f})",
            ratios("first exit", "one session"),
            share + FIRST_EXIT_SLACK,
        ),
    ]
    for kind in policies:
        over = [1e6 * (a - b) for a, b in zip(same[kind], same["bare"], strict=True)]
        found.append(target(f"{name}: {kind}, over bare stages", over, MOST_US, "us"))
        if whole_us >= LARGE_US:
            shares = [100 * (a / b - 1) for a, b in zip(same[kind], same["bare"], strict=True)]
            found.append(target(f"{name}: {kind}, over bare stages", shares, MOST_PERCENT, "%"))
    found.append(
        target(f"{name}: full, over the bare whole network in one session", ratios("full", "bare one"), limit)
    )
    return found, exact


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="15 rounds")
    parser.add_argument("--rounds", type=int, default=45)
    parser.add_argument(
        "--model", type=Path, default=DEMO_MODEL, help="a network with three exits to measure as well"
    )
    wanted = parser.parse_args()
    rounds = 15 if wanted.quick else max(15, wanted.rounds)
    targets: list[dict[str, Any]] = []
    all_exact = True
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            (size.name, Path(folder) / f"{index}.onnx", size.limit) for index, size in enumerate(CLASSES)
        ]
        for size, (_, path, _) in zip(CLASSES, cases, strict=True):
            path.write_bytes(made_up(size).SerializeToString())
        if wanted.model.exists():
            cases.append((wanted.model.stem, wanted.model, DEMO_LIMIT))
        else:
            print(f"{wanted.model} is not there: left out", file=sys.stderr)
        for name, path, limit in cases:
            found, exact = bench(name, path, limit, rounds)
            targets += found
            all_exact = all_exact and exact
    result = {
        "machine": machine_name(),
        "versions": {each.__name__: each.__version__ for each in (np, onnx, onnxruntime)},
        "rounds": rounds,
        "exact": all_exact,
        "targets": targets,
    }
    print(json.dumps(result, indent=2))
    return 0 if all_exact else 1


if __name__ == "__main__":
    sys.exit(main())
