"""The API's routes about the fleet as a whole."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from edgekit.fleet import views
from edgekit.fleet.api_repository import repository_state
from edgekit.fleet.context import Context, Window


def add_fleet_routes(router: APIRouter, context: Context) -> None:
    """/status, /fleet."""
    config, store = context.config, context.store

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
