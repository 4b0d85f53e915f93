"""`edgekit convert`: fit a model to a board and pack it as a bundle."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from edgekit.cli.options import check_targets, json_option
from edgekit.cli.output import console, number, percent, print_json, progress
from edgekit.cli.overlay import overlay_json, print_overlay, write_overlay
from edgekit.cli.server import client_of, maybe_server_options
from edgekit.core.checks import NAME
from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.core.report import Report
from edgekit.host.effort import DEFAULT, EFFORTS, QUICK
from edgekit.host.limits import DEFAULT_MAX_DISAGREEMENT, DEFAULT_MAX_DROP, Limits
from edgekit.host.report_html import Page, quality, render, verdict
from edgekit.host.watch import Tick
from edgekit.runtime.detect import find_profile

if TYPE_CHECKING:
    from edgekit.host.bench import Bench
    from edgekit.host.convert import Conversion

LIMIT_MISSED = 1
_DROPPED_SHOWN = 6
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_EXAMPLE = (
    "Example:  edgekit convert model.onnx --profile raspberrypi4b --calib images/ --eval test.npz -o model.edge "
    "--report model.html"
)
_path = click.Path(path_type=Path)
_limit = click.FloatRange(min=0)


@click.command(epilog=_EXAMPLE)
@click.argument("model", type=_path)
@click.option(
    "--profile", required=True, help="The board: a name from `edgekit profile list`, `host`, or a TOML file."
)
@click.option(
    "--calib", required=True, type=_path, help="Inputs, labelled or not: .npz, folder of images, IDX file."
)
@click.option(
    "--eval", "evaluation", type=_path, help="Data that only judges; without it the validation data does."
)
@click.option(
    "--val",
    type=_path,
    help="Data that decides between candidates and sets the exits' thresholds; without it a seeded fifth of --calib.",
)
@click.option("--name", help="The bundle's name; the model file's if nothing is said.")
@click.option(
    "--version", type=click.IntRange(1, 2**31), default=1, show_default=True, help="The bundle's version."
)
@click.option(
    "--input-spec", type=_path, help="TOML that describes inputs, exits and labels the model does not name."
)
@click.option(
    "--shape", "shapes", multiple=True, help="Fix symbolic sizes: 1,3,224,224, or NAME=1,3,224,224."
)
@click.option("--recipe", type=_path, help="Make it exactly as this recipe says (recipe.toml of a bundle).")
@click.option(
    "--effort",
    type=click.Choice(tuple(EFFORTS)),
    default=DEFAULT.name,
    show_default=True,
    help="How much to try, and how long to begin something new: 1, 3 or 60 minutes.",
)
@click.option(
    "--prune", type=click.FloatRange(0, 0.95), help="Remove channels until this share of the MACs is gone."
)
@click.option(
    "--recover",
    type=click.IntRange(min=1),
    help="Train what --prune left for so many epochs on the --calib inputs, towards the original's answers "
    "(needs PyTorch: pip install 'edgekit[train]').",
)
@click.option(
    "--exits",
    metavar="auto|N|NODE,...",
    help="Give a classifier that has none early exits: as many as pay, N at most, or behind these nodes. Their heads "
    "learn the network's own answers to the --calib inputs, no labels are needed; with PyTorch they are better.",
)
@click.option(
    "--backend",
    help="The runtime to convert for: onnxruntime or litert; of a binary network native (our own kernels), overlay-sim "
    "(an FPGA overlay in Verilator) or overlay (with --bit). If not given, the profile's fastest where they can be "
    "timed, else its first; native for a binary network.",
)
@click.option(
    "--throughput",
    type=click.FloatRange(min=0, min_open=True),
    metavar="IMAGES/S",
    help="Of a binary network on a board with an FPGA: fold its overlay for so many images a second, at the clock the "
    "profile assumes; if not given, the fastest that fits.",
)
@click.option(
    "--bit", type=_path, help="With --backend overlay: the bitstream that Vivado built, to be packed."
)
@click.option("--hwh", type=_path, help="The hardware handoff that Vivado wrote beside --bit.")
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Keep long work in $EDGEKIT_CACHE (~/.cache/edgekit), so that an interrupted conversion goes on.",
)
@click.option(
    "--on",
    "board",
    metavar="DEVICE",
    help="Time what is tried on this enrolled board of that profile, beside what it serves; its agent must accept "
    "that (accepts_measure). Wants --server and --key.",
)
@maybe_server_options
@click.option("--key", type=_path, help="Your private key for measuring (keys/measure.pem), with --on.")
@click.option(
    "--max-drop",
    type=_limit,
    help="Points of accuracy (without labels: of agreement) that may be lost; a step that costs more is taken back. "
    f"If not given, so is one that costs {DEFAULT_MAX_DROP:g} (without labels {DEFAULT_MAX_DISAGREEMENT:g}).",
)
@click.option(
    "--max-latency-ms",
    type=_limit,
    help="Limit for the latency with all stages run: median, or the estimated mean.",
)
@click.option("--max-energy-mj", type=_limit, help="Limit for the energy of a request with all stages run.")
@click.option("--max-size-kb", type=_limit, help="Limit for the model files in the bundle, in kB.")
@click.option(
    "--max-memory-mb",
    type=_limit,
    help="Limit for the memory that the open bundle adds to the agent; measured on this machine.",
)
@click.option("-o", "--output", required=True, type=_path, help="The bundle to write (.edge).")
@click.option("--report", "report_path", type=_path, help="Also write the report as HTML.")
@json_option
def command(
    model: Path,
    profile: str,
    calib: Path,
    evaluation: Path | None,
    val: Path | None,
    name: str | None,
    version: int,
    input_spec: Path | None,
    shapes: tuple[str, ...],
    recipe: Path | None,
    effort: str,
    prune: float | None,
    recover: int | None,
    exits: str | None,
    backend: str | None,
    throughput: float | None,
    bit: Path | None,
    hwh: Path | None,
    cache: bool,
    board: str | None,
    server: str | None,
    token_file: Path | None,
    key: Path | None,
    max_drop: float | None,
    max_latency_ms: float | None,
    max_energy_mj: float | None,
    max_size_kb: float | None,
    max_memory_mb: float | None,
    output: Path,
    report_path: Path | None,
    as_json: bool,
) -> int:
    """Fit MODEL (ONNX) to a board: layers in the format that is fastest and does no harm, a stage per exit, packed.

    A .tflite file is packed as it is, for the board's LiteRT.

    Exit code 1: the bundle is written, but a limit you set is not met. Latency, energy and memory are judged again on
    every board that gets the bundle, before it is committed there.
    """
    from edgekit.host.cache import Cache, default_cache
    from edgekit.host.convert import Request, check_recipe, convert  # onnx and onnxruntime: not for --help
    from edgekit.host.exits.plan import parse_exits
    from edgekit.host.load import InputSpec, parse_shapes, read_input_spec
    from edgekit.host.recipe import read_recipe
    from edgekit.host.search import pruning_steps

    if recover is not None and not prune:
        raise BadInput("--recover trains what --prune left: give --prune as well")
    for option, given in (("--prune", prune), ("--exits", exits)):
        if recipe is not None and given:
            raise BadInput(f"--recipe says all that is done: {option} cannot be given with it")
    if (bit is None) != (hwh is None):
        raise BadInput("--bit and --hwh belong together: give both files that Vivado wrote")
    if recipe is not None and backend is not None:
        raise BadInput("--recipe says which runtime it is for: --backend cannot be given with it")
    target = find_profile(profile)
    request = Request(
        model=model,
        profile=target,
        calib=calib,
        val=val,
        evaluation=evaluation,
        name=_bundle_name(name, model),
        version=version,
        shapes=parse_shapes(shapes),
        input_spec=read_input_spec(input_spec) if input_spec else InputSpec(),
        recipe=read_recipe(recipe) if recipe else None,
        limits=Limits(max_drop, max_latency_ms, max_energy_mj, max_size_kb, max_memory_mb),
        effort=EFFORTS[effort],
        base=pruning_steps(prune, recover, target) if prune else (),
        exits=parse_exits(exits) if exits is not None else None,
        backend=backend,
        images_s=throughput,
        bitstream=None if bit is None or hwh is None else (bit, hwh),
        cache=default_cache() if cache and effort != QUICK.name else Cache(),
    )
    if board is not None:
        request = replace(request, bench=_on(board, request.profile.name, server, token_file, key))
    check_targets(
        {"-o": output, "--report": report_path}, (model, calib, val, evaluation, input_spec, recipe, bit, hwh)
    )
    if request.recipe is not None:
        check_recipe(request.recipe, request.profile)
    made = convert(request, _watch)
    write_atomic(output, made.content)
    project = None if made.overlay is None else write_overlay(output, made.overlay, target.name)
    if report_path is not None:
        write_atomic(report_path, render(_page(made)).encode())
    if as_json:
        print_json(_json(made, output, project))
    else:
        _print(made, output)
        if made.overlay is not None and project is not None:
            print_overlay(made.overlay, project)
    return LIMIT_MISSED if made.report.limits_missed else 0


def _on(board: str, profile: str, server: str | None, token_file: Path | None, key: Path | None) -> Bench:
    """The board as a bench. Raises BadInput, WorldFailed."""
    from edgekit.cli.remote_bench import remote_bench

    if server is None or key is None:
        raise BadInput("--on DEVICE wants --server URL and --key FILE (keys/measure.pem of its repository)")
    return remote_bench(client_of(server, token_file), board, profile, key)


def _bundle_name(given: str | None, model: Path) -> str:
    name = given or _NOT_IN_A_NAME.sub("-", model.stem).strip("-_")[:64]
    if not NAME.fullmatch(name):
        raise BadInput(f"--name must be letters, digits, '_' and '-', at most 64, got {name!r}")
    return name


@contextlib.contextmanager
def _watch(what: str, total: int) -> Iterator[Tick]:
    with progress() as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _page(made: Conversion) -> Page:
    finished = made.finished
    recipe = finished.files[finished.manifest.recipe].decode()
    return Page(finished.manifest, made.report, recipe, finished.content_id, len(made.content))


def _json(made: Conversion, output: Path, project: Path | None) -> dict[str, object]:
    report = made.report.to_json()
    return {
        "bundle": str(output),
        "profile": made.report.profile,
        "size_bytes": report["size_bytes"],
        "latency_ms": report["latency_ms"],
        "accuracy": {"metric": made.report.metric, **report["accuracy"]},
        "exits": report["exits"],
        "curves": report["curves"],
        "limits": report["limits"],
        "dropped": report["dropped"],
        "policies": report["policies"],
        "tried": report["tried"],
        "notes": report["notes"],
        "data": report["data"],
        "label": made.report.bundle,
        "content_id": made.finished.content_id,
        "bundle_bytes": len(made.content),
        "overlay": None if made.overlay is None else overlay_json(made.overlay, project),
    }


def _certainty(report: Report) -> str:
    """How far the accuracy may be off at 95 %, for the number of samples it comes from (normal approximation)."""
    count, share = report.data[-1].count, report.accuracy.after
    if share is None or not count:
        return ""
    off = max(
        1.96 * math.sqrt(share * (1 - share) / count), 3 / count
    )  # 3/n: the rule of three, where none was wrong
    return f" (± {100 * min(1.0, off):.1f}, {count} samples)"


def _print(made: Conversion, output: Path) -> None:
    report = made.report
    table = Table("", "before", "after", title=f"{report.bundle} for {report.profile}", title_justify="left")
    table.add_row(
        f"{_metric(report)}{_certainty(report)}",
        percent(report.accuracy.before),
        percent(report.accuracy.after),
    )
    before, after = report.latency_before, report.latency_after
    kind = (
        "mean" if before.p50 is None or after.p50 is None else "p50"
    )  # the median shrugs a disturbed run off
    table.add_row(
        f"{'median' if kind == 'p50' else kind} latency ({report.latency_provenance or 'unknown'})",
        *(number(latency.to_json()[kind], 4, " ms") for latency in (before, after)),
    )
    sizes = [
        None if size is None else size / 1e3 for size in (report.size_bytes.before, report.size_bytes.after)
    ]
    table.add_row("model files", *(number(size, 1, " kB") for size in sizes))
    console.print(table)
    exits = Table("exit", quality(report), "as the last", "cost", "mean latency")
    for entry in report.exits:
        exits.add_row(
            entry.name,
            percent(entry.accuracy),
            percent(entry.agreement),
            percent(entry.cost_share, 1),
            number(entry.latency_mean_ms, 4, " ms"),
        )
    console.print(exits)
    for policy in report.policies:
        mix = ", ".join(f"{name} {count}" for name, count in policy.exit_counts.items())
        console.print(
            f"policy {policy.policy}: {percent(policy.accuracy)}, exits {mix}", markup=False, soft_wrap=True
        )
    for dropped in report.dropped[:_DROPPED_SHOWN]:
        console.print(
            f"taken back: {dropped.step} for {dropped.layer}: {dropped.why}", markup=False, soft_wrap=True
        )
    if len(report.dropped) > _DROPPED_SHOWN:
        more = len(report.dropped) - _DROPPED_SHOWN
        console.print(f"taken back: {more} more, see --report or --json", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    for line in report.limits_missed:
        console.print(f"limit missed: {line}", markup=False, soft_wrap=True)
    for use in report.data:
        if use.role != "evaluation" and use.role.startswith("evaluation"):
            console.print(
                f"judged on {use.role.removeprefix('evaluation ').strip('()')}", markup=False, soft_wrap=True
            )
    console.print(
        f"{output}: {len(made.content) / 1e3:.1f} kB. {verdict(report)}", markup=False, soft_wrap=True
    )


def _metric(report: Report) -> str:
    return "top-1 accuracy" if report.metric == "top1" else "agreement with the model that came in"
