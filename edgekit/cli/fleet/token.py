"""`edgekit fleet token`: tokens by which programs use the API."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from edgekit.cli.fleet.user import accounts_table, role_option
from edgekit.cli.options import json_option
from edgekit.cli.output import clock, console, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic

_WHERE = "--server https://fleet:8080 --token-file api.token"


@click.group()
def token() -> None:
    """Give programs tokens for the API, with a role and an end."""


@token.command("list", epilog=f"Example:  edgekit fleet token list {_WHERE}")
@server_options
@json_option
def list_tokens(server: str, token_file: Path | None, as_json: bool) -> None:
    """Show every token's name, role and end; the tokens themselves are nowhere."""
    found = client_of(server, token_file).tokens()
    if as_json:
        print_json({"tokens": found})
    elif not found:
        console.print("no token yet: edgekit fleet token add NAME --role viewer -o FILE")
    else:
        console.print(accounts_table("token", found))


@token.command(
    epilog=f"Example:  edgekit fleet token add grafana --role viewer --days 365 -o grafana.token {_WHERE}"
)
@click.argument("name")
@role_option
@click.option("--days", type=click.FloatRange(0, 3660, min_open=True), help="It ends then. Left out: never.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The new file that gets the token, for your eyes only.",
)
@server_options
@json_option
def add(
    name: str,
    role: str,
    days: float | None,
    output: Path,
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Make a token and write it to a file: it is told this once."""
    client = client_of(server, token_file)
    if output.exists():
        raise BadInput(f"{output}: is there already; a new file was wanted")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"{output.parent}: no such folder")
    made = client.add_token(name, role, None if days is None else days * 86_400)
    try:
        write_atomic(output, f"{made['token']}\n".encode(), 0o600)
    except (OSError, WorldFailed):
        client.remove_token(name)  # nobody has it
        raise
    if as_json:
        print_json({**{key: made[key] for key in ("name", "role", "expires")}, "file": str(output)})
        return
    until = "for ever" if made["expires"] is None else f"until {clock(made['expires'])}"
    console.print(Text(f"{output}: token {name}, {role}, {until}"), soft_wrap=True)


@token.command(epilog=f"Example:  edgekit fleet token remove grafana {_WHERE}")
@click.argument("name")
@server_options
@json_option
def remove(name: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Let a token count no more, at once."""
    answer = client_of(server, token_file).remove_token(name)
    if as_json:
        print_json(answer)
    else:
        console.print(Text(f"the token {name} counts no more"))
