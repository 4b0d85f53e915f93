"""`edgekit fleet rollout`: a bundle to many boards in waves, each held against a gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, counted, print_json
from edgekit.cli.rollout_shown import begin, clock, follow, show_rollout, state, table
from edgekit.cli.server import client_of, server_options
from edgekit.core.errors import BadInput
from edgekit.core.toml import read_toml

wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for its end; 1 unless it completed by then.",
)


@click.group()
def rollout() -> None:
    """Bring a published bundle to boards in waves.

    The canary comes first, then waves; behind each stands a gate on what became of its boards and on their figures
    against before. A canary that fails is rolled back, a later wave is paused.
    """


@rollout.command(epilog="Example:  edgekit fleet rollout start toy/3 --to tag=site-a --canary 5% --wave 25%")
@click.argument("target", required=False, metavar="[NAME/VERSION]")
@server_options
@click.option(
    "--plan", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file; options change it."
)
@click.option(
    "--to", metavar="SELECTOR", help="Which boards: all, or tag=site-a,profile=raspberrypi5,name!=pi5-old*."
)
@click.option("--canary", metavar="SIZE", help="5% or a number of boards; at least one of each profile.")
@click.option(
    "--wave", "waves", multiple=True, metavar="SIZE", help="Up to how much: 25% or a number; repeat it."
)
@click.option("--window", "windows", multiple=True, metavar="DAYS@FROM-UNTIL", help="When waves may begin.")
@click.option("--time-zone", metavar="ZONE", help="Of the windows, such as Europe/Berlin.")
@click.option(
    "--deadline", "deadline_s", type=float, metavar="SECONDS", help="Silence beyond it is a failure."
)
@click.option(
    "--soak", "soak_s", type=float, metavar="SECONDS", help="How long a wave runs before it is judged."
)
@click.option("--max-failed", type=float, metavar="PERCENT", help="Of a wave's boards, failed or silent.")
@click.option("--overlap", is_flag=True, help="Also take boards of other rollouts under way.")
@click.option("--dry-run", is_flag=True, help="Only show what it would do.")
@wait_option
@json_option
@click.pass_context
def start(
    ctx: click.Context,
    target: str | None,
    server: str,
    token_file: Path | None,
    plan: Path | None,
    to: str | None,
    canary: str | None,
    waves: tuple[str, ...],
    windows: tuple[str, ...],
    time_zone: str | None,
    deadline_s: float | None,
    soak_s: float | None,
    max_failed: float | None,
    overlap: bool,
    dry_run: bool,
    wait_s: float | None,
    as_json: bool,
) -> None:
    """Begin a rollout of a published bundle. docs/rollouts.md says what a plan may hold."""
    whole: dict[str, Any] = {} if plan is None else dict(read_toml(plan))
    given = {"target": target, "to": to, "canary": canary, "time_zone": time_zone, "deadline_s": deadline_s}
    whole |= {key: value for key, value in given.items() if value is not None}
    gate = dict(whole.get("gate", {}))
    gate |= {} if soak_s is None else {"soak_s": soak_s}
    gate |= {} if max_failed is None else {"max_failed_percent": max_failed}
    whole |= {"gate": gate} if gate else {}
    whole |= {"waves": list(waves)} if waves else {}
    whole |= {"windows": [_window(text) for text in windows]} if windows else {}
    whole |= {"overlap": True} if overlap else {}
    missing = {"target": "a bundle (NAME/VERSION)", "to": "boards (--to all, --to tag=site-a)"}
    for key, wanted in missing.items():
        if not whole.get(key):
            raise BadInput(f"a rollout needs {wanted}: give it here, or as {key} in the plan")
    client = client_of(server, token_file)
    if dry_run:
        found = client.preview_rollout(whole)
        if as_json:
            print_json({"preview": found})
        else:
            _show_preview(found)
        return
    begin(ctx, client, whole, wait_s, as_json)


@rollout.command(name="list", epilog="Example:  edgekit fleet rollout list --server http://127.0.0.1:8080")
@server_options
@json_option
def list_(server: str, token_file: Path | None, as_json: bool) -> None:
    """Show the newest rollouts."""
    found = client_of(server, token_file).rollouts()
    if as_json:
        print_json({"rollouts": found})
        return
    if not found:
        console.print("no rollout yet: edgekit fleet rollout start NAME/VERSION --to all")
        return
    rows = table("rollout", "target", "to", "state", "wave", "boards", "begun")
    for row in found:
        wave = f"{min(row['wave'] + 1, row['waves'])} of {row['waves']}"
        boards = f"{row['boards']['took']} of {row['boards']['total']} took it"
        words = (row["rollout_id"], row["target"], row["to"])
        rows.add_row(*map(Text, words), state(row["state"]), wave, boards, clock(row["created"]))
    console.print(rows)


@rollout.command(
    epilog="Example:  edgekit fleet rollout show 5f0c7e1a2b3d --watch --server http://127.0.0.1:8080"
)
@click.argument("rollout_id")
@server_options
@click.option("--watch", is_flag=True, help="Follow it on stderr until it has ended or is paused.")
@json_option
def show(rollout_id: str, server: str, token_file: Path | None, watch: bool, as_json: bool) -> None:
    """Show a rollout: its waves, their gates, and why it did what it did."""
    client = client_of(server, token_file)
    found = client.rollout(rollout_id)
    if watch:
        found = follow(client, found, 366 * 86_400.0)
    if as_json:
        print_json({"rollout": found})
    else:
        show_rollout(found)


def _verb(name: str, title: str) -> None:
    """pause, abort, rollback: they differ in nothing but their name."""

    @rollout.command(
        name=name,
        help=title,
        epilog=f"Example:  edgekit fleet rollout {name} 5f0c7e1a2b3d --server http://127.0.0.1:8080",
    )
    @click.argument("rollout_id")
    @server_options
    @json_option
    def command(rollout_id: str, server: str, token_file: Path | None, as_json: bool) -> None:
        _changed(client_of(server, token_file).change_rollout(rollout_id, name), as_json)


_verb("pause", "Begin no new wave and judge nothing until it is resumed; boards that were asked go on.")
_verb("abort", "Begin no new wave, ever; boards that were asked keep what they took.")
_verb("rollback", "Take every board that was asked back to what it ran before; also after the end.")


@rollout.command(
    epilog="Example:  edgekit fleet rollout resume 5f0c7e1a2b3d --accept --server http://127.0.0.1:8080"
)
@click.argument("rollout_id")
@server_options
@click.option("--accept", is_flag=True, help="Take the current wave for good, whatever its gate said.")
@json_option
def resume(rollout_id: str, server: str, token_file: Path | None, accept: bool, as_json: bool) -> None:
    """Go on; a wave that failed its gate is judged once more."""
    _changed(client_of(server, token_file).change_rollout(rollout_id, "resume", accept=accept), as_json)


def _changed(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"rollout": found})
    else:
        console.print(Text.assemble(f"rollout {found['rollout_id']}: ", state(found["state"])))


def _window(text: str) -> dict[str, Any]:
    """`mon-fri@22:00-05:00`, `sat,sun@08:00-18:00`. The server checks the words."""
    days, at, times = text.partition("@")
    begin_at, dash, until = times.partition("-")
    if not at or not dash:
        raise BadInput(f"--window must be DAYS@FROM-UNTIL such as mon-fri@22:00-05:00, got {text!r}")
    names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    found: list[str] = []
    for part in days.split(","):
        first, span, last = part.strip().partition("-")
        if span and first in names and last in names and names.index(first) <= names.index(last):
            found += names[names.index(first) : names.index(last) + 1]
        else:
            found.append(part.strip())
    return {"days": found, "from": begin_at, "until": until}


def _show_preview(found: Mapping[str, Any]) -> None:
    rows = table("wave", "boards", "profiles")
    for wave in found["waves"]:
        profiles = ", ".join(f"{number} {profile}" for profile, number in wave["profiles"].items())
        rows.add_row(wave["name"], str(wave["boards"]), Text(profiles))
    console.print(rows)
    for entry in found["left_out"]:
        console.print(Text(f"{counted(entry['boards'], 'board')} left out: {entry['why']}"), soft_wrap=True)
    for entry in found["overlaps"]:
        console.print(
            Text(f"{counted(entry['boards'], 'board')} in rollout {entry['rollout_id']}, which goes on"),
            soft_wrap=True,
        )
    for line in found["warnings"]:
        console.print(Text.assemble(("warning: ", "yellow"), line), soft_wrap=True)
    console.print("nothing was started: this is what it would do without --dry-run")
