"""`edgekit fleet configure`: change boards' settings from here, within what each board allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.options import json_option, policy_options
from edgekit.cli.output import console, counted, print_json
from edgekit.cli.push import follow
from edgekit.cli.server import client_of, server_options
from edgekit.core import jobs
from edgekit.core.errors import BadInput
from edgekit.core.policy import policy_from_options
from edgekit.core.selector import parse_selector

SOME_FAILED = 1
HELP = """Change settings of boards: KEY=VALUE as in agent.toml (update.rate_kb_s=200), KEY= takes one back.

What a board runs stays. Every other key of agent.toml is for the file on the board alone, and under [limits] a board
takes only what is stricter than its own. What it refuses, and why, stands in the job. Exit code 1: some boards
refused, failed, or were not done in time.

\b
limits   accepts_code, accepts_measure, min_interval_s, threads, throttled_factor
log      verbose
sensors  sample_s
trial    live_requests, live_seconds, requests, seconds
update   jitter_s, rate_kb_s, refresh_h
"""


@click.command(
    help=HELP,
    epilog="Example:  edgekit fleet configure --to tag=site-a update.rate_kb_s=200 limits.throttled_factor=0.5",
)
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@server_options
@click.option("--to", "selector", required=True, metavar="SELECTOR", help="all, or tag=site-a,name=pi5-a.")
@policy_options
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 86_400),
    metavar="SECONDS",
    help="How often a Record is made.",
)
@click.option("--reset", is_flag=True, help="First take back everything that was set from here.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait so long for the boards."
)
@json_option
@click.pass_context
def configure(
    ctx: click.Context,
    settings: tuple[str, ...],
    server: str,
    token_file: Path | None,
    selector: str,
    policy: str | None,
    budget: str | None,
    deadline_ms: float | None,
    max_drop: float | None,
    interval_s: float | None,
    reset: bool,
    wait_s: float | None,
    as_json: bool,
) -> None:
    """Change settings."""
    parse_selector(selector)
    wanted = None
    if (policy, budget, deadline_ms, max_drop) != (None, None, None, None):
        wanted = policy_from_options(policy, budget, deadline_ms, max_drop)
    config = dict(_setting(text) for text in settings)
    client = client_of(server, token_file)
    job = client.configure(selector, config, policy=wanted, interval_s=interval_s, reset=reset)
    if wait_s is not None:
        job = follow(client, job, wait_s, "settings")
    if as_json:
        print_json(job)
    else:
        console.print(
            Text(f"job {job['job_id']} for {counted(len(job['devices']), 'board')}"), soft_wrap=True
        )
        for name, row in job["devices"].items():
            why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
            console.print(Text(f"  {name}: {row['state']}" + (f" ({why})" if why else "")), soft_wrap=True)
    good = {jobs.DONE} if wait_s is not None else {jobs.DONE, "pending"}
    if any(row["state"] not in good or row["reason"] for row in job["devices"].values()):
        ctx.exit(SOME_FAILED)


def _setting(text: str) -> tuple[str, Any]:
    """`key=value`: a number, true, false, or a text; nothing behind the sign takes the setting back."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise BadInput(f"a setting must be KEY=VALUE, such as update.rate_kb_s=200, got {text!r}")
    if not value:
        return key, None
    try:
        parsed = json.loads(value)
    except ValueError:
        return key, value
    return key, parsed if isinstance(parsed, (bool, int, float, str)) else value
