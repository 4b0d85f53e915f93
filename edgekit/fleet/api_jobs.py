"""The API's routes about jobs: look, and ask boards to run, measure, update, or change their settings."""

from __future__ import annotations

import math
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import JSONResponse, Response

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.policy import PolicySpec
from edgekit.fleet import audit, jobs, views
from edgekit.fleet.access import Who
from edgekit.fleet.configure import Wanted, create_settings_job
from edgekit.fleet.context import MAX_DAYS, Body, Context, Limit, Offset
from edgekit.fleet.job_views import BOARD_STATES, job_with_page
from edgekit.repo.metadata import entries, measure_of, read_current
from edgekit.repo.revoke import revoked_labels


class NewJob(Body):
    """A published target for the boards a selector means. policy: as core.policy writes it."""

    target: str
    to: str = Field(min_length=1, max_length=4096)
    policy: dict[str, Any] | None = None
    interval_s: float | None = Field(None, ge=0.1, le=86400, allow_inf_nan=False)
    expires_s: float = Field(jobs.DEFAULT_LIFE_S, gt=0, le=MAX_DAYS * 86400, allow_inf_nan=False)


class NewSettings(Body):
    """Settings for the boards a selector means. config: dotted key -> value, null takes one back."""

    to: str = Field(min_length=1, max_length=4096)
    config: dict[str, bool | int | float | str | None] = Field(default_factory=dict, max_length=100)
    policy: dict[str, Any] | None = None
    interval_s: float | None = Field(None, ge=0.1, le=86400, allow_inf_nan=False)
    reset: bool = False
    expires_s: float = Field(jobs.DEFAULT_LIFE_S, gt=0, le=MAX_DAYS * 86400, allow_inf_nan=False)


class NewUpdate(Body):
    """A published environment for the agents of the boards a selector means."""

    target: str
    to: str = Field(min_length=1, max_length=4096)
    expires_s: float = Field(jobs.DEFAULT_LIFE_S, gt=0, le=MAX_DAYS * 86400, allow_inf_nan=False)


class NewMeasure(Body):
    """A published round of candidates for the board it is called after."""

    target: str
    expires_s: float = Field(jobs.MEASURE_LIFE_S, gt=0, le=86400, allow_inf_nan=False)


def add_job_routes(router: APIRouter, context: Context) -> None:
    """/jobs, /settings, /agents, /measure."""
    config, store = context.config, context.store

    @router.get("/jobs")
    def list_jobs(offset: Offset = 0, limit: Limit = 100) -> Response:
        """The newest jobs first, with how many boards are in which state."""
        with store.read() as connection:
            return JSONResponse(
                {"v": 1, "offset": offset, **views.job_page(connection, offset=offset, limit=limit)}
            )

    @router.get("/jobs/{job_id}")
    def one_job(
        job_id: str,
        offset: Offset = 0,
        limit: Limit = 200,
        state: Annotated[str | None, Query(max_length=32, description=", ".join(BOARD_STATES))] = None,
        search: Annotated[str, Query(max_length=64, description="part of a board's name")] = "",
    ) -> Response:
        """A job and its state on some of its boards, by name; `total` says how many these are."""
        with store.read() as connection:
            job = job_with_page(connection, job_id, state=state, search=search, offset=offset, limit=limit)
        return JSONResponse({"v": 1, "job": job})

    @router.post("/jobs", status_code=201)
    def new_job(new: NewJob, who: Who) -> dict[str, Any]:
        """Ask boards to run a published target."""
        policy = checks.optional(new.policy, "policy", PolicySpec.parse)
        targets = [entry.target for entry in entries(read_current(config.repository).targets.signed).values()]
        target = jobs.find_target(targets, new.target)
        order = jobs.Order(target, new.to, policy, new.interval_s, new.expires_s)
        with store.write() as connection:
            chosen = jobs.selected(jobs.known_devices(connection), new.to)
            now = context.clock()
            job_id = jobs.create_job(connection, order, chosen, now)
            _note(connection, now, who, job_id, "run", new.to, target=new.target, boards=len(chosen))
            return {"v": 1, "job": job_with_page(connection, job_id)}

    @router.post("/settings", status_code=201)
    def new_settings(new: NewSettings, who: Who) -> dict[str, Any]:
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
            now = context.clock()
            job_id = create_settings_job(connection, wanted, chosen, now, revoked)
            changed = {"config": sorted(new.config), "policy": new.policy, "reset": new.reset}
            _note(connection, now, who, job_id, "configure", new.to, boards=len(chosen), **changed)
            return {"v": 1, "job": job_with_page(connection, job_id)}

    @router.post("/agents", status_code=201)
    def new_update(new: NewUpdate, who: Who) -> dict[str, Any]:
        """Ask boards to put their agent into a published environment."""
        targets = [entry.target for entry in entries(read_current(config.repository).targets.signed).values()]
        target = jobs.find_target(targets, new.target, jobs.AGENT)
        with store.write() as connection:
            chosen = jobs.selected(jobs.known_devices(connection), new.to)
            now = context.clock()
            job_id = jobs.create_update(connection, target, new.to, chosen, new.expires_s, now)
            _note(connection, now, who, job_id, "update-agent", new.to, target=new.target, boards=len(chosen))
            return {"v": 1, "job": job_with_page(connection, job_id)}

    @router.post("/measure", status_code=201)
    def new_measure(new: NewMeasure, who: Who) -> dict[str, Any]:
        """Ask a board to time a published round of candidates, once."""
        current = measure_of(read_current(config.repository), config.repository)
        targets = [entry.target for entry in entries(current.signed).values()]
        target = jobs.find_target(targets, new.target, jobs.MEASURE)
        with store.write() as connection:
            (device,) = jobs.selected(jobs.known_devices(connection), f"name={target.name}")
            now = context.clock()
            job_id = jobs.create_measure(connection, target, device, new.expires_s, now)
            _note(connection, now, who, job_id, "measure", f"name={target.name}", target=new.target)
            return {"v": 1, "job": job_with_page(connection, job_id)}


def _note(
    connection: sa.Connection, now: float, who: str, job_id: str, what: str, to: str, **detail: Any
) -> None:
    audit.note(connection, now, who, f"job.{what}", f"job:{job_id}", {"to": to[:1000], **detail})
