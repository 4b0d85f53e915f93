"""GET /export: rows of the store as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from edgekit.fleet.context import Context
from edgekit.fleet.export import FORMATS, Export, Places, export_slices

PATIENCE_S = 60.0  # for a reader that takes nothing

What = Annotated[Literal["records", "minutes", "hours", "events"], Query(description="which rows")]
Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds")]


def add_export_routes(router: APIRouter, context: Context) -> None:
    """/export."""
    places = Places()

    @router.get("/export", response_class=StreamingResponse)
    def export(
        what: What,
        since: Moment = None,
        until: Moment = None,
        to: Annotated[str, Query(max_length=10_000, description="selector of boards")] = "all",
        format: Annotated[Literal["ndjson", "csv"], Query()] = "ndjson",  # noqa: A002  (the parameter's name)
        cursor: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Response:
        """All rows from since until before until (now, where left out), by key: lines of JSON, or CSV.

        A stream that was cut goes on with `cursor`, that of its last row, and the same `since` and `until`.
        """
        end = context.clock() if until is None else until
        wanted = Export(what, since or 0.0, end, to, cursor)
        kind, encode = FORMATS[format]
        places.take()
        return _Stream(encode(what, export_slices(context.store, wanted)), kind, places)


class _Stream(StreamingResponse):
    """Gives its place back however it ends, and ends where nobody reads."""

    def __init__(self, content: Iterator[bytes], media_type: str, places: Places) -> None:
        super().__init__(content, media_type=media_type)
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def patient(message: Message) -> None:
            await asyncio.wait_for(send(message), PATIENCE_S)

        try:
            await super().__call__(scope, receive, patient)
        finally:
            self._places.give_back()
