"""`edgekit fleet enroll`: give a board its identity, as a folder to be copied to it."""

from __future__ import annotations

import contextlib
import json
import os
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
from edgekit.core.profile import known_profiles

CONFIG, ROOT, CONTROL_KEY = "agent.toml", "root.json", "control.pub"
PASSWORD, TOKEN = "mqtt.password", "repo.token"
FILES = (CONFIG, ROOT, CONTROL_KEY, PASSWORD, TOKEN)


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
    help="Folder to write, to be copied to the board: a new one, or an empty one (which keeps its mode).",
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
    if profile is not None and profile not in known_profiles():
        raise BadInput(f"--profile must be one of {', '.join(known_profiles())}, got {profile!r}")
    check_free(folder)  # before the server is asked: it tells the secrets once
    answer = client_of(server, token_file).enroll(name, profile, tags, again=again)
    write_folder(
        folder,
        {
            ROOT: (answer["root"], 0o644),
            CONTROL_KEY: (answer["control_key"], 0o644),
            PASSWORD: (f"{answer['mqtt_password']}\n", 0o600),
            TOKEN: (f"{answer['repo_token']}\n", 0o600),
            CONFIG: (agent_config(answer), 0o644),
        },
    )
    if as_json:
        shown = {key: answer[key] for key in ("name", "fleet", "profile", "tags", "broker_reloaded")}
        print_json({**shown, "folder": str(folder), "files": list(FILES)})
        return
    console.print(Text(f"{name} is enrolled; copy {folder} to the board and run there:"), soft_wrap=True)
    console.print(Text(f"  edgekit agent --config {folder.name}/{CONFIG}"), soft_wrap=True)
    if not answer["broker_reloaded"]:
        console.print("The broker was not told: let it read its password file again (SIGHUP).")
    if profile is None:
        console.print(f"Set device.profile in {CONFIG} before that: no --profile was given.")


def check_free(folder: Path) -> None:
    """Raise BadInput where the folder holds anything, for others may use it; WorldFailed where none can be made."""
    try:
        found = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        there = next(path for path in folder.absolute().parents if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise WorldFailed(f"{folder}: could not be made: {there} is not ours to write to") from None
        return
    except OSError as err:
        raise BadInput(f"{folder}: could not be looked into: {err.strerror or err}") from err
    if found:
        raise BadInput(f"{folder}: holds {found[0]} already; give a new or an empty folder")


def write_folder(folder: Path, files: Mapping[str, tuple[str, int]]) -> None:
    """Write the files (name -> text, mode) into a folder, which is made, closed to others, where there is none.

    A folder that exists keeps its mode. Raises WorldFailed; then what was made here is gone again.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    written: list[Path] = []
    try:
        if made:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        for name, (text, mode) in files.items():
            written.append(folder / name)
            write_atomic(folder / name, text.encode(), mode)
    except BaseException as err:  # Ctrl-C as well: half a board's identity is of no use
        with contextlib.suppress(OSError):
            for path in written:
                path.unlink(missing_ok=True)
            for path in made:
                path.rmdir()
        if isinstance(err, OSError):
            raise WorldFailed(f"{folder}: could not be made: {err.strerror or err}") from err
        raise


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
