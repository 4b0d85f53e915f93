"""What operators press on a rollout's screen: asked before, checked again on the server, written by commands.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import sqlalchemy as sa
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet.context import Context
from edgekit.fleet.rollouts import commands
from edgekit.fleet.rollouts.views import rollout_detail
from edgekit.fleet.screens import parts
from edgekit.fleet.screens import rollout_words as words
from edgekit.fleet.visitor import require_operator

COMMANDS: dict[str, Callable[[sa.Connection, str, str, float], None]] = {
    "pause": commands.pause,
    "resume": commands.resume,
    "accept": partial(commands.resume, accept=True),
    "abort": commands.abort,
    "rollback": commands.roll_back,
}


async def act(context: Context, place: ui.column, rollout_id: str, action: str) -> None:
    """Ask, with how many boards it is about at this moment, and do it. place: outlives the button."""
    with place:
        try:
            await require_operator(context)
            question, does, button = await run_in_threadpool(_confirmation, context, rollout_id, action)
        except EdgekitError as err:
            ui.notify(one_line(err), type="negative", multi_line=True, timeout=8000)
            return
        if await parts.ask(question, does, button, danger=action in words.DANGEROUS):
            await parts.attempt(lambda: change(context, rollout_id, action), words.DONE[action])


async def change(context: Context, rollout_id: str, action: str) -> None:
    """Do it as the visitor, who must be an operator now. Raises BadInput, Unknown, Conflict, WorldFailed."""
    who, now = await require_operator(context), context.clock()

    def write() -> None:
        with context.store.write() as connection:
            COMMANDS[action](connection, rollout_id, who.name, now)

    await run_in_threadpool(write)


def _confirmation(context: Context, rollout_id: str, action: str) -> tuple[str, str, str]:
    with context.store.read() as connection:
        return words.confirmation(action, rollout_detail(connection, rollout_id, context.clock()))
