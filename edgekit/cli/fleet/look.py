"""`edgekit fleet events|bundles`: what happened on boards, and how bundle versions compare, as tables or JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.cli.fleet.show import window_option
from edgekit.cli.fleet.watching import Answer, show, watch_option
from edgekit.cli.options import json_option
from edgekit.cli.output import counted, number
from edgekit.cli.server import client_of, server_options


@click.command(
    epilog="Example:  edgekit fleet events --kind rollback --hours 24 --server http://127.0.0.1:8080"
)
@click.option("--device", metavar="NAME", help="Of this board alone.")
@click.option("--kind", metavar="KIND", help="Of this kind alone, such as condition or rollback.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Not older than this.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@server_options
@watch_option
@json_option
def events(
    device: str | None,
    kind: str | None,
    hours: float | None,
    limit: int,
    server: str,
    token_file: Path | None,
    watch: float | None,
    as_json: bool,
) -> None:
    """Show what boards said happened, the newest last."""
    client = client_of(server, token_file)

    def ask() -> Answer:
        since = None if hours is None else time.time() - hours * 3600
        found = client.events(limit, device=device, kind=kind, since=since)
        return {"events": found}, [_event(event) for event in reversed(found)] or ["no such event"]

    show(ask, watch, as_json=as_json)


def _event(event: Mapping[str, Any]) -> Text:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
    return Text(f"{when}  {event['device']}  {event['text']}")


@click.command(epilog="Example:  edgekit fleet bundles toy --server http://127.0.0.1:8080")
@click.argument("name", required=False)
@server_options
@window_option
@watch_option
@json_option
def bundles(
    name: str | None,
    server: str,
    token_file: Path | None,
    hours: float,
    watch: float | None,
    as_json: bool,
) -> None:
    """Show what boards run, or the versions of the bundle called NAME and boards before and after a change."""
    client = client_of(server, token_file)

    def ask() -> Answer:
        if name is None:
            rows = client.bundles(hours * 3600)
            return {"window_s": hours * 3600, "bundles": rows}, [_versions(rows)]
        found = client.bundle(name, hours * 3600)
        shown: list[RenderableType] = [_versions(found["versions"]), *map(_change, found["changes"])]
        return {"window_s": hours * 3600, "bundle": found}, shown

    show(ask, watch, as_json=as_json)


def _versions(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("bundle", "boards", "requests", "p50 ms", "p95 ms", "p99 ms", "mJ each"):
        table.add_column(column, overflow="fold")
    for row in rows:
        latency, energy = row["latency_ms"], row["energy_mj"]
        figures = (*(number(latency[key]) for key in ("p50", "p95", "p99")), number(energy["mean"]))
        table.add_row(
            *(Text(str(cell)) for cell in (row["bundle"], row["boards"], row["requests"], *figures))
        )
    return table


def _change(change: Mapping[str, Any]) -> Text:
    before, after = change["before"]["latency_ms"]["p99"], change["after"]["latency_ms"]["p99"]
    on = f"{change['from']} -> {change['to']} on {counted(change['boards'], 'board')}"
    return Text(f"{on}: p99 {number(before)} -> {number(after)} ms")
