"""What screens read, in one page or one window at a time: views put together. Writes nothing, shows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import views
from edgekit.fleet.alerts.reading import alert_page
from edgekit.fleet.board_views import SORTS
from edgekit.fleet.keeper import all_problems
from edgekit.fleet.rollouts.views import rollout_rows

STATES = ("online", "offline", "problem", "throttled", "differs", "revoked")
_SHOWN = 20
_ROLLOUTS = 10  # counting the boards of one is a question of its own
_SORTED_BY = {"seen": "last_seen", "energy": "energy_mj"}  # columns of the table that views call otherwise


@dataclass(frozen=True)
class Query:
    """Which boards, in which order, and which page of them. Empty: not asked for."""

    search: str = ""
    profile: str = ""
    bundle: str = ""
    state: str = ""
    tag: str = ""
    sort: str = "name"
    descending: bool = False
    page: int = 1
    size: int = 50


def device_page(connection: sa.Connection, now: float, query: Query) -> dict[str, Any]:
    """{"total", "page", "devices"}: how many boards the query means, and one page of them, at most the last."""
    sort = _SORTED_BY.get(query.sort, query.sort)

    def page(number: int) -> dict[str, Any]:
        return views.device_page(
            connection,
            now,
            search=query.search,
            profile=query.profile or None,
            bundle=query.bundle or None,
            state=query.state or None,
            tag=query.tag or None,
            sort=sort if sort in SORTS else "name",
            descending=query.descending,
            offset=query.size * (number - 1),
            limit=query.size,
        )

    found = page(query.page)
    last = max(1, -(-found["total"] // query.size))
    if query.page > last:
        return page(last) | {"page": last}
    return found | {"page": query.page}


def overview(connection: sa.Connection, now: float, window_s: float) -> dict[str, Any]:
    """Everything on the first screen."""
    found = views.fleet_status(connection, now, window_s)
    for key in ("bundle", "profile"):
        found[f"by_{key}"] = sorted(found[f"by_{key}"], key=lambda row: -row["boards"])[:_SHOWN]
    return found | {
        "points": views.fleet_points(connection, now, window_s),
        "problems": all_problems(connection),
        "rollouts": rollout_rows(connection, _ROLLOUTS, under_way=True),
        "alerts": alert_page(connection, now, state="firing", limit=_SHOWN),
    }


def bundle_detail(connection: sa.Connection, name: str, now: float, window_s: float) -> dict[str, Any]:
    """A bundle's versions beside each other, and its rollouts. Raises Unknown."""
    return views.bundle_detail(connection, name, now, window_s) | {
        "rollouts": rollout_rows(connection, _ROLLOUTS, bundle=name)
    }
