"""The JSON API, `/api/v1`: what the command line and other programs ask of a server. Every route wants the token."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from edgekit import __version__
from edgekit.core import checks
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.files import sync_folder
from edgekit.core.policy import PolicySpec
from edgekit.fleet import jobs, views
from edgekit.fleet.board import board_router
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.configure import Wanted, create_settings_job
from edgekit.fleet.enroll import (
    Taken,
    board_files,
    board_of,
    enroll,
    new_certificate,
    revoke,
    write_broker_files,
)
from edgekit.fleet.guard import Guard
from edgekit.fleet.keeper import board_problems
from edgekit.fleet.repository import repository_router
from edgekit.fleet.stick import stick_router
from edgekit.fleet.store import Store
from edgekit.repo.add import Conflict
from edgekit.repo.metadata import (
    Current,
    entries,
    measure_bytes,
    measure_of,
    read_current,
    targets_bytes,
)
from edgekit.repo.publish import publish, publish_measure
from edgekit.repo.revoke import revoked_labels
from edgekit.repo.status import describe, expiry_problems

log = logging.getLogger("edgekit.fleet.api")

PREFIX = "/api/v1"
_MAX_TAGS = 32
_STALE_UPLOAD_S = 86_400.0
_MAX_DAYS = 3660.0


@dataclass(frozen=True)
class Context:
    """What the routes work on. address: where this server is reached, for boards where no public_url is configured."""

    config: FleetConfig
    store: Store
    token: str = field(repr=False)
    address: Callable[[], str]
    clock: Callable[[], float] = time.time

    def now(self) -> datetime:
        """The time as python-tuf wants it."""
        return datetime.fromtimestamp(self.clock(), timezone.utc)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewDevice(_Body):
    """A board to enroll. again: it is known, and gets new credentials in place of the old.

    csr: its request for a certificate (PEM, common name `fleet/device`), where the broker speaks TLS.
    """

    name: str
    profile: str | None = None
    tags: list[str] = Field(default_factory=list, max_length=_MAX_TAGS)
    again: bool = False
    csr: str | None = None


class NewJob(_Body):
    """A published target for the boards a selector means. policy: as core.policy writes it."""

    target: str
    to: str = Field(min_length=1, max_length=4096)
    policy: dict[str, Any] | None = None
    interval_s: float | None = Field(None, ge=0.1, le=86400, allow_inf_nan=False)
    expires_s: float = Field(jobs.DEFAULT_LIFE_S, gt=0, le=_MAX_DAYS * 86400, allow_inf_nan=False)


class NewSettings(_Body):
    """Settings for the boards a selector means. config: dotted key -> value, null takes one back."""

    to: str = Field(min_length=1, max_length=4096)
    config: dict[str, bool | int | float | str | None] = Field(default_factory=dict, max_length=100)
    policy: dict[str, Any] | None = None
    interval_s: float | None = Field(None, ge=0.1, le=86400, allow_inf_nan=False)
    reset: bool = False
    expires_s: float = Field(jobs.DEFAULT_LIFE_S, gt=0, le=_MAX_DAYS * 86400, allow_inf_nan=False)


class NewUpdate(_Body):
    """A published environment for the agents of the boards a selector means."""

    target: str
    to: str = Field(min_length=1, max_length=4096)
    expires_s: float = Field(jobs.DEFAULT_LIFE_S, gt=0, le=_MAX_DAYS * 86400, allow_inf_nan=False)


class NewMeasure(_Body):
    """A published round of candidates for the board it is called after."""

    target: str
    expires_s: float = Field(jobs.MEASURE_LIFE_S, gt=0, le=86400, allow_inf_nan=False)


Window = Annotated[
    float, Query(gt=0, le=_MAX_DAYS * 86400, allow_inf_nan=False, description="seconds to look back")
]


def make_app(context: Context) -> FastAPI:
    """The web process without its page: API and repository behind the guard."""
    app = FastAPI(title="edgekit fleet", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(api_router(context, app))
    app.include_router(stick_router(context.config, context.store, context.clock))
    app.include_router(repository_router(context.config))
    app.include_router(board_router(context.config, context.store, context.clock))
    app.add_middleware(Guard, token=context.token, is_board=lambda token: _is_board(context.store, token))
    app.add_exception_handler(EdgekitError, _edgekit_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    return app


def api_router(context: Context, app: FastAPI) -> APIRouter:
    """All routes of version 1."""
    router = APIRouter(prefix=PREFIX)
    config, store = context.config, context.store
    enrolling = threading.Lock()

    @router.get("/openapi.json", include_in_schema=False)
    def schema() -> dict[str, Any]:
        return app.openapi()

    @router.get("/status")
    def status(window_s: Window = views.DEFAULT_WINDOW_S) -> dict[str, Any]:
        """The whole fleet in one object."""
        with store.read() as connection:
            found = views.fleet_status(connection, context.clock(), window_s)
        state = repository_state(context)
        repository = {key: state[key] for key in ("roles", "problems")}
        return {"v": 1, "fleet": config.fleet, **found, "repository": repository}

    @router.get("/fleet")
    def fleet() -> dict[str, Any]:
        """What a board's request for a certificate must know: the fleet's name, and whether one is wanted."""
        return {"v": 1, "fleet": config.fleet, "certificates": config.broker.tls}

    @router.get("/devices")
    def list_devices(window_s: Window = views.DEFAULT_WINDOW_S) -> dict[str, Any]:
        """One row per board."""
        with store.read() as connection:
            rows = views.device_rows(connection, context.clock(), window_s)
        return {"v": 1, "window_s": window_s, "devices": rows}

    @router.get("/devices/{name}")
    def one_device(name: str, window_s: Window = views.DEFAULT_WINDOW_S) -> dict[str, Any]:
        """A board with its figures over time, events and jobs."""
        with store.read() as connection:
            return {
                "v": 1,
                "window_s": window_s,
                "device": views.device_detail(connection, name, context.clock(), window_s),
            }

    @router.post("/devices", status_code=201)
    def enroll_device(new: NewDevice) -> dict[str, Any]:
        """Enroll a board; the answer holds its secrets, which are told this once."""
        name = checks.name(new.name, "name")
        profile = checks.optional(new.profile, "profile", checks.name)
        tags = [checks.name(tag, "tags") for tag in new.tags]
        files = board_files(config, context.address())
        certificate = None
        if config.broker.tls:
            certificate = new_certificate(config, name, checks.text(new.csr, "csr"))
        with enrolling:
            with store.write() as connection:
                now = context.clock()
                credentials = enroll(
                    connection, name, profile, tags, now, again=new.again, certificate=certificate
                )
            reloaded = write_broker_files(config, store)
        return {
            "v": 1,
            "name": name,
            "profile": profile,
            "tags": tags,
            **files,
            "mqtt_password": credentials.mqtt_password,
            "repo_token": credentials.repo_token,
            "certificate": certificate and certificate.pem,
            "broker_reloaded": reloaded,
        }

    @router.post("/devices/{name}/revoke")
    def revoke_device(name: str) -> dict[str, Any]:
        """Let a board's certificate, password and token count no more, at once."""
        with enrolling:
            with store.write() as connection:
                since = revoke(connection, name, context.clock())
            reloaded = write_broker_files(config, store)
        return {"v": 1, "name": name, "revoked_at": since, "broker_reloaded": reloaded}

    @router.get("/jobs")
    def list_jobs() -> dict[str, Any]:
        """The newest jobs first."""
        with store.read() as connection:
            return {"v": 1, "jobs": views.job_rows(connection)}

    @router.get("/jobs/{job_id}")
    def one_job(job_id: str) -> dict[str, Any]:
        """A job and its state on each board."""
        with store.read() as connection:
            return {"v": 1, "job": views.job_detail(connection, job_id)}

    @router.post("/jobs", status_code=201)
    def new_job(new: NewJob) -> dict[str, Any]:
        """Ask boards to run a published target."""
        policy = checks.optional(new.policy, "policy", PolicySpec.parse)
        targets = [entry.target for entry in entries(read_current(config.repository).targets.signed).values()]
        target = jobs.find_target(targets, new.target)
        order = jobs.Order(target, new.to, policy, new.interval_s, new.expires_s)
        with store.write() as connection:
            chosen = jobs.selected(jobs.known_devices(connection), new.to)
            job_id = jobs.create_job(connection, order, chosen, context.clock())
            return {"v": 1, "job": views.job_detail(connection, job_id)}

    @router.post("/settings", status_code=201)
    def new_settings(new: NewSettings) -> dict[str, Any]:
        """Change boards' settings; what they run stays."""
        policy = checks.optional(new.policy, "policy", PolicySpec.parse)
        if not (new.config or new.reset or policy or new.interval_s):
            raise BadInput("settings must be given: config, policy, interval_s or reset")
        for key, value in new.config.items():
            checks.text(key, "config")
            if isinstance(value, float) and not math.isfinite(value):
                raise checks.wrong(f"config: {key}", "a finite number", value)
        wanted = Wanted(new.to, new.config, policy, new.interval_s, new.reset, new.expires_s)
        revoked = revoked_labels(read_current(config.repository).targets.signed)
        with store.write() as connection:
            chosen = jobs.selected(jobs.known_devices(connection), new.to)
            job_id = create_settings_job(connection, wanted, chosen, context.clock(), revoked)
            return {"v": 1, "job": views.job_detail(connection, job_id)}

    @router.post("/agents", status_code=201)
    def new_update(new: NewUpdate) -> dict[str, Any]:
        """Ask boards to put their agent into a published environment."""
        targets = [entry.target for entry in entries(read_current(config.repository).targets.signed).values()]
        target = jobs.find_target(targets, new.target, jobs.AGENT)
        with store.write() as connection:
            chosen = jobs.selected(jobs.known_devices(connection), new.to)
            now = context.clock()
            job_id = jobs.create_update(connection, target, new.to, chosen, new.expires_s, now)
            return {"v": 1, "job": views.job_detail(connection, job_id)}

    @router.post("/measure", status_code=201)
    def new_measure(new: NewMeasure) -> dict[str, Any]:
        """Ask a board to time a published round of candidates, once."""
        current = measure_of(read_current(config.repository), config.repository)
        targets = [entry.target for entry in entries(current.signed).values()]
        target = jobs.find_target(targets, new.target, jobs.MEASURE)
        with store.write() as connection:
            (device,) = jobs.selected(jobs.known_devices(connection), f"name={target.name}")
            job_id = jobs.create_measure(connection, target, device, new.expires_s, context.clock())
            return {"v": 1, "job": views.job_detail(connection, job_id)}

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
    async def publish_rounds(request: Request) -> dict[str, Any]:
        """Put signed measure metadata in force: it must be the next version, and its rounds uploaded."""
        data = await request.body()
        current = await run_in_threadpool(_publish, config, data, context.now(), publish_measure)
        return {"v": 1, **describe(current, context.now())}

    @router.put("/repo/bundles/{sha256}", status_code=201)
    async def upload(sha256: str, request: Request) -> dict[str, Any]:
        """Take a bundle's file in, to be published by the metadata that names it."""
        checks.sha256(sha256, "sha256")
        await run_in_threadpool(_forget_stale_uploads, config.incoming, context.clock())
        size = await _receive(request, config.incoming / f"{sha256}.edge", sha256, config.max_bundle_bytes)
        return {"v": 1, "sha256": sha256, "size": size}

    @router.post("/repo/targets")
    async def publish_targets(request: Request) -> dict[str, Any]:
        """Put signed targets metadata in force: it must be the next version, and its bundles uploaded."""
        data = await request.body()
        current = await run_in_threadpool(_publish, config, data, context.now(), publish)
        return {"v": 1, **describe(current, context.now())}

    return router


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


def _is_board(store: Store, token: str) -> bool:
    with store.read() as connection:
        return board_of(connection, token) is not None


# --- errors: one line of JSON each ---


def _edgekit_error(_request: Request, err: Exception) -> Response:
    codes = ((views.Unknown, 404), (Conflict, 409), (Taken, 409), (WorldFailed, 503))
    status = next((code for kind, code in codes if isinstance(err, kind)), 400)
    if status == 503:
        log.warning("%s", one_line(err))
    return JSONResponse({"error": one_line(err)}, status)


def _validation_error(_request: Request, err: Exception) -> Response:
    found = err.errors() if isinstance(err, RequestValidationError) else []
    lines = [f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}" for e in found]
    return JSONResponse({"error": "; ".join(lines)[:1000] or "the request cannot be read"}, 400)


def _http_error(_request: Request, err: Exception) -> Response:
    status = err.status_code if isinstance(err, HTTPException) else 500
    detail = err.detail if isinstance(err, HTTPException) else "error"
    return JSONResponse({"error": str(detail)}, status)


def _defect(_request: Request, err: Exception) -> Response:
    log.error("a request failed", exc_info=err)
    return JSONResponse({"error": "the server has a defect; its log says more"}, 500)
