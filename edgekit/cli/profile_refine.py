"""`edgekit profile refine`: scale a profile's costs to what a fleet's boards of that profile measured."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from edgekit.cli.options import check_targets, json_option
from edgekit.cli.output import console, percent, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core.files import write_atomic
from edgekit.core.profile import parse_profile
from edgekit.core.profile_toml import profile_toml
from edgekit.runtime.detect import find_profile


@click.command(
    epilog="Example:  edgekit profile refine raspberrypi5 --server https://fleet:8080 --token-file api.token "
    "-o raspberrypi5.toml"
)
@click.argument("name", metavar="NAME|FILE")
@server_options
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The profile to write (.toml)."
)
@click.option(
    "--min-requests",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Refuse with fewer measured requests.",
)
@click.option(
    "--days", type=click.FloatRange(0.1, 365), default=7.0, show_default=True, help="How far to look back."
)
@json_option
def refine(
    name: str,
    server: str,
    token_file: Path | None,
    output: Path,
    min_requests: int,
    days: float,
    as_json: bool,
) -> None:
    """Scale a profile's costs to what boards of that very profile measured; simulated boards count for nothing.

    Latencies of whole requests cannot tell single operators apart: work is scaled in groups, and groups that the
    figures cannot tell apart are scaled together. It refuses where scaled costs predict no better.
    """
    from edgekit.host.refine import GENERAL
    from edgekit.host.refine import refine as run

    profile = find_profile(name)
    check_targets({"-o": output})
    figures = client_of(server, token_file).profile_figures(profile.name, days * 86_400)
    now = datetime.now(timezone.utc)
    made = run(profile, figures, min_requests, f"{now:%Y-%m-%d}")
    words = [
        (
            ", ".join("general costs" if group == GENERAL else f"{group[0]} {group[1]}" for group in groups),
            factor,
        )
        for groups, factor in made.factors
    ]
    told = [
        f"{made.requests} requests of {made.boards} boards with {made.bundles} bundles, {now:%Y-%m-%d}",
        *(f"{word}: {factor:.3f} times as long" for word, factor in words),
        f"a held-out {made.held_out} was missed by {made.before:.1%} (median), now by {made.after:.1%}",
    ]
    text = profile_toml(made.profile, "\n".join(["Refined with a fleet's figures:", *told]))
    parse_profile(text, str(output))  # what is written can be read
    write_atomic(output, text.encode())
    untouched = ["general costs" if group == GENERAL else " ".join(group) for group in made.untouched]
    if as_json:
        print_json(
            {
                "file": str(output),
                "name": profile.name,
                "groups": [{"group": word, "factor": factor} for word, factor in words],
                "untouched": untouched,
                "requests": made.requests,
                "boards": made.boards,
                "bundles": made.bundles,
                "simulated": figures["simulated"],
                "held_out": made.held_out,
                "error": {"before": made.before, "after": made.after},
            }
        )
        return
    console.print(f"{output}: {told[0]}", markup=False, soft_wrap=True)
    for line in told[1:-1]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if untouched:
        console.print(f"  too little of, as it was: {', '.join(untouched)}", markup=False, soft_wrap=True)
    missed = f"error on a held-out {made.held_out}: {percent(made.before, 1)} before, {percent(made.after, 1)} after"
    console.print(missed, markup=False, soft_wrap=True)
