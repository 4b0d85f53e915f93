#!/usr/bin/env python3
"""Train every recipe on Fashion-MNIST with three seeds and write the table that compares them.

    python tools/train_table.py                 hours on two cores; what is there already is not made again
    python tools/train_table.py --only twn,ttq  some rows; the others as they were
    python tools/train_table.py --finished        the rows whose trainings have ended, for a look in between
    python tools/train_table.py --quick --out /tmp/table   a few samples, one seed: whether all of it runs

Needs the extra `train`. 12,000 of the training images, all 10,000 test images, which decide nothing. A row's result is
a JSON file in edgekit's cache, found again by recipe, seed and amount; docs/benchmarks/training.{md,json} are written
from those. Each recipe is compared with its own baseline or control of the same seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic
from edgekit.host.cache import cache_root
from edgekit.host.train import require_torch
from edgekit.host.train.recipe import find_recipe, recipe_names

require_torch("tools/train_table.py")

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools import fashion_mnist
else:
    import fashion_mnist

SAMPLES, SEEDS = 12_000, (1, 2, 3)
QUICK_SAMPLES, QUICK_EPOCHS = 300, 1
BASELINE, TEACHER = "float32", "small-wide"
JUDGED = "t10k-images-idx3-ubyte.gz"
ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1


@dataclass(frozen=True)
class Amount:
    """How much is trained: samples, the epochs that replace a recipe's, seeds."""

    samples: int = SAMPLES
    epochs: int | None = None
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True)
class Job:
    """One training: a recipe with a seed. network: None: the recipe's own."""

    recipe: str
    seed: int
    network: str | None = None

    def key(self, amount: Amount) -> str:
        """Of the recipe's text, the seed and the amount. Not of the code: whoever changes that removes the folder."""
        text = find_recipe(self.recipe).text
        parts = (str(FORMAT), text, repr(self), repr(replace(amount, seeds=())))
        return f"{self.recipe}-{self.seed}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def teacher_of(job: Job) -> Job:
    """What teaches in the schemes B and C: a wider float network of the same seed."""
    return Job(BASELINE, job.seed, TEACHER)


def run_job(job: Job, amount: Amount, data: Path, kept: Path) -> dict[str, Any]:
    """Train; or what an earlier run of the same found."""
    from edgekit.host.train.result import Wanted, train  # torch: in the process that trains

    recipe = find_recipe(job.recipe)
    teacher = kept / f"{teacher_of(job).key(amount)}.onnx" if recipe.wants_teacher else None
    found, model = _files(job, amount, kept)
    if found.exists() and model.exists():
        held: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return held
    made = train(
        Wanted(
            recipe,
            data / "train-images-idx3-ubyte.gz",
            data / JUDGED,
            job.network,
            teacher,
            epochs=amount.epochs,
            limit=amount.samples,
            seed=job.seed,
        ),
        model,
        start=kept / f"start-{job.seed}-{amount.epochs}-{amount.samples}",
    )
    figures = made.to_json()
    write_atomic(found, (json.dumps(figures, indent=1) + "\n").encode())
    return figures


def _files(job: Job, amount: Amount, kept: Path) -> tuple[Path, Path]:
    """A training's figures and its model."""
    return kept / f"{job.key(amount)}.json", kept / f"{job.key(amount)}.onnx"


def _on_board(model: Path, data: Path) -> dict[str, Any]:
    """The bundle's size and its latency on this machine, with nothing else of this tool running; or as found before."""
    found = model.with_suffix(".board.json")
    if found.exists():
        held: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return held
    figures = _convert_and_time(model, data)
    write_atomic(found, (json.dumps(figures, indent=1) + "\n").encode())
    return figures


def _convert_and_time(model: Path, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        bundle = Path(folder) / "model.edge"
        options = ["--profile", "host", "--calib", str(data), "--effort", "quick", "--no-cache", "--json"]
        told = _edgekit("convert", str(model), *options, "-o", str(bundle))
        timed = _edgekit("bench", str(bundle), "--json")
    return {
        "bundle_bytes": int(told["size_bytes"]["after"]),
        "latency_ms": timed["latency_ms"]["p50"],
        "on": timed["on"],
    }


def _edgekit(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise BadInput(f"edgekit {arguments[0]}: {done.stderr.strip()[-300:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A row of the table: what all seeds of a recipe gave. accuracy: one per seed."""

    recipe: str
    network: str
    accuracy: tuple[float, ...]
    figures: Mapping[str, Any]
    control: float = 0.0  # mean over seeds of a lottery ticket's

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracy)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; 0 of one."""
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else 0.0


def lines_of(found: Mapping[Job, Mapping[str, Any]]) -> list[Line]:
    """The rows, in the recipes' order."""
    by_recipe: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for job, figures in found.items():
        by_recipe.setdefault((job.recipe, job.network), []).append(figures)
    return [
        Line(
            recipe,
            str(figures[0]["model"]),
            tuple(float(each["accuracy"][-1]) for each in figures),
            figures[0],
            statistics.fmean(
                float(each["rounds"][-1]["control"][-1]) if each["rounds"] else 0 for each in figures
            ),
        )
        for (recipe, _), figures in by_recipe.items()
    ]


def verdict_of(line: Line, means: Mapping[str, float]) -> tuple[str, str]:
    """(what is expected, whether it holds and by how much)."""
    expected = find_recipe(line.recipe).expected
    means = {**means, "control": line.control}
    if expected is None or expected.against not in means or line.network == TEACHER:
        return "", ""
    if expected.at_most < 1:
        met = "met" if line.mean <= expected.at_most else "MISSED"
        return f"at most {100 * expected.at_most:.0f} %", met
    far = 100 * (line.mean - means[expected.against])
    wanted = (
        f"{expected.against} {-expected.points:+.1f}" if expected.points else f"at least {expected.against}"
    )
    short = -expected.points - far
    return wanted, f"{far:+.2f}, met" if short <= 1e-9 else f"{far:+.2f}, MISSED by {short:.2f}"


def table(lines: Sequence[Line], amount: Amount) -> str:
    """The page."""
    means = {line.recipe: line.mean for line in lines if line.network != TEACHER}
    seeds = ", ".join(str(seed) for seed in amount.seeds)
    rows = [
        "# Training methods compared",
        "",
        f"Fashion-MNIST, {amount.samples:,} training images, test images as judges, seeds {seeds}; written by",
        "`python tools/train_table.py`. Accuracy is the mean over seeds and its standard deviation. `bits` are those",
        "of weights, activations, weight gradients and errors in training; `weights` the bytes of all weights of",
        "products, packed, with scales and tables; `bundle` what `edgekit convert --profile host --effort quick` makes",
        "of the file; `ms` the median latency of that bundle on the machine that trained. `expected` is the recipe's",
        "own line: by how many points it may differ from another row.",
        "",
        "| recipe | network | bits | accuracy, % | expected | got | weights, B | bundle, B | MACs | ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        bits = find_recipe(line.recipe).bits
        wanted, got = verdict_of(line, means)
        of = line.figures
        rows.append(
            f"| {line.recipe} | {line.network} | {bits.weights}/{bits.activations}/{bits.gradients}/{bits.errors} "
            f"| {100 * line.mean:.2f} ± {100 * line.spread:.2f} | {wanted} | {got} | {of['weight_bytes']:,} "
            f"| {of['bundle_bytes']:,} | {of['macs']:,} | {of['latency_ms']:.3f} |"
        )
    machine = lines[0].figures["on"] if lines else "unknown"
    rows += ["", f"Latency on {machine}."]
    absent = [name for name in recipe_names() if name not in means]
    if absent:
        rows += ["", f"Recipes that are not in this table yet: {', '.join(absent)}."]
    return "\n".join(rows) + "\n"


def run(wanted: argparse.Namespace) -> None:
    amount = Amount(QUICK_SAMPLES, QUICK_EPOCHS, (1,)) if wanted.quick else Amount()
    data = wanted.data or fashion_mnist.find_data()
    kept = cache_root() / "train_table"
    kept.mkdir(parents=True, exist_ok=True)
    names = wanted.only.split(",") if wanted.only else list(recipe_names())
    jobs = [Job(name, seed) for name in names for seed in amount.seeds]
    if wanted.finished:
        missing = {job.recipe for job in jobs if not _files(job, amount, kept)[0].exists()}
        jobs = [job for job in jobs if job.recipe not in missing]
    teachers = list(dict.fromkeys(teacher_of(job) for job in jobs if find_recipe(job.recipe).wants_teacher))
    fresh = [job for job in jobs if find_recipe(job.recipe).start == "fresh"]
    others = [job for job in jobs if job not in fresh]
    found: dict[Job, Mapping[str, Any]] = {}
    failed: list[str] = []
    one = partial(run_job, amount=amount, data=data, kept=kept)
    with ProcessPoolExecutor(wanted.jobs, multiprocessing.get_context("spawn")) as pool:
        for stage in (teachers, fresh, others):  # who learns from another's weights or answers waits for them
            for job, training in [(job, pool.submit(one, job)) for job in stage]:
                error = training.exception()
                if error is not None:  # the others' hours are not lost for one that fails
                    failed.append(f"{job.recipe}, seed {job.seed}: {error}")
                    fashion_mnist.say(f"failed: {failed[-1]}")
                    continue
                found[job] = figures = training.result()
                fashion_mnist.say(
                    f"{job.recipe} on {figures['model']}, seed {job.seed}: {figures['accuracy'][-1]:.2%}"
                )
    rows: dict[tuple[str, str | None], Job] = {}
    for job in found:
        rows.setdefault((job.recipe, job.network), job)
    for job in rows.values():
        found[job] = {**found[job], **_on_board(_files(job, amount, kept)[1], data / JUDGED)}
    lines = lines_of(found)
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_atomic(wanted.out / "training.md", table(lines, amount).encode())
    kept_figures = [
        {"recipe": job.recipe, "seed": job.seed, **{key: figures[key] for key in _KEPT if key in figures}}
        for job, figures in found.items()
    ]
    write_atomic(
        wanted.out / "training.json", (json.dumps({"v": 1, "runs": kept_figures}, indent=1) + "\n").encode()
    )
    print(table(lines, amount))
    if failed:
        raise WorldFailed(f"{len(failed)} trainings failed, their rows lack them: {'; '.join(failed)}")


_KEPT = (
    *("model", "accuracy", "accuracy_before", "loss", "epochs", "samples", "parameters", "macs"),
    *("weight_bytes", "size_bytes", "bundle_bytes", "latency_ms", "on", "seconds", "rounds", "adapted"),
)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="RECIPE,...", help="these rows only")
    parser.add_argument("--finished", action="store_true", help="train nothing: the rows that are there")
    parser.add_argument("--quick", action="store_true", help="a few samples, one epoch, one seed")
    parser.add_argument("--jobs", type=fashion_mnist.positive, default=1, help="trainings at once")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", metavar="FOLDER")
    parser.add_argument(
        "--data", type=Path, help="folder with the four IDX files (default: ask tools/fetch_data.py)"
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    wanted = arguments(given)
    return fashion_mnist.run_safely("train_table", partial(run, wanted))


if __name__ == "__main__":
    sys.exit(main())
