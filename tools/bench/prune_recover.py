#!/usr/bin/env python3
"""Half the work of the demo model pruned, its accuracy recovered without labels: what is lost, what is gained.

    python tools/bench/prune_recover.py [--quick] [--share 0.5] [--epochs 5] [--samples 20000] [--threads 2]

Channels go by prune_channels, then recover distils from the original on training images, whose labels are never read.
Accuracy at the last exit on all 10,000 test images (quick: 2,000), with a 95 % interval of the paired difference;
latencies of whole networks in onnxruntime, interleaved, thread CPU time, batch 1, one thread. Prints one JSON object.
Needs PyTorch (tools/setup --train) and Fashion-MNIST (tools/fetch_data.py).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import EdgekitError
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes import Context
from edgekit.host.passes.prune_channels import PruneChannels
from edgekit.host.passes.prune_channels import apply as prune_channels
from edgekit.host.passes.recover import Recover
from edgekit.host.passes.recover import apply as recover
from edgekit.host.train import require_torch
from edgekit.host.work import layers
from edgekit.runtime.data import Data, load_data
from edgekit.runtime.measure import machine_name
from edgekit.runtime.quiet_ort import onnxruntime

DEMO_MODEL = Path("models/fashion_mnist_3exit.onnx")
SEED = 1
TURN_S = 0.02
QUICK_SAMPLES, QUICK_EPOCHS, QUICK_TESTED, QUICK_CALIBRATION = 2_000, 2, 2_000, 96


def say(text: str) -> None:
    print(text, file=sys.stderr)


def fashion() -> Path:
    """The folder that tools/fetch_data.py answers with."""
    script = Path(__file__).parents[1] / "fetch_data.py"
    answer = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip())


def correct(graph: Graph, data: Data) -> NDArray[np.bool_]:
    """Per image and exit, whether onnxruntime's largest number is the label's: (count, exits)."""
    assert data.labels is not None  # noqa: S101  (Fashion-MNIST has them)
    names = [entry.output for entry in graph.exits]
    session = open_model(model_bytes(graph.model))
    found = np.empty((data.count, len(names)), np.int64)
    for index in range(data.count):
        found[index] = [answer.argmax() for answer in session.run(names, data.inputs(index))]
    return np.asarray(found == data.labels[:, None])


def macs(graph: Graph) -> int:
    return sum(layer.macs for layer in layers(graph.model))


def ratios(slow: Graph, fast: Graph, data: Data, rounds: int) -> list[float]:
    """How many times faster the second network is, per round."""
    sessions = [open_model(model_bytes(graph.model)) for graph in (slow, fast)]
    inputs = [data.inputs(index) for index in range(16)]

    def turn(which: int, count: int) -> float:
        start = time.thread_time()
        for index in range(count):
            sessions[which].run(None, inputs[index % len(inputs)])
        return (time.thread_time() - start) / count

    counts = [max(16, round(TURN_S / min(turn(which, 16) for _ in range(3)))) for which in (0, 1)]
    return [turn(0, counts[0]) / turn(1, counts[1]) for _ in range(rounds)]


def target(name: str, unit: str, values: list[float], limit: tuple[str, float] | None) -> dict[str, Any]:
    """One line of the result; without a limit it is told, not judged."""
    value = statistics.median(values)
    met = None if limit is None else (value <= limit[1] if limit[0] == "<=" else value >= limit[1])
    return {
        "name": name,
        "value": round(value, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "unit": unit,
        "target": None if limit is None else f"{limit[0]} {limit[1]:g}",
        "met": met,
    }


def points_lost(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[float]:
    """Points lost at the last exit, and the ends of its paired 95 % interval."""
    lost = before[:, -1].astype(np.float64) - after[:, -1]
    half = 1.96 * float(lost.std()) / math.sqrt(len(lost))
    return [100 * (float(lost.mean()) + side) for side in (-half, 0.0, half)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="few images, two epochs: shows the way, no result"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the multiply-accumulates, to prune")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000, help="training images, without labels")
    parser.add_argument("--calibration", type=int, default=2_000, help="of them, for pruning")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=45)
    parser.add_argument("--save", type=Path, help="write the recovered network here")
    wanted = parser.parse_args()
    try:
        require_torch("this benchmark")
        return bench(wanted)
    except EdgekitError as err:
        print(f"prune_recover: {err}", file=sys.stderr)
        return err.exit_code


def bench(wanted: argparse.Namespace) -> int:
    graph = load(DEMO_MODEL).graph
    folder = fashion()
    images = replace(load_data(folder / "train-images-idx3-ubyte.gz", graph.inputs), labels=None)
    tested = load_data(folder / "t10k-images-idx3-ubyte.gz", graph.inputs)
    samples, epochs, calibration = wanted.samples, wanted.epochs, wanted.calibration
    pruning = PruneChannels(wanted.share)
    if wanted.quick:
        samples, epochs, calibration = QUICK_SAMPLES, QUICK_EPOCHS, QUICK_CALIBRATION
        pruning = PruneChannels(wanted.share, criterion="activation", samples=QUICK_CALIBRATION)
        tested = tested.subset(range(QUICK_TESTED))
    chosen = np.random.default_rng(SEED).permutation(images.count)[:samples].tolist()
    train = images.subset(chosen)

    start = time.monotonic()
    pruned = prune_channels(graph, pruning, Context(train.subset(range(calibration)), graph, SEED))
    pruned_s = time.monotonic() - start
    say(f"pruned in {pruned_s:.0f} s: {macs(pruned) / macs(graph):.3f} of the MACs")
    start = time.monotonic()
    recovered = recover(pruned, Recover(epochs=epochs, threads=wanted.threads), Context(train, graph, SEED))
    recovered_s = time.monotonic() - start
    say(f"recovered in {recovered_s:.0f} s, {epochs} epochs of {samples} images")
    if wanted.save:
        wanted.save.write_bytes(model_bytes(recovered.model))

    whole, without, after = (correct(each, tested) for each in (graph, pruned, recovered))
    say(
        f"accuracy per exit: {whole.mean(0).round(4)} -> pruned {without.mean(0).round(4)} -> {after.mean(0).round(4)}"
    )
    lost, unrecovered = points_lost(whole, after), points_lost(whole, without)
    faster = ratios(graph, recovered, tested, max(15, wanted.rounds))
    import torch

    result = {
        "machine": machine_name(),
        "versions": {each.__name__: str(each.__version__) for each in (np, onnxruntime, torch)},
        "rounds": len(faster),
        "quick": wanted.quick,
        "settings": {"epochs": epochs, "samples": samples, "threads": wanted.threads, "tested": tested.count},
        "accuracy": {
            entry.name: {"before": float(a), "pruned": float(b), "recovered": float(c)}
            for entry, a, b, c in zip(graph.exits, whole.mean(0), without.mean(0), after.mean(0), strict=True)
        },
        "seconds": {"prune": round(pruned_s, 1), "recover": round(recovered_s, 1)},
        "targets": [
            target("MACs left", "ratio", [macs(recovered) / macs(graph)], ("<=", 1 - wanted.share + 1e-9)),
            target("points lost at the last exit, min and max: 95 % interval", "points", lost, ("<=", 1.0)),
            target("the same without recovery", "points", unrecovered, None),
            target("times faster in onnxruntime", "ratio", faster, (">=", 1.6)),
        ],
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
