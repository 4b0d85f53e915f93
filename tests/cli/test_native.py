"""`edgekit native` lists the kernels of the library that is installed."""

from __future__ import annotations

import json

from click.testing import CliRunner

from edgekit.cli.native import command
from edgekit.native import door


def test_json_lists_every_kernel_and_the_cpu_features() -> None:
    said = CliRunner().invoke(command, ["--json"])
    assert said.exit_code == 0
    listed = json.loads(said.stdout)
    assert listed["v"] == 1
    assert listed["cpu_features"] == list(door.cpu_features())
    assert listed["kernels"] == [row._asdict() for row in door.kernels()]


def test_the_table_names_the_chosen_kernel() -> None:
    said = CliRunner().invoke(command, [])
    assert said.exit_code == 0
    chosen = next(row.name for row in door.kernels() if row.chosen)
    assert [line for line in said.stdout.splitlines() if "chosen" in line and f" {chosen} " in line]


def test_help_ends_with_an_example() -> None:
    assert "edgekit native --json" in CliRunner().invoke(command, ["--help"]).stdout
