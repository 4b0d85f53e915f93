"""The API's routes about the fleet as a whole."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from edgekit.fleet import views
from edgekit.fleet.api_repository import repository_state
from edgekit.fleet.background import background_problems
from edgekit.fleet.context import Context, Filter, Limit, Offset, Window
from edgekit.fleet.retention import disk_problems

Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds")]


def add_fleet_routes(router: APIRouter, context: Context) -> None:
    """/status, /fleet, /events, /bundles."""
    config, store = context.config, context.store

    @router.get("/status")
    def status(window_s: Window = views.DEFAULT_WINDOW_S) -> dict[str, Any]:
        """The whole fleet in one object."""
        with store.read() as connection:
            now = context.clock()
            found = views.fleet_status(connection, now, window_s)
            problems = [*background_problems(connection, now), *disk_problems(connection)]
        state = repository_state(context)
        repository = {key: state[key] for key in ("roles", "problems")}
        return {"v": 1, "fleet": config.fleet, **found, "repository": repository, "problems": problems}

    @router.get("/fleet")
    def fleet() -> dict[str, Any]:
        """What a board's request for a certificate must know: the fleet's name, and whether one is wanted."""
        return {"v": 1, "fleet": config.fleet, "certificates": config.broker.tls}

    @router.get("/events")
    def events(
        offset: Offset = 0,
        limit: Limit = 50,
        kind: Filter = None,
        device: Filter = None,
        since: Moment = None,
        before: Moment = None,
    ) -> Response:
        """Events of all boards, newest first; since and before are Unix seconds."""
        with store.read() as connection:
            found = views.event_page(
                connection, kind=kind, device=device, since=since, before=before, offset=offset, limit=limit
            )
        return JSONResponse({"v": 1, "offset": offset, **found})

    @router.get("/bundles")
    def bundles(window_s: Window = views.DEFAULT_WINDOW_S) -> Response:
        """Every bundle version that boards run or ran within the window, with its boards and figures."""
        with store.read() as connection:
            rows = views.bundle_rows(connection, context.clock(), window_s)
        return JSONResponse({"v": 1, "window_s": window_s, "bundles": rows})

    @router.get("/bundles/{name}")
    def bundle(name: str, window_s: Window = views.DEFAULT_WINDOW_S) -> Response:
        """A bundle's versions by profile and over time, and boards before and after they changed version."""
        with store.read() as connection:
            found = views.bundle_detail(connection, name, context.clock(), window_s)
        return JSONResponse({"v": 1, "window_s": window_s, "bundle": found})

    @router.get("/status/series")
    def series(
        window_s: Window = views.DEFAULT_WINDOW_S, profile: Filter = None, bundle: Filter = None
    ) -> Response:
        """The fleet's figures over time; of one profile or bundle where asked."""
        with store.read() as connection:
            found = views.fleet_points(connection, context.clock(), window_s, profile=profile, bundle=bundle)
        return JSONResponse({"v": 1, "window_s": window_s, "series": found})
