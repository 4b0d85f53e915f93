#!/usr/bin/env python3
"""Train one of our networks on Fashion-MNIST and export it as one ONNX file, with its figures beside it as JSON.

    python tools/train_network.py --network resnet20 --epochs 10 --seed 1 --bfloat16

Needs the extra `train`. Of the 60,000 training images the first 55,000 are trained on; the last 5,000 are held out, so
that calibration and thresholds can be found on images the network has never seen. The test images are read once, after
training, and decide nothing. A run that was stopped goes on with --resume.
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

import numpy as np

from edgekit.core.files import write_atomic
from edgekit.core.manifest import Input, Preprocess, Tensor
from edgekit.host.cache import cache_root
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.train import require_torch

require_torch("tools/train_network.py")

from edgekit.host.train.fit import reproducible  # noqa: E402
from edgekit.host.train.networks import NETWORKS, build  # noqa: E402
from edgekit.host.train.samples import Augment  # noqa: E402
from edgekit.host.train.supervised import Labelled, Training, train_classifier  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools import fashion_mnist
else:
    import fashion_mnist

SCALE = 1.0 / 255.0
COMPARED = 100  # held-out images on which the file must give the module's answers

DEFAULT = Training(shift=2, flip=True)
TRAININGS: Mapping[str, Training] = {  # where a network wants another
    "resnet20": replace(DEFAULT, epochs=8, shift=1),
    "mobilenet": replace(DEFAULT, epochs=8, shift=1, weight_decay=1e-4),
    "msdnet": replace(DEFAULT, epochs=12, shift=1, exit_weights=(*[0.5] * 4, 2.0)),
    "iamnn": replace(DEFAULT, epochs=10, shift=1, exit_weights=(*[0.2] * 5, 1.0)),
}


def judge(
    content: bytes, names: Sequence[str], image: Input, images: fashion_mnist.Images
) -> dict[str, float]:
    """Accuracy per exit of the exported file, one image at a time."""
    session = open_model(content)
    batches = Labelled(images.x, images.y, image)
    right = dict.fromkeys(names, 0)
    for start in range(0, batches.count, 1000):
        stretch = batches.plain(start, start + 1000)
        for one, label in zip(stretch["x"].contiguous().numpy(), stretch["y"].tolist(), strict=True):
            answers = session.run(list(names), {image.tensor.name: np.ascontiguousarray(one[None])})
            for name, answer in zip(names, answers, strict=True):
                right[name] += int(answer.argmax()) == label
    return {name: count / batches.count for name, count in right.items()}


def default_file(network: str, seed: int) -> Path:
    return cache_root() / "networks" / f"{network}-{seed}.onnx"


def run(wanted: argparse.Namespace) -> None:
    name, seed = wanted.network, wanted.seed
    out = wanted.out or default_file(name, seed)
    options = replace(TRAININGS.get(name, DEFAULT), bfloat16=wanted.bfloat16)
    if wanted.epochs is not None:
        options = replace(options, epochs=wanted.epochs)
    folder = wanted.data or fashion_mnist.find_data()
    everything = fashion_mnist.read_split(folder, "train")
    images, held_out = fashion_mnist.parts_of(everything)
    mean, std = (round(float(f(images.x)) * SCALE, 6) for f in (np.mean, np.std))
    images = images.part(slice(0, wanted.limit_train))
    image = Input(
        Tensor("image", "float32", (1, 1, *images.x.shape[1:])),
        "NCHW",
        Preprocess("L", "stretch", "bilinear", SCALE, (mean,), (std,)),
    )
    checkpoint, resumed = fashion_mnist.checkpoint_of(out, resume=wanted.resume)

    with reproducible(seed, wanted.threads):
        module = build(name)
    augment = Augment(shift=options.shift, flip=options.flip)
    exam = Labelled(held_out.x, held_out.y, image)
    started = time.monotonic()
    train_classifier(
        module,
        Labelled(images.x, images.y, image, augment),
        options,
        seed=seed,
        threads=wanted.threads,
        hooks=[fashion_mnist.Progress(module, exam, options.epochs)],
        checkpoint=checkpoint,
    )
    seconds = time.monotonic() - started

    content = to_onnx(
        module, image, fashion_mnist.LABELS, samples=exam.plain(0, COMPARED)["x"].contiguous().numpy()
    )
    write_atomic(out, content)
    names = [entry.name for entry in load(out).graph.exits]
    test = fashion_mnist.read_split(folder, "t10k")
    judged = {part: judge(content, names, image, of) for part, of in (("held_out", held_out), ("test", test))}
    figures = {
        "v": 1,
        "network": name,
        "config": asdict(NETWORKS[name].config()),
        "training": asdict(options),
        "exits": fashion_mnist.exit_figures(load(out).graph, judged),
        "images": {"train": len(images.x), "held_out": len(held_out.x), "test": len(test.x)},
        "parameters": sum(math.prod(each.shape) for each in module.parameters()),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "epochs": options.epochs,
        "seed": seed,
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
    print(f"{figures['parameters']:,} parameters, {figures['size_bytes']:,} bytes, {spent}")
    fashion_mnist.print_origin(figures, out)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), required=True)
    fashion_mnist.add_common(parser)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    wanted = arguments(given)
    return fashion_mnist.run_safely("train_network", partial(run, wanted))


if __name__ == "__main__":
    sys.exit(main())
