"""`edgekit profile`: list, show and check device profiles; measure the one of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.options import check_targets
from edgekit.cli.output import console, percent, print_json, progress
from edgekit.cli.profile_refine import refine
from edgekit.core.checks import NAME
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.files import write_atomic
from edgekit.core.profile import Backend, Profile, known_profiles, parse_profile, read_profile
from edgekit.core.profile_toml import profile_toml
from edgekit.host.watch import Tick
from edgekit.runtime.detect import find_profile
from edgekit.runtime.power import known_sensors

_STYLE = {"measured": "green", "published": "cyan", "simulated": "magenta", "estimated": "yellow"}
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@click.group(epilog="Example:  edgekit profile show raspberrypi5")
def command() -> None:
    """List, show and check device profiles; measure this machine's."""


@command.command("list", epilog="Example:  edgekit profile list --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_profiles(as_json: bool) -> None:
    """List the boards that --profile takes; `host` is this machine."""
    found = [find_profile(name) for name in known_profiles()]
    if as_json:
        print_json({"profiles": [_summary(profile) for profile in found]})
        return
    table = Table("profile", "processor", "RAM", "runs fast", box=None, pad_edge=False, header_style="bold")
    for profile in found:
        processor = profile.cpu.model.partition(" with ")[0]
        table.add_row(
            Text(profile.name, "bold"),
            Text(f"{profile.cpu.cores} x {processor}"),
            _value(profile.memory.ram_mb),
            ", ".join(profile.backends[0].fast_formats),
        )
    console.print(table)


@command.command(epilog="Example:  edgekit profile show raspberrypi5")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show one profile: NAME from the list, or a TOML file. Every figure says where it comes from."""
    profile = find_profile(name)
    if as_json:
        print_json({"profile": profile.to_json()})
        return
    console.print(Text.assemble((profile.title, "bold"), f"  ({profile.name})"))
    console.print(_facts(profile))
    console.print()
    console.print(_backends(profile.backends))
    console.print()
    console.print(_figures(profile))
    if profile.cost.operators:
        console.print()
        console.print(_operators(profile))


@command.command(epilog="Example:  edgekit profile check myboard.toml")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: str, as_json: bool) -> None:
    """Check a profile FILE: an error ends with code 2, what only looks odd is a warning."""
    profile = read_profile(file)
    warnings = _warnings(profile, file)
    if as_json:
        print_json({"file": file, "name": profile.name, "warnings": warnings})
        return
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "yellow"), f"{file}: {warning}"), soft_wrap=True)
    unknown = sum(figure.value is None for _, figure in profile.figures())
    known = sum(1 for _ in profile.figures()) - unknown
    console.print(Text(f"{file}: good, {known} figures known and {unknown} unknown"), soft_wrap=True)


@command.command(epilog="Example:  edgekit profile measure -o myboard.toml")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The profile to write (.toml)."
)
@click.option("--backend", default="onnxruntime", show_default=True, help="The runtime to measure.")
@click.option("--name", help="The profile's name; the file's if nothing is said.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of one inference."
)
@click.option("--family", "families", multiple=True, help="Only this kind of network; may be given again.")
@click.option("--most", type=click.IntRange(min=1), help="At most so many networks of each kind.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Turns each network takes."
)
@click.option(
    "--limit-s",
    type=click.FloatRange(min=0),
    default=150.0,
    show_default=True,
    help="Begin no more networks after so many seconds; one of each kind is always measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def measure(
    output: Path,
    backend: str,
    name: str | None,
    threads: int,
    families: tuple[str, ...],
    most: int | None,
    rounds: int,
    limit_s: float,
    as_json: bool,
) -> None:
    """Measure this machine and write its profile: rates per kind of layer, and which int8 it runs well.

    Generated networks run through the Session that boards run; it takes a minute or two, three at most on a fast
    machine. Leave the machine alone meanwhile.
    """
    from edgekit.host.profile_measure import (
        Grid,
        describe,
        measure_profile,
    )  # onnx and onnxruntime: not for --help

    name = name or output.stem
    if not NAME.fullmatch(name):
        raise BadInput(f"--name must be letters, digits, '_' and '-', at most 64, got {name!r}")
    if name in known_profiles():
        raise BadInput(f"--name must not be that of a profile there is already, got {name!r}")
    check_targets({"-o": output})
    made = measure_profile(name, backend, threads, Grid(families, most, rounds, limit_s), _watch)
    text = profile_toml(made.profile, describe(made))
    parse_profile(text, str(output))  # what is written can be read
    write_atomic(output, text.encode())
    measured = made.profile.backend(backend)
    if as_json:
        print_json(
            {
                "file": str(output),
                "name": name,
                "backend": backend,
                "threads": threads,
                "networks": made.networks,
                "skipped": made.skipped,
                "left_out": made.left_out,
                "fast_formats": list(measured.fast_formats),
                "int8_activation": measured.int8_activation,
                "int8_over_float32": made.over_float,
                "fit_error": {"median": made.median_error, "worst": made.worst_error},
                "seconds": round(made.seconds, 1),
            }
        )
        return
    fast = ", ".join(measured.fast_formats)
    ratios = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in made.over_float.items()) or "unknown"
    missed = percent(made.median_error, 1)
    for line in (
        f"{output}: {made.networks} networks in {made.seconds:.0f} s, the fit misses them by {missed} (median)",
        f"runs fast: {fast}; int8's time over float32's, by type of activation: {ratios}",
        f"use it with: edgekit convert MODEL --profile {output} ...",
    ):
        console.print(line, markup=False, soft_wrap=True)
    if made.left_out:
        console.print(
            f"{made.left_out} networks were left out after {limit_s:g} s", markup=False, soft_wrap=True
        )


command.add_command(refine)


@contextlib.contextmanager
def _watch(what: str, total: int) -> Iterator[Tick]:
    with progress() as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _warnings(profile: Profile, file: str) -> list[str]:
    warnings = [f"{key} is not a key of format 1: ignored" for key in profile.extra]
    if Path(file).stem != profile.name:
        warnings.append(f'name is "{profile.name}", the file is called {Path(file).name}')
    if profile.name in known_profiles() and profile != find_profile(profile.name):
        warnings.append(f'name "{profile.name}" is that of another profile, known to --profile')
    kind = profile.power.sensor.partition(":")[0]
    if kind not in known_sensors():
        known = ", ".join(known_sensors())
        warnings.append(f'power.sensor "{profile.power.sensor}" is not installed here; known: {known}')
    warnings += [
        f"backend {backend.name} runs int8 fast, but int8_activation is missing"
        for backend in profile.backends
        if "int8" in backend.fast_formats and backend.int8_activation is None
    ]
    return warnings


def _summary(profile: Profile) -> dict[str, object]:
    return {
        "name": profile.name,
        "title": profile.title,
        "cpu": profile.cpu.model,
        "cores": profile.cpu.cores,
        "clock_ghz": profile.cpu.clock_ghz.to_json(),
        "ram_mb": profile.memory.ram_mb.to_json(),
        "backends": [backend.name for backend in profile.backends],
        "fast_formats": list(profile.backends[0].fast_formats),
        "power_sensor": profile.power.sensor,
    }


def _facts(profile: Profile) -> Table:
    cpu = profile.cpu
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    facts = {
        "processor": f"{cpu.model}, {cpu.cores} cores, {cpu.isa}",
        "features": ", ".join(cpu.features) or "none known",
        "system": ", ".join(profile.os) or "unknown",
        "Python": ", ".join(profile.python) or "unknown",
        "power sensor": profile.power.sensor,
        "costs hold for": f"{profile.cost.threads} threads",
    }
    for key, fact in facts.items():
        table.add_row(key, Text(fact))
    return table


def _backends(backends: tuple[Backend, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("backend", "version", "opset", "IR", "providers", "runs fast", "int8 activations"):
        table.add_column(column, overflow="fold")
    for backend in backends:
        providers = [name.removesuffix("ExecutionProvider") for name in backend.providers]
        table.add_row(
            Text(backend.name),
            Text(backend.version or "-"),
            "-" if backend.max_opset is None else f"<= {backend.max_opset}",
            "-" if backend.max_ir is None else f"<= {backend.max_ir}",
            Text(", ".join(providers) or "-"),
            ", ".join(backend.fast_formats),
            backend.int8_activation or "-",
        )
    return table


def _figures(profile: Profile) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how")
    table.add_column("from", overflow="fold")
    for path, figure in profile.figures():
        if path.startswith("cost.operators."):
            continue
        how = figure.provenance or ""
        source = ", ".join(part for part in (figure.on, figure.when) if part)
        table.add_row(path, _value(figure), Text(how, _STYLE.get(how, "")), Text(source))
    return table


def _operators(profile: Profile) -> Table:
    """The measured classes of operators, one a line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class of operator", no_wrap=True)
    table.add_column("format")
    for column in ("MACs", "bytes", "a call"):
        table.add_column(column, justify="right", no_wrap=True)
    for op, by_format in profile.cost.operators.items():
        for fmt, own in by_format.items():
            figures = (own.macs_per_second, own.bytes_per_second, own.call_overhead_us)
            cells = (Text("-", "dim") if figure.value is None else _value(figure) for figure in figures)
            table.add_row(op, fmt, *cells)
    return table


def _value(figure: Figure) -> Text:
    """The value with its unit, in thousands where the unit is a rate; unknown is said."""
    if figure.value is None:
        return Text("unknown", "dim")
    if figure.unit == "1":
        return Text(f"{figure.value:,.10g}")
    if figure.unit in {"MAC/s", "B/s"}:
        scale, prefix = next((pair for pair in _SCALES if figure.value >= pair[0]), (1.0, ""))
        return Text(f"{figure.value / scale:.3g} {prefix}{figure.unit}")
    return Text(
        f"{figure.value:.4g} {figure.unit}" if figure.value < 1e4 else f"{figure.value:.0f} {figure.unit}"
    )
