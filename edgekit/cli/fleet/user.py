"""`edgekit fleet user` and `fleet login-link`: who may log in to the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import clock, console, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core.errors import BadInput, WorldFailed

_ROLES = ("viewer", "operator")  # fleet.access.ROLES
_WHERE = "--server https://fleet:8080 --token-file api.token"

role_option = click.option(
    "--role", type=click.Choice(_ROLES), required=True, help="viewer looks, operator changes as well."
)
password_option = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File with the password, one line; - reads it from standard input. Left out: it is asked for.",
)


@click.group()
def user() -> None:
    """Say who may log in to the page, and as what."""


@user.command("list", epilog=f"Example:  edgekit fleet user list {_WHERE}")
@server_options
@json_option
def list_users(server: str, token_file: Path | None, as_json: bool) -> None:
    """Show every user and its role."""
    found = client_of(server, token_file).users()
    if as_json:
        print_json({"users": found})
    elif not found:
        console.print("no user yet: edgekit fleet user add NAME --role operator")
    else:
        console.print(accounts_table("user", found))


@user.command(epilog=f"Example:  edgekit fleet user add anna --role operator {_WHERE}")
@click.argument("name")
@role_option
@password_option
@server_options
@json_option
def add(
    name: str, role: str, password_file: Path | None, server: str, token_file: Path | None, as_json: bool
) -> None:
    """Add a user. The password (10 characters or more) is asked for, or read from a file."""
    made = client_of(server, token_file).add_user(name, role, read_password(password_file))
    _say(made, f"{made['name']} may log in as {made['role']}", as_json)


@user.command(epilog=f"Example:  edgekit fleet user remove anna {_WHERE}")
@click.argument("name")
@server_options
@json_option
def remove(name: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Remove a user; its browsers are logged out at once."""
    _say(client_of(server, token_file).remove_user(name), f"{name} may log in no more", as_json)


@user.command(epilog=f"Example:  edgekit fleet user role anna viewer {_WHERE}")
@click.argument("name")
@click.argument("role", type=click.Choice(_ROLES))
@server_options
@json_option
def role(name: str, role: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Give a user another role; its browsers are logged out at once."""
    _say(client_of(server, token_file).set_role(name, role), f"{name} is {role} now", as_json)


@user.command(epilog=f"Example:  edgekit fleet user password anna --password-file new.txt {_WHERE}")
@click.argument("name")
@password_option
@server_options
@json_option
def password(
    name: str, password_file: Path | None, server: str, token_file: Path | None, as_json: bool
) -> None:
    """Give a user another password; its browsers are logged out at once."""
    answer = client_of(server, token_file).set_password(name, read_password(password_file))
    _say(answer, f"{name} has a new password", as_json)


@click.command("login-link", epilog=f"Example:  edgekit fleet login-link {_WHERE}")
@click.option("--path", default="/", show_default=True, help="The screen it leads to.")
@server_options
@json_option
def login_link(path: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """Print an address that lets one browser in, once, within ten minutes. Wants the server's own token."""
    made = client_of(server, token_file).login_link(path)
    url = server.rstrip("/") + made["path"]
    if as_json:
        print_json({"url": url, "expires": made["expires"]})
    else:
        console.print(Text(url), soft_wrap=True)


def read_password(file: Path | None) -> str:
    """From a file's one line, standard input (`-`) or a prompt, never an argument. Raises BadInput, WorldFailed."""
    if file is None:
        if not sys.stdin.isatty():
            raise BadInput("the password must come from --password-file: there is no terminal to ask on")
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    try:
        text = sys.stdin.read(65536) if str(file) == "-" else file.read_text("utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as err:
        raise BadInput(f"{file}: must be a file with the password, one line of UTF-8") from err
    except OSError as err:
        raise WorldFailed(f"{file}: could not be read: {err.strerror or err}") from err
    line = text.removesuffix("\n").removesuffix("\r")
    if not line or "\n" in line:
        raise BadInput(f"{file}: must hold the password, one line")
    return line


def accounts_table(noun: str, rows: list[dict[str, Any]]) -> Table:
    """Users or tokens, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    expires = any("expires" in row for row in rows)
    for column in (noun, "role", "since", *(["until"] if expires else [])):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = [row["name"], row["role"], clock(row["created"])]
        if expires:
            cells.append("for ever" if row["expires"] is None else clock(row["expires"]))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _say(answer: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        console.print(Text(line))
