"""What every screen has: style, title, navigation, and a column for the rest."""

from __future__ import annotations

from nicegui import ui

from edgekit.fleet.context import Context
from edgekit.fleet.screens.style import SCRIPT, STYLE
from edgekit.fleet.visitor import visitor

SCREENS = (
    ("Overview", "/"),
    ("Boards", "/boards"),
    ("Bundles", "/bundles"),
    ("Jobs", "/jobs"),
    ("Rollouts", "/rollouts"),
    ("Alerts", "/alerts"),
    ("Events", "/events"),
)
BUILD_S = 20.0  # how long a screen may take before NiceGUI gives up on it


def frame(context: Context, here: str, title: str = "") -> ui.column:
    """A screen's column, to be entered. here: which entry of the navigation it belongs to."""
    ui.add_css(STYLE)
    ui.add_head_html(SCRIPT)
    ui.page_title(f"{title or here} · {context.config.fleet}")
    with ui.element("header").classes("ek-bar"), ui.element("div"):
        ui.label("edgekit").classes("text-lg font-bold")
        ui.label(context.config.fleet).classes("ek-dim ek-brand-fleet")
        with ui.element("nav").props('aria-label="Screens"'):
            for name, target in SCREENS:
                link = ui.link(name, target).classes("ek-nav" + (" here" if name == here else ""))
                if name == here:
                    link.props("aria-current=page")
        caller = visitor()
        ui.link(f"{caller.name} · {caller.role}", "/account").classes("ek-nav ek-who")
    return ui.column().classes("ek-page").props("role=main")
