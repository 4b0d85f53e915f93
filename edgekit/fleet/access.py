"""Who calls, and what role a route wants: the one table. Looks nothing up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

VIEWER, OPERATOR = "viewer", "operator"
ROLES = (VIEWER, OPERATOR)
SERVER_TOKEN = "server token"  # noqa: S105  (a name in the audit log, with a space: no user can be called so)
API, METRICS = "/api/", "/metrics"
_V1 = "/api/v1/"

# What a viewer may read: first segments below /api/v1. Whatever stands in neither set, and everything but GET, is for
# operators; tests/fleet/test_access.py wants every GET in one of the two.
READABLE = frozenset(
    {
        "alerts",
        "bundles",
        "devices",
        "events",
        "export",
        "fleet",
        "jobs",
        "me",
        "openapi.json",
        "profiles",
        "repo",
        "rollouts",
        "silences",
        "status",
    }
)
FOR_OPERATORS = frozenset({"audit", "stick", "tokens", "users"})  # accounts; signed commands to boards


@dataclass(frozen=True)
class Caller:
    """Who asked. kind: "user", "token" (of the API) or "server" (its own token)."""

    name: str
    role: str
    kind: str

    def may(self, role: str) -> bool:
        """Whether this one's role is enough."""
        return self.role in {OPERATOR, role}


def needed_role(method: str, path: str) -> str:
    """The role that a path of the API, or /metrics, wants."""
    if method not in {"GET", "HEAD"}:
        return OPERATOR
    if path == METRICS:
        return VIEWER
    first = path.removeprefix(_V1).partition("/")[0] if path.startswith(_V1) else ""
    return VIEWER if first in READABLE else OPERATOR


def caller_of(request: Request) -> Caller:
    """Whom the guard let in with this request."""
    found: Caller = request.state.caller
    return found


async def _name_of(request: Request) -> str:
    return caller_of(request).name


Who = Annotated[str, Depends(_name_of)]
"""In a route: the caller's name, as the audit log knows it."""
