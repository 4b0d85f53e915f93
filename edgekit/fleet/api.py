"""The JSON API, `/api/v1`: what the command line and other programs ask of a server. Every route wants the token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI

from edgekit import __version__
from edgekit.fleet.alerts.api import add_alert_routes
from edgekit.fleet.api_accounts import add_account_routes
from edgekit.fleet.api_boards import add_board_routes
from edgekit.fleet.api_errors import add_error_handlers
from edgekit.fleet.api_export import add_export_routes
from edgekit.fleet.api_fleet import add_fleet_routes
from edgekit.fleet.api_jobs import add_job_routes
from edgekit.fleet.api_repository import add_repository_routes
from edgekit.fleet.api_schema import described
from edgekit.fleet.board import board_router
from edgekit.fleet.context import PREFIX, Context
from edgekit.fleet.guard import Guard
from edgekit.fleet.metrics import metrics_router
from edgekit.fleet.repository import repository_router
from edgekit.fleet.rollouts.api import add_rollout_routes
from edgekit.fleet.stick import stick_router

__all__ = ["Context", "api_router", "make_app"]


def make_app(context: Context) -> FastAPI:
    """The web process without its page: API and repository behind the guard."""
    app = FastAPI(
        title="edgekit fleet",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(api_router(context, app))
    app.include_router(stick_router(context.config, context.store, context.clock))
    app.include_router(repository_router(context.config))
    app.include_router(metrics_router(context))
    app.include_router(board_router(context.config, context.store, context.clock))
    app.add_middleware(
        Guard,
        config=context.config,
        store=context.store,
        token=context.token,
        links=context.links,
        clock=context.clock,
    )
    add_error_handlers(app)
    return app


def api_router(context: Context, app: FastAPI) -> APIRouter:
    """All routes of version 1 that speak JSON about the fleet. The nouns' routes stand in api_*.py."""
    router = APIRouter(prefix=PREFIX)
    for add in (
        add_fleet_routes,
        add_export_routes,
        add_board_routes,
        add_job_routes,
        add_repository_routes,
        add_account_routes,
        add_alert_routes,
        add_rollout_routes,
    ):
        add(router, context)

    known: list[dict[str, Any]] = []

    @router.get("/openapi.json", include_in_schema=False)
    def schema() -> dict[str, Any]:
        if not known:
            known.append(described(app.openapi()))
        return known[0]

    return router
