"""`edgekit fleet enroll`: give a board its identity, as a folder to be copied to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core import checks
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic

CONFIG, ROOT, CONTROL_KEY = "agent.toml", "root.json", "control.pub"
PASSWORD, TOKEN = "mqtt.password", "repo.token"


@click.command(
    epilog="Example:  edgekit fleet enroll pi5-a --profile raspberrypi5 --tag site-a -o pi5-a --server http://127.0.0.1:8080"
)
@click.argument("name")
@click.option(
    "--profile", help="The board's profile, such as raspberrypi5; the agent needs one in its config."
)
@click.option("--tag", "tags", multiple=True, help="A word to select boards by; may be given more than once.")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write, to be copied to the board.",
)
@click.option(
    "--again", is_flag=True, help="The board is known: give it new credentials in place of the old."
)
@server_options
@json_option
def enroll(
    name: str,
    profile: str | None,
    tags: tuple[str, ...],
    folder: Path,
    again: bool,
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Enroll a board called NAME: write its agent.toml, root of trust, control key and credentials into a folder.

    The folder holds secrets: whoever has it is that board.
    """
    checks.name(name, "NAME")
    files = (CONFIG, ROOT, CONTROL_KEY, PASSWORD, TOKEN)
    taken = [file for file in files if (folder / file).exists()]
    if taken:  # before the server is asked: it tells the secrets once
        raise BadInput(f"{folder}: holds {taken[0]} already; give an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as err:
        raise WorldFailed(f"{folder}: could not be made: {err.strerror or err}") from err
    answer = client_of(server, token_file).enroll(name, profile, tags, again=again)
    write_atomic(folder / ROOT, answer["root"].encode())
    write_atomic(folder / CONTROL_KEY, answer["control_key"].encode())
    write_atomic(folder / PASSWORD, f"{answer['mqtt_password']}\n".encode(), 0o600)
    write_atomic(folder / TOKEN, f"{answer['repo_token']}\n".encode(), 0o600)
    write_atomic(folder / CONFIG, agent_config(answer).encode())
    if as_json:
        shown = {key: answer[key] for key in ("name", "fleet", "profile", "tags", "broker_reloaded")}
        print_json({**shown, "folder": str(folder), "files": list(files)})
        return
    console.print(Text(f"{name} is enrolled; copy {folder} to the board and run there:"), soft_wrap=True)
    console.print(Text(f"  edgekit agent --config {folder.name}/{CONFIG}"), soft_wrap=True)
    if not answer["broker_reloaded"]:
        console.print("The broker was not told: let it read its password file again (SIGHUP).")
    if profile is None:
        console.print(f"Set device.profile in {CONFIG} before that: no --profile was given.")


def agent_config(answer: Mapping[str, Any]) -> str:
    """The board's agent.toml: what the server said, and the settings that people change, with their defaults."""
    text = json.dumps  # a JSON string is a TOML string
    profile = answer["profile"]
    named = f"profile = {text(profile)}" if profile else '# profile = "raspberrypi5"   (edgekit profile list)'
    return f"""\
# Enrolled as {answer["name"]} of fleet {answer["fleet"]}. Paths are relative to this file.

[device]
fleet = {text(answer["fleet"])}
name = {text(answer["name"])}
{named}
state_dir = "state"

[broker]
host = {text(answer["broker"]["host"])}
port = {answer["broker"]["port"]}
username = {text(f"{answer['fleet']}/{answer['name']}")}
password_file = "{PASSWORD}"
tls = false

[repository]
url = {text(answer["repository"]["url"])}
token_file = "{TOKEN}"

[trust]
root = "{ROOT}"
control_key = "{CONTROL_KEY}"

[telemetry]
interval_s = 60
ack = "server"

[sensors]
power = "auto"

[policy]
kind = "full"

[source]
kind = "none"
"""
