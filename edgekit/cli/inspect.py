"""`edgekit inspect`: what is in a model or a bundle, and what a board can do with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from edgekit.cli.options import json_option
from edgekit.cli.output import console, number, percent, print_json
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.cost import predict
from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.profile import Profile
from edgekit.core.report import Report
from edgekit.host.report_html import verdict
from edgekit.runtime.detect import find_profile

if TYPE_CHECKING:
    from edgekit.host.inspect import Inspection
    from edgekit.host.load import Loaded
    from edgekit.host.tflite_model import BorderTensor, TfliteModel

_path = click.Path(path_type=Path)
_ZIP = b"PK\x03\x04"
_BITS = re.compile(r"w\da\d+")  # the formats of layers on bits: "w1a1"


@click.command(epilog="Example:  edgekit inspect model.onnx --profile raspberrypi4b")
@click.argument("model", type=_path)
@click.option("--profile", help="A board: what it can run, and where it would be slow.")
@click.option(
    "--input-spec", type=_path, help="TOML that describes inputs, exits and labels the model does not name."
)
@click.option(
    "--shape", "shapes", multiple=True, help="Fix symbolic sizes: 1,3,224,224, or NAME=1,3,224,224."
)
@click.option("--backend", help="The runtime on that board, where it is not the profile's first.")
@json_option
def command(
    model: Path,
    profile: str | None,
    input_spec: Path | None,
    shapes: tuple[str, ...],
    backend: str | None,
    as_json: bool,
) -> None:
    """Show MODEL (ONNX, .tflite or a bundle): layers, multiply-accumulates, bytes; what the board can run of it."""
    board = None if profile is None else find_profile(profile)
    if backend is not None and board is None:
        raise BadInput("--backend is a runtime of a board: give --profile as well")
    if _is_bundle(model):
        opened = open_bundle(model)
        print_json(_bundle_json(opened)) if as_json else _print_bundle(opened)
        return
    if model.suffix == ".tflite":
        _show_tflite(model, board, as_json=as_json)
        return
    from edgekit.host.inspect import inspect  # onnx and onnxruntime: not for --help, not for bundles
    from edgekit.host.load import InputSpec, load, parse_shapes, read_input_spec

    spec = read_input_spec(input_spec) if input_spec else InputSpec()
    loaded = load(model, parse_shapes(shapes), spec)
    found = inspect(loaded.graph, board, backend)
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
                "not_binary": row.not_binary,
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
    binary = any(_BITS.fullmatch(row.format) for row in found.layers)
    for column in ("format", "note") if binary else () if board is None else ("format", "ms", "note"):
        table.add_column(column)
    for row in found.layers:
        layer = row.layer
        if not layer.calls and not row.not_binary:
            continue  # a view, or done inside the layer before it
        cells = [layer.name, layer.op, str(row.stage), f"{layer.macs / 1e6:.3f}", f"{layer.bytes / 1e3:.1f}"]
        if binary:
            cells += [row.format, f"not binary: {row.not_binary}" if row.not_binary else ""]
        elif board is not None:
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
        estimate = _estimate(None if found.estimate is None else found.estimate.value, " to the last exit")
        console.print(f"{board.name} runs it with {found.backend}; {estimate}", markup=False, soft_wrap=True)


def _estimate(ms: float | None, where: str = "") -> str:
    return "its time there is unknown" if ms is None else f"estimated {ms:.4f} ms{where}"


# --- a .tflite file --------------------------------------------------------------------------------------------------


def _show_tflite(path: Path, board: Profile | None, *, as_json: bool) -> None:
    from edgekit.host.pack_tflite import tflite_backend
    from edgekit.host.tflite_model import check_runs, read_tflite

    model = read_tflite(path)
    backend, problems = None, []
    try:
        check_runs(path)
        backend = None if board is None else tflite_backend(board).name
    except MissingExtra:
        raise
    except BadInput as err:
        problems.append(str(err))
    print_json(_tflite_json(path, model, board, backend, problems)) if as_json else _print_tflite(
        path, model, board, backend, problems
    )


def _tflite_json(
    path: Path, model: TfliteModel, board: Profile | None, backend: str | None, problems: list[str]
) -> dict[str, object]:
    works = [row.work for row in model.operators]
    return {
        "model": str(path),
        "size_bytes": len(model.content),
        "opset": None,
        "inputs": [{**e.tensor.to_json(), "scale": e.scale, "zero_point": e.zero} for e in model.inputs],
        "outputs": [{**e.tensor.to_json(), "scale": e.scale, "zero_point": e.zero} for e in model.outputs],
        "exits": [],
        "labels": None,
        "parameters": model.parameters,
        "macs": sum(work.macs for work in works),
        "bytes": sum(work.bytes for work in works),
        "layers": [
            {
                "name": row.output,
                "op": row.code,
                "stage": 0,
                "macs": row.work.macs,
                "bytes": row.work.bytes,
                "format": row.work.format,
                "estimated_ms": None if board is None else predict(board, [row.work]).value,
                "slow": None,
            }
            for row in model.operators
        ],
        "profile": None
        if board is None
        else {
            "name": board.name,
            "backend": backend,
            "can_run": backend is not None,
            "problems": problems,
            "estimated_ms": predict(board, works).value,
        },
    }


def _print_tflite(
    path: Path, model: TfliteModel, board: Profile | None, backend: str | None, problems: list[str]
) -> None:
    table = Table(
        "layer", "operator", "version", "MMAC", "kB", "format", title=str(path), title_justify="left"
    )
    for row in model.operators:
        macs, moved = f"{row.work.macs / 1e6:.3f}", f"{row.work.bytes / 1e3:.1f}"
        table.add_row(row.output, row.code, str(row.version), macs, moved, row.work.format)
    console.print(table)
    border = [", ".join(map(_tensor_text, side)) for side in (model.inputs, model.outputs)]
    total = sum(row.work.macs for row in model.operators)
    lines = [
        f"inputs {border[0]}; outputs {border[1]}",
        f"{model.parameters:,} parameters, {len(model.content) / 1e3:,.1f} kB, {total / 1e6:,.2f} million MACs",
        *(f"problem: {problem}" for problem in problems),
    ]
    if board is not None and backend is not None:
        estimate = _estimate(predict(board, [row.work for row in model.operators]).value)
        lines.append(f"{board.name} runs it with {backend}; {estimate}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _tensor_text(entry: BorderTensor) -> str:
    codes = "" if entry.scale is None else f", {entry.scale:.6g} x (code - {entry.zero})"
    return f"{entry.tensor.name} {entry.tensor.dtype} {list(entry.tensor.shape)}{codes}"


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
