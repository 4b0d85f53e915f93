"""Rollouts: which there are, how they stand, and how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from nicegui import ui

from edgekit.fleet import shown
from edgekit.fleet.context import Context
from edgekit.fleet.rollouts.views import rollout_count, rollout_rows
from edgekit.fleet.screens import parts
from edgekit.fleet.screens import rollout_words as words
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader
from edgekit.fleet.visitor import visitor

_SIZE = 20
NEW = "/rollouts/new"


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/rollouts", response_timeout=BUILD_S)
    async def rollouts(page: int = 1) -> None:
        asked = [min(max(page, 1), 10**6)]

        async def turn(number: int) -> None:
            asked[0] = number
            ui.navigate.history.replace(parts.with_query("/rollouts", {"page": number}, {"page": 1}))
            await fresh.refresh()

        with frame(context, "Rollouts") as place:
            with ui.row().classes("items-center justify-between w-full"):
                parts.heading("Rollouts")
                if visitor().role == "operator":
                    new = ui.button("New rollout", color=None, on_click=lambda: ui.navigate.to(NEW))
                    new.props("unelevated").classes("ek-go")
            with ui.column().classes("ek-card"):
                rows = ui.column().classes("w-full")
                pages = ui.pagination(1, 1, value=asked[0], on_change=lambda event: turn(int(event.value)))
                pages.props('max-pages=6 aria-label="Pages"')

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                found = rollout_rows(connection, _SIZE, _SIZE * (asked[0] - 1))
                return {"total": rollout_count(connection), "rollouts": found}

        def show(found: dict[str, Any]) -> None:
            pages.max = max(1, -(-found["total"] // _SIZE))
            pages.set_visibility(found["total"] > _SIZE or asked[0] > 1)
            rows.clear()
            with rows:
                rollout_list(found["rollouts"], context.clock(), "No rollout yet")

        fresh = Fresh(reader, place, lambda: ("rollouts", asked[0]), read, show)
        await fresh.start()


def rollout_url(rollout_id: str) -> str:
    """A rollout's screen."""
    return f"/rollout/{quote(rollout_id, safe='')}"


def rollout_list(rows: list[dict[str, Any]], now: float, nothing: str) -> None:
    """Rollouts below each other: state, what goes where, how far, and why."""
    if not rows:
        ui.label(nothing).classes("ek-dim")
        return
    with ui.element("ul").classes("ek-lines"):
        for row in rows:
            text, tone = words.state(row["state"])
            with ui.element("li"):
                with ui.element("div"):
                    ui.label(text).classes(f"font-semibold {tone}")
                    ui.label(words.stands_at(row["wave"], row["waves"])).classes("ek-note")
                with ui.element("div").classes("min-w-0"):
                    title = f"{row['target']} to {row['to']}"
                    ui.link(title, rollout_url(row["rollout_id"])).classes("ek-link")
                    begun = f"by {row['created_by']}, {shown.ago(row['created'], now)}"
                    ui.label(f"{begun}{': ' + row['why'] if row['why'] else ''}").classes("ek-note ek-clip")
                    progress(row["boards"], row["boards"]["total"])


def progress(states: Mapping[str, int], total: int) -> None:
    """How many boards took it, failed, were silent, are at work, wait: a bar, and in words."""
    found = words.parts_of(states, total)
    text = f"{words.boards(total)}: {words.in_words(found)}"
    bar = ui.element("div").classes("ek-mix wide").props("role=img")
    bar.props["aria-label"] = text
    with bar:
        for _, number, color in found:
            ui.element("div").style(f"width: {100 * number / max(total, 1):.2f}%; background: var(--{color})")
    ui.label(text).classes("ek-note")
