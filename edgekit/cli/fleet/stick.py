"""`edgekit fleet stick`: a folder for a USB stick, with what boards need that no network reaches."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, counted, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.client import Client
from edgekit.core import checks
from edgekit.core.checks import canonical_json
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import sync_folder, write_atomic

REPOSITORY, COMMANDS = "repository", "commands"


@click.command(
    epilog="Example:  edgekit fleet stick pi5-a pi5-b -o /media/me/STICK/edgekit --server http://127.0.0.1:8080"
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everyone", is_flag=True, help="Every enrolled board.")
@click.option("--to", "selector", metavar="SELECTOR", help="Boards as push selects them, such as tag=site-a.")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write, as boards look for it: edgekit at the top of a stick. An older one is replaced.",
)
@server_options
@json_option
def stick(
    names: tuple[str, ...],
    everyone: bool,
    selector: str | None,
    folder: Path,
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Write what boards without a network need: signed metadata, their bundles, a signed command for each.

    Push first; then carry the folder to boards whose agent.toml says where sticks appear (update.sticks). They check
    everything as if it came over the network. What they report is sent when they have one again.

    Exit codes: 0 done; 1 done, but not every board gets a command; 2 no board does.
    """
    if (bool(names) + everyone + (selector is not None)) != 1:
        raise click.UsageError("give board NAMEs, --all or --to SELECTOR, and only one of them")
    to = selector or (",".join(f"name={checks.name(name, 'NAME')}" for name in names) if names else "all")
    _check_replaceable(folder)
    client = client_of(server, token_file)
    answer = client.stick(to)
    served = {name: board["desired"] for name, board in answer["boards"].items() if board["desired"]}
    left = {name: board["why"] for name, board in answer["boards"].items() if not board["desired"]}
    left |= {name: "it is not enrolled" for name in names if name not in answer["boards"]}
    if not served:
        raise BadInput("; ".join(f"{name}: {why}" for name, why in sorted(left.items())))
    _write(client, answer, served, folder)
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "boards": {name: desired["target"] for name, desired in served.items()},
                "left_out": left,
                "expires": answer["expires"],
                "files": sorted(answer["files"]),
            }
        )
        return 1 if left else 0
    for name, desired in served.items():
        until = _day(min(answer["expires"], desired["expires"]))
        what = desired["target"] or "settings only"
        console.print(Text(f"{name}: {what} (job {desired['job_id']}), good until {until}"), soft_wrap=True)
    for name, why in sorted(left.items()):
        console.print(Text.assemble(f"{name}: ", ("left out: ", "yellow"), why), soft_wrap=True)
    console.print(
        Text(f"{folder}: {counted(len(served), 'board')}, {counted(len(answer['files']), 'bundle')}"),
        soft_wrap=True,
    )
    return 1 if left else 0


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _check_replaceable(folder: Path) -> None:
    """Raises BadInput where something else than an older stick stands there, or no folder around it."""
    if not folder.absolute().parent.is_dir():
        raise BadInput(f"{folder}: {folder.absolute().parent} is no folder")
    try:
        found = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as err:
        raise BadInput(f"{folder}: must be a folder to be written: {err.strerror or err}") from err
    if folder.is_symlink() or (found and not found <= {REPOSITORY, COMMANDS}):
        others = ", ".join(sorted(found - {REPOSITORY, COMMANDS})[:3]) or "a link"
        raise BadInput(f"{folder}: is replaced as a whole, and holds what is no stick's: {others}")


def _write(client: Client, answer: Mapping[str, Any], served: Mapping[str, Any], folder: Path) -> None:
    """Everything beside the folder first, safe on the disk; then it takes the folder's name."""
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        beside.mkdir()
        for name, text in _named(answer["metadata"]):
            _put(beside / REPOSITORY / "metadata" / name, text.encode())
        (beside / REPOSITORY / "targets").mkdir()
        for path, file in _named(answer["files"]):
            _fetch(client, path, file, beside / REPOSITORY / "targets" / path)
        for name, desired in served.items():
            _put(beside / COMMANDS / str(answer["fleet"]) / f"{name}.json", canonical_json(desired))
        for inner in (*(found for found in beside.rglob("*") if found.is_dir()), beside):
            sync_folder(inner)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        sync_folder(folder.parent)
    except OSError as err:
        raise WorldFailed(f"{folder}: could not be written: {err.strerror or err}") from err
    finally:  # Ctrl-C as well
        with contextlib.suppress(OSError):
            if old.exists() and not folder.exists():
                old.rename(folder)
        for rest in (beside, old):
            shutil.rmtree(rest, ignore_errors=True)


def _named(files: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Files by name; one that would lie elsewhere is the server's mistake."""
    for name, content in files.items():
        if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
            raise WorldFailed(f"the server names a file {name!r}")
        yield name, content


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def _fetch(client: Client, path: str, wanted: Mapping[str, Any], to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w+b") as file:
        client.fetch_target(path, file)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != wanted["sha256"]:
        raise WorldFailed(f"{path}: arrived with another sha256 than the signed metadata says: try again")
