"""The options by which a verb finds the fleet server, written once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.client import Client
from edgekit.core.errors import BadInput, WorldFailed

F = TypeVar("F", bound=Callable[..., Any])
TOKEN = "EDGEKIT_TOKEN"  # noqa: S105  (a variable's name)


def server_options(function: F) -> F:
    """--server and --token-file."""
    return _options(function, required=True)


def maybe_server_options(function: F) -> F:
    """The same for a verb that can do without a server."""
    return _options(function, required=False)


def _options(function: F, *, required: bool) -> F:
    options = (
        click.option(
            "--server",
            envvar="EDGEKIT_SERVER",
            metavar="URL",
            required=required,
            show_envvar=True,
            help="The fleet server.",
        ),
        click.option(
            "--token-file",
            envvar="EDGEKIT_TOKEN_FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help=f"File with the server's token (its data_dir/api.token); or put the token itself into {TOKEN}.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def client_of(server: str, token_file: Path | None) -> Client:
    """The client these options mean. Raises BadInput, WorldFailed."""
    if token_file is None:
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise BadInput(
                f"the server wants its token: give --token-file FILE (its data_dir/api.token) or set {TOKEN}"
            )
    else:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError) as err:
            raise BadInput(f"{token_file}: must be a file with the server's token") from err
        except OSError as err:
            raise WorldFailed(f"{token_file}: could not be read: {err.strerror or err}") from err
    if not token or not token.isprintable() or not token.isascii():
        raise BadInput(f"{token_file or TOKEN}: must hold the server's token, one line")
    return Client(server, token)
