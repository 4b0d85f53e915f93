"""What the scripts that train on Fashion-MNIST share: the images, a line an epoch, figures, options. No script."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.core.errors import EdgekitError
from edgekit.host.graph import Graph
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.split import split
from edgekit.host.train.fit import Hook, Moment
from edgekit.host.train.supervised import Labelled, evaluate
from edgekit.host.work import layers
from edgekit.runtime.data import read_idx

LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HELD_OUT = 12  # one in so many: 5,000 of the 60,000 images, the last ones of the training file


@dataclass(frozen=True)
class Images:
    """`x`: uint8 [N, 28, 28]; `y`: uint8 [N]."""

    x: NDArray[np.uint8]
    y: NDArray[np.uint8]

    def part(self, which: slice) -> Images:
        return Images(self.x[which], self.y[which])


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


def print_exits(figures: Mapping[str, Any]) -> None:
    """The exits' accuracies and costs as a table."""
    print(f"{'exit':<8}{'test':>9}{'held out':>10}{'MACs':>13}{'of all':>8}")
    for each in figures["exits"]:
        print(
            f"{each['name']:<8}{each['accuracy_test']:>8.2%} {each['accuracy_held_out']:>8.2%}"
            f"{each['macs']:>14,}{each['cost_share']:>8.1%}"
        )


def print_origin(figures: Mapping[str, Any], out: Path) -> None:
    """Which file it is, and what made it."""
    print(f"sha256 {figures['sha256']}  {out}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items()))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every training."""
    parser.add_argument("--epochs", type=positive, help="default: what the network wants")
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


def parts_of(everything: Images) -> tuple[Images, Images]:
    """What is trained on, and what is held out: the last ones."""
    first = len(everything.x) - len(everything.x) // HELD_OUT
    return everything.part(slice(0, first)), everything.part(slice(first, None))


def checkpoint_of(out: Path, *, resume: bool) -> tuple[Path, bool]:
    """The file a stopped run goes on from, and whether there is one; an old one goes where nobody resumes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    return checkpoint, checkpoint.exists()


def run_safely(name: str, run: Callable[[], None]) -> int:
    """Run a training; the exit code. Errors of the user's and the world's are one line."""
    try:
        run()
    except EdgekitError as err:
        say(f"{name}: {err}")
        return err.exit_code
    except OSError as err:
        say(f"{name}: {err}")
        return 3
    return 0
