"""The web page's screens, on NiceGUI: boards, one board, jobs, one job. Read-only; the guard let the visitor in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from nicegui import app, ui
from starlette.concurrency import run_in_threadpool

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet import charts, shown, views
from edgekit.fleet.api import Context
from edgekit.fleet.guard import LOGOUT

REFRESH_S = 2.0
_STATE_COLORS = {"active": "good", "failed": "bad", "refused": "bad", "expired": "bad"}

_STYLE = """
:root { --ink: #1b1f24; --dim: #59636e; --page: #f4f5f7; --card: #ffffff; --line: #d9dee4; --good: #0b7a55;
  --bad: #b3261e; --warn: #8a5a00; --link: #0b5cad }
body.body--dark { --ink: #e6edf3; --dim: #9aa7b3; --page: #101418; --card: #191f26; --line: #313b45; --good: #4cc38a;
  --bad: #ff8a80; --warn: #e6b450; --link: #79b8ff }
body { background: var(--page) !important; color: var(--ink); font-family: system-ui, sans-serif }
.nicegui-content { padding: 0; max-width: 1360px; margin: 0 auto; width: 100% }
.ek-bar { background: var(--card); border-bottom: 1px solid var(--line); width: 100% }
.ek-bar .q-tab, a.ek-nav { color: var(--dim); text-decoration: none; padding: .3rem .7rem; border-radius: 7px }
a.ek-nav.here { color: var(--ink); background: var(--page); font-weight: 600 }
.ek-card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; box-shadow: none }
.ek-dim { color: var(--dim) } .ek-good { color: var(--good) }
.ek-bad { color: var(--bad) } .ek-warn { color: var(--warn) }
.ek-figure { font-size: 1.35rem; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums }
.ek-note { font-size: .8rem; color: var(--dim) }
.ek-problem { background: color-mix(in srgb, var(--bad) 12%, var(--card)); border: 1px solid var(--bad);
  color: var(--ink); border-radius: 8px; padding: .5rem .8rem; width: 100% }
.q-table__container { background: var(--card) !important; color: var(--ink); border: 1px solid var(--line);
  border-radius: 10px; box-shadow: none !important }
.q-table th { color: var(--dim); font-weight: 600; font-size: .8rem }
.q-table td { font-variant-numeric: tabular-nums }
.q-table th, .q-table td { border-color: var(--line) !important }
.q-table a, a.ek-link { color: var(--link); text-decoration: none; font-weight: 600 }
.q-table a:hover, a.ek-link:hover { text-decoration: underline }
.ek-dot { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%; margin-right: .5rem;
  background: var(--good) }
.ek-dot.off { background: transparent; box-shadow: inset 0 0 0 2px var(--dim) }
.ek-mix { display: flex; width: 9rem; height: .85rem; border-radius: 4px; overflow: hidden; background: var(--line) }
.ek-tag { border: 1px solid var(--line); border-radius: 5px; padding: 0 .35rem; margin-right: .25rem; font-size: .78rem;
  color: var(--dim) }
"""

_BOARD_CELL = """<q-td :props="props">
  <span class="ek-dot" :class="{off: !props.row.online}" role="img"
    :aria-label="props.row.online ? 'online' : 'offline'"></span>
  <a :href="'/board/' + props.row.name">{{ props.row.name }}</a>
  <div class="ek-note">{{ props.row.profile }} <span v-for="tag in props.row.tags" class="ek-tag">{{ tag }}</span></div>
</q-td>"""
_BUNDLE_CELL = """<q-td :props="props">{{ props.row.bundle }}
  <div class="ek-note" :class="{'ek-warn': props.row.differs}">{{ props.row.policy }}</div></q-td>"""
_MIX_CELL = """<q-td :props="props">
  <div v-if="props.row.mix.length" class="ek-mix" role="img" :aria-label="props.row.mix_text">
  <div v-for="exit in props.row.mix" :style="{width: exit.share + '%', background: exit.color}"></div></div>
  <div class="ek-note">{{ props.row.mix_text }}</div></q-td>"""
_NOTE_CELL = """<q-td :props="props">{{ props.value }}
  <div class="ek-note">{{ props.row[props.col.name + '_note'] }}</div></q-td>"""
_SEEN_CELL = """<q-td :props="props">{{ props.value }}
  <div v-if="props.row.warning" class="ek-note ek-warn">{{ props.row.warning }}</div></q-td>"""
_JOB_CELL = """<q-td :props="props"><a :href="'/job/' + props.row.id">{{ props.row.id }}</a></q-td>"""
_STATE_CELL = (
    """<q-td :props="props"><span :class="'ek-' + props.row.color">{{ props.value }}</span></q-td>"""
)


def add_pages(context: Context) -> None:
    """Register the screens."""
    app.config.title = f"edgekit fleet {context.config.fleet}"

    @ui.page("/")
    async def boards() -> None:
        _frame(context, "boards")
        problems = ui.column().classes("w-full gap-2")
        cards = ui.row().classes("w-full gap-3")
        search = (
            ui.input(placeholder="Search boards, profiles, bundles, tags")
            .props("outlined dense clearable")
            .classes("w-72")
        )
        table = ui.table(
            columns=_BOARD_COLUMNS, rows=[], row_key="name", pagination={"rowsPerPage": 50, "sortBy": "name"}
        )
        table.classes("w-full").props(
            'flat :rows-per-page-options="[20, 50, 200]" '
            'no-data-label="No board is enrolled yet: edgekit fleet enroll NAME -o DIR"'
        )
        search.bind_value_to(table, "filter", forward=lambda text: text or "")
        for name, cell in (
            ("name", _BOARD_CELL),
            ("bundle", _BUNDLE_CELL),
            ("mix", _MIX_CELL),
            ("energy", _NOTE_CELL),
            ("accuracy", _NOTE_CELL),
            ("requests", _NOTE_CELL),
            ("seen", _SEEN_CELL),
        ):
            table.add_slot(f"body-cell-{name}", cell)

        async def refresh() -> None:
            now = context.clock()
            rows, status = await run_in_threadpool(_boards, context, now)
            table.update_rows([_board_row(row, now) for row in rows])
            problems.clear()
            with problems:
                _show_problems(status)
            cards.clear()
            with cards:
                _fleet_cards(status)

        await _keep_fresh(refresh)

    @ui.page("/board/{name}")
    async def board(name: str) -> None:
        _frame(context, "boards")
        try:
            first = await run_in_threadpool(_board, context, name)
        except views.Unknown as err:
            ui.label(one_line(err)).classes("ek-problem")
            return
        head = ui.column().classes("w-full gap-3")
        with ui.grid().classes("w-full gap-3 grid-cols-1 lg:grid-cols-2"):
            plots = {title: (_chart_card(title), build) for title, build in _CHARTS.items()}
            with ui.card().classes("ek-card w-full"):
                ui.label("By bundle").classes("text-base font-semibold")
                bundles = (
                    ui.table(columns=_BUNDLE_COLUMNS, rows=[], row_key="bundle")
                    .classes("w-full")
                    .props("flat dense hide-bottom")
                )
                bundles.add_slot("body-cell-mix", _MIX_CELL)
        with ui.grid().classes("w-full gap-3 grid-cols-1 lg:grid-cols-2"):
            jobs = _section("Jobs", _BOARD_JOB_COLUMNS, "id", "No job was ever sent to this board")
            jobs.add_slot("body-cell-id", _JOB_CELL)
            jobs.add_slot("body-cell-state", _STATE_CELL)
            events = _section("Events", _EVENT_COLUMNS, "key", "Nothing happened that is worth a word")

        def show(found: dict[str, Any]) -> None:
            now = context.clock()
            head.clear()
            with head:
                _board_head(found, now)
            for chart, build in plots.values():
                chart.options.clear()
                chart.options.update(build(found["series"]))
                chart.update()
            bundles.update_rows([_bundle_row(row) for row in found["bundles"]])
            jobs.update_rows([_job_row(job, now) | _state(job) for job in found["jobs"]])
            events.update_rows([_event_row(index, event) for index, event in enumerate(found["events"])])

        async def refresh() -> None:
            show(await run_in_threadpool(_board, context, name))

        show(first)
        ui.timer(REFRESH_S, _guarded(refresh), immediate=False)

    @ui.page("/jobs")
    async def jobs() -> None:
        _frame(context, "jobs")
        table = ui.table(columns=_JOB_COLUMNS, rows=[], row_key="id", pagination=50).classes("w-full")
        table.props('flat no-data-label="No job yet: edgekit push BUNDLE --server URL --key FILE --to all"')
        table.add_slot("body-cell-id", _JOB_CELL)

        async def refresh() -> None:
            rows = await run_in_threadpool(_jobs, context)
            table.update_rows([_job_row(job, context.clock()) for job in rows])

        await _keep_fresh(refresh)

    @ui.page("/job/{job_id}")
    async def job(job_id: str) -> None:
        _frame(context, "jobs")
        try:
            first = await run_in_threadpool(_job, context, job_id)
        except views.Unknown as err:
            ui.label(one_line(err)).classes("ek-problem")
            return
        with ui.column().classes("gap-0"):
            ui.label(f"{first['target']} to {first['to']}").classes("text-xl font-semibold")
            policy = first["policy"] or "as configured on each board"
            ui.label(f"job {job_id} · {_clock(first['created'])} · policy {policy}").classes("ek-dim")
        table = (
            ui.table(columns=_JOB_DEVICE_COLUMNS, rows=[], row_key="name", pagination=50)
            .classes("w-full")
            .props("flat")
        )
        table.add_slot("body-cell-name", _BOARD_LINK_CELL)
        table.add_slot("body-cell-state", _STATE_CELL)

        async def refresh() -> None:
            found = await run_in_threadpool(_job, context, job_id)
            now = context.clock()
            table.update_rows(
                [
                    {"name": name, **_state(row), "updated": shown.ago(row["updated"], now)}
                    for name, row in found["devices"].items()
                ]
            )

        await _keep_fresh(refresh)


# --- reading the store (in a worker thread) ---


def _boards(context: Context, now: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with context.store.read() as connection:
        return views.device_rows(connection, now), views.fleet_status(connection, now)


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


def _frame(context: Context, here: str) -> None:
    """What every screen has: style, bar with navigation, a column for the rest."""
    ui.add_css(_STYLE)
    with (
        ui.element("header").classes("ek-bar"),
        ui.row().classes("items-center gap-1 px-4 py-2 w-full").style("max-width: 1360px; margin: 0 auto"),
    ):
        ui.label("edgekit").classes("text-lg font-bold")
        ui.label(f"fleet {context.config.fleet}").classes("ek-dim mr-4")
        for name, target in (("boards", "/"), ("jobs", "/jobs")):
            ui.link(name.capitalize(), target).classes("ek-nav" + (" here" if name == here else ""))
        ui.space()
        ui.link("Log out", LOGOUT).classes("ek-nav")


async def _keep_fresh(refresh: Callable[[], Any]) -> None:
    await _guarded(refresh)()
    ui.timer(REFRESH_S, _guarded(refresh), immediate=False)


def _guarded(refresh: Callable[[], Any]) -> Callable[[], Any]:
    """A refresh that fails says so and is tried again; the screen keeps what it showed."""

    async def guarded() -> None:
        try:
            await refresh()
        except EdgekitError as err:
            ui.notify(one_line(err), type="negative")

    return guarded


def _show_problems(status: dict[str, Any]) -> None:
    ingest = status["ingest"]
    if ingest is None or not ingest["connected"]:
        why = (ingest or {}).get("why") or "starting"
        ui.label(f"Not connected to the broker ({why}): what you see may be old.").classes("ek-problem")
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
        f"{shown.count(status['malformed'])} messages malformed",
    )


def _board_head(found: dict[str, Any], now: float) -> None:
    online, energy, latency = found["online"], found["energy_mj"], found["latency_ms"]
    with ui.row().classes("items-baseline gap-3 w-full"):
        ui.label(found["name"]).classes("text-xl font-semibold")
        ui.label("online" if online else "offline").classes("ek-good" if online else "ek-bad")
        ui.label(f"last seen {shown.ago(found['last_seen'], now)}").classes("ek-dim")
        ui.label(" · ".join([found["profile"] or "profile unknown", *found["tags"]])).classes("ek-dim")
    if found["why"]:
        ui.label(found["why"]).classes("ek-problem")
    if found["malformed"]:
        text = f"{found['malformed']} messages were malformed and dropped, the last one: {found['malformed_why']}"
        ui.label(text).classes("ek-note ek-warn")
    with ui.row().classes("w-full gap-3"):
        _card("Bundle", found["bundle"] or "none", found["policy"] or "")
        _card("Requests, 24 h", shown.count(found["requests"]), _missed(found))
        _card(
            "Latency p50 / p95",
            f"{shown.ms(latency['p50'])} / {shown.ms(latency['p95'])}",
            f"p99 {shown.ms(latency['p99'])}",
        )
        _card(
            "Accuracy", shown.percent(found["accuracy"], 2), f"of {shown.count(found['labelled'])} labelled"
        )
        _card("Energy per request", shown.energy(energy), _energy_note(found))
        _card(
            "Temperature",
            shown.UNKNOWN if found["temperature_c"] is None else f"{found['temperature_c']:.0f} °C",
            _health(found),
        )


def _chart_card(title: str) -> ui.echart:
    with ui.card().classes("ek-card w-full"):
        ui.label(title).classes("text-base font-semibold")
        return ui.echart({}).classes("w-full").style("height: 250px")


def _section(title: str, columns: list[dict[str, Any]], key: str, nothing: str) -> ui.table:
    with ui.card().classes("ek-card w-full"):
        ui.label(title).classes("text-base font-semibold")
        table = ui.table(columns=columns, rows=[], row_key=key, pagination=10).classes("w-full")
        table.props(f'flat dense wrap-cells no-data-label="{nothing}"')
        return table


# --- rows of tables ---


def _board_row(row: dict[str, Any], now: float) -> dict[str, Any]:
    mix = shown.exit_mix(row["exit_counts"])
    latency = row["latency_ms"]
    desired = row["desired"]
    differs = desired is not None and desired["target"] not in {None, row["bundle"]}
    return {
        "name": row["name"],
        "online": row["online"],
        "profile": row["profile"] or "profile unknown",
        "tags": row["tags"],
        "bundle": row["bundle"] or "none",
        "policy": f"wanted: {desired['target']}" if differs else row["policy"] or "",
        "differs": differs,
        "requests": shown.count(row["requests"]),
        "requests_note": _missed(row),
        **{key: shown.ms(latency[key]) for key in ("p50", "p95", "p99")},
        "mix": mix,
        "mix_text": _mix_text(mix),
        "accuracy": shown.percent(row["accuracy"], 2),
        "accuracy_note": f"of {shown.count(row['labelled'])}" if row["labelled"] else "",
        "energy": shown.energy(row["energy_mj"]),
        "energy_note": shown.energy_source(row["energy_mj"]) if row["requests"] else "",
        "seen": shown.ago(row["last_seen"], now),
        "warning": "throttled" if row["throttled"] else "malformed messages" if row["malformed"] else "",
    }


def _bundle_row(row: dict[str, Any]) -> dict[str, Any]:
    mix = shown.exit_mix(row["exit_counts"])
    return {
        "bundle": row["bundle"],
        "requests": shown.count(row["requests"]),
        **{key: shown.ms(row["latency_ms"][key]) for key in ("p50", "p95", "p99")},
        "mix": mix,
        "mix_text": _mix_text(mix),
        "accuracy": shown.percent(row["accuracy"], 2),
        "energy": f"{shown.energy(row['energy_mj'])} ({shown.energy_source(row['energy_mj'])})",
    }


def _job_row(job: dict[str, Any], now: float) -> dict[str, Any]:
    states = ", ".join(f"{number} {state}" for state, number in job.get("states", {}).items())
    return {
        "id": job["job_id"],
        "target": job["target"],
        "to": job["to"],
        "policy": job["policy"] or "as configured",
        "created": shown.ago(job["created"], now),
        "states": states,
    }


def _state(row: dict[str, Any]) -> dict[str, Any]:
    why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
    return {"state": row["state"], "why": why, "color": _STATE_COLORS.get(row["state"], "dim")}


def _event_row(index: int, event: dict[str, Any]) -> dict[str, Any]:
    detail = ", ".join(f"{key} {value}" for key, value in event["detail"].items())
    return {
        "key": index,
        "at": _clock(event["at"]),
        "kind": event["kind"].replace("_", " "),
        "detail": detail,
    }


def _mix_text(mix: list[dict[str, Any]]) -> str:
    return "  ".join(f"{exit_['name']} {exit_['share']:.0f} %" for exit_ in mix)


def _missed(row: dict[str, Any]) -> str:
    parts = [
        f"{shown.count(row[key])} {what}"
        for key, what in (("errors", "errors"), ("deadline_missed", "late"))
        if row[key]
    ]
    return ", ".join(parts)


def _energy_note(row: dict[str, Any]) -> str:
    note = shown.energy_source(row["energy_mj"])
    return note if row["utilisation"] is None else f"{note}, busy {shown.percent(row['utilisation'], 0)}"


def _health(row: dict[str, Any]) -> str:
    words = [
        word for key, word in (("throttled", "throttled"), ("under_voltage", "under-voltage")) if row[key]
    ]
    if words:
        return ", ".join(words)
    return "not throttled" if row["throttled"] is False else "throttling unknown"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _columns(*described: tuple[str, str, str]) -> list[dict[str, Any]]:
    """name, label, align ("l" or "r")."""
    return [
        {
            "name": name,
            "label": label,
            "field": name,
            "align": {"l": "left", "r": "right"}[align],
            "sortable": True,
        }
        for name, label, align in described
    ]


_BOARD_LINK_CELL = (
    """<q-td :props="props"><a :href="'/board/' + props.row.name">{{ props.row.name }}</a></q-td>"""
)
_FIGURES = (("p50", "p50", "r"), ("p95", "p95", "r"), ("p99", "p99", "r"))
_BOARD_COLUMNS = _columns(
    ("name", "Board", "l"),
    ("bundle", "Bundle", "l"),
    ("requests", "Requests, 24 h", "r"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("accuracy", "Accuracy", "r"),
    ("energy", "Energy / request", "r"),
    ("seen", "Last seen", "r"),
)
_BUNDLE_COLUMNS = _columns(
    ("bundle", "Bundle", "l"),
    ("requests", "Requests", "r"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("accuracy", "Accuracy", "r"),
    ("energy", "Energy / request", "r"),
)
_JOB_COLUMNS = _columns(
    ("id", "Job", "l"),
    ("target", "Bundle", "l"),
    ("to", "Boards", "l"),
    ("policy", "Policy", "l"),
    ("states", "State", "l"),
    ("created", "Created", "r"),
)
_BOARD_JOB_COLUMNS = _columns(
    ("id", "Job", "l"),
    ("target", "Bundle", "l"),
    ("state", "State", "l"),
    ("why", "Why", "l"),
    ("created", "Created", "r"),
)
_JOB_DEVICE_COLUMNS = _columns(
    ("name", "Board", "l"), ("state", "State", "l"), ("why", "Why", "l"), ("updated", "Changed", "r")
)
_EVENT_COLUMNS = _columns(("at", "When", "l"), ("kind", "What", "l"), ("detail", "Detail", "l"))
_CHARTS = {
    "Latency over time": charts.latency_chart,
    "Exit mix over time": charts.exit_chart,
    "Energy per request over time": charts.energy_chart,
}
