"""What happened on boards, in words, newest first, a page at a time."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from edgekit.fleet import views
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts
from edgekit.fleet.screens.board import event_list
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader

_SIZE = 50


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/events", response_timeout=BUILD_S)
    async def events(kind: str = "", board: str = "", page: int = 1) -> None:
        asked: dict[str, Any] = {"kind": kind[:64], "board": board[:64], "page": min(max(page, 1), 10**4)}

        async def ask(**changes: Any) -> None:
            asked.update(changes)
            ui.navigate.history.replace(parts.with_query("/events", asked, {"page": 1}))
            await fresh.refresh()

        with frame(context, "Events") as place:
            parts.heading("Events")
            with ui.row().classes("w-full items-center gap-2"):
                for key, label in (("board", "Board"), ("kind", "Kind, such as rollback")):
                    box = ui.input(label, value=asked[key]).props("outlined dense clearable debounce=400")
                    box.on_value_change(lambda event, key=key: ask(**{key: event.value or "", "page": 1}))
            with ui.column().classes("ek-card"):
                rows = ui.column().classes("w-full")
            with ui.row():
                newer = ui.button("Newer", on_click=lambda: ask(page=asked["page"] - 1), color=None)
                older = ui.button("Older", on_click=lambda: ask(page=asked["page"] + 1), color=None)
            for button in (newer, older):
                button.props("flat").classes("ek-plain-button")

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                return views.event_page(
                    connection,
                    kind=asked["kind"] or None,
                    device=asked["board"] or None,
                    offset=_SIZE * (asked["page"] - 1),
                    limit=_SIZE,
                )

        def show(found: dict[str, Any]) -> None:
            newer.set_enabled(asked["page"] > 1)
            older.set_enabled(found["total"] > _SIZE * asked["page"])
            rows.clear()
            with rows:
                event_list(found["events"], "No event is like this")

        fresh = Fresh(reader, place, lambda: ("events", *asked.values()), read, show)
        await fresh.start()
