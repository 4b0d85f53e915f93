"""The API's routes about rollouts. What they do stands in commands.py and views.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict

from edgekit.fleet.access import Who
from edgekit.fleet.context import Context
from edgekit.fleet.rollouts import commands, views
from edgekit.fleet.rollouts.plan import Plan

Offset = Annotated[int, Query(ge=0, le=10**9)]
Limit = Annotated[int, Query(ge=1, le=500)]
PlanBody = Annotated[dict[str, Any], Body(description="a plan: target and to, the rest has defaults")]


class Resuming(BaseModel):
    """accept: take the current wave for good whatever its gate says."""

    model_config = ConfigDict(extra="forbid", strict=True)
    accept: bool = False


def add_rollout_routes(router: APIRouter, context: Context) -> None:
    """/rollouts."""
    store = context.store

    def targets() -> Any:
        return commands.published(context.config.repository)

    def after(rollout_id: str, change: Callable[[sa.Connection, float], None]) -> dict[str, Any]:
        now = context.clock()
        with store.write() as connection:
            change(connection, now)
        with store.read() as connection:
            return {"v": 1, "rollout": views.rollout_detail(connection, rollout_id, now)}

    @router.post("/rollouts", status_code=201)
    def new_rollout(body: PlanBody, who: Who) -> dict[str, Any]:
        """Begin a rollout: its canary is asked with the background's next step."""
        plan, known, now = Plan.parse(body), targets(), context.clock()
        with store.write() as connection:
            rollout_id = commands.create(connection, plan, known, who, now)
        with store.read() as connection:
            return {"v": 1, "rollout": views.rollout_detail(connection, rollout_id, now)}

    @router.post("/rollouts/preview")
    def preview(body: PlanBody) -> dict[str, Any]:
        """What a plan would do; nothing is stored."""
        plan = Plan.parse(body)
        with store.read() as connection:
            return {"v": 1, "preview": views.preview(connection, plan, targets())}

    @router.get("/rollouts")
    def list_rollouts(limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        """The newest rollouts first."""
        with store.read() as connection:
            return {"v": 1, "rollouts": views.rollout_rows(connection, limit, offset)}

    @router.get("/rollouts/{rollout_id}")
    def one_rollout(rollout_id: str) -> dict[str, Any]:
        """A rollout with its waves, their gates and its audit log."""
        with store.read() as connection:
            return {"v": 1, "rollout": views.rollout_detail(connection, rollout_id, context.clock())}

    @router.get("/rollouts/{rollout_id}/boards")
    def boards(
        rollout_id: str,
        wave: Annotated[int | None, Query(ge=0, le=100)] = None,
        state: Annotated[str | None, Query(max_length=32)] = None,
        search: Annotated[str, Query(max_length=64)] = "",
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> dict[str, Any]:
        """A page of its boards."""
        with store.read() as connection:
            found = views.rollout_boards(connection, rollout_id, wave, state, search, offset, limit)
        return {"v": 1, **found}

    @router.post("/rollouts/{rollout_id}/pause")
    def pause(rollout_id: str, who: Who) -> dict[str, Any]:
        """Begin no new wave and judge nothing until it is resumed."""
        return after(rollout_id, lambda connection, now: commands.pause(connection, rollout_id, who, now))

    @router.post("/rollouts/{rollout_id}/resume")
    def resume(rollout_id: str, who: Who, body: Resuming | None = None) -> dict[str, Any]:
        """Go on."""
        accept = body is not None and body.accept
        return after(
            rollout_id, lambda connection, now: commands.resume(connection, rollout_id, who, now, accept)
        )

    @router.post("/rollouts/{rollout_id}/abort")
    def abort(rollout_id: str, who: Who) -> dict[str, Any]:
        """Begin no new wave, ever; boards keep what they took."""
        return after(rollout_id, lambda connection, now: commands.abort(connection, rollout_id, who, now))

    @router.post("/rollouts/{rollout_id}/rollback")
    def roll_back(rollout_id: str, who: Who) -> dict[str, Any]:
        """Take every board that was asked back to what it ran before."""
        return after(rollout_id, lambda connection, now: commands.roll_back(connection, rollout_id, who, now))
