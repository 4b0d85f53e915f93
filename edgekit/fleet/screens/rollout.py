"""One rollout: how it stands and why, its waves and their gates, its boards, and what was decided by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui

from edgekit.fleet import shown, tables
from edgekit.fleet.context import Context
from edgekit.fleet.rollouts.views import rollout_boards, rollout_detail
from edgekit.fleet.screens import parts
from edgekit.fleet.screens import rollout_words as words
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader
from edgekit.fleet.screens.rollout_actions import act
from edgekit.fleet.screens.rollouts import progress, rollout_url
from edgekit.fleet.visitor import visitor

_SIZE = 20
_MOST_WAVES = 100
_BOARD_COLORS = {"took": "good", "failed": "bad", "refused": "bad", "silent": "warn", "open": "here"}
_CHECKS = (
    ("Scope", "scope", ""),
    ("Figure", "figure", ""),
    ("Before", "before", "r"),
    ("After", "after", "r"),
    ("Change", "change", "r"),
    ("Limit", "limit", "r"),
    ("Verdict", "verdict", ""),
)


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/rollout/{rollout_id}", response_timeout=BUILD_S)
    async def rollout(
        rollout_id: str, wave: str = "", state: str = "", search: str = "", page: int = 1
    ) -> None:
        asked: dict[str, Any] = {
            "wave": wave if wave.isdecimal() and int(wave) < _MOST_WAVES else "",
            "state": state if state in words.KINDS else "",
            "search": search[:200],
            "page": min(max(page, 1), 10**6),
        }

        async def ask(**changes: Any) -> None:
            asked.update(changes)
            ui.navigate.history.replace(parts.with_query(rollout_url(rollout_id), asked, {"page": 1}))
            boards.page(int(asked["page"]))
            await fresh.refresh()

        async def press(action: str) -> None:
            await act(context, place, rollout_id, action)
            await fresh.refresh(now=True)

        operates = visitor().role == "operator"
        with frame(context, "Rollouts", f"Rollout {rollout_id}") as place:
            head = _Drawn(lambda found: _head(found, press if operates else None))
            waves = _section("Waves", _waves)
            aside = _Drawn(_aside)
            log = _section("What was decided", _log)
            boards = _Boards(asked, ask)

        def read() -> dict[str, Any]:
            now = context.clock()
            with context.store.read() as connection:
                found = rollout_detail(connection, rollout_id, now)
                found["page"] = rollout_boards(
                    connection,
                    rollout_id,
                    None if asked["wave"] == "" else int(asked["wave"]),
                    str(asked["state"]) or None,
                    str(asked["search"]),
                    _SIZE * (int(asked["page"]) - 1),
                    _SIZE,
                )
            return found

        def show(found: dict[str, Any]) -> None:
            page_of_boards = found["page"]
            rest = {key: value for key, value in found.items() if key not in {"page", "audit"}}
            head.show(rest)
            waves.show({key: rest[key] for key in ("waves", "wave", "state", "plan")})
            aside.show({key: rest[key] for key in ("left_out", "back", "plan")})
            boards.show(page_of_boards, found["waves"], context.clock())
            log.show(found["audit"])

        fresh = Fresh(reader, place, lambda: ("rollout", rollout_id, *asked.values()), read, show)
        await fresh.start()


class _Drawn:
    """A part of the screen that is drawn anew only when what it shows is another: what is folded out stays so."""

    def __init__(self, draw: Callable[[Any], None]) -> None:
        self.place, self.draw, self.last = ui.column().classes("w-full gap-3"), draw, None

    def show(self, found: Any) -> None:
        """Draw it, where it changed."""
        if found != self.last:
            self.last = found
            self.place.clear()
            with self.place:
                self.draw(found)


def _section(title: str, draw: Callable[[Any], None]) -> _Drawn:
    with parts.section(title):
        return _Drawn(draw)


def _head(found: Mapping[str, Any], press: Callable[[str], Any] | None) -> None:
    """Its name, state, buttons and why."""
    text, tone = words.state(found["state"])
    with ui.row().classes("items-center justify-between w-full gap-2"):
        with ui.row().classes("items-baseline gap-3 min-w-0"):
            parts.heading(f"{found['target']} to {found['to']}")
            ui.label(text).classes(f"font-semibold {tone}").props("role=status")
        if press is not None:
            with ui.row().classes("gap-2"):
                for action in found["actions"]:
                    _button(action, press)
    if found["why"]:
        if tone in {"ek-bad", "ek-warn"}:
            parts.problem(found["why"], mild=tone == "ek-warn")
        else:
            ui.label(found["why"]).classes("ek-dim")
    with ui.column().classes("ek-card"):
        progress(found["boards"], found["boards"]["total"])
        name = str(found["target"]).rpartition("/")[0]
        with ui.element("div").classes("ek-pairs"):
            ui.label("Bundle")
            ui.link(found["target"], f"/bundle/{quote(name, safe='')}").classes("ek-link")
            ui.label("Boards")
            ui.label(f"{found['to']} ({words.boards(found['boards']['total'])} take part)")
            ui.label("Begun")
            ui.label(f"{tables.clock(found['created'])} by {found['created_by']}")
            ui.label("In this state since")
            ui.label(tables.clock(found["since"]))
            if found["plan"]["windows"] and found["next_window"] is not None:
                ui.label("Next window")
                ui.label(tables.clock(found["next_window"]))


def _button(action: str, press: Callable[[str], Any]) -> None:
    button = ui.button(words.BUTTONS[action], color=None, on_click=lambda: press(action)).props("unelevated")
    button.classes("ek-danger" if action in words.DANGEROUS else "ek-plain-button")


def _waves(found: Mapping[str, Any]) -> None:
    for wave in found["waves"]:
        with ui.element("div").classes("ek-wave"):
            text, tone = words.state(wave["state"])
            with ui.element("div").classes("ek-wave-head"):
                ui.label(words.wave_title(wave["name"])).classes("font-semibold")
                ui.label(_gate_failed(text, wave)).classes(f"font-semibold {tone}")
                profiles = ", ".join(f"{number} {profile}" for profile, number in wave["profiles"].items())
                ui.label(profiles).classes("ek-note")
            progress(wave["states"], wave["boards"])
            if wave["started"] is not None:
                with ui.element("div").classes("ek-wave-head"):
                    ui.label(_times(wave)).classes("ek-note")
                    if wave["job_id"]:
                        ui.link(f"Job {wave['job_id']}", f"/job/{wave['job_id']}").classes("ek-link ek-note")
            if wave["verdict"] is not None:
                _verdict(wave["verdict"])


def _gate_failed(text: str, wave: Mapping[str, Any]) -> str:
    return "stopped at its gate" if wave["state"] == "failed" else text


def _times(wave: Mapping[str, Any]) -> str:
    found = [f"begun {tables.clock(wave['started'])}"]
    if wave["ended"] is not None:
        found.append(f"its boards were done {tables.clock(wave['ended'])}")
    elif wave["deadline"] is not None:
        found.append(f"silence is a failure from {tables.clock(wave['deadline'])}")
    return ", ".join(found)


def _verdict(verdict: Mapping[str, Any]) -> None:
    """What the gate said; what held is folded in where something did not."""
    rows = words.check_rows(verdict["checks"])
    bad = [row for row in rows if row["tone"] != "ek-good"]
    said = "The gate let it through" if verdict["ok"] else "The gate stopped it"
    said += f", {tables.clock(verdict['at'])}"
    ui.label(said).classes("ek-good" if verdict["ok"] else "ek-bad")
    if not rows:
        ui.label(verdict["why"]).classes("ek-note")
        return
    if bad:
        check_table(bad)
    good = [row for row in rows if row["tone"] == "ek-good"]
    if good:
        with ui.element("details").classes("ek-more w-full"):
            with ui.element("summary"):
                ui.label(f"{len(good)} checks held").classes("inline")
            check_table(good)


def check_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Figures against their limits."""
    with (
        ui.element("div").classes("ek-scroll").props("tabindex=0"),
        ui.element("table").classes("ek-plain"),
    ):
        with ui.element("thead"), ui.element("tr"):
            for title, _, align in _CHECKS:
                with ui.element("th").classes(align):
                    ui.label(title)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for _, key, align in _CHECKS:
                        with ui.element("td").classes(align):
                            tone = row["tone"] if key == "verdict" else ""
                            ui.label(row[key]).classes(f"{tone} whitespace-nowrap")
                            if key == "verdict" and row["note"]:
                                ui.label(row["note"]).classes("ek-note")


def _aside(found: Mapping[str, Any]) -> None:
    """The plan; who was left out; who goes back, and who does not."""
    with ui.element("div").classes("ek-two"):
        with parts.section("Plan"):
            parts.pairs(words.plan_pairs(found["plan"]))
        back = found["back"]
        if back["asked"] or back["left"]:
            with parts.section("Going back"):
                said = (
                    f"{words.boards(back['back'])} of {back['asked']} are back, {back['open']} not yet, "
                    f"{back['failed']} failed to"
                )
                ui.label(said)
                _reasons(back["left"], "stay as they are")
        if found["left_out"]:
            with parts.section("Left out"):
                _reasons(found["left_out"], "")


def _reasons(rows: Sequence[Mapping[str, Any]], what: str) -> None:
    for row in rows:
        ui.label(f"{words.boards(row['boards'])}{' ' + what if what else ''}: {row['why']}").classes(
            "ek-note"
        )


class _Boards:
    """Its boards, a page at a time, by wave, by what became of them, and by name."""

    def __init__(self, asked: Mapping[str, Any], ask: Callable[..., Any]) -> None:
        async def another_page() -> None:
            await ask(page=self.table.page)

        with parts.section("Boards"):
            with ui.row().classes("w-full items-center gap-2"):
                search = ui.input("Search boards", value=str(asked["search"]))
                search.props("outlined dense clearable debounce=300 maxlength=200")
                search.on_value_change(lambda event: ask(search=event.value or "", page=1))
                self.wave = ui.select({"": "any wave", asked["wave"]: "any wave"}, value=asked["wave"])
                self.wave.on_value_change(lambda event: ask(wave=event.value or "", page=1))
                states = {"": "any state", **words.KINDS}
                self.state = ui.select(states, value=asked["state"], label="State")
                self.state.on_value_change(lambda event: ask(state=event.value or "", page=1))
                self.wave.props('outlined dense options-dense label="Wave"').classes("w-40")
                self.state.props("outlined dense options-dense").classes("w-48")
            columns = tables.ROLLOUT_BOARD_COLUMNS
            self.table = parts.Paged(
                columns, "name", "No board is like this", another_page, page=int(asked["page"]), size=_SIZE
            )
            self.table.table.props(f":rows-per-page-options=[{_SIZE}]")
            cells = {"name": tables.BOARD_LINK_CELL, "state": tables.STATE_CELL, "updated": tables.SEEN_CELL}
            self.table.cells(cells)
        self.waves: dict[str, str] = {}

    def page(self, number: int) -> None:
        """Which page is asked for."""
        self.table.page = number

    def show(self, found: Mapping[str, Any], waves: Sequence[Mapping[str, Any]], now: float) -> None:
        """One page of them."""
        options = {"": "any wave"} | {str(wave["wave"]): words.wave_title(wave["name"]) for wave in waves}
        current = self.wave.value or ""
        options.setdefault(current, current)
        if options != self.waves:
            self.waves = options
            self.wave.set_options(options, value=current)
        self.table.show([_board(row, now) for row in found["boards"]], found["total"])


def _board(row: Mapping[str, Any], now: float) -> dict[str, Any]:
    why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
    return {
        "name": row["name"],
        "profile": row["profile"] or "unknown",
        "wave": "Canary" if row["wave"] == 0 else f"Wave {row['wave']}",
        "state": words.KINDS.get(row["state"], row["state"]),
        "color": _BOARD_COLORS.get(row["state"], "dim"),
        "why": why,
        "before": row["before"] or "none",
        "back": row["back"] or "",
        "updated": row["updated"] or 0.0,
        "seen_text": "" if row["updated"] is None else shown.ago(row["updated"], now),
    }


def _log(lines: Sequence[Mapping[str, Any]]) -> None:
    with ui.element("ul").classes("ek-lines"):
        for line in lines:
            with ui.element("li"):
                ui.label(tables.clock(line["at"])).classes("ek-note")
                with ui.element("div"):
                    action = str(line["action"]).removeprefix("rollout.").replace("-", " ")
                    ui.label(f"{line['who']}: {action}").classes("font-semibold")
                    ui.label(line["text"]).classes("ek-note")
