"""How the local API says no: a status of HTTP, one line, and when to come again."""

from __future__ import annotations

from edgekit.core.errors import BadInput


class Refusal(BadInput):
    """A request that gets no answer. status: of HTTP. retry_after_s: when it may go better, None: not by waiting."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
