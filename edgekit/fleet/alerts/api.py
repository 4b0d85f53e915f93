"""Alerts, silences and a profile's figures in the JSON API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from pydantic import Field

from edgekit.core.errors import BadInput
from edgekit.fleet.access import Who
from edgekit.fleet.alerts.figures import profile_figures
from edgekit.fleet.alerts.reading import MOST, alert_page, message_rows, receiver_rows, rule_rows
from edgekit.fleet.alerts.silences import LONGEST_S, MOST_WHY, silence, silence_rows, unsilence
from edgekit.fleet.alerts.telling import enqueue_test
from edgekit.fleet.audit import note
from edgekit.fleet.context import Body, Context, Window

State = Literal["open", "pending", "firing", "clearing", "resolved"]
Name = Annotated[str | None, Query(max_length=256)]
_DAYS_7 = 7 * 86_400.0


class NewSilence(Body):
    """Whom not to tell of what. rule: null for every rule. to: which boards; for_s: for so long, in seconds."""

    rule: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    to: str = Field("all", min_length=1, max_length=4096)
    for_s: float = Field(gt=0, le=LONGEST_S, allow_inf_nan=False)
    why: str = Field(min_length=1, max_length=MOST_WHY, pattern=r"^[^\x00]*$")


def add_alert_routes(router: APIRouter, context: Context) -> None:
    """GET /alerts, /alerts/rules, /alerts/messages, /silences; POST /alerts/test, /silences; DELETE /silences/N."""
    store, clock = context.store, context.clock

    @router.get("/alerts")
    def list_alerts(
        state: State | None = None,
        rule: Name = None,
        severity: Name = None,
        subject: Name = None,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
    ) -> dict[str, Any]:
        """Some alerts, firing first; `total` says how many there are."""
        with store.read() as connection:
            page = alert_page(
                connection,
                clock(),
                state=state,
                rule=rule,
                severity=severity,
                subject=subject,
                offset=offset,
                limit=limit,
            )
        return {"v": 1, "offset": offset, **page}

    @router.get("/alerts/rules")
    def list_rules() -> dict[str, Any]:
        """The rules in force, and who is told (addresses without secrets)."""
        with store.read() as connection:
            return {"v": 1, "rules": rule_rows(connection), "receivers": receiver_rows(connection)}

    @router.get("/alerts/messages")
    def list_messages(batch: Name = None) -> dict[str, Any]:
        """The newest messages, sent or waiting; with `batch` those of one."""
        with store.read() as connection:
            return {"v": 1, "messages": message_rows(connection, batch)}

    @router.post("/alerts/test", status_code=201)
    def send_test(who: Who) -> dict[str, Any]:
        """Send a message that says nothing but that messages arrive."""
        with store.write() as connection:
            receivers = [row["id"] for row in receiver_rows(connection)]
            if not receivers:
                raise BadInput(
                    "nobody is told of alerts: put an address under [send] into the file of the rules"
                )
            batch = enqueue_test(connection, context.config.fleet, receivers, clock())
            note(connection, clock(), who, "alerts.test", f"batch:{batch}")
            return {"v": 1, "batch": batch, "messages": message_rows(connection, batch)}

    @router.get("/silences")
    def list_silences() -> dict[str, Any]:
        """The silences in force."""
        with store.read() as connection:
            return {"v": 1, "silences": silence_rows(connection, clock())}

    @router.post("/silences", status_code=201)
    def new_silence(new: NewSilence, who: Who) -> dict[str, Any]:
        """Tell nobody of some alerts for a while."""
        with store.write() as connection:
            now = clock()
            until = now + new.for_s
            made = silence(connection, now, who, until=until, why=new.why, rule=new.rule, selector=new.to)
        return {"v": 1, "silence": made}

    @router.delete("/silences/{number}")
    def end_silence(number: Annotated[int, InPath(ge=1, le=2**31 - 1)], who: Who) -> dict[str, Any]:
        """Take a silence back."""
        with store.write() as connection:
            unsilence(connection, clock(), who, number)
        return {"v": 1, "id": number}

    @router.get("/profiles/{name}/figures")
    def figures_of_profile(name: str, window_s: Window = _DAYS_7) -> dict[str, Any]:
        """What boards of a profile measured, by board, bundle and hour, and the work of those bundles."""
        with store.read() as connection:
            found = profile_figures(connection, context.config.repository, name, clock(), window_s)
        return {"v": 1, "profile": name, "window_s": window_s, **found}
