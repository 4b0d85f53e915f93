"""The API's routes about boards: look, enroll, revoke."""

from __future__ import annotations

import threading
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import JSONResponse, Response

from edgekit.core import checks
from edgekit.fleet import audit, views
from edgekit.fleet.access import Who
from edgekit.fleet.board_views import SORTS, STATES
from edgekit.fleet.context import Body, Context, Filter, Limit, Offset, Window
from edgekit.fleet.enroll import board_files, enroll, new_certificate, revoke, write_broker_files
from edgekit.fleet.job_views import device_job_page

_MAX_TAGS = 32


class NewDevice(Body):
    """A board to enroll. again: it is known, and gets new credentials in place of the old.

    csr: its request for a certificate (PEM, common name `fleet/device`), where the broker speaks TLS.
    """

    name: str
    profile: str | None = None
    tags: list[str] = Field(default_factory=list, max_length=_MAX_TAGS)
    again: bool = False
    csr: str | None = None


def add_board_routes(router: APIRouter, context: Context) -> None:
    """/devices."""
    config, store = context.config, context.store
    enrolling = threading.Lock()

    @router.get("/devices")
    def list_devices(
        window_s: Window = views.DEFAULT_WINDOW_S,
        offset: Offset = 0,
        limit: Limit = 50,
        search: Annotated[str, Query(max_length=64, description="part of a name")] = "",
        profile: Filter = None,
        bundle: Annotated[str | None, Query(max_length=256, description="NAME/VERSION, or NAME")] = None,
        state: Annotated[str | None, Query(max_length=32, description=", ".join(STATES))] = None,
        tag: Filter = None,
        sort: Annotated[str, Query(max_length=32, description=", ".join(SORTS))] = "name",
        descending: bool = False,
    ) -> Response:
        """Some of the boards, one row each, and how many there are in `total`. Figures sorted by are of 24 hours."""
        with store.read() as connection:
            found = views.device_page(
                connection,
                context.clock(),
                window_s=window_s,
                search=search,
                profile=profile,
                bundle=bundle,
                state=state,
                tag=tag,
                sort=sort,
                descending=descending,
                offset=offset,
                limit=limit,
            )
        return JSONResponse({"v": 1, "window_s": window_s, "offset": offset, **found})

    @router.get("/devices/{name}/events")
    def device_events(name: str, offset: Offset = 0, limit: Limit = 50) -> Response:
        """A board's events, newest first."""
        with store.read() as connection:
            return JSONResponse(
                {
                    "v": 1,
                    "offset": offset,
                    **views.event_page(connection, device=name, offset=offset, limit=limit),
                }
            )

    @router.get("/devices/{name}/jobs")
    def device_jobs(name: str, offset: Offset = 0, limit: Limit = 50) -> Response:
        """A board's jobs, newest first."""
        with store.read() as connection:
            return JSONResponse(
                {"v": 1, "offset": offset, **device_job_page(connection, name, offset=offset, limit=limit)}
            )

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
    def enroll_device(new: NewDevice, who: Who) -> dict[str, Any]:
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
                    connection,
                    name,
                    profile,
                    tags,
                    now,
                    again=new.again,
                    certificate=certificate,
                    most=config.limits.devices,
                )
                told = {"profile": profile, "tags": tags, "again": new.again}
                audit.note(connection, now, who, "board.enroll", f"board:{name}", told)
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
    def revoke_device(name: str, who: Who) -> dict[str, Any]:
        """Let a board's certificate, password and token count no more, at once."""
        with enrolling:
            with store.write() as connection:
                now = context.clock()
                since = revoke(connection, name, now)
                audit.note(connection, now, who, "board.revoke", f"board:{name}")
            reloaded = write_broker_files(config, store)
        return {"v": 1, "name": name, "revoked_at": since, "broker_reloaded": reloaded}
