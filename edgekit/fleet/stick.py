"""What goes on a stick for boards that no network reaches: metadata in force, signed commands, which bundles."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query
from starlette.responses import FileResponse, Response

from edgekit.core.errors import WorldFailed
from edgekit.core.target import parse_label, target_path
from edgekit.fleet import jobs, seal
from edgekit.fleet import schema as db
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.repository import missing, published_file
from edgekit.fleet.store import Store
from edgekit.repo.add import Conflict
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import Current, Entry, entries, metadata_folder, read_current

_ROOT = re.compile(r"[1-9]\d{0,9}\.root\.json")
_TRIES = 3


def stick_router(config: FleetConfig, store: Store, clock: Callable[[], float] = time.time) -> APIRouter:
    """/stick and /repo/files/PATH. The guard has checked the API's token."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/stick")
    def stick(to: Annotated[str, Query(min_length=1, max_length=65536)]) -> dict[str, Any]:
        """Everything but the bundles for the boards a selector means; `boards` says why one gets no command."""
        current, metadata = _in_force(config)
        known = entries(current.targets.signed)
        with store.read() as connection:
            chosen = jobs.selected(jobs.known_devices(connection), to)
            commands = _commands(connection, config)
        files, boards = {}, {}
        for device in chosen:
            command = commands.get(device.name)
            why = _why_not(command, known, clock())
            if why is None and command is not None and command["target"] is not None:
                entry = known[target_path(*parse_label(command["target"], "target"))]
                files[entry.target.path] = {"length": entry.length, "sha256": entry.sha256}
            boards[device.name] = {"desired": command if why is None else None, "why": why}
        expires = min(role.signed.expires for role in (current.timestamp, current.snapshot, current.targets))
        return {
            "v": 1,
            "fleet": config.fleet,
            "expires": expires.timestamp(),
            "metadata": metadata,
            "boards": boards,
            "files": files,
        }

    @router.get("/repo/files/{path:path}")
    def file(path: str) -> Response:
        """A published bundle's file."""
        found = published_file(config, path)
        return missing() if found is None else FileResponse(found, media_type="application/octet-stream")

    return router


def _commands(connection: sa.Connection, config: FleetConfig) -> dict[str, dict[str, Any]]:
    """Each board's desired state, signed."""
    key = read_key(config.control_key_file)
    query = sa.select(db.desired, db.devices.c.name).join(db.devices, db.devices.c.id == db.desired.c.device)
    return {
        row.name: {**seal.sealed(seal.desired_of(row, config.fleet).to_json(), key), "v": 1}
        for row in connection.execute(query)
    }


def _why_not(command: Mapping[str, Any] | None, known: Mapping[str, Entry], now: float) -> str | None:
    """Why a command would come to nothing; None where it may do."""
    if command is None:
        return "nothing was pushed to it yet"
    if command["expires"] <= now:
        return f"its job {command['job_id']} has expired: push again"
    if command["target"] is None:
        return None
    entry = known.get(target_path(*parse_label(command["target"], "target")))
    if entry is None or entry.target.state == "revoked":
        return f"{command['target']} is {'not published any more' if entry is None else 'revoked'}"
    return None


def _in_force(config: FleetConfig) -> tuple[Current, dict[str, str]]:
    """The metadata in force, and its files by name: every root, and one timestamp with what it names."""
    folder = metadata_folder(config.repository)
    for _ in range(_TRIES):
        current = read_current(config.repository)
        names = [path.name for path in folder.iterdir() if _ROOT.fullmatch(path.name)]
        names += [
            f"{current.snapshot.signed.version}.snapshot.json",
            f"{current.targets.signed.version}.targets.json",
            "timestamp.json",
        ]
        try:
            files = {name: (folder / name).read_text("utf-8") for name in sorted(names)}
        except OSError as err:
            raise WorldFailed(f"{err.filename}: could not be read: {err.strerror or err}") from err
        if read_current(config.repository).timestamp.signed.version == current.timestamp.signed.version:
            return current, files
    raise Conflict("the repository is being published to: try again")
