"""`edgekit fleet alerts`: what is wrong in the fleet, who is told of it, and who need not be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, counted, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core.errors import BadInput
from edgekit.core.selector import parse_selector

FAILED = 1
_EXAMPLE = "--server https://fleet:8080 --token-file api.token"
_STYLES = {"firing": "red", "clearing": "yellow", "pending": "dim"}


@click.group()
def alerts() -> None:
    """List alerts, check rules, silence what is known, and try how messages are sent."""


@alerts.command("list", epilog=f"Example:  edgekit fleet alerts list --state firing {_EXAMPLE}")
@server_options
@click.option(
    "--state",
    type=click.Choice(["open", "pending", "firing", "clearing", "resolved", "all"]),
    default="open",
    show_default=True,
    help="Which alerts.",
)
@click.option("--rule", help="Only of this rule.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@json_option
def list_alerts(
    server: str, token_file: Path | None, state: str, rule: str | None, limit: int, as_json: bool
) -> None:
    """List alerts, what silences are in force, and which rules cannot see all they should."""
    client = client_of(server, token_file)
    found = client.alerts(None if state == "all" else state, rule=rule, limit=limit)
    rules, silences = client.alert_rules(), client.silences()
    if as_json:
        keys = ("total", "counts", "alerts")
        print_json({key: found[key] for key in keys} | {"rules": rules["rules"], "silences": silences})
        return
    if found["alerts"]:
        table = Table("alert", "state", "since", "what", box=None, pad_edge=False, header_style="bold")
        for row in found["alerts"]:
            word = row["state"] + (", silenced" if row["silenced"] else "")
            about = Text(f"{row['rule']} {row['subject']}")
            table.add_row(
                about, Text(word, _STYLES.get(row["state"], "")), _when(row["since"]), Text(row["text"])
            )
        console.print(table)
    shown = len(found["alerts"])
    total = counted(found["total"], "alert") if found["total"] else "no alert"
    total += "" if state == "all" else f" {state}"
    console.print(Text(total + (f", {shown} shown" if shown < found["total"] else "")))
    for row in silences:
        what = row["rule"] or "every rule"
        until = f"until {_when(row['until'])} by {row['by']}"
        line = f"silence {row['id']}: {what} for {row['selector']} {until}: {row['why']}"
        console.print(Text(line), soft_wrap=True)
    for row in rules["rules"]:
        if row["note"]:
            console.print(Text(f"rule {row['name']}: {row['note']}", "yellow"), soft_wrap=True)


@alerts.command(epilog="Example:  edgekit fleet alerts check alerts.toml")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@json_option
def check(file: Path | None, as_json: bool) -> None:
    """Check a FILE of rules; without one, print the default rules, to begin with."""
    from edgekit.fleet.alerts.rules import DEFAULT, read_rules

    rules = read_rules(file)
    if as_json:
        kinds = [{"name": rule.name, "kind": rule.kind, "severity": rule.severity} for rule in rules.rules]
        print_json(
            {
                "file": None if file is None else str(file),
                "rules": kinds,
                "receivers": len(rules.sending.urls),
            }
        )
    elif file is None:
        click.echo(DEFAULT, nl=False)
    else:
        told = counted(len(rules.sending.urls), "address") if rules.sending.urls else "nobody is told"
        console.print(Text(f"{file}: good, {counted(len(rules.rules), 'rule')}, {told}"), soft_wrap=True)


@alerts.command(
    epilog=f"Example:  edgekit fleet alerts silence --rule offline --to tag=site-a --for 2h --why moving {_EXAMPLE}"
)
@server_options
@click.option("--rule", help="Only this rule's alerts; else every rule's.")
@click.option(
    "--to", "selector", default="all", show_default=True, metavar="SELECTOR", help="Of which boards."
)
@click.option("--for", "duration", required=True, metavar="DURATION", help="For so long: 30m, 2h, 7d.")
@click.option("--why", required=True, help="Why; others read it.")
@json_option
def silence(
    server: str,
    token_file: Path | None,
    rule: str | None,
    selector: str,
    duration: str,
    why: str,
    as_json: bool,
) -> None:
    """Tell nobody of some alerts for a while. What still fires then is told at its end."""
    from edgekit.fleet.alerts.rules import parse_duration

    parse_selector(selector)
    seconds = parse_duration(duration)
    if not seconds:
        raise BadInput(f'--for must be a duration such as "30m", "2h" or "7d", got {duration!r}')
    made = client_of(server, token_file).silence(seconds, why, rule, selector)
    if as_json:
        print_json({"silence": made})
    else:
        console.print(Text(f"silence {made['id']} until {_when(made['until'])}"))


@alerts.command(epilog=f"Example:  edgekit fleet alerts unsilence 3 {_EXAMPLE}")
@click.argument("number", type=click.IntRange(min=1))
@server_options
@json_option
def unsilence(number: int, server: str, token_file: Path | None, as_json: bool) -> None:
    """Take a silence back: NUMBER as the list shows it."""
    client_of(server, token_file).unsilence(number)
    if as_json:
        print_json({"id": number})
    else:
        console.print(Text(f"silence {number} is taken back"))


@alerts.command(epilog=f"Example:  edgekit fleet alerts test {_EXAMPLE}")
@server_options
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    default=40.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the receivers.",
)
@json_option
@click.pass_context
def test(ctx: click.Context, server: str, token_file: Path | None, wait_s: float, as_json: bool) -> None:
    """Send a test message to everybody who is told of alerts. Exit code 1: somebody did not get it."""
    client = client_of(server, token_file)
    made = client.test_alerts()
    messages: list[dict[str, Any]] = made["messages"]
    end = time.monotonic() + wait_s
    while time.monotonic() < end and any(row["sent"] is None and row["why"] is None for row in messages):
        time.sleep(0.5)
        messages = client.alert_messages(made["batch"])
    if as_json:
        print_json({"batch": made["batch"], "messages": messages})
    else:
        for row in messages:
            state = "sent" if row["sent"] is not None else row["why"] or "not sent yet"
            console.print(Text(f"{row['to']}: {state}", "" if row["sent"] else "red"), soft_wrap=True)
    if any(row["sent"] is None for row in messages):
        ctx.exit(FAILED)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
