"""`edgekit fleet revoke`: a board that was lost or stolen is let in no more."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core.errors import BadInput


@click.command(
    epilog="Example:  edgekit fleet revoke pi5-a --server https://fleet:8080 --token-file api.token"
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@server_options
@json_option
def revoke(names: tuple[str, ...], server: str, token_file: Path | None, as_json: bool) -> int:
    """Let boards' certificates, passwords and tokens count no more, at once: the broker hangs up on them.

    What they said stays. `edgekit fleet enroll NAME --again` brings a board back with new credentials. Exit code 1: the
    broker could not be told, and lets them in until it reads its files again (SIGHUP).
    """
    client = client_of(server, token_file)
    known = {device["name"] for device in client.devices()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(f"nobody was revoked: there is no board called {', '.join(unknown)}")
    answers = [client.revoke(name) for name in dict.fromkeys(names)]
    told = all(answer["broker_reloaded"] for answer in answers)
    if as_json:
        shown = [{key: answer[key] for key in ("name", "revoked_at")} for answer in answers]
        print_json({"revoked": shown, "broker_reloaded": told})
    else:
        for answer in answers:
            console.print(Text(f"{answer['name']} is revoked"))
        if not told:
            console.print(
                "The broker was not told: let it read its files again (SIGHUP), or they stay connected.",
                style="red",
            )
    return 0 if told else 1
