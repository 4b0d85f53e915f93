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
CA_FILE = "ca.pem"  # lies beside the server's api.token
_CA = "edgekit.ca"


def server_options(function: F) -> F:
    """--server, --token-file and --ca."""
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
        click.option(
            "--ca",
            envvar="EDGEKIT_CA",
            type=click.Path(path_type=Path, dir_okay=False),
            show_envvar=True,
            expose_value=False,  # client_of asks the context for it
            callback=_keep,
            help=f"Certificates that an https:// server is checked against (its data_dir/ca.pem). Left out: {CA_FILE} "
            "beside the token file, else the system's.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _keep(context: click.Context, _option: click.Parameter, value: Path | None) -> None:
    context.meta[_CA] = value


def _authority(token_file: Path | None) -> Path | None:
    """What the server's certificate is checked against; None: what the system trusts."""
    context = click.get_current_context(silent=True)
    given: Path | None = None if context is None else context.meta.get(_CA)
    if given is not None or token_file is None:
        return given
    beside = token_file.with_name(CA_FILE)
    return beside if beside.is_file() else None


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
    return Client(server, token, ca=_authority(token_file))
