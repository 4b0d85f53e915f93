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
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.core.manifest import Input, Preprocess, Tensor
from edgekit.host.cache import cache_root
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.train import require_torch

require_torch("tools/train_bnn.py")

from edgekit.host.train.bnn import BinaryTraining, train_bnn  # noqa: E402
from edgekit.host.train.fit import reproducible  # noqa: E402
from edgekit.host.train.networks import BINARY_NETWORKS, build, cnv, lfc  # noqa: E402
from edgekit.host.train.quantized import quantized_layers  # noqa: E402
from edgekit.host.train.samples import Augment  # noqa: E402
from edgekit.host.train.supervised import Labelled  # noqa: E402
from edgekit.host.train.to_qonnx import to_qonnx  # noqa: E402

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools import fashion_mnist
else:
    import fashion_mnist

COMPARED = 1_000  # held-out images on which the file must give the module's answers
PIXELS = Preprocess("L", "stretch", "bilinear", 1.0, (0.0,), (1.0,))  # bytes go in as they are

TRAININGS: Mapping[str, BinaryTraining] = {
    "lfc": BinaryTraining(epochs=30, batch=250, lr=3e-2),
    "cnv": BinaryTraining(epochs=4, batch=50, lr=5e-3),
}


def judge(graph: Graph, names: Sequence[str], image: Input, images: fashion_mnist.Images) -> dict[str, float]:
    """Accuracy per exit of the exported file as convert reads it, one image at a time."""
    session = open_model(model_bytes(graph.model), optimize=False)  # no batch norm rounds otherwise
    right = dict.fromkeys(names, 0)
    for pixels, label in zip(images.x, images.y.tolist(), strict=True):
        answers = session.run(list(names), {image.tensor.name: pixels.reshape(image.tensor.shape)})
        for name, answer in zip(names, answers, strict=True):
            right[name] += int(answer.argmax()) == label
    return {name: count / len(images.x) for name, count in right.items()}


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
    folder = wanted.data or fashion_mnist.find_data()
    everything, test = (fashion_mnist.read_split(folder, prefix) for prefix in ("train", "t10k"))
    images, held_out = fashion_mnist.parts_of(everything)
    images = images.part(slice(0, wanted.limit_train))
    image = Input(Tensor("image", "uint8", (1, 1, *images.x.shape[1:])), "NCHW", PIXELS)
    checkpoint, resumed = fashion_mnist.checkpoint_of(out, resume=wanted.resume)

    with reproducible(wanted.seed, wanted.threads):
        module = build(wanted.network, config)
    exam = Labelled(held_out.x, held_out.y, image)
    started = time.monotonic()
    train_bnn(
        module,
        Labelled(images.x, images.y, image, Augment(shift=options.shift, flip=options.flip)),
        options,
        seed=wanted.seed,
        threads=wanted.threads,
        hooks=[fashion_mnist.Progress(module, exam, options.epochs)],
        checkpoint=checkpoint,
    )
    seconds = time.monotonic() - started

    content = to_qonnx(module, image, fashion_mnist.LABELS, samples=held_out.x[:COMPARED])
    write_atomic(out, content)
    graph = load(out).graph
    names = [entry.name for entry in graph.exits]
    judged = {part: judge(graph, names, image, of) for part, of in (("held_out", held_out), ("test", test))}
    figures = {
        "v": 1,
        "network": wanted.network,
        "config": asdict(config),
        "training": asdict(options),
        "exits": fashion_mnist.exit_figures(graph, judged),
        "images": {"train": len(images.x), "held_out": len(held_out.x), "test": len(test.x)},
        "binary_weights": sum(layer.weight.numel() for layer in quantized_layers(module)),
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
    fashion_mnist.print_exits(figures)
    spent = "resumed" if figures["seconds"] is None else f"{figures['seconds']:.0f} s"
    epochs = figures["training"]["epochs"]
    print(f"seed {figures['seed']}, {epochs} epochs, {spent}")
    print(f"{figures['binary_weights']:,} binary weights, {figures['size_bytes']:,} bytes")
    fashion_mnist.print_origin(figures, out)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=tuple(BINARY_NETWORKS), required=True)
    parser.add_argument("--exits", type=int, default=0, help="early ones, of cnv: 0 (default), 1 or 2")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of cnv")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the hidden layers of lfc, in training")
    parser.add_argument("--batch", type=fashion_mnist.positive, help="default: what the network wants")
    parser.add_argument("--lr", type=float, help="default: what the network wants")
    fashion_mnist.add_common(parser)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    wanted = arguments(given)
    return fashion_mnist.run_safely("train_bnn", partial(run, wanted))


if __name__ == "__main__":
    sys.exit(main())
