"""The web page: every screen, registered. The guard let the visitor in; what changes something asks it again."""

from __future__ import annotations

from nicegui import app

from edgekit.fleet.context import Context
from edgekit.fleet.screens import (
    account,
    alerts,
    board,
    boards,
    bundles,
    events,
    jobs,
    overview,
    rollout,
    rollout_new,
    rollouts,
)
from edgekit.fleet.screens.fresh import Reader


def add_pages(context: Context) -> None:
    """Register the screens; they share one reader."""
    app.config.title = f"edgekit fleet {context.config.fleet}"
    reader = Reader()
    for screen in (overview, boards, board, bundles, jobs, rollouts, rollout_new, rollout, alerts, events):
        screen.add(context, reader)
    account.add(context)
