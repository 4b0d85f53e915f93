"""One board: what it does, how it fares, what happened to it, and what it was told."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from nicegui import ui

from edgekit.fleet import charts, shown, tables, views
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/board/{name}", response_timeout=BUILD_S)
    async def board(name: str, window: str = "24h") -> None:
        chosen = {"window": window if window in parts.WINDOWS else "24h"}

        async def change(value: str) -> None:
            chosen["window"] = value
            ui.navigate.history.replace(parts.with_query(parts.board_url(name), chosen, {"window": "24h"}))
            await fresh.refresh()

        with frame(context, "Boards", name) as page:
            with ui.row().classes("items-center justify-between w-full"):
                parts.heading(name)
                parts.windows(chosen["window"], change)
            head = ui.column().classes("w-full gap-3")
            with ui.element("div").classes("ek-two"):
                drawn = parts.Charts(
                    ("Latency over time, shaded while throttled", charts.latency_chart),
                    ("Exit mix over time", charts.exit_chart),
                    ("Energy per request over time", charts.energy_chart),
                    ("Temperature over time", charts.temperature_chart),
                )
            with parts.section("By bundle"):
                bundles = parts.plain_table(
                    tables.BUNDLE_COLUMNS, "bundle", "No bundle has served within this time"
                )
                figures = ("requests", "p50", "p95", "p99", "accuracy", "energy")
                parts.add_cells(bundles, {"mix": tables.MIX_CELL}, *figures)
            with ui.element("div").classes("ek-two"):
                with parts.section("Events"):
                    events = ui.column().classes("w-full")
                with parts.section("Says of itself"):
                    about = ui.column().classes("w-full gap-3")
            with parts.section("Jobs"):
                jobs = parts.plain_table(tables.BOARD_JOB_COLUMNS, "id", "No job was ever sent to this board")
                cells = {"id": tables.JOB_CELL, "state": tables.STATE_CELL, "created": tables.SEEN_CELL}
                parts.add_cells(jobs, cells)

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                return views.device_detail(connection, name, context.clock(), parts.WINDOWS[chosen["window"]])

        def show(found: dict[str, Any]) -> None:
            now = context.clock()
            for place, fill in ((head, _head), (about, _about)):
                place.clear()
                with place:
                    fill(found, now)
            drawn.show(found["series"])
            bundles.update_rows(
                [{"bundle": row["bundle"], **tables.figures(row)} for row in found["bundles"]]
            )
            jobs.update_rows([tables.job_row(job, now) | tables.state(job) for job in found["jobs"]])
            events.clear()
            with events:
                event_list(found["events"][:20], "Nothing happened that is worth a word")

        fresh = Fresh(reader, page, lambda: ("board", name, chosen["window"]), read, show)
        await fresh.start()


def event_list(events: list[dict[str, Any]], nothing: str) -> None:
    """Events in words, newest first, with their board where they say one."""
    if not events:
        ui.label(nothing).classes("ek-dim")
        return
    with ui.element("ul").classes("ek-lines"):
        for event in events:
            with ui.element("li"):
                ui.label(tables.clock(event["at"])).classes("ek-dim")
                with ui.element("div"):
                    if "device" in event:
                        ui.link(event["device"], parts.board_url(event["device"])).classes("ek-link mr-2")
                    ui.label(event.get("text") or event["kind"]).classes("inline")


def _head(found: dict[str, Any], now: float) -> None:
    online, energy, latency = found["online"], found["energy_mj"], found["latency_ms"]
    with ui.row().classes("items-baseline gap-3 w-full"):
        state = "revoked" if found["revoked_at"] else "online" if online else "offline"
        ui.label(state).classes("ek-good" if online else "ek-bad")
        ui.label(f"last seen {shown.ago(found['last_seen'], now)}").classes("ek-dim")
        ui.label(" · ".join([found["profile"] or "profile unknown", *found["tags"]])).classes("ek-dim")
    if found["why"]:
        parts.problem(found["why"], mild=True)
    if found["malformed"]:
        text = f"{found['malformed']} messages were malformed and dropped, the last one: {found['malformed_why']}"
        ui.label(text).classes("ek-note ek-warn")
    with ui.element("div").classes("ek-cards"):
        bundle = found["bundle"]
        target = f"/bundle/{quote(bundle.rpartition('/')[0], safe='')}" if bundle and "/" in bundle else ""
        parts.figure("Bundle", bundle or "none", found["policy"] or "", target)
        parts.figure("Requests", shown.count(found["requests"]), tables.missed(found) or "none late")
        tail = f"p95 {shown.ms(latency['p95'])}, p99 {shown.ms(latency['p99'])}"
        parts.figure("Latency p50", shown.ms(latency["p50"]), tail)
        labelled = f"of {shown.count(found['labelled'])} labelled"
        parts.figure("Accuracy", shown.percent(found["accuracy"], 2), labelled)
        parts.figure("Energy per request", shown.energy(energy), tables.energy_note(found))
        warmth = found["temperature_c"]
        text = shown.UNKNOWN if warmth is None else f"{warmth:.0f} °C"
        parts.figure("Temperature", text, tables.health(found), tone="ek-warn" if found["throttled"] else "")
        dropped = sum(point.get("inputs_dropped") or 0 for point in found["bundles"])
        parts.figure("Inputs dropped", shown.count(dropped), "by a full queue")


def _about(found: dict[str, Any], now: float) -> None:
    info, reported = found["info"] or {}, found["reported"] or {}
    expires = found["certificate_expires"]
    ended = expires is not None and expires <= now
    parts.pairs(
        [
            ("Agent", str(info.get("agent") or shown.UNKNOWN)),
            ("Environment", str(info.get("environment") or "none of the server's")),
            ("Runtimes", _listed(info.get("runtimes"))),
            ("Power sensor", _listed(info.get("sensors")) + (", simulated" if info.get("simulated") else "")),
            ("Bundles kept", _listed(info.get("slots"))),
            ("Interval", f"{reported['interval_s']:g} s" if reported.get("interval_s") else shown.UNKNOWN),
            ("Memory", shown.UNKNOWN if found["memory_mb"] is None else f"{found['memory_mb']:.0f} MB"),
            ("Records stored", shown.count(found["records"])),
            (
                "Certificate",
                "none"
                if expires is None
                else f"{'ended on' if ended else 'until'} {tables.clock(expires)[:10]}",
            ),
        ]
    )
    taken, refused = reported.get("config") or {}, reported.get("config_refused") or {}
    with ui.element("h3").classes("ek-section"):
        ui.label("Settings from the server")
    if not taken and not refused:
        ui.label("None: the board runs as its own file says.").classes("ek-dim")
    parts.pairs(
        [
            *((str(key), str(value)) for key, value in taken.items()),
            *((str(key), f"refused: {why}") for key, why in refused.items()),
        ]
    )


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {what}" for key, what in value.items()) or "none"
    return ", ".join(str(entry) for entry in value or ()) or "none"
