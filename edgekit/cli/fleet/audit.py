"""`edgekit fleet audit`: who changed what, and when."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import clock, console, print_json
from edgekit.cli.server import client_of, server_options


@click.command(
    epilog="Example:  edgekit fleet audit --subject board:pi5-a --server https://fleet:8080 --token-file api.token"
)
@click.option(
    "--subject", help="Only what is about this: board:NAME, rollout:ID, job:ID, user:NAME, token:NAME."
)
@click.option("--before", type=click.IntRange(0), help="Only lines older than the one with this number.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many lines.")
@server_options
@json_option
def audit(
    subject: str | None,
    before: int | None,
    limit: int,
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Show the audit log, the newest line first. Wants role operator."""
    found = client_of(server, token_file).audit(subject, before, limit)
    if as_json:
        print_json({"lines": found["lines"], "next": found["next"]})
        return
    for line in found["lines"]:
        detail = ", ".join(f"{key} {_plain(value)}" for key, value in line["detail"].items())
        words = (str(line["id"]), clock(line["at"]), line["who"], line["action"], line["subject"], detail)
        console.print(Text("  ".join(words).rstrip()), soft_wrap=True)
    if not found["lines"]:
        console.print("no line")
    if found["next"] is not None:
        console.print(Text(f"older lines: --before {found['next']}", "dim"))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
