"""A new rollout: a form that shows what it would do before anything is asked of a board. For operators."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from edgekit.core.errors import EdgekitError, one_line
from edgekit.core.target import Target
from edgekit.fleet.context import Context
from edgekit.fleet.rollouts import commands
from edgekit.fleet.rollouts.plan import DAYS
from edgekit.fleet.rollouts.views import preview
from edgekit.fleet.screens import parts
from edgekit.fleet.screens import rollout_words as words
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Reader
from edgekit.fleet.screens.rollout_form import LIMITS, POLICIES, THEN, defaults, plan_of
from edgekit.fleet.screens.rollouts import rollout_url
from edgekit.fleet.visitor import require_operator, visitor

_LOOK_S = 0.5  # how often the preview looks whether the form has changed
_HOLDS = 12  # windows in the form; more go into a plan's file
_NAMES = 8


def add(context: Context, _reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/rollouts/new", response_timeout=BUILD_S)
    async def new_rollout(target: str = "") -> None:
        with frame(context, "Rollouts", "New rollout") as place:
            parts.heading("New rollout")
            if visitor().role != "operator":
                parts.problem(f"Operators start rollouts; your role is {visitor().role}.")
                return
            try:
                known = await run_in_threadpool(commands.published, context.config.repository)
            except EdgekitError as err:
                parts.problem(one_line(err))
                return
            labels = [label for label in sorted(known, key=_newest) if known[label].state != "revoked"]
            form = defaults(target if target in labels else labels[0] if labels else "")
            if not labels:
                parts.problem("No bundle is published yet: edgekit push BUNDLE --server URL --key FILE")
                return
            await ui.context.client.connected()  # what is typed into a field before would be overwritten
            with ui.element("div").classes("ek-two items-start"):
                with ui.column().classes("w-full gap-3"):
                    _fields(form, labels)
                with ui.column().classes("w-full gap-3"), parts.section("What it would do"):
                    shown = _Preview(context, form)
                    go = ui.button(
                        "Start", color=None, on_click=lambda: _start(context, place, shown.form())
                    ).props("unelevated")
                    go.classes("ek-go")
            await shown.look()
            ui.timer(_LOOK_S, shown.look, immediate=False)


def _newest(label: str) -> tuple[str, int]:
    name, _, version = label.rpartition("/")
    return name, -int(version)


def _fields(form: dict[str, Any], labels: list[str]) -> None:
    """The form. Fields write into `form`; nothing is checked here."""

    def put(element: Any, key: str, hint: str = "") -> None:
        element.props("outlined dense" + (f' hint="{hint}"' if hint else "")).bind_value(form, key)
        element.classes("w-full")

    with parts.section("What, and to which boards"), ui.element("div").classes("ek-form"):
        put(ui.select(labels, label="Bundle", with_input=len(labels) > 10), "target")
        put(ui.input("Boards"), "to", "all, or tag=site-a,name!=old*")
        put(ui.select(POLICIES, label="Policy"), "policy")
        amount = ui.input("Amount")
        put(amount, "amount", "3ms or 5mJ; a deadline in ms; a drop in points")
        amount.bind_visibility_from(form, "policy", backward=lambda kind: kind not in {"", "full"})
    with parts.section("Waves"), ui.element("div").classes("ek-form"):
        put(ui.input("Canary"), "canary", "5% or a number of boards")
        put(ui.input("Waves"), "waves", "up to how much: 25%, 100%")
        put(ui.number("Soak, minutes", min=0), "soak_min", "before figures are judged")
        put(ui.number("Boards answer within, minutes", min=0), "deadline_min", "silence is a failure then")
    with parts.section("Gate behind each wave"), ui.element("div").classes("ek-form"):
        for key, label, empty in LIMITS:
            put(ui.number(label, min=0), key, "empty: not looked at" if empty else "")
        put(ui.select(THEN, label="If the canary fails"), "canary_fails")
        put(ui.select(THEN, label="If a later wave fails"), "wave_fails")
    with parts.section("When waves may begin"):
        _Windows(form)
        with ui.element("div").classes("ek-form"):
            put(ui.input("Time zone"), "time_zone", "of the windows, such as Europe/Berlin")
        ui.switch("Also take boards of other rollouts under way").bind_value(form, "overlap")


class _Windows:
    """Days and times; without one any time will do."""

    def __init__(self, form: dict[str, Any]) -> None:
        self.form = form
        self.place = ui.column().classes("w-full gap-2")
        button = ui.button("Add a window", color=None, on_click=self._add).props("flat dense")
        button.classes("ek-plain-button px-2")
        self._draw()

    def _add(self) -> None:
        if len(self.form["windows"]) < _HOLDS:
            self.form["windows"].append({"days": list(DAYS[:5]), "from": "22:00", "until": "05:00"})
        self._draw()

    def _remove(self, window: dict[str, Any]) -> None:
        self.form["windows"] = [kept for kept in self.form["windows"] if kept is not window]
        self._draw()

    def _draw(self) -> None:
        self.place.clear()
        with self.place:
            if not self.form["windows"]:
                ui.label("Any time").classes("ek-dim")
            for window in self.form["windows"]:
                with ui.row().classes("items-center gap-2 w-full"):
                    days = ui.select(list(DAYS), multiple=True, label="Days").bind_value(window, "days")
                    days.props("outlined dense options-dense").classes("grow min-w-40")
                    for key, label in (("from", "From"), ("until", "Until")):
                        time = ui.input(label).bind_value(window, key).classes("w-24")
                        time.props("outlined dense mask=##:##")
                    away = ui.button(
                        "Remove", color=None, on_click=lambda window=window: self._remove(window)
                    )
                    away.props("flat dense").classes("ek-plain-button px-2")


class _Preview:
    """What the form would do, read again when the form has changed."""

    def __init__(self, context: Context, form: dict[str, Any]) -> None:
        self.context, self._form, self.seen = context, form, {"": ""}
        self.place = ui.column().classes("w-full gap-2")

    def form(self) -> dict[str, Any]:
        """The form as it is now."""
        return copy.deepcopy(self._form)

    async def look(self) -> None:
        """Show what it would do, where the form is another than at the last look."""
        form = self.form()
        if form == self.seen or self.place.is_deleted:
            return
        self.seen = form
        try:
            await require_operator(self.context)
            found, line = await run_in_threadpool(_previewed, self.context, form), ""
        except EdgekitError as err:
            found, line = {}, one_line(err)
        if self.place.is_deleted:
            return
        self.place.clear()
        with self.place:
            if line:
                parts.problem(line)
            else:
                _show(found)


def _previewed(context: Context, form: Mapping[str, Any]) -> dict[str, Any]:
    plan, targets = plan_of(form), commands.published(context.config.repository)
    with context.store.read() as connection:
        return preview(connection, plan, targets)


def _show(found: Mapping[str, Any]) -> None:
    if not found["boards"]:
        parts.problem("No board would be asked")
    else:
        ui.label(f"{words.boards(found['boards'])} in {len(found['waves'])} waves").classes("ek-figure")
    for line in found["warnings"]:
        parts.problem(line, mild=True)
    for entry in found["overlaps"]:
        with ui.row().classes("ek-problem mild gap-2"):
            ui.label(f"{words.boards(entry['boards'])} of these in another rollout:")
            ui.link(entry["rollout_id"], rollout_url(entry["rollout_id"])).classes("ek-link")
    with ui.element("ul").classes("ek-lines"):
        for wave in found["waves"] if found["boards"] else []:
            with ui.element("li"):
                ui.label(words.wave_title(wave["name"])).classes("font-semibold")
                with ui.element("div"):
                    ui.label(words.boards(wave["boards"]))
                    profiles = [f"{number} {profile}" for profile, number in wave["profiles"].items()]
                    ui.label(", ".join(profiles)).classes("ek-note")
                    ui.label(_names(wave["first"], wave["boards"])).classes("ek-note")
    for entry in found["left_out"]:
        line = f"{words.boards(entry['boards'])} left out: {entry['why']}"
        ui.label(f"{line} ({_names(entry['names'], entry['boards'])})").classes("ek-note ek-warn")
    for entry in found["back"]:
        if entry["why"] is None:
            ui.label(f"{words.boards(entry['boards'])} could go back to {entry['before']}").classes("ek-note")


def _names(first: list[str], number: int) -> str:
    shown = first[:_NAMES]
    return ", ".join(shown) + (f" and {number - len(shown)} more" if number > len(shown) else "")


async def _start(context: Context, place: ui.column, form: dict[str, Any]) -> None:
    """Ask, with how many boards are asked first; begin it, and go to its screen."""
    begun: list[str] = []
    with place:
        try:
            await require_operator(context)
            found = await run_in_threadpool(_previewed, context, form)
        except EdgekitError as err:
            ui.notify(one_line(err), type="negative", multi_line=True, timeout=8000)
            return
        first = found["waves"][0]["boards"]
        question = f"Start {form['target']} to {form['to']}?"
        does = f"{words.boards(found['boards'])} in {len(found['waves'])} waves. The canary, {words.boards(first)}, "
        does += "is asked with the next open window." if form["windows"] else "is asked at once."
        if not await parts.ask(question, does, "Start it"):
            return
        if await parts.attempt(lambda: begin(context, form, begun), "It begins"):
            ui.navigate.to(rollout_url(begun[0]))


async def begin(context: Context, form: Mapping[str, Any], begun: list[str]) -> None:
    """Begin it as the visitor, who must be an operator now; its id into `begun`. Raises BadInput, WorldFailed."""
    who, now = await require_operator(context), context.clock()

    def write() -> str:
        plan = plan_of(form)
        targets: dict[str, Target] = commands.published(context.config.repository)
        with context.store.write() as connection:
            return commands.create(connection, plan, targets, who.name, now)

    begun.append(await run_in_threadpool(write))
