"""The API's routes about the repository: what is in force, uploads, and putting signed metadata in force."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from edgekit.core import checks
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import sync_folder
from edgekit.fleet import audit
from edgekit.fleet.access import Who
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.context import Context
from edgekit.fleet.keeper import board_problems
from edgekit.repo.metadata import Current, entries, measure_bytes, read_current, targets_bytes
from edgekit.repo.publish import publish, publish_measure
from edgekit.repo.status import describe, expiry_problems

_STALE_UPLOAD_S = 86_400.0


def add_repository_routes(router: APIRouter, context: Context) -> None:
    """/repo."""
    config = context.config

    @router.get("/repo")
    def repository() -> dict[str, Any]:
        """The metadata in force: versions, expiry, targets."""
        return {"v": 1, **repository_state(context)}

    @router.get("/repo/targets")
    def targets_metadata() -> Response:
        """The signed targets metadata in force, byte for byte: what the next version is signed on."""
        return Response(targets_bytes(config.repository), media_type="application/json")

    @router.get("/repo/measure")
    def measure_metadata() -> Response:
        """The signed measure metadata in force, byte for byte."""
        return Response(measure_bytes(config.repository), media_type="application/json")

    @router.post("/repo/measure")
    async def publish_rounds(request: Request, who: Who) -> dict[str, Any]:
        """Put signed measure metadata in force: it must be the next version, and its rounds uploaded."""
        data = await request.body()
        current = await run_in_threadpool(_publish, config, data, context.now(), publish_measure)
        await run_in_threadpool(_note, context, who, "measure", current)
        return {"v": 1, **describe(current, context.now())}

    @router.put("/repo/bundles/{sha256}", status_code=201)
    async def upload(sha256: str, request: Request) -> dict[str, Any]:
        """Take a bundle's file in, to be published by the metadata that names it."""
        checks.sha256(sha256, "sha256")
        await run_in_threadpool(_forget_stale_uploads, config.incoming, context.clock())
        size = await _receive(request, config.incoming / f"{sha256}.edge", sha256, config.max_bundle_bytes)
        return {"v": 1, "sha256": sha256, "size": size}

    @router.post("/repo/targets")
    async def publish_targets(request: Request, who: Who) -> dict[str, Any]:
        """Put signed targets metadata in force: it must be the next version, and its bundles uploaded."""
        data = await request.body()
        current = await run_in_threadpool(_publish, config, data, context.now(), publish)
        await run_in_threadpool(_note, context, who, "targets", current)
        return {"v": 1, **describe(current, context.now())}


def repository_state(context: Context) -> dict[str, Any]:
    """The metadata in force, and one line per problem, those of boards as well. Raises BadInput, WorldFailed."""
    current, now = read_current(context.config.repository), context.now()
    with context.store.read() as connection:
        kept = board_problems(connection)
    return {**describe(current, now), "problems": [*expiry_problems(current, now), *kept]}


_Publisher = Callable[[Path, bytes, Mapping[str, Path], datetime], Current]


def _publish(config: FleetConfig, data: bytes, now: datetime, into: _Publisher) -> Current:
    uploads = {path.stem: path for path in config.incoming.glob("*.edge")}
    current = into(config.repository, data, uploads, now)
    for metadata in filter(None, (current.targets, current.measure)):
        for entry in entries(metadata.signed).values():
            if entry.sha256 in uploads:
                uploads[entry.sha256].unlink(missing_ok=True)
    return current


def _note(context: Context, who: str, role: str, current: Current) -> None:
    """After the fact: what is in force is so whether or not this can be written down."""
    metadata = current.measure if role == "measure" else current.targets
    if metadata is None:
        return
    names = sorted(entry.target.label for entry in entries(metadata.signed).values())
    detail = {"version": metadata.signed.version, "targets": names[-100:]}
    with context.store.write() as connection:
        audit.note(connection, context.clock(), who, "repo.publish", f"repo:{role}", detail)


async def _receive(request: Request, path: Path, sha256: str, most: int) -> int:
    """Stream the request's body to `path`, whole and with the right hash or not at all; its size."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise BadInput(f"a bundle may be at most {most} bytes here (max_bundle_mb)")
                digest.update(chunk)
                await run_in_threadpool(file.write, chunk)
            if digest.hexdigest() != sha256:
                raise BadInput(
                    f"the bundle arrived with another sha256 ({digest.hexdigest()}) than announced"
                )
            await run_in_threadpool(_sync, file.fileno())
        temporary.replace(path)
        await run_in_threadpool(sync_folder, path.parent)
    except OSError as err:
        raise WorldFailed(f"the bundle could not be stored: {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _forget_stale_uploads(folder: Path, now: float) -> None:
    """Remove what was uploaded and never published."""
    for path in folder.iterdir():
        try:
            if now - path.stat().st_mtime > _STALE_UPLOAD_S:
                path.unlink()
        except OSError:
            continue
