#!/usr/bin/env python3
"""What splitting costs: three int8 stages run to the end against one session that gives the same three exits.

    python tools/bench/stages.py [--quick] [--model models/fashion_mnist_3exit.onnx] [--rounds 25]

Both run through the Session (I/O binding, batch 1, one thread), interleaved, in thread CPU time; medians of rounds. The
networks are made up in three size classes, and the demo model. Prints one JSON object; exit code 1 where the outputs of
the two differ in a single bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
from edgekit.runtime.measure import machine_name
from edgekit.runtime.quiet_ort import onnxruntime
from edgekit.runtime.session import Session

DEMO_MODEL = Path("models/fashion_mnist_3exit.onnx")
SAMPLES = 32
TURN_S = 0.02  # one network's turn in a round, about
FIRST_EXIT_SLACK = 0.05


@dataclass(frozen=True)
class SizeClass:
    """A made-up network: three blocks of `depth` 3x3 convolutions, each with its exit. limit: BENCHMARKS.md."""

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
    random = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        value = random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
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
    random = np.random.default_rng(2)
    samples = [
        {e.tensor.name: random.normal(size=e.tensor.shape).astype(np.float32) for e in graph.inputs}
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


def turns(session: Session, data: Data, rounds: int) -> Iterator[tuple[float, float]]:
    """Each round the mean CPU seconds (to the first exit, to the last) over a turn's requests."""
    inputs = [data.inputs(index) for index in range(data.count)]
    count = 1
    while (spent := timed(session, inputs, count)[1] * count) < TURN_S:
        count = max(count + 1, min(10 * count, int(1.2 * count * TURN_S / max(spent, 1e-6))))
    for _ in range(rounds):
        yield timed(session, inputs, count)


def timed(session: Session, inputs: list[dict[str, Any]], count: int) -> tuple[float, float]:
    """Mean CPU seconds of a request to the first exit, and to the last."""
    clock = time.thread_time
    first = 0.0
    start = clock()
    for index in range(count):
        for _ in session.stages(inputs[index % len(inputs)]):
            pass
    whole = (clock() - start) / count
    if len(session.exits) > 1:
        start = clock()
        for index in range(count):
            next(session.stages(inputs[index % len(inputs)]))
        first = (clock() - start) / count
    return first, whole


def target(name: str, values: list[float], limit: float) -> dict[str, Any]:
    """One line of the result."""
    value = statistics.median(values)
    return {
        "name": name,
        "value": round(value, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "unit": "ratio",
        "target": f"<= {limit:.2f}",
        "met": value <= limit,
    }


def bench(name: str, path: Path, limit: float, rounds: int) -> tuple[list[dict[str, Any]], bool]:
    """The targets of one network, and whether both gave the same bits."""
    one, three, data = sessions(path)
    exact = same_bits(one, three, data)
    pairs = list(zip(turns(one, data, rounds), turns(three, data, rounds), strict=True))
    ratios = [staged / whole for (_, whole), (_, staged) in pairs]
    firsts = [first / whole for (_, whole), (first, _) in pairs]
    whole_us = 1e6 * statistics.median(whole for (_, whole), _ in pairs)
    share = three.exits[0].cost_share
    print(f"{name}: one session {whole_us:.1f} us, exact {exact}", file=sys.stderr)
    return [
        target(f"{name}: three stages over one session ({whole_us:.0f} us)", ratios, limit),
        target(
            f"{name}: first exit's time over the whole (its MACs {share:.3f})",
            firsts,
            share + FIRST_EXIT_SLACK,
        ),
    ], exact


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
