"""`edgekit fleet enroll`: give boards their identity, each as a folder to be copied to it.

The private key is drawn here and goes nowhere but into the folder: the server gets a request (CSR) and signs it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.fleet.folder import CONFIG, check_free, files_of, is_complete, write_folder
from edgekit.cli.options import json_option
from edgekit.cli.output import console, print_json, progress
from edgekit.cli.server import client_of, server_options
from edgekit.client import Client
from edgekit.core import checks
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.profile import known_profiles

COLUMNS = ("name", "profile", "tags")
_MAX_LIST = 16 * 2**20
_SHOWN_PROBLEMS = 10
_UNTOLD = "The broker was not told: let it read its password file again (SIGHUP)."


@dataclass(frozen=True)
class Row:
    """One board of a list."""

    name: str
    profile: str | None
    tags: tuple[str, ...]


@click.command(
    epilog="Example:  edgekit fleet enroll pi5-a --profile raspberrypi5 --tag site-a -o pi5-a --server https://fleet:8080"
)
@click.argument("name", required=False)
@click.option(
    "--csv",
    "list_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Enroll many: a line each of name,profile,tags (tags with spaces between; profile and tags may be empty).",
)
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
    help="Folder to write, to be copied to the board: a new one, or an empty one (which keeps its mode). "
    "With --csv: the folder above theirs.",
)
@click.option(
    "--again",
    is_flag=True,
    help="The board is known, or was revoked: give it new credentials in place of the old.",
)
@server_options
@json_option
def enroll(
    name: str | None,
    list_file: Path | None,
    profile: str | None,
    tags: tuple[str, ...],
    folder: Path,
    again: bool,
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Enroll a board called NAME: write its agent.toml, roots of trust, key, certificate and credentials into a folder.

    The folder holds secrets: whoever has it is that board. The private key is made here, on the board or on the
    operator's machine, and never leaves the folder.

    With --csv every line is checked before the first board is enrolled. A board whose folder is there already is left
    alone, so the same command goes on where it was interrupted. Exit code 1: some boards could not be enrolled.
    """
    if (name is None) == (list_file is None):
        raise BadInput("give either NAME or --csv FILE")
    if list_file is not None:
        if profile is not None or tags:
            raise BadInput("--profile and --tag stand in the lines of --csv FILE")
        rows = read_list(list_file)
        return _enroll_list(client_of(server, token_file), rows, folder, again=again, as_json=as_json)
    checks.name(name, "NAME")
    _check_profile(profile, "--profile")
    check_free(folder)  # before the server is asked: it tells the secrets once
    row = Row(str(name), profile, tags)
    answer, written = _enroll(client_of(server, token_file), row, folder, again=again)
    if as_json:
        shown = {key: answer[key] for key in ("name", "fleet", "profile", "tags", "broker_reloaded")}
        print_json({**shown, "folder": str(folder), "files": written})
        return 0
    console.print(Text(f"{name} is enrolled; copy {folder} to the board and run there:"), soft_wrap=True)
    console.print(Text(f"  edgekit agent --config {folder.name}/{CONFIG}"), soft_wrap=True)
    if not answer["broker_reloaded"]:
        console.print(_UNTOLD)
    if profile is None:
        console.print(f"Set device.profile in {CONFIG} before that: no --profile was given.")
    return 0


def _enroll(client: Client, row: Row, folder: Path, *, again: bool) -> tuple[dict[str, Any], list[str]]:
    """Ask the server and write the folder; what it said, and the files."""
    fleet = client.fleet()
    key = csr = None
    if fleet["certificates"]:
        from edgekit.agent.identity import (
            key_pem,
            new_key,
            request,
        )  # the board's half: the key is drawn there

        drawn = new_key()
        key, csr = key_pem(drawn).decode("ascii"), request(drawn, f"{fleet['fleet']}/{row.name}")
    answer = client.enroll(row.name, row.profile, row.tags, again=again, csr=csr)
    files = files_of(answer, key)
    write_folder(folder, files)
    return answer, list(files)


# --- many ---


def read_list(path: Path) -> list[Row]:
    """The boards in a CSV file. Raises BadInput with everything that is wrong with it, by line; WorldFailed."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file.read(_MAX_LIST).splitlines()))
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise BadInput(f"{path}: must be a CSV file in UTF-8: {one_line(err)}") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    rows: dict[str, Row] = {}
    problems = []
    for number, cells in enumerate(lines, 1):
        words = [cell.strip() for cell in cells]
        if not any(words) or (number == 1 and words[0] == COLUMNS[0]):
            continue
        try:
            row = _row(words)
            if row.name in rows:
                raise BadInput(f"{row.name} stands there twice")
            rows[row.name] = row
        except BadInput as err:
            problems.append(f"line {number}: {one_line(err)}")
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise BadInput(f"{path}: nobody was enrolled: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    if not rows:
        raise BadInput(f"{path}: must hold a line of {','.join(COLUMNS)} for each board, and holds none")
    return list(rows.values())


def _row(words: Sequence[str]) -> Row:
    if len(words) > len(COLUMNS):
        raise BadInput(f"must be {','.join(COLUMNS)}, got {len(words)} columns")
    name, profile, tags = (*words, "", "")[: len(COLUMNS)]
    checks.name(name, "name")
    _check_profile(profile or None, "profile")
    return Row(
        name, profile or None, tuple(checks.name(tag, "tags") for tag in tags.replace(";", " ").split())
    )


def _check_profile(profile: str | None, key: str) -> None:
    if profile is not None and profile not in known_profiles():
        raise BadInput(f"{key} must be one of {', '.join(known_profiles())}, got {profile!r}")


def _enroll_list(client: Client, rows: Sequence[Row], folder: Path, *, again: bool, as_json: bool) -> int:
    done: list[dict[str, Any]] = []
    told = True
    with progress() as shown:
        task = shown.add_task("enroll", total=len(rows))
        for result in _each(client, rows, folder, again=again):
            shown.advance(task)
            told &= result.pop("broker_reloaded", True)
            done.append(result)
    count = {state: sum(row["state"] == state for row in done) for state in ("enrolled", "there", "failed")}
    left = len(rows) - len(done)
    if as_json:
        print_json({"boards": done, "left": left, "broker_reloaded": told})
    else:
        for row in done:
            if row["state"] == "failed":
                console.print(Text.assemble((f"{row['name']}: ", "red"), row["why"]), soft_wrap=True)
        said = f"{count['enrolled']} enrolled, {count['there']} were already, {count['failed']} failed"
        console.print(f"{said}{f', {left} not tried' if left else ''}; folders in {folder}", soft_wrap=True)
        if not told:
            console.print(_UNTOLD)
    return WorldFailed.exit_code if left else int(count["failed"] > 0)


def _each(client: Client, rows: Sequence[Row], folder: Path, *, again: bool) -> Iterator[dict[str, Any]]:
    """What became of each board; ends early where the server or the disk fails, for the next would fare no better."""
    for row in rows:
        own = folder / row.name
        result: dict[str, Any] = {"name": row.name, "folder": str(own), "state": "enrolled", "why": None}
        if is_complete(own):
            yield {**result, "state": "there"}
            continue
        try:
            check_free(own)
            answer, _ = _enroll(client, row, own, again=again)
        except WorldFailed as err:
            yield {**result, "state": "failed", "why": one_line(err)}
            return
        except BadInput as err:
            yield {**result, "state": "failed", "why": one_line(err)}
            continue
        yield {**result, "broker_reloaded": answer["broker_reloaded"]}
