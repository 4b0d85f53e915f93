"""`edgekit native`: which C kernels are built into this installation and which of them this CPU runs."""

from __future__ import annotations

import click
from rich.table import Table

from edgekit.cli.output import console, print_json
from edgekit.native import door


@click.command(epilog="Example:  edgekit native --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """List the C kernels: which are built, which this CPU can run, and which one is chosen."""
    kernels, features = door.kernels(), door.cpu_features()
    if as_json:
        rows = [row._asdict() for row in kernels]
        print_json({"abi": door.ABI_VERSION, "cpu_features": list(features), "kernels": rows})
        return
    table = Table("family", "kernel", "built", "this CPU", "chosen")
    for row in kernels:
        built = "yes" if row.built else "no"
        runs = "runs it" if row.supported else "cannot run it" if row.built else "-"
        table.add_row(row.family, row.name, built, runs, "chosen" if row.chosen else "")
    console.print(table)
    console.print(f"CPU features: {', '.join(features) or 'none known'}")
