"""`edgekit train`: train a network compressed, as a recipe says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from edgekit.cli.options import check_targets, json_option
from edgekit.cli.output import console, counted, percent, print_json, progress
from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.host.train import require_torch
from edgekit.host.train.recipe import TrainRecipe, find_recipe, recipe_names
from edgekit.host.watch import Tick

if TYPE_CHECKING:
    from edgekit.host.train.result import Result

_EXAMPLE = "Example:  edgekit train twn --data train-images-idx3-ubyte.gz --model mobilenet -o small.onnx"
_path = click.Path(path_type=Path)


@click.command(epilog=_EXAMPLE)
@click.argument("recipe", required=False)
@click.option("--list", "listed", is_flag=True, help="Show the methods, a line each, with their source.")
@click.option(
    "--show",
    "shown",
    is_flag=True,
    help="Print RECIPE: what the method is, every figure's reason.",
)
@click.option("--data", type=_path, help="Labelled samples to train on: .npz, folder of images, IDX file.")
@click.option(
    "--eval",
    "evaluation",
    type=_path,
    help="Labelled samples to judge by; if not given, a tenth of --data.",
)
@click.option(
    "--model", help="A network of ours by name, or any ONNX model; the recipe's network if nothing is said."
)
@click.option(
    "--teacher", type=_path, help="A trained ONNX model that the network learns from (Apprentice's schemes)."
)
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Instead of the recipe's learning rate.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Train on the first N samples only.")
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="The same seed gives the same file."
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="The result depends on it."
)
@click.option(
    "--resume/--anew",
    default=True,
    show_default=True,
    help="Go on where a killed run stopped.",
)
@click.option("-o", "--output", type=_path, help="The ONNX model to write.")
@click.option("--report", "report_path", type=_path, help="Also write learning curves and figures as HTML.")
@json_option
def command(
    recipe: str | None,
    listed: bool,
    shown: bool,
    data: Path | None,
    evaluation: Path | None,
    model: str | None,
    teacher: Path | None,
    epochs: int | None,
    lr: float | None,
    limit: int | None,
    seed: int,
    threads: int,
    resume: bool,
    output: Path | None,
    report_path: Path | None,
    as_json: bool,
) -> None:
    """Train a network in the few bits, or with the few weights, that RECIPE says; write what `convert` takes.

    RECIPE is a method's name (see --list) or a TOML file. Needs PyTorch: pip install 'edgekit[train]'.
    """
    if listed:
        _list(as_json=as_json)
        return
    if recipe is None:
        raise BadInput("edgekit train wants a RECIPE; `edgekit train --list` shows them")
    found = find_recipe(recipe)
    if shown:
        click.echo(found.text, nl=False)
        return
    if data is None or output is None:
        raise BadInput("edgekit train wants --data and -o")
    check_targets({"-o": output, "--report": report_path}, (data, evaluation, teacher))
    require_torch("edgekit train")
    from edgekit.host.report_training import page  # torch is slow to import
    from edgekit.host.train.result import Wanted, train

    made = train(
        Wanted(found, data, evaluation, model, teacher, epochs, lr, limit, seed, threads),
        output,
        resume=resume,
        watch=_watch,
    )
    if report_path is not None:
        write_atomic(report_path, page(made).encode())
    print_json(made.to_json()) if as_json else _print(made)


@contextlib.contextmanager
def _watch(what: str, total: int) -> Iterator[Tick]:
    with progress() as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _list(*, as_json: bool) -> None:
    found = [find_recipe(name) for name in recipe_names()]
    if as_json:
        print_json({"recipes": [_entry(each) for each in found]})
        return
    shown = Table(box=None, pad_edge=False)
    shown.add_column("recipe", no_wrap=True)
    shown.add_column("method")
    shown.add_column("bits W/A/G/E", no_wrap=True)
    shown.add_column("source")
    for each in found:
        shown.add_row(each.name, each.title, "/".join(str(bits) for bits in _bits(each)), each.source)
    console.print(shown)


def _bits(recipe: TrainRecipe) -> tuple[int, ...]:
    bits = recipe.bits
    return bits.weights, bits.activations, bits.gradients, bits.errors


def _entry(recipe: TrainRecipe) -> dict[str, Any]:
    names = ("weights", "activations", "gradients", "errors")
    return {
        "name": recipe.name,
        "title": recipe.title,
        "source": recipe.source,
        "about": recipe.about.strip(),
        "bits": dict(zip(names, _bits(recipe), strict=True)),
        "teacher": recipe.wants_teacher,
    }


def _print(made: Result) -> None:
    trained, recipe = made.trained, made.wanted.recipe
    console.print(f"{recipe.title} ({recipe.source})")
    right = " ".join(percent(each) for each in trained.judged.accuracy)
    before = (
        "" if trained.before is None else f", {' '.join(percent(each) for each in trained.before)} before"
    )
    console.print(f"accuracy {right}{before}, on {counted(made.held_out, 'held-out sample')}")
    spent = "resumed" if trained.seconds is None else f"{trained.seconds:.0f} s"
    console.print(f"{counted(recipe.training.epochs, 'epoch')} of {counted(made.samples, 'sample')}, {spent}")
    console.print(
        f"{made.parameters:,} parameters, {made.macs:,} multiply-accumulates, "
        f"weights of {made.weight_bytes:,} bytes packed"
    )
    for each in trained.rounds:
        ticket, control = percent(each.ticket[-1]), percent(each.control[-1])
        console.print(f"density {percent(each.density, 1)}: ticket {ticket}, drawn anew {control}")
    if trained.adapted is not None:
        adapted = trained.adapted
        console.print(
            f"{adapted.bits_per_weight:.2f} bits a weight and {adapted.table_bits / adapted.weights:.2f} of the table "
            f"of widths; loss {adapted.before:.4f} before, {adapted.after:.4f} after; the file holds floats"
        )
    console.print(f"wrote {made.output}")
