"""Rollouts: which there are, and how they stand."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from edgekit.fleet import shown
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts, reads
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader

TONES = {
    "completed": "ek-good",
    "failed": "ek-bad",
    "aborted": "ek-bad",
    "rolled_back": "ek-bad",
    "rolling_back": "ek-warn",
    "paused": "ek-warn",
}


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/rollouts", response_timeout=BUILD_S)
    async def rollouts() -> None:
        with frame(context, "Rollouts") as page:
            parts.heading("Rollouts")
            with ui.column().classes("ek-card"):
                place = ui.column().classes("w-full")

        def read() -> list[dict[str, Any]]:
            with context.store.read() as connection:
                return reads.rollouts(connection)

        def show(found: list[dict[str, Any]]) -> None:
            place.clear()
            with place:
                rollout_list(found, context.clock(), "No rollout yet")

        await Fresh(reader, page, lambda: "rollouts", read, show).start()


def rollout_list(rows: list[dict[str, Any]], now: float, nothing: str) -> None:
    """Rollouts below each other, with state and reason."""
    if not rows:
        ui.label(nothing).classes("ek-dim")
        return
    with ui.element("ul").classes("ek-lines"):
        for row in rows:
            with ui.element("li"):
                state = row["state"].replace("_", " ")
                ui.label(state).classes(TONES.get(row["state"], ""))
                with ui.element("div"):
                    ui.label(f"{row['target']} to {row['selector']}").classes("font-semibold")
                    begun = f"by {row['created_by']}, {shown.ago(row['created'], now)}"
                    ui.label(f"{begun}{': ' + row['why'] if row['why'] else ''}").classes("ek-note")
