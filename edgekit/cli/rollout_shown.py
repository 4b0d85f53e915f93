"""How rollouts are begun, followed and shown: what `push --canary` and `fleet rollout` share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.output import console, counted, print_json
from edgekit.cli.screen import Console
from edgekit.client import Client
from edgekit.core.errors import WorldFailed, one_line

NOT_COMPLETED = 1
_POLL_S = 1.0
_SETTLED = frozenset({"completed", "rolled_back", "aborted", "failed", "paused"})
_COLORS = {
    "completed": "green",
    "passed": "green",
    "accepted": "green",
    "failed": "red",
    "rolled_back": "red",
}
_STATES = ("took", "failed", "silent", "refused", "superseded", "open", "waiting")


def begin(
    ctx: click.Context,
    client: Client,
    plan: Mapping[str, Any],
    wait_s: float | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Start a rollout, say so, and wait for its end where asked; the exit code is set."""
    for line in client.preview_rollout(plan)["warnings"]:
        Console(stderr=True).print(Text.assemble(("warning: ", "yellow"), line), soft_wrap=True)
    found = client.start_rollout(plan)
    if wait_s is not None:
        found = follow(client, found, wait_s)
    if as_json:
        print_json({"rollout": found, **more})
    else:
        show_rollout(found)
    if wait_s is not None and found["state"] != "completed":
        ctx.exit(NOT_COMPLETED)


def follow(client: Client, found: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """Say on stderr what happens until the rollout has ended, is paused, or time is up. An outage is waited out."""
    screen, end, said = Console(stderr=True), time.monotonic() + wait_s, 0
    while True:
        lines = list(reversed(found["audit"]))
        for line in lines[said:]:
            screen.print(Text(f"{clock(line['at'])}  {line['text']}"), soft_wrap=True)
        said = max(said, len(lines))
        if found["state"] in _SETTLED or time.monotonic() >= end:
            return found
        time.sleep(max(0.0, min(_POLL_S, end - time.monotonic())))
        try:
            found = client.rollout(found["rollout_id"])
        except WorldFailed as err:
            if time.monotonic() >= end:
                raise
            screen.print(Text(one_line(err)), soft_wrap=True)


def show_rollout(found: Mapping[str, Any]) -> None:
    """A rollout in full: its waves, and its audit log."""
    console.print(
        Text.assemble(
            f"rollout {found['rollout_id']}: {found['target']} to {found['to']}, ", state(found["state"])
        )
    )
    if found["why"]:
        console.print(Text(found["why"]), soft_wrap=True)
    rows = table("wave", "state", "boards", *_STATES)
    for wave in found["waves"]:
        counts = [str(wave["states"][state]) for state in _STATES]
        rows.add_row(wave["name"], state(wave["state"]), str(wave["boards"]), *counts)
    console.print(rows)
    for entry in found["left_out"]:
        console.print(Text(f"{counted(entry['boards'], 'board')} left out: {entry['why']}"), soft_wrap=True)
    for line in reversed(found["audit"]):
        console.print(Text(f"{clock(line['at'])}  {line['who']}  {line['text']}"), soft_wrap=True)


def table(*columns: str) -> Table:
    """Plain columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def state(word: str) -> Text:
    """A state in its colour."""
    return Text(word.replace("_", " "), _COLORS.get(word, "yellow"))


def clock(at: float) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
