"""Options that several verbs share, written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.core.errors import BadInput
from edgekit.core.policy import DEFAULT_MAX_DROP, KINDS

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False))


def policy_options(function: F) -> F:
    """--policy, --budget, --deadline-ms, --max-drop."""
    options = (
        click.option(
            "--policy",
            type=click.Choice(KINDS),
            help="How to choose the exit. A budget, a deadline or a drop alone names its policy.",
        ),
        click.option(
            "--budget", metavar="AMOUNT", help="Mean cost per request: 3ms, 5mJ, 2MMAC or 40% of the network."
        ),
        click.option(
            "--deadline-ms", type=click.FloatRange(min=0, min_open=True), help="Deadline of each request."
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(min=0, max=100),
            help=f"Points the confidence policy may lose ({DEFAULT_MAX_DROP:g}), sure at 95 % on validation data.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def check_targets(targets: Mapping[str, Path | None], inputs: Sequence[Path | None] = ()) -> None:
    """Refuse files that must not or cannot be written, before minutes of work end there.

    targets: option -> the file it names. Raises BadInput: no such folder, a folder or a device, two options that name
    the same file, or one of `inputs`.
    """
    taken = {path.resolve(): "an input" for path in inputs if path is not None}
    for option, path in targets.items():
        if path is None:
            continue
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise BadInput(f"{option} must be a file in an existing folder, got {path}")
        if path.resolve() in taken:
            raise BadInput(f"{option} would overwrite {taken[path.resolve()]}: {path}")
        taken[path.resolve()] = f"what {option} writes"
