"""Options that several verbs share, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.core.errors import BadInput
from edgekit.core.policy import KINDS

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False))


def policy_options(function: F) -> F:
    """--policy, --budget, --deadline-ms."""
    options = (
        click.option(
            "--policy",
            type=click.Choice(KINDS),
            help="How to choose the exit. A budget or deadline alone names its policy.",
        ),
        click.option(
            "--budget", metavar="AMOUNT", help="Mean cost per request: 3ms, 5mJ, 2MMAC or 40% of the network."
        ),
        click.option(
            "--deadline-ms", type=click.FloatRange(min=0, min_open=True), help="Deadline of each request."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def check_target(option: str, path: Path) -> None:
    """Refuse a file that could not be written anyway, before minutes of work end there."""
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"{option} must be a file in an existing folder, got {path}")
