"""Who looks at a screen of the page: for which buttons there are, and asked again when one is pressed."""

from __future__ import annotations

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from edgekit.core.errors import BadInput
from edgekit.fleet.access import OPERATOR, Caller, caller_of
from edgekit.fleet.context import Context
from edgekit.fleet.sessions import session_caller


def visitor() -> Caller:
    """The visitor as the guard let this screen's request in; only inside a page or one of its handlers."""
    return caller_of(ui.context.client.request)


async def require_operator(context: Context) -> Caller:
    """The visitor, if its session still counts and its role is operator. Raises BadInput, WorldFailed.

    A screen stays open while roles change and sessions end: whatever changes something begins with this.
    """
    value = ui.context.client.request.state.session
    caller = await run_in_threadpool(_session, context, value)
    if caller is None:
        raise BadInput("your session has ended: log in again")
    if not caller.may(OPERATOR):
        raise BadInput(f"this is for operators; your role is {caller.role}")
    return caller


def _session(context: Context, value: str) -> Caller | None:
    with context.store.read() as connection:
        return session_caller(connection, value, context.token, context.clock())
