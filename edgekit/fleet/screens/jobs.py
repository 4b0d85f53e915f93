"""Jobs: the newest ones, and one of them with its boards, a page at a time."""

from __future__ import annotations

from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from edgekit.core import jobs as job_states
from edgekit.fleet import tables, views
from edgekit.fleet.context import Context
from edgekit.fleet.jobs import PENDING
from edgekit.fleet.rollouts.views import rollout_of_job
from edgekit.fleet.screens import parts
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader
from edgekit.fleet.screens.rollouts import rollout_url

_NO_JOB = "No job yet: edgekit push BUNDLE --server URL --key FILE --to all"


def add(context: Context, reader: Reader) -> None:
    """Register both screens."""

    @ui.page("/jobs", response_timeout=BUILD_S)
    async def jobs() -> None:
        with frame(context, "Jobs") as page:
            parts.heading("Jobs")
            table = parts.plain_table(tables.JOB_COLUMNS, "id", _NO_JOB, 25)
            parts.add_cells(table, {"id": tables.JOB_CELL, "created": tables.SEEN_CELL})

        def read() -> list[dict[str, Any]]:
            with context.store.read() as connection:
                return views.job_rows(connection)

        def show(found: list[dict[str, Any]]) -> None:
            table.update_rows([tables.job_row(job, context.clock()) for job in found])

        await Fresh(reader, page, lambda: "jobs", read, show).start()

    @ui.page("/job/{job_id}", response_timeout=BUILD_S)
    async def job(job_id: str, state: str = "", search: str = "", page: int = 1) -> None:
        known = (PENDING, *job_states.STATES)
        asked: dict[str, Any] = {
            "state": state if state in known else "",
            "search": search[:200],
            "page": min(max(page, 1), 10**6),
        }

        async def ask(**changes: Any) -> None:
            asked.update(changes)
            path = parts.with_query(f"/job/{job_id}", asked, {"page": 1})
            ui.navigate.history.replace(path)
            table.page = int(asked["page"])
            await fresh.refresh()

        async def another_page() -> None:
            await ask(page=table.page)

        def of_rollout() -> str | None:
            with context.store.read() as connection:
                return rollout_of_job(connection, job_id)

        with frame(context, "Jobs", f"Job {job_id}") as place:
            with ui.element("h1").classes("ek-title"):
                title = ui.label()
            about = ui.label().classes("ek-dim")
            rollout_id = await run_in_threadpool(of_rollout)
            if rollout_id is not None:
                ui.link("The rollout it belongs to", rollout_url(rollout_id)).classes("ek-link")
            with ui.row().classes("w-full items-center gap-2"):
                search_in = ui.input("Search boards", value=str(asked["search"]))
                search_in.props("outlined dense clearable debounce=300 maxlength=200")
                search_in.on_value_change(lambda event: ask(search=event.value or "", page=1))
                options = {"": "any state"} | {name: name for name in known}
                choice = ui.select(options, value=asked["state"], label="State").classes("w-48")
                choice.props("outlined dense options-dense")
                choice.on_value_change(lambda event: ask(state=event.value or "", page=1))
            table = parts.Paged(
                tables.JOB_DEVICE_COLUMNS,
                "name",
                "No board is like this",
                another_page,
                page=int(asked["page"]),
            )
            table.table.props(":rows-per-page-options=[50]")
            cells = {"name": tables.BOARD_LINK_CELL, "state": tables.STATE_CELL, "updated": tables.SEEN_CELL}
            table.cells(cells)

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                found = views.job_boards(
                    connection,
                    job_id,
                    state=str(asked["state"]) or None,
                    search=str(asked["search"]),
                    offset=50 * (int(asked["page"]) - 1),
                )
                return views.job_head(connection, job_id) | found

        def show(found: dict[str, Any]) -> None:
            policy = found["policy"] or "as configured on each board"
            title.set_text(f"{job_states.title(found)} to {found['to']}")
            about.set_text(f"job {found['job_id']} · {tables.clock(found['created'])} · policy {policy}")
            counts = found["states"]
            named = {name: f"{name} ({counts[name]})" for name in known if name in counts}
            choice.set_options(
                {"": "any state"}
                | named
                | {asked["state"]: named.get(str(asked["state"]), asked["state"] or "any state")},
                value=asked["state"],
            )
            now = context.clock()
            rows = [tables.job_device_row(row["name"], row, now) for row in found["devices"]]
            table.show(rows, found["total"])

        fresh = Fresh(reader, place, lambda: ("job", job_id, *asked.values()), read, show)
        await fresh.start()
