"""Who is logged in, and the ways to another password and out; both lead to forms of the guard's."""

from __future__ import annotations

from nicegui import ui

from edgekit.fleet.context import Context
from edgekit.fleet.login import LOGOUT, PASSWORD
from edgekit.fleet.screens import parts
from edgekit.fleet.screens.frame import frame
from edgekit.fleet.visitor import visitor


def add(context: Context) -> None:
    """Register the screen."""

    @ui.page("/account")
    def account() -> None:
        caller = visitor()
        with frame(context, "", "Account"):
            parts.heading("Account")
            with ui.column().classes("ek-card"):
                may = (
                    "sees everything and changes it"
                    if caller.role == "operator"
                    else "sees everything, changes nothing"
                )
                parts.pairs([("Logged in as", caller.name), ("Role", f"{caller.role}: {may}")])
                with ui.row():
                    if caller.kind == "user":
                        ui.link("Change the password", PASSWORD).classes("ek-link")
                    ui.link("Log out", LOGOUT).classes("ek-link")
