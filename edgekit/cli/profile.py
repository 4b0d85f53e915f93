"""`edgekit profile`: list, show and check device profiles. Measures nothing."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.output import console, print_json
from edgekit.core.figure import Figure
from edgekit.core.profile import Backend, Profile, known_profiles, read_profile
from edgekit.runtime.detect import find_profile
from edgekit.runtime.power import known_sensors

_STYLE = {"measured": "green", "published": "cyan", "simulated": "magenta", "estimated": "yellow"}
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@click.group(epilog="Example:  edgekit profile show raspberrypi5")
def command() -> None:
    """List, show and check device profiles."""


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
        how = figure.provenance or ""
        source = ", ".join(part for part in (figure.on, figure.when) if part)
        table.add_row(path, _value(figure), Text(how, _STYLE.get(how, "")), Text(source))
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
