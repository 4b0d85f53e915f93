"""What the fleet runs: one row for every bundle and version, and a bundle's versions beside each other."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from nicegui import ui

from edgekit.fleet import charts, shown, tables, views
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts, reads
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader
from edgekit.fleet.screens.rollouts import NEW, rollout_list
from edgekit.fleet.visitor import visitor

_FIGURES = ("boards", "requests", "p50", "p95", "p99", "accuracy", "energy")
_CHANGED = ("p50", "p95", "p99", "energy")
_CHARTED = 2  # versions with charts: the newest, and the one before


def add(context: Context, reader: Reader) -> None:
    """Register both screens."""

    @ui.page("/bundles", response_timeout=BUILD_S)
    async def bundles(window: str = "7d") -> None:
        chosen = {"window": window if window in parts.WINDOWS else "7d"}

        async def change(value: str) -> None:
            chosen["window"] = value
            ui.navigate.history.replace(parts.with_query("/bundles", chosen, {"window": "7d"}))
            await fresh.refresh()

        with frame(context, "Bundles") as page:
            with ui.row().classes("items-center justify-between w-full"):
                parts.heading("Bundles")
                parts.windows(chosen["window"], change)
            table = parts.plain_table(tables.VERSION_COLUMNS, "bundle", "No board runs a bundle yet", 25)
            parts.add_cells(table, {"bundle": tables.LINK_CELL, "mix": tables.MIX_CELL}, *_FIGURES)

        def read() -> list[dict[str, Any]]:
            with context.store.read() as connection:
                return views.bundle_rows(connection, context.clock(), parts.WINDOWS[chosen["window"]])

        fresh = Fresh(
            reader,
            page,
            lambda: ("bundles", chosen["window"]),
            read,
            lambda rows: table.update_rows([_row(row, _url(row["bundle"])) for row in rows]),
        )
        await fresh.start()

    @ui.page("/bundle/{name}", response_timeout=BUILD_S)
    async def bundle(name: str, window: str = "7d") -> None:
        chosen = {"window": window if window in parts.WINDOWS else "7d"}

        async def change(value: str) -> None:
            chosen["window"] = value
            path = f"/bundle/{quote(name, safe='')}"
            ui.navigate.history.replace(parts.with_query(path, chosen, {"window": "7d"}))
            await fresh.refresh()

        with frame(context, "Bundles", name) as page:
            with ui.row().classes("items-center justify-between w-full"):
                parts.heading(name)
                parts.windows(chosen["window"], change)
            with parts.section("Versions"):
                versions = parts.plain_table(tables.VERSION_COLUMNS, "bundle", "No version")
                parts.add_cells(versions, {"bundle": tables.LINK_CELL, "mix": tables.MIX_CELL}, *_FIGURES)
            with parts.section("Versions by profile"):
                profiles = parts.plain_table(tables.VERSION_PROFILE_COLUMNS, "key", "No version", 25)
                parts.add_cells(profiles, {"mix": tables.MIX_CELL}, *_FIGURES[1:])
            with parts.section("The same boards, before and after"):
                changes = parts.plain_table(
                    tables.CHANGE_COLUMNS, "key", "No job brought boards another version in this time", 25
                )
                parts.add_cells(changes, {"mix": tables.MIX_CELL}, *_CHANGED)
            titles = []
            with ui.element("div").classes("ek-two"):
                for _ in range(_CHARTED):
                    with ui.column().classes("w-full gap-3"):
                        titles.append(
                            (
                                ui.label().classes("ek-section"),
                                parts.Charts(
                                    ("Latency over time", charts.latency_chart),
                                    ("Exit mix over time", charts.exit_chart),
                                    ("Energy per request over time", charts.energy_chart),
                                ),
                            )
                        )
            with parts.section("Rollouts"):
                rollouts = ui.column().classes("w-full")
                if visitor().role == "operator":
                    ui.link("New rollout", NEW).classes("ek-link")

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                now = context.clock()
                return reads.bundle_detail(connection, name, now, parts.WINDOWS[chosen["window"]])

        def show(found: dict[str, Any]) -> None:
            rows = found["versions"]
            versions.update_rows(
                [_row(row, "/boards?" + urlencode({"bundle": row["bundle"]})) for row in rows]
            )
            profiles.update_rows(
                [
                    {
                        "key": f"{row['bundle']} {part['profile']}",
                        "bundle": row["bundle"],
                        "profile": part["profile"] or "unknown",
                        **tables.figures(part),
                    }
                    for row in rows
                    for part in row["profiles"]
                ]
            )
            changes.update_rows([row for change in found["changes"] for row in tables.change_rows(change)])
            served = [row for row in rows if row["series"]][:_CHARTED]
            for index, (title, drawn) in enumerate(titles):
                title.set_text(served[index]["bundle"] if index < len(served) else "No earlier version")
                drawn.show(served[index]["series"] if index < len(served) else [])
            rollouts.clear()
            with rollouts:
                rollout_list(
                    found["rollouts"], context.clock(), "No rollout brought it; single jobs may have"
                )

        fresh = Fresh(reader, page, lambda: ("bundle", name, chosen["window"]), read, show)
        await fresh.start()


def _url(label: str) -> str:
    return f"/bundle/{quote(label.rpartition('/')[0], safe='')}"


def _row(row: dict[str, Any], url: str) -> dict[str, Any]:
    return {
        "bundle": row["bundle"],
        "url": url,
        "boards": row["boards"],
        "boards_text": shown.count(row["boards"]),
        "boards_note": f"{shown.count(row['online'])} online",
        **tables.figures(row),
    }
