"""Alerts: what fires, what has resolved, which are silenced; operators silence a rule from here."""

from __future__ import annotations

from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from edgekit.fleet import shown, tables
from edgekit.fleet.alerts.reading import alert_page
from edgekit.fleet.alerts.silences import silence, silence_rows, unsilence
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader
from edgekit.fleet.visitor import require_operator, visitor

_LIVES = {3600: "1 hour", 8 * 3600: "8 hours", 86_400: "1 day", 7 * 86_400: "7 days"}
_SHOWN = 100


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/alerts", response_timeout=BUILD_S)
    async def alerts() -> None:
        operates = visitor().role == "operator"
        with frame(context, "Alerts") as page:
            parts.heading("Alerts")
            places = {}
            for key, title in (
                ("open", "Firing and pending"),
                ("resolved", "Resolved"),
                ("silences", "Silences"),
            ):
                with parts.section(title):
                    places[key] = ui.column().classes("w-full")

        def read() -> dict[str, Any]:
            now = context.clock()
            with context.store.read() as connection:
                found = {
                    state: alert_page(connection, now, state=state, limit=_SHOWN)["alerts"]
                    for state in ("open", "resolved")
                }
                return found | {"silences": silence_rows(connection, now)}

        def show(found: dict[str, Any]) -> None:
            for key, place in places.items():
                place.clear()
                with place:
                    if key == "silences":
                        _silences(found[key], context, operates)
                    else:
                        _alerts(found[key], context, operates and key == "open")

        await Fresh(reader, page, lambda: "alerts", read, show).start()


def _alerts(rows: list[dict[str, Any]], context: Context, may_silence: bool) -> None:
    now = context.clock()
    if not rows:
        ui.label("None").classes("ek-dim")
        return
    with ui.element("ul").classes("ek-lines"):
        for row in rows:
            with ui.element("li"):
                with ui.element("div"):
                    ui.label(row["state"]).classes("ek-bad" if row["state"] == "firing" else "ek-dim")
                    ui.label(f"began {shown.ago(row['since'], now)}").classes("ek-note")
                with ui.element("div"):
                    with ui.row().classes("gap-x-3 gap-y-0 items-baseline"):
                        if row["board"]:
                            ui.link(row["board"], parts.board_url(row["board"])).classes("ek-link")
                        ui.label(row["text"])
                    silenced = ", silenced" if row["silenced"] else ""
                    since = tables.clock(row["since"])
                    ui.label(f"rule {row['rule']}, {row['severity']}{silenced}, since {since}").classes(
                        "ek-note"
                    )
                    if may_silence and not row["silenced"]:
                        button = ui.button(
                            "Silence", color=None, on_click=lambda row=row: _silence(context, row)
                        )
                        button.props("flat dense").classes("ek-plain-button px-2")


def _silences(rows: list[dict[str, Any]], context: Context, operates: bool) -> None:
    if not rows:
        ui.label("None").classes("ek-dim")
    for row in rows:
        with ui.row().classes("items-center gap-3 w-full"):
            until = f"{row['rule'] or 'every rule'} for {row['selector']} until {tables.clock(row['until'])}"
            ui.label(f"{until}, by {row['by']}: {row['why']}")
            if operates:
                button = ui.button("End", color=None, on_click=lambda row=row: _end(context, row))
                button.props("flat dense").classes("ek-plain-button px-2")


async def _silence(context: Context, row: dict[str, Any]) -> None:
    """Ask for how long and why, then tell nobody of this rule's alerts about this board (or about any)."""
    selector = f"name={row['board']}" if row["board"] else "all"
    with ui.dialog() as dialog, ui.card().classes("ek-card"):
        ui.label(f"Silence {row['rule']} for {selector}").classes("ek-section")
        life = ui.select(_LIVES, value=3600, label="For").props("outlined dense").classes("w-full")
        why = ui.input("Why").props("outlined dense maxlength=500").classes("w-full")
        with ui.row().classes("justify-end w-full"):
            cancel = ui.button("Cancel", color=None, on_click=lambda: dialog.submit(False))
            cancel.props("flat").classes("ek-plain-button")
            go = ui.button("Silence", color=None, on_click=lambda: dialog.submit(True))
            go.props("unelevated").classes("ek-go")

    async def act() -> None:
        who, now = await require_operator(context), context.clock()

        def write() -> None:
            with context.store.write() as connection:
                until = now + float(life.value)
                silence(
                    connection, now, who.name, until=until, why=why.value, rule=row["rule"], selector=selector
                )

        await run_in_threadpool(write)

    if await dialog:
        await parts.attempt(act, f"Silenced for {_LIVES[life.value]}")


async def _end(context: Context, row: dict[str, Any]) -> None:
    async def act() -> None:
        who, now = await require_operator(context), context.clock()

        def write() -> None:
            with context.store.write() as connection:
                unsilence(connection, now, who.name, row["id"])

        await run_in_threadpool(write)

    if await parts.ask("End this silence?", "Alerts that still fire are sent again.", "End it"):
        await parts.attempt(act, "The silence has ended")
