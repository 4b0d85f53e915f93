"""What the routes of the API and the screens work on, and what requests have in common. Answers nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from edgekit.fleet.config import FleetConfig
from edgekit.fleet.links import Links
from edgekit.fleet.store import Store

PREFIX = "/api/v1"
MAX_DAYS = 3660.0


@dataclass(frozen=True)
class Context:
    """What the routes work on. address: where this server is reached, for boards where no public_url is configured."""

    config: FleetConfig
    store: Store
    token: str = field(repr=False)
    address: Callable[[], str]
    clock: Callable[[], float] = time.time
    links: Links = field(default_factory=Links)

    def now(self) -> datetime:
        """The time as python-tuf wants it."""
        return datetime.fromtimestamp(self.clock(), timezone.utc)


class Body(BaseModel):
    """What a request's body is checked against: nothing is converted, nothing unknown let through."""

    model_config = ConfigDict(extra="forbid", strict=True)


Window = Annotated[
    float, Query(gt=0, le=MAX_DAYS * 86400, allow_inf_nan=False, description="seconds to look back")
]

MOST_AT_ONCE = 200
Offset = Annotated[int, Query(ge=0, le=2**31, description="how many to leave out before the first")]
Limit = Annotated[int, Query(ge=1, le=MOST_AT_ONCE, description="at most so many")]
Filter = Annotated[str | None, Query(max_length=64)]
