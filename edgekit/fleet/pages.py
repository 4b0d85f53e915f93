"""The web page's screens, on NiceGUI: boards, one board, jobs, one job. Read-only; the guard let the visitor in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nicegui import app, ui
from starlette.concurrency import run_in_threadpool

from edgekit.core import jobs as job_states
from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet import charts, shown, tables, views
from edgekit.fleet.api import Context
from edgekit.fleet.guard import LOGOUT
from edgekit.fleet.keeper import all_problems

T = TypeVar("T")
REFRESH_S = 2.0
_REDRAW_TICKS = 5
_REST = 10  # a screen whose reading takes long is read more rarely: it costs at most a tenth of a core

_STYLE = """
:root { --ink: #1b1f24; --dim: #59636e; --page: #f4f5f7; --card: #ffffff; --line: #d9dee4; --good: #0b7a55;
  --bad: #b3261e; --warn: #8a5a00; --link: #0b5cad }
body.body--dark { --ink: #e6edf3; --dim: #9aa7b3; --page: #101418; --card: #191f26; --line: #313b45; --good: #4cc38a;
  --bad: #ff8a80; --warn: #e6b450; --link: #79b8ff }
body { background: var(--page) !important; color: var(--ink); font-family: system-ui, sans-serif }
.nicegui-content { padding: 0; gap: 0 }
.ek-page { max-width: 1440px; margin: 0 auto; width: 100%; padding: 1rem; gap: 1rem }
.ek-row { display: flex; flex-wrap: wrap; gap: .75rem; width: 100%; align-items: stretch }
.ek-bar { background: var(--card); border-bottom: 1px solid var(--line); width: 100% }
.ek-bar .q-tab, a.ek-nav { color: var(--dim); text-decoration: none; padding: .3rem .7rem; border-radius: 7px }
a.ek-nav.here { color: var(--ink); background: var(--page); font-weight: 600 }
.ek-card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; box-shadow: none }
.ek-figure { font-size: 1.35rem; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums }
.ek-note { font-size: .8rem; color: var(--dim) }
.ek-dim { color: var(--dim) } .ek-good { color: var(--good) }
.ek-bad { color: var(--bad) } .ek-warn { color: var(--warn) }
.ek-problem { background: color-mix(in srgb, var(--bad) 12%, var(--card)); border: 1px solid var(--bad);
  color: var(--ink); border-radius: 8px; padding: .5rem .8rem; width: 100% }
.q-table__container { background: var(--card) !important; color: var(--ink); border: 1px solid var(--line);
  border-radius: 10px; box-shadow: none !important }
.q-table th { color: var(--dim); font-weight: 600; font-size: .8rem }
.q-table td { font-variant-numeric: tabular-nums }
.q-table th:not(:first-child), .q-table td:not(:first-child) { padding: 6px 10px }
.q-table td .ek-note { white-space: normal }
.q-table th { white-space: nowrap !important }
.ek-seen, .q-table td a { white-space: nowrap }
.q-table__bottom-nodata-icon { display: none }
.q-table th, .q-table td { border-color: var(--line) !important }
.q-table a, a.ek-link { color: var(--link); text-decoration: none; font-weight: 600 }
.q-table a:hover, a.ek-link:hover { text-decoration: underline }
.ek-dot { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%; margin-right: .5rem;
  background: var(--good) }
.ek-dot.off { background: transparent; box-shadow: inset 0 0 0 2px var(--dim) }
.ek-mix { display: flex; width: 8rem; height: .85rem; border-radius: 4px; overflow: hidden; background: var(--line) }
.ek-tag { white-space: nowrap;
  border: 1px solid var(--line); border-radius: 5px; padding: 0 .35rem; margin-right: .25rem; font-size: .78rem;
  color: var(--dim) }
"""

_CHARTS = {
    "Latency over time": charts.latency_chart,
    "Exit mix over time": charts.exit_chart,
    "Energy per request over time": charts.energy_chart,
}


def add_pages(context: Context) -> None:
    """Register the screens."""
    app.config.title = f"edgekit fleet {context.config.fleet}"

    @ui.page("/")
    async def boards() -> None:
        with _frame(context, "boards") as page:
            problems = ui.column().classes("w-full gap-2")
            cards = ui.element("div").classes("ek-row")
            search = ui.input(placeholder="Search boards, profiles, bundles, tags")
            search.props("outlined dense clearable").classes("w-96 max-w-full")
            table = _table(
                tables.BOARD_COLUMNS, "name", "No board is enrolled yet: edgekit fleet enroll NAME -o DIR"
            )
            search.bind_value_to(table, "filter", forward=lambda text: text or "")
            cells = {
                "name": tables.BOARD_CELL,
                "bundle": tables.BUNDLE_CELL,
                "mix": tables.MIX_CELL,
                "seen": tables.SEEN_CELL,
            }
            _add_cells(table, cells, "requests", "p50", "p95", "p99", "accuracy", "energy")

        def show(found: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
            rows, status = found
            table.update_rows([tables.board_row(row, context.clock()) for row in rows])
            problems.clear()
            with problems:
                _show_problems(status)
            cards.clear()
            with cards:
                _fleet_cards(status)

        await _keep_fresh(page, lambda: _boards(context), show)

    @ui.page("/board/{name}")
    async def board(name: str) -> None:
        with _frame(context, "boards") as page:
            head = ui.column().classes("w-full gap-3")
            with ui.grid().classes("w-full gap-3 grid-cols-1 lg:grid-cols-2"):
                plots = [(_chart_card(title), build) for title, build in _CHARTS.items()]
                events = _section(
                    "Events", tables.EVENT_COLUMNS, "key", "Nothing happened that is worth a word"
                )
            bundles = _section(
                "By bundle", tables.BUNDLE_COLUMNS, "bundle", "No bundle has served within 24 hours"
            )
            _add_cells(
                bundles, {"mix": tables.MIX_CELL}, "requests", "p50", "p95", "p99", "accuracy", "energy"
            )
            jobs = _section("Jobs", tables.BOARD_JOB_COLUMNS, "id", "No job was ever sent to this board")
            _add_cells(jobs, {"id": tables.JOB_CELL, "state": tables.STATE_CELL, "created": tables.SEEN_CELL})

        def show(found: dict[str, Any]) -> None:
            now = context.clock()
            head.clear()
            with head:
                _board_head(found, now)
            for chart, build in plots:
                chart.options.clear()
                chart.options.update(build(found["series"]))
                chart.update()
            bundles.update_rows(
                [{"bundle": row["bundle"], **tables.figures(row)} for row in found["bundles"]]
            )
            jobs.update_rows([tables.job_row(job, now) | tables.state(job) for job in found["jobs"]])
            events.update_rows(
                [tables.event_row(index, event) for index, event in enumerate(found["events"])]
            )

        await _keep_fresh(page, lambda: _board(context, name), show)

    @ui.page("/jobs")
    async def jobs() -> None:
        with _frame(context, "jobs") as page:
            table = _table(
                tables.JOB_COLUMNS, "id", "No job yet: edgekit push BUNDLE --server URL --key FILE --to all"
            )
            _add_cells(table, {"id": tables.JOB_CELL, "created": tables.SEEN_CELL})

        def show(found: list[dict[str, Any]]) -> None:
            table.update_rows([tables.job_row(job, context.clock()) for job in found])

        await _keep_fresh(page, lambda: _jobs(context), show)

    @ui.page("/job/{job_id}")
    async def job(job_id: str) -> None:
        with _frame(context, "jobs") as page:
            title = ui.label().classes("text-xl font-semibold")
            about = ui.label().classes("ek-dim")
            table = _table(tables.JOB_DEVICE_COLUMNS, "name", "No board")
            _add_cells(
                table,
                {"name": tables.BOARD_LINK_CELL, "state": tables.STATE_CELL, "updated": tables.SEEN_CELL},
            )

        def show(found: dict[str, Any]) -> None:
            policy = found["policy"] or "as configured on each board"
            title.set_text(f"{job_states.title(found)} to {found['to']}")
            about.set_text(f"job {found['job_id']} · {tables.clock(found['created'])} · policy {policy}")
            table.update_rows(
                [tables.job_device_row(name, row, context.clock()) for name, row in found["devices"].items()]
            )

        await _keep_fresh(page, lambda: _job(context, job_id), show)


# --- reading the store (in a worker thread) ---


def _boards(context: Context) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    now = context.clock()
    with context.store.read() as connection:
        status = views.fleet_status(connection, now) | {"problems": all_problems(connection)}
        return views.device_rows(connection, now), status


def _board(context: Context, name: str) -> dict[str, Any]:
    with context.store.read() as connection:
        return views.device_detail(connection, name, context.clock())


def _jobs(context: Context) -> list[dict[str, Any]]:
    with context.store.read() as connection:
        return views.job_rows(connection)


def _job(context: Context, job_id: str) -> dict[str, Any]:
    with context.store.read() as connection:
        return views.job_detail(connection, job_id)


# --- parts of screens ---


def _frame(context: Context, here: str) -> ui.column:
    """What every screen has: style, bar with navigation, and a column for the rest, to be entered."""
    ui.add_css(_STYLE)
    with ui.element("header").classes("ek-bar"), ui.row().classes("ek-page items-center !gap-1 !py-2"):
        ui.label("edgekit").classes("text-lg font-bold")
        ui.label(f"fleet {context.config.fleet}").classes("ek-dim mr-4 max-sm:hidden")
        for name, target in (("boards", "/"), ("jobs", "/jobs")):
            ui.link(name.capitalize(), target).classes("ek-nav" + (" here" if name == here else ""))
        ui.space()
        ui.link("Log out", LOGOUT).classes("ek-nav")
    return ui.column().classes("ek-page")


async def _keep_fresh(page: ui.column, read: Callable[[], T], show: Callable[[T], None]) -> None:
    """Read the store now and every while, and show what is new. A failure is said; the screen keeps what it showed."""
    last: list[T] = []
    not_before = 0.0

    async def refresh() -> None:
        nonlocal not_before
        start = time.monotonic()
        if start < not_before:
            return
        try:
            found = await run_in_threadpool(read)
            not_before = time.monotonic() + _REST * (time.monotonic() - start)
        except views.Unknown as err:
            page.clear()
            with page:
                ui.label(one_line(err)).classes("ek-problem")
            return
        except EdgekitError as err:
            ui.notify(one_line(err), type="negative")
            return
        if [found] != last or shown_long_ago():
            last[:] = [found]
            show(found)

    ticks = 0

    def shown_long_ago() -> bool:  # "3 s ago" grows although nothing was said
        nonlocal ticks
        ticks += 1
        return ticks % _REDRAW_TICKS == 0

    await refresh()
    with page:
        ui.timer(REFRESH_S, refresh, immediate=False)


def _table(columns: list[dict[str, Any]], key: str, nothing: str) -> ui.table:
    table = ui.table(columns=columns, rows=[], row_key=key, pagination=50).classes("w-full")
    table.props(f'flat :rows-per-page-options="[20, 50, 200]" no-data-label="{nothing}"')
    return table


def _add_cells(table: ui.table, cells: Mapping[str, str], *figures: str) -> None:
    """How columns are drawn; `figures` sort by their number and show their text."""
    for name, cell in (*cells.items(), *((name, tables.FIGURE_CELL) for name in figures)):
        table.add_slot(f"body-cell-{name}", cell)


def _show_problems(status: dict[str, Any]) -> None:
    ingest = status["ingest"]
    if ingest is None or not ingest["connected"]:
        why = (ingest or {}).get("why") or "starting"
        ui.label(f"Not connected to the broker ({why}): what you see may be old.").classes("ek-problem")
    for problem in status["problems"]:
        ui.label(f"Problem: {problem}").classes("ek-problem")
    for what, number in status["dropped"].items():
        ui.label(f"Dropped {shown.count(number)} {what}.").classes("ek-note ek-warn")


def _card(title: str, figure: str, note: str = "") -> None:
    with ui.card().classes("ek-card gap-0 px-4 py-3").style("min-width: 9.5rem; flex: 1 1 9.5rem"):
        ui.label(title).classes("ek-note")
        ui.label(figure).classes("ek-figure")
        ui.label(note).classes("ek-note")


def _fleet_cards(status: dict[str, Any]) -> None:
    boards, latency, energy = status["boards"], status["latency_ms"], status["energy_mj"]
    _card("Boards online", f"{boards['online']} of {boards['enrolled']}")
    _card(
        "Requests, 24 h",
        shown.count(status["requests"]),
        f"{shown.count(status['deadline_missed'])} deadlines missed",
    )
    _card("Latency p95", shown.ms(latency["p95"]), f"p50 {shown.ms(latency['p50'])}")
    _card("Accuracy", shown.percent(status["accuracy"], 2), f"of {shown.count(status['labelled'])} labelled")
    _card("Energy per request", shown.energy(energy), shown.energy_source(energy))
    _card(
        "Records received",
        shown.count(status["records"]),
        f"malformed: {shown.count(status['malformed'])}",
    )


def _board_head(found: dict[str, Any], now: float) -> None:
    online, energy, latency = found["online"], found["energy_mj"], found["latency_ms"]
    with ui.row().classes("items-baseline gap-3 w-full"):
        ui.label(found["name"]).classes("text-xl font-semibold")
        state = "revoked" if found["revoked_at"] else "online" if online else "offline"
        ui.label(state).classes("ek-good" if online else "ek-bad")
        ui.label(f"last seen {shown.ago(found['last_seen'], now)}").classes("ek-dim")
        ui.label(" · ".join([found["profile"] or "profile unknown", *found["tags"]])).classes("ek-dim")
        if found["certificate_expires"] is not None and not found["revoked_at"]:
            ended = found["certificate_expires"] <= now
            until = f"{'ended on' if ended else 'until'} {tables.clock(found['certificate_expires'])[:10]}"
            ui.label(f"certificate {until}").classes("ek-bad" if ended else "ek-dim")
    if found["why"]:
        ui.label(found["why"]).classes("ek-problem")
    if found["malformed"]:
        text = f"{found['malformed']} messages were malformed and dropped, the last one: {found['malformed_why']}"
        ui.label(text).classes("ek-note ek-warn")
    with ui.element("div").classes("ek-row"):
        _card("Bundle", found["bundle"] or "none", found["policy"] or "")
        _card("Requests, 24 h", shown.count(found["requests"]), tables.missed(found))
        _card(
            "Latency p50",
            shown.ms(latency["p50"]),
            f"p95 {shown.ms(latency['p95'])}, p99 {shown.ms(latency['p99'])}",
        )
        _card(
            "Accuracy", shown.percent(found["accuracy"], 2), f"of {shown.count(found['labelled'])} labelled"
        )
        _card("Energy per request", shown.energy(energy), tables.energy_note(found))
        _card(
            "Temperature",
            shown.UNKNOWN if found["temperature_c"] is None else f"{found['temperature_c']:.0f} °C",
            tables.health(found),
        )


def _chart_card(title: str) -> ui.echart:
    with ui.card().classes("ek-card w-full"):
        ui.label(title).classes("text-base font-semibold")
        return ui.echart({}).classes("w-full").style("height: 250px")


def _section(title: str, columns: list[dict[str, Any]], key: str, nothing: str) -> ui.table:
    with ui.card().classes("ek-card w-full"):
        ui.label(title).classes("text-base font-semibold")
        table = ui.table(columns=columns, rows=[], row_key=key, pagination=7).classes("w-full")
        table.props(f'flat dense wrap-cells :rows-per-page-options="[7, 25, 100]" no-data-label="{nothing}"')
        return table
