#!/usr/bin/env python3
"""Train a binary network on Fashion-MNIST and export it as one small QONNX file, with its figures beside it as JSON.

    python tools/train_bnn.py --network lfc --epochs 30 --seed 1 --bfloat16

Needs the extra `train`. Of the 60,000 training images the first 55,000 are trained on; the last 5,000 are held out. The
test images are read once, after training, and decide nothing: the last epoch's network is the one that is kept. A run
that was stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput, EdgekitError
from edgekit.core.files import write_atomic
from edgekit.core.manifest import Input, Preprocess, Tensor
from edgekit.host.cache import cache_root
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.split import split
from edgekit.host.train import require_torch
from edgekit.host.work import layers
from edgekit.runtime.data import read_idx

require_torch("tools/train_bnn.py")

import torch  # noqa: E402

from edgekit.host.train.binary import binary_layers  # noqa: E402
from edgekit.host.train.bnn import BinaryTraining, train_bnn  # noqa: E402
from edgekit.host.train.fit import Hook, Moment, reproducible  # noqa: E402
from edgekit.host.train.networks import BINARY_NETWORKS, build, cnv, lfc  # noqa: E402
from edgekit.host.train.samples import Augment  # noqa: E402
from edgekit.host.train.supervised import Labelled, evaluate  # noqa: E402
from edgekit.host.train.to_qonnx import to_qonnx  # noqa: E402

LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HELD_OUT = 12  # one in so many: 5,000 of the 60,000 images, the last ones of the training file
COMPARED = 1_000  # held-out images on which the file must give the module's answers
PIXELS = Preprocess("L", "stretch", "bilinear", 1.0, (0.0,), (1.0,))  # bytes go in as they are

TRAININGS: Mapping[str, BinaryTraining] = {
    "lfc": BinaryTraining(epochs=30, batch=250, lr=3e-2),
    "cnv": BinaryTraining(epochs=4, batch=50, lr=5e-3),
}


@dataclass(frozen=True)
class Images:
    """`x`: uint8 [N, 28, 28]; `y`: uint8 [N]."""

    x: NDArray[np.uint8]
    y: NDArray[np.uint8]

    def part(self, which: slice) -> Images:
        return Images(self.x[which], self.y[which])

    def labelled(self, image: Input, augment: Augment | None = None) -> Labelled:
        return Labelled(self.x, self.y, image, augment)


def find_data() -> Path:
    """The folder that tools/fetch_data.py answers with."""
    script = Path(__file__).with_name("fetch_data.py")
    answer = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip())


def read_split(folder: Path, prefix: str) -> Images:
    """`train` or `t10k` of the folder."""
    x, y = folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"
    return Images(read_idx(x, 3), read_idx(y, 1))


class Progress(Hook):
    """A line for each epoch."""

    def __init__(self, module: torch.nn.Module, held_out: Labelled, epochs: int) -> None:
        self._module, self._held_out, self._epochs = module, held_out, epochs
        self._start = time.monotonic()

    def after_epoch(self, moment: Moment) -> bool:
        accuracy = " ".join(f"{each:.2%}" for each in evaluate(self._module, self._held_out).accuracy)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in moment.losses.items())
        spent = time.monotonic() - self._start
        say(f"epoch {moment.epoch + 1}/{self._epochs}: {losses}; held out {accuracy}; {spent:.0f} s")
        return False


def judge(graph: Graph, names: Sequence[str], image: Input, images: Images) -> dict[str, float]:
    """Accuracy per exit of the exported file as convert reads it, one image at a time."""
    session = open_model(model_bytes(graph.model), optimize=False)  # no batch norm rounds otherwise
    right = dict.fromkeys(names, 0)
    for pixels, label in zip(images.x, images.y.tolist(), strict=True):
        answers = session.run(list(names), {image.tensor.name: pixels.reshape(image.tensor.shape)})
        for name, answer in zip(names, answers, strict=True):
            right[name] += int(answer.argmax()) == label
    return {name: count / len(images.x) for name, count in right.items()}


def exit_figures(graph: Graph, judged: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One row an exit; MACs are cumulative."""
    stages = split(fold(graph, NoOptions(), Context()))
    macs = np.cumsum([sum(layer.macs for layer in layers(stage.model)) for stage in stages]).tolist()
    return [
        {
            "name": stage.exit.name,
            "macs": spent,
            "cost_share": spent / macs[-1],
            "accuracy_held_out": judged["held_out"][stage.exit.name],
            "accuracy_test": judged["test"][stage.exit.name],
        }
        for stage, spent in zip(stages, macs, strict=True)
    ]


def default_file(wanted: argparse.Namespace) -> Path:
    kind = wanted.network if wanted.width == 1 else f"{wanted.network}-w{wanted.width:g}"
    kind = f"{kind}-{wanted.exits}exits" if wanted.exits else kind
    return cache_root() / "networks" / f"{kind}-{wanted.seed}.onnx"


def options_of(wanted: argparse.Namespace) -> BinaryTraining:
    """The network's own training, changed by what the command says."""
    told = {
        key: getattr(wanted, key) for key in ("epochs", "lr", "batch") if getattr(wanted, key) is not None
    }
    return replace(TRAININGS[wanted.network], bfloat16=wanted.bfloat16, **told)


def config_of(wanted: argparse.Namespace) -> lfc.Config | cnv.Config:
    if wanted.network == "cnv":
        if wanted.dropout:
            raise BadInput("--dropout is of lfc, not of cnv")
        return cnv.Config(width=wanted.width, exits=wanted.exits)
    if wanted.exits or wanted.width != 1:
        raise BadInput("--exits and --width are of cnv, not of lfc")
    return lfc.Config(dropout=wanted.dropout)


def run(wanted: argparse.Namespace) -> None:
    out = wanted.out or default_file(wanted)
    options, config = options_of(wanted), config_of(wanted)
    folder = wanted.data or find_data()
    everything, test = (read_split(folder, prefix) for prefix in ("train", "t10k"))
    first = len(everything.x) - len(everything.x) // HELD_OUT
    images, held_out = everything.part(slice(0, first)), everything.part(slice(first, None))
    images = images.part(slice(0, wanted.limit_train))
    image = Input(Tensor("image", "uint8", (1, 1, *images.x.shape[1:])), "NCHW", PIXELS)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    if not wanted.resume:
        checkpoint.unlink(missing_ok=True)
    resumed = checkpoint.exists()

    with reproducible(wanted.seed, wanted.threads):
        module = build(wanted.network, config)
    exam = held_out.labelled(image)
    started = time.monotonic()
    train_bnn(
        module,
        images.labelled(image, Augment(shift=options.shift, flip=options.flip)),
        options,
        seed=wanted.seed,
        threads=wanted.threads,
        hooks=[Progress(module, exam, options.epochs)],
        checkpoint=checkpoint,
    )
    seconds = time.monotonic() - started

    content = to_qonnx(module, image, LABELS, samples=held_out.x[:COMPARED])
    write_atomic(out, content)
    graph = load(out).graph
    names = [entry.name for entry in graph.exits]
    judged = {part: judge(graph, names, image, of) for part, of in (("held_out", held_out), ("test", test))}
    figures = {
        "v": 1,
        "network": wanted.network,
        "config": asdict(config),
        "training": asdict(options),
        "exits": exit_figures(graph, judged),
        "images": {"train": len(images.x), "held_out": len(held_out.x), "test": len(test.x)},
        "binary_weights": sum(layer.weight.numel() for layer in binary_layers(module)),
        "parameters": sum(math.prod(each.shape) for each in module.parameters()),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "seed": wanted.seed,
        "threads": wanted.threads,
        "seconds": None
        if resumed
        else round(seconds, 1),  # None: a resumed run does not know all of its time
        "versions": {each: version(each) for each in ("torch", "numpy", "onnx", "onnxruntime")},
    }
    write_atomic(out.with_suffix(".json"), (json.dumps(figures, indent=2) + "\n").encode())
    report(figures, out)


def report(figures: Mapping[str, Any], out: Path) -> None:
    print(f"{'exit':<8}{'test':>9}{'held out':>10}{'MACs':>13}{'of all':>8}")
    for each in figures["exits"]:
        print(
            f"{each['name']:<8}{each['accuracy_test']:>8.2%} {each['accuracy_held_out']:>8.2%}"
            f"{each['macs']:>14,}{each['cost_share']:>8.1%}"
        )
    spent = "resumed" if figures["seconds"] is None else f"{figures['seconds']:.0f} s"
    epochs = figures["training"]["epochs"]
    print(f"seed {figures['seed']}, {epochs} epochs, {spent}")
    print(f"{figures['binary_weights']:,} binary weights, {figures['size_bytes']:,} bytes")
    print(f"sha256 {figures['sha256']}  {out}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items()))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=tuple(BINARY_NETWORKS), required=True)
    parser.add_argument("--exits", type=int, default=0, help="early ones, of cnv: 0 (default), 1 or 2")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of cnv")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the hidden layers of lfc, in training")
    parser.add_argument("--epochs", type=positive, help="default: what the network wants")
    parser.add_argument("--batch", type=positive, help="default: what the network wants")
    parser.add_argument("--lr", type=float, help="default: what the network wants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: networks/NETWORK-SEED.onnx in edgekit's cache"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with the four IDX files (default: ask tools/fetch_data.py)"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="the result depends on it; more than one only on a quiet machine: they spin for one another",
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="train in mixed precision: faster on CPUs that have it"
    )
    parser.add_argument("--limit-train", type=positive, metavar="N", help="train on the first N images only")
    parser.add_argument(
        "--resume", action="store_true", help="go on where a run with the same options stopped"
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    wanted = arguments(given)
    try:
        run(wanted)
    except EdgekitError as err:
        say(f"train_bnn: {err}")
        return err.exit_code
    except OSError as err:
        say(f"train_bnn: {err}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
