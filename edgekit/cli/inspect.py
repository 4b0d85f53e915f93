"""`edgekit inspect`: what is in a model or a bundle, and what a board can do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from edgekit.cli.options import json_option
from edgekit.cli.output import console, number, percent, print_json
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import BadInput
from edgekit.core.profile import Profile
from edgekit.core.report import Report
from edgekit.host.report_html import verdict
from edgekit.runtime.detect import find_profile

if TYPE_CHECKING:
    from edgekit.host.inspect import Inspection
    from edgekit.host.load import Loaded

_path = click.Path(path_type=Path)
_ZIP = b"PK\x03\x04"


@click.command(epilog="Example:  edgekit inspect model.onnx --profile raspberrypi4b")
@click.argument("model", type=_path)
@click.option("--profile", help="A board: what it can run, and where it would be slow.")
@click.option(
    "--input-spec", type=_path, help="TOML that describes inputs, exits and labels the model does not name."
)
@click.option(
    "--shape", "shapes", multiple=True, help="Fix symbolic sizes: 1,3,224,224, or NAME=1,3,224,224."
)
@json_option
def command(
    model: Path, profile: str | None, input_spec: Path | None, shapes: tuple[str, ...], as_json: bool
) -> None:
    """Show MODEL (an ONNX file or a bundle): layers, multiply-accumulates, bytes; what the board can run of it."""
    board = None if profile is None else find_profile(profile)
    if _is_bundle(model):
        opened = open_bundle(model)
        print_json(_bundle_json(opened)) if as_json else _print_bundle(opened)
        return
    from edgekit.host.inspect import inspect  # onnx and onnxruntime: not for --help, not for bundles
    from edgekit.host.load import InputSpec, load, parse_shapes, read_input_spec

    spec = read_input_spec(input_spec) if input_spec else InputSpec()
    loaded = load(model, parse_shapes(shapes), spec)
    found = inspect(loaded.graph, board)
    print_json(_model_json(model, loaded, found, board)) if as_json else _print_model(
        model, loaded, found, board
    )


def _is_bundle(path: Path) -> bool:
    if path.suffix == ".edge":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError:
        return False  # reading it as a model says what is wrong


# --- a model ---------------------------------------------------------------------------------------------------------


def _model_json(path: Path, loaded: Loaded, found: Inspection, board: Profile | None) -> dict[str, object]:
    graph = loaded.graph
    return {
        "model": str(path),
        "size_bytes": loaded.size_bytes,
        "opset": graph.opset,
        "inputs": [entry.to_json() for entry in graph.inputs],
        "exits": [{"name": entry.name, "output": entry.output} for entry in graph.exits],
        "labels": None if graph.labels is None else list(graph.labels),
        "parameters": graph.parameters,
        "macs": sum(row.layer.macs for row in found.layers),
        "bytes": sum(row.layer.bytes for row in found.layers),
        "layers": [
            {
                "name": row.layer.name,
                "op": row.layer.op,
                "stage": row.stage,
                "macs": row.layer.macs,
                "bytes": row.layer.bytes,
                "format": row.format,
                "estimated_ms": row.estimate.value,
                "slow": row.slow,
            }
            for row in found.layers
        ],
        "profile": None
        if board is None
        else {
            "name": board.name,
            "backend": found.backend,
            "can_run": found.backend is not None,
            "problems": list(found.problems),
            "estimated_ms": None if found.estimate is None else found.estimate.value,
        },
    }


def _print_model(path: Path, loaded: Loaded, found: Inspection, board: Profile | None) -> None:
    graph = loaded.graph
    table = Table("layer", "operator", "stage", "MMAC", "kB", title=str(path), title_justify="left")
    for column in () if board is None else ("format", "ms", "note"):
        table.add_column(column)
    for row in found.layers:
        layer = row.layer
        if not layer.calls:
            continue  # a view, or done inside the layer before it
        cells = [layer.name, layer.op, str(row.stage), f"{layer.macs / 1e6:.3f}", f"{layer.bytes / 1e3:.1f}"]
        if board is not None:
            cells += [row.format, number(row.estimate.value, 4), row.slow or ""]
        table.add_row(*cells)
    console.print(table)
    inputs = ", ".join(f"{e.tensor.name} {e.tensor.dtype} {list(e.tensor.shape)}" for e in graph.inputs)
    macs = sum(row.layer.macs for row in found.layers)
    for line in (
        f"inputs {inputs}; exits {', '.join(entry.name for entry in graph.exits)}; opset {graph.opset}",
        f"{graph.parameters:,} parameters, {loaded.size_bytes / 1e3:,.1f} kB, {macs / 1e6:,.2f} million MACs",
    ):
        console.print(line, markup=False, soft_wrap=True)
    if board is None:
        return
    for problem in found.problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
    if found.backend is not None:
        estimate = number(None if found.estimate is None else found.estimate.value, 4, " ms")
        console.print(
            f"{board.name} runs it with {found.backend}; estimated {estimate} to the last exit",
            markup=False,
            soft_wrap=True,
        )


# --- a bundle --------------------------------------------------------------------------------------------------------


def _bundle_json(opened: Bundle) -> dict[str, object]:
    manifest = opened.manifest
    return {
        "bundle": opened.label,
        "content_id": opened.content_id,
        "size_bytes": opened.size,
        "profiles": list(manifest.profiles),
        "inputs": [entry.to_json() for entry in manifest.inputs],
        "labels": None if manifest.labels is None else list(manifest.labels),
        "macs": manifest.macs,
        "stages": [stage.to_json() for stage in manifest.stages],
        "exits": [leaving.to_json() for leaving in manifest.exits],
        "operating_points": [point.to_json() for point in manifest.operating_points],
        "golden_cases": manifest.golden.count,
        "executes_code": manifest.executes_code,
    }


def _print_bundle(opened: Bundle) -> None:
    manifest = opened.manifest
    table = Table("stage", "exit", "parts", "MACs", "cost", title=opened.label, title_justify="left")
    for index, (stage, leaving) in enumerate(zip(manifest.stages, manifest.exits, strict=True)):
        parts = ", ".join(f"{part.backend} {part.file}" for part in stage.parts)
        table.add_row(str(index), leaving.name, parts, f"{stage.macs:,.0f}", percent(leaving.cost_share, 1))
    console.print(table)
    counts = f"{len(manifest.operating_points)} operating points, {manifest.golden.count} golden cases"
    for line in (
        f"for {', '.join(manifest.profiles)}; {opened.size / 1e3:,.1f} kB; {counts}",
        f"content_id {opened.content_id}",
        _verdict(opened),
    ):
        console.print(line, markup=False, soft_wrap=True)


def _verdict(opened: Bundle) -> str:
    try:
        return verdict(Report.parse(opened.report))
    except BadInput as err:
        return f"no report that can be read: {err}"
