"""Pieces that screens are made of: cards, sections, lists, charts, paged tables, the question before a change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import ui
from nicegui.events import GenericEventArguments

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet import shown, tables

WINDOWS = {"1h": 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0, "30d": 30 * 86_400.0}
_WINDOW_WORDS = {"1h": "1 h", "24h": "24 h", "7d": "7 d", "30d": "30 d"}


def heading(text: str) -> None:
    """The screen's name."""
    with ui.element("h1").classes("ek-title"):
        ui.label(text)


def section(title: str) -> ui.column:
    """A card with a title, to be entered."""
    card = ui.column().classes("ek-card")
    with card, ui.element("h2").classes("ek-section"):
        ui.label(title)
    return card


def figure(title: str, text: str, note: str = "", target: str = "", tone: str = "") -> None:
    """A number with what it is about. target: where it leads."""
    with ui.column().classes("ek-card !gap-0"):
        ui.label(title).classes("ek-note")
        if target:
            ui.link(text, target).classes(f"ek-figure ek-link {tone}")
        else:
            ui.label(text).classes(f"ek-figure {tone}")
        ui.label(note).classes("ek-note")


def problem(text: str, *, mild: bool = False) -> None:
    """A line that wants attention."""
    ui.label(text).classes("ek-problem mild" if mild else "ek-problem")


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values below each other."""
    with ui.element("div").classes("ek-pairs"):
        for name, value in rows:
            ui.label(name)
            ui.label(value)


def board_url(name: str) -> str:
    """A board's screen."""
    return f"/board/{quote(name, safe='')}"


def with_query(path: str, values: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """An address that brings a screen back as it is now: what differs from the defaults is in it."""
    kept = {key: value for key, value in values.items() if value not in ("", None, defaults.get(key))}
    return f"{path}?{urlencode(kept)}" if kept else path


def windows(current: str, change: Callable[[str], Awaitable[None]]) -> None:
    """The window chooser."""
    toggle = ui.toggle(_WINDOW_WORDS, value=current).props('dense unelevated padding="4px 10px"')
    toggle.props('aria-label="Time shown"')

    async def changed() -> None:
        await change(str(toggle.value))

    toggle.on_value_change(changed)


class Charts:
    """Charts that stay, and get new data."""

    def __init__(self, *described: tuple[str, Callable[[Sequence[dict[str, Any]]], dict[str, Any]]]) -> None:
        self.charts = []
        for title, build in described:
            with section(title):
                chart = ui.echart({}).classes("w-full").style("height: 240px")
                chart.props(f'role=img aria-label="{title}"')
                empty = ui.label("Nothing was reported within this time.").classes("ek-dim")
            self.charts.append((chart, empty, build))

    def show(self, points: Sequence[dict[str, Any]]) -> None:
        """Draw what a view's series says."""
        for chart, empty, build in self.charts:
            chart.set_visibility(bool(points))
            empty.set_visibility(not points)
            chart.options.clear()
            chart.options.update(build(points))
            chart.update()


class Paged:
    """A table whose pages, order and number come from the server. changed: another page or order is wanted."""

    def __init__(
        self,
        columns: list[dict[str, Any]],
        key: str,
        nothing: str,
        changed: Callable[[], Awaitable[None]],
        *,
        size: int = 50,
        page: int = 1,
        sort: str = "",
        descending: bool = False,
    ) -> None:
        self.page, self.size, self.sort, self.descending, self.changed = page, size, sort, descending, changed
        self.table = ui.table(columns=columns, rows=[], row_key=key, pagination=self._pagination(0))
        self.table.classes("w-full").props(
            f'flat binary-state-sort :rows-per-page-options="[20, 50, 100]" no-data-label="{nothing}"'
        )
        self.table.on("request", self._request, ["pagination"])

    def cells(self, cells: Mapping[str, str], *figures: str) -> None:
        """How columns are drawn."""
        add_cells(self.table, cells, *figures)

    def show(self, rows: list[dict[str, Any]], number: int) -> None:
        """One page of `number` rows."""
        self.table.pagination = self._pagination(number)
        self.table.update_rows(rows)

    def _pagination(self, number: int) -> dict[str, Any]:
        return {
            "page": self.page,
            "rowsPerPage": self.size,
            "rowsNumber": number,
            "sortBy": self.sort or None,
            "descending": self.descending,
        }

    async def _request(self, event: GenericEventArguments) -> None:
        asked = event.args["pagination"] if isinstance(event.args, dict) else event.args
        page, size = asked.get("page"), asked.get("rowsPerPage")
        self.page = page if isinstance(page, int) and 1 <= page < 10**7 else 1
        self.size = size if size in {20, 50, 100} else 50
        self.sort, self.descending = str(asked.get("sortBy") or ""), bool(asked.get("descending"))
        await self.changed()


def add_cells(table: ui.table, cells: Mapping[str, str], *figures: str) -> None:
    """How columns are drawn; `figures` sort by their number and show their text."""
    for name, cell in (*cells.items(), *((name, tables.FIGURE_CELL) for name in figures)):
        table.add_slot(f"body-cell-{name}", cell)


def plain_table(columns: list[dict[str, Any]], key: str, nothing: str, size: int = 10) -> ui.table:
    """A short table that is all in the browser; it scrolls inside its card."""
    table = ui.table(columns=columns, rows=[], row_key=key, pagination=size).classes("w-full")
    table.props(f'flat dense :rows-per-page-options="[10, 25, 100]" no-data-label="{nothing}"')
    return table


def mix_bar(counts: Mapping[str, int]) -> None:
    """Which share left at which exit, as a bar and in words."""
    mix = shown.exit_mix(counts)
    words = " · ".join(f"{part['name']} {part['share']:.1f} %" for part in mix) or "no answers"
    if mix:
        bar = ui.element("div").classes("ek-mix wide").props("role=img")
        bar.props["aria-label"] = words
        with bar:
            for part in mix:
                ui.element("div").style(f"width: {part['share']:.2f}%; background: {part['color']}")
    ui.label(words).classes("ek-note")


async def ask(question: str, consequence: str, button: str, *, danger: bool = False) -> bool:
    """Ask before something is changed."""
    with ui.dialog() as dialog, ui.card().classes("ek-card max-w-lg"):
        ui.label(question).classes("ek-section")
        ui.label(consequence)
        with ui.row().classes("justify-end w-full"):
            ui.button("Cancel", on_click=lambda: dialog.submit(False), color=None).props("flat").classes(
                "ek-plain-button"
            )
            go = ui.button(button, on_click=lambda: dialog.submit(True), color=None).props("unelevated")
            go.classes("ek-danger" if danger else "ek-go")
    answer = await dialog
    dialog.delete()
    return bool(answer)


async def attempt(action: Callable[[], Awaitable[None]], done: str) -> bool:
    """Do what was asked for; say that it is done, or in a line why it is not."""
    try:
        await action()
    except EdgekitError as err:
        ui.notify(one_line(err), type="negative", multi_line=True, timeout=8000)
        return False
    ui.notify(done, type="positive")
    return True
