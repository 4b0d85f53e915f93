"""The API's routes about boards: look, enroll, revoke."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from edgekit.core import checks
from edgekit.fleet import audit, views
from edgekit.fleet.access import Who
from edgekit.fleet.context import Body, Context, Window
from edgekit.fleet.enroll import board_files, enroll, new_certificate, revoke, write_broker_files

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
                    connection, name, profile, tags, now, again=new.again, certificate=certificate
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
