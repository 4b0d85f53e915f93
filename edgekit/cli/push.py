"""`edgekit push`: sign a bundle with the engineer's key, publish it, and follow it to the boards."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgekit.cli.options import bundle_argument, json_option, policy_options
from edgekit.cli.output import console, counted, print_json
from edgekit.cli.rollout_shown import begin
from edgekit.cli.screen import Console
from edgekit.cli.server import client_of, server_options
from edgekit.client import Client, Conflict
from edgekit.core import jobs
from edgekit.core.bundle import Bundle
from edgekit.core.environment import EnvironmentFile
from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.policy import PolicySpec, policy_from_options
from edgekit.core.selector import parse_selector

SOME_FAILED = 1
_ATTEMPTS = 5  # somebody else may publish between our reading and our writing
_POLL_S = 0.3
_COLORS = {jobs.DONE: "green", "failed": "red", "refused": "red", "expired": "red"}


@click.command(
    epilog="Example:  edgekit push model.edge --server http://127.0.0.1:8080 --key targets.pem --to tag=site-a"
)
@bundle_argument
@server_options
@click.option(
    "--key", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Your private targets key."
)
@click.option(
    "--to",
    "selector",
    required=True,
    metavar="SELECTOR",
    help="all, or tag=site-a,profile=raspberrypi5,name=pi5-a.",
)
@policy_options
@click.option(
    "--canary",
    metavar="PERCENT",
    help="In waves: first this share of the boards (of each profile), rolled back where it does harm.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for the boards, and show them.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    server: str,
    token_file: Path | None,
    key: Path,
    selector: str,
    policy: str | None,
    budget: str | None,
    deadline_ms: float | None,
    max_drop: float | None,
    canary: str | None,
    wait_s: float | None,
    as_json: bool,
) -> None:
    """Sign BUNDLE and roll it out to boards.

    BUNDLE may also be an environment that `edgekit repo environment` made: then the boards' agents are put into it, and
    go back where it does not stand its trial.

    What is published already is not uploaded again. --policy and its amounts set the boards' policy; without them it
    stays as configured on each board. Ends with 1 when a board refused it, failed, or was not done in time.

    --canary makes it a rollout in waves (edgekit fleet rollout); with --wait it ends with 1 unless that completed.
    """
    parse_selector(selector)  # before anything is published
    wanted = None
    if (policy, budget, deadline_ms, max_drop) != (None, None, None, None):
        wanted = policy_from_options(policy, budget, deadline_ms, max_drop)
    client = client_of(server, token_file)
    opened = _opened(bundle)
    agents = not isinstance(opened, Bundle)
    if agents and wanted is not None:
        raise BadInput(f"{bundle}: is an environment of the agent, which has no policy: leave --policy out")
    if agents and canary is not None:
        raise BadInput(
            f"{bundle}: is an environment of the agent, which goes to all boards at once: leave --canary out"
        )
    plan = None if canary is None else canary_plan(opened.label, selector, canary, wanted)
    uploaded = publish_bundle(client, opened, key)
    label = opened.label
    if plan is not None:
        begin(ctx, client, plan, wait_s, as_json, published=uploaded)
        return
    job = client.update_agents(label, selector) if agents else client.create_job(label, selector, wanted)
    if wait_s is not None:
        job = follow(client, job, wait_s, opened.label)
    devices = job["devices"]
    if wait_s is not None:
        devices = {name: _overdue(row) for name, row in devices.items()}
    if as_json:
        print_json({**job, "devices": devices, "published": uploaded})
    else:
        said = "" if uploaded else " (published before)"
        console.print(
            Text(f"{opened.label}{said}: job {job['job_id']} for {counted(len(devices), 'board')}"),
            soft_wrap=True,
        )
        console.print(_table(devices))
    good = {jobs.DONE} if wait_s is not None else {jobs.DONE, "pending"}
    if any(row["state"] not in good for row in devices.values()):
        ctx.exit(SOME_FAILED)


def canary_plan(label: str, selector: str, canary: str, policy: PolicySpec | None) -> dict[str, Any]:
    """A rollout's plan: the canary, a quarter where that is more, all. Raises BadInput."""
    try:
        percent = float(canary.strip().removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent < 100:
        raise BadInput(f"--canary must be a share in percent, above 0 and below 100, got {canary!r}")
    waves = [f"{share}%" for share in (25, 100) if share > percent]
    plan: dict[str, Any] = {"target": label, "to": selector, "canary": f"{percent:g}%", "waves": waves}
    return plan if policy is None else {**plan, "policy": policy.to_json()}


def _opened(path: Path) -> Bundle | EnvironmentFile:
    from edgekit.repo.add import open_publishable

    return open_publishable(path)


def publish_bundle(client: Client, bundle: Bundle | EnvironmentFile, key_path: Path) -> bool:
    """Have the bundle in the server's repository, signed with this key; False where it was there already.

    Builds only on metadata that this very key signed: what else a server hands out, its holder does not sign.
    Raises BadInput, WorldFailed.
    """
    from edgekit.repo.add import measure, published, sign_targets, with_bundle
    from edgekit.repo.keys import read_key
    from edgekit.repo.metadata import parse_targets, signed_by_or_refused

    key = read_key(key_path)
    for _ in range(_ATTEMPTS):
        current = parse_targets(client.targets_metadata(), "the server's targets metadata")
        signed_by_or_refused(current, key, str(key_path))
        known = published(current.signed, bundle)
        if known is not None and known.target.state == "revoked":
            raise BadInput(f"{bundle.label} was revoked: no board runs it")
        if known is not None:
            return False
        data = sign_targets(with_bundle(current, bundle, datetime.now(timezone.utc)), key)
        client.upload_bundle(bundle.path, measure(bundle.path)[1])
        try:
            client.publish(data)
        except Conflict:
            continue
        return True
    raise WorldFailed(f"others published at the same time, {_ATTEMPTS} times over: try again")


def follow(client: Client, job: dict[str, Any], wait_s: float, title: str) -> dict[str, Any]:
    """Show a job's boards until all have ended or time is up; the job as it is then. A short outage is waited out."""
    screen = Console(stderr=True)
    end = time.monotonic() + wait_s
    said: dict[str, str] = {}
    with Live(console=screen, transient=True, auto_refresh=False) as live:
        while True:
            shown = {name: row["state"] for name, row in job["devices"].items()}
            if sys.stderr.isatty():
                live.update(_table(job["devices"], title), refresh=True)
            else:
                for name, state in shown.items():
                    if said.get(name) != state:
                        screen.print(f"{name}: {state}", highlight=False)
                said = shown
            if set(shown.values()) <= jobs.FINAL or time.monotonic() >= end:
                return job
            time.sleep(max(0.0, min(_POLL_S, end - time.monotonic())))
            try:
                job = client.job(job["job_id"])
            except WorldFailed as err:
                if time.monotonic() >= end:
                    raise
                live.update(Text(one_line(err)), refresh=True)


def _overdue(row: Mapping[str, Any]) -> dict[str, Any]:
    """A board that had its time and is not done says so; its job goes on."""
    if row["state"] in jobs.FINAL:
        return dict(row)
    reason = "silent" if row["state"] == "pending" else "unfinished"
    return {**row, "reason": reason, "detail": "not done within the time that was waited; the job goes on"}


def _table(devices: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in ("board", "state", "why"):
        table.add_column(column, overflow="fold")
    for name, row in devices.items():
        state = row["state"]
        why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
        table.add_row(Text(name), Text(state, _COLORS.get(state, "yellow")), Text(why))
    return table
