"""A board's folder: what enrolment writes, to be copied to the board. Asks no server."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic

CONFIG, ROOT, CONTROL_KEY, CA = "agent.toml", "root.json", "control.pub", "ca.pem"
PASSWORD, TOKEN, CERTIFICATE, KEY = "mqtt.password", "repo.token", "board.pem", "board.key"
SECRETS = (PASSWORD, TOKEN, KEY)


def files_of(answer: Mapping[str, Any], key: str | None) -> dict[str, tuple[str, int]]:
    """Name -> content and mode, from what the server said and the key that was drawn here. agent.toml is the last."""
    files = {
        ROOT: (answer["root"], 0o644),
        CONTROL_KEY: (answer["control_key"], 0o644),
        PASSWORD: (f"{answer['mqtt_password']}\n", 0o600),
        TOKEN: (f"{answer['repo_token']}\n", 0o600),
    }
    if answer["ca"]:
        files[CA] = (answer["ca"], 0o644)
    if answer["certificate"] and key is not None:
        files[CERTIFICATE] = (answer["certificate"], 0o644)
        files[KEY] = (key, 0o600)
    return {**files, CONFIG: (agent_config(answer), 0o644)}


def is_complete(folder: Path) -> bool:
    """Whether a board was enrolled into it: its agent.toml is written last."""
    return (folder / CONFIG).is_file()


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
    broker, repository = answer["broker"], answer["repository"]
    identity = (
        f'\n[identity]\ncertificate = "{CERTIFICATE}"\nkey = "{KEY}"\n' if answer["certificate"] else ""
    )
    broker_ca = f'\nca = "{CA}"' if broker["tls"] else ""
    repository_ca = f'\nca = "{CA}"' if repository["tls"] else ""
    named = f"profile = {text(profile)}" if profile else '# profile = "raspberrypi5"   (edgekit profile list)'
    return f"""\
# Enrolled as {answer["name"]} of fleet {answer["fleet"]}. Paths are relative to this file.

[device]
fleet = {text(answer["fleet"])}
name = {text(answer["name"])}
{named}
state_dir = "state"

[broker]
host = {text(broker["host"])}
port = {broker["port"]}
username = {text(f"{answer['fleet']}/{answer['name']}")}
password_file = "{PASSWORD}"
tls = {text(broker["tls"])}{broker_ca}

[repository]
url = {text(repository["url"])}
token_file = "{TOKEN}"{repository_ca}
{identity}
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
