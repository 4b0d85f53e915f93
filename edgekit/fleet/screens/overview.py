"""The first screen: how many boards, what they do, what is wrong. Its cost does not grow with the number of boards."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from edgekit.fleet import charts, shown, tables
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts, reads
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader
from edgekit.fleet.screens.rollouts import rollout_list


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/", response_timeout=BUILD_S)
    async def overview(window: str = "24h") -> None:
        chosen = {"window": window if window in parts.WINDOWS else "24h"}

        async def change(value: str) -> None:
            chosen["window"] = value
            ui.navigate.history.replace(parts.with_query("/", chosen, {"window": "24h"}))
            await fresh.refresh()

        with frame(context, "Overview") as page:
            with ui.row().classes("items-center justify-between w-full"):
                parts.heading("Overview")
                parts.windows(chosen["window"], change)
            problems = ui.column().classes("w-full gap-2")
            cards = ui.element("div").classes("ek-cards")
            with parts.section("Rollouts under way") as running:
                rollouts = ui.column().classes("w-full")
            with ui.element("div").classes("ek-two"):
                drawn = parts.Charts(
                    ("Latency over time", charts.latency_chart),
                    ("Requests over time", charts.request_chart),
                    ("Energy per request over time", charts.energy_chart),
                    ("Exit mix over time", charts.exit_chart),
                )
            tables_ = {
                key: _grouped(title, key)
                for title, key in (("By bundle", "bundle"), ("By profile", "profile"))
            }

        def show(found: dict[str, Any]) -> None:
            problems.clear()
            with problems:
                _problems(found, context.clock())
            cards.clear()
            with cards:
                _cards(found, chosen["window"])
            running.set_visibility(bool(found["rollouts"]))
            rollouts.clear()
            with rollouts:
                rollout_list(found["rollouts"], context.clock(), "")
            drawn.show(found["points"])
            for key, table in tables_.items():
                table.update_rows([_row(row, key) for row in found[f"by_{key}"]])

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                return reads.overview(connection, context.clock(), parts.WINDOWS[chosen["window"]])

        fresh = Fresh(reader, page, lambda: ("overview", chosen["window"]), read, show)
        await fresh.start()


def _problems(found: dict[str, Any], now: float) -> None:
    ingest = found["ingest"]
    if ingest is None or not ingest["connected"]:
        why = (ingest or {}).get("why") or "starting"
        parts.problem(f"Not connected to the broker ({why}): what you see may be old.")
    firing = found["alerts"]["total"]
    for alert in found["alerts"]["alerts"][:5]:
        with ui.row().classes("ek-problem gap-x-2 gap-y-0"):
            if alert["board"]:
                ui.link(alert["board"], parts.board_url(alert["board"])).classes("ek-link")
            ui.label(alert["text"])
            ui.label(f"(rule {alert['rule']}, began {shown.ago(alert['since'], now)})").classes("ek-note")
    if firing > 5:
        ui.link(f"{firing} alerts are firing", "/alerts").classes("ek-link")
    for text in found["problems"]:
        parts.problem(text)
    for what, number in found["dropped"].items():
        ui.label(f"Dropped {shown.count(number)} {what}.").classes("ek-note ek-warn")


def _cards(found: dict[str, Any], window: str) -> None:
    boards, figures = found["boards"], found
    latency, energy = figures["latency_ms"], figures["energy_mj"]
    parts.figure(
        "Online",
        shown.count(boards["online"]),
        f"of {shown.count(boards['enrolled'])} boards",
        "/boards?state=online",
    )
    for state, note in (
        ("offline", "not heard of"),
        ("throttled", "hot or short of power"),
        ("differs", "run something else than wanted"),
    ):
        tone = "ek-warn" if boards[state] else ""
        parts.figure(state.capitalize(), shown.count(boards[state]), note, f"/boards?state={state}", tone)
    parts.figure(
        f"Requests, {window}",
        shown.count(figures["requests"]),
        tables.missed(figures) or "none late, no errors",
    )
    parts.figure(
        "Latency p95",
        shown.ms(latency["p95"]),
        f"p50 {shown.ms(latency['p50'])}, p99 {shown.ms(latency['p99'])}",
    )
    parts.figure("Energy per request", shown.energy(energy), shown.energy_source(energy))
    firing = found["alerts"]["total"]
    parts.figure("Alerts firing", shown.count(firing), "", "/alerts", "ek-bad" if firing else "")


def _grouped(title: str, key: str) -> ui.table:
    with parts.section(title):
        table = parts.plain_table(tables.group_columns(key), key, "Nothing was reported within this time")
    parts.add_cells(
        table,
        {key: tables.GROUP_CELL, "mix": tables.MIX_CELL},
        "boards",
        "requests",
        "p50",
        "p95",
        "p99",
        "energy",
    )
    return table


def _row(row: dict[str, Any], key: str) -> dict[str, Any]:
    name = row[key]
    url = "" if name is None else "/boards?" + urlencode({key: name})
    return {
        key: name or f"no {key}",
        "url": url,
        "boards": row["boards"],
        "boards_text": shown.count(row["boards"]),
        "boards_note": f"{shown.count(row['online'])} online",
        **tables.figures(row),
    }
