"""`edgekit fleet status|devices|jobs`: what the server knows, as tables or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.cli.fleet.watching import Answer, show, watch_option
from edgekit.cli.options import json_option
from edgekit.cli.output import counted, number, percent
from edgekit.cli.server import client_of, server_options
from edgekit.core import jobs as job_states
from edgekit.core.errors import BadInput

window_option = click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="How far to look back for figures.",
)


@click.command(
    epilog="""Examples:

\b
  edgekit fleet status --server http://127.0.0.1:8080 --token-file api.token
  edgekit fleet status --watch"""
)
@server_options
@window_option
@watch_option
@json_option
def status(server: str, token_file: Path | None, hours: float, watch: float | None, as_json: bool) -> None:
    """Show the whole fleet in a few lines."""
    client = client_of(server, token_file)

    def ask() -> Answer:
        found = client.status(hours * 3600)
        return found, _fleet(found, hours)

    show(ask, watch, as_json=as_json)


def _fleet(found: Mapping[str, Any], hours: float) -> list[RenderableType]:
    latency, boards = found["latency_ms"], found["boards"]
    ingest = found["ingest"] or {"connected": False, "why": "starting"}
    lost = {
        "inputs dropped": found["inputs_dropped"],
        "answers lost": found["answers_lost"],
        "cancelled": found["cancelled"],
        "confidences without a number": found["nan_confidences"],
    }
    facts = {
        "fleet": found["fleet"],
        "boards": f"{boards['online']} online of {boards['enrolled']}"
        + "".join(f", {boards[key]} {word}" for key, word in _STATES.items() if boards.get(key)),
        "broker": "connected" if ingest["connected"] else f"not connected: {ingest['why'] or 'starting'}",
        "requests": f"{found['requests']} in {hours:g} h, {found['errors']} errors, "
        f"{found['deadline_missed']} deadlines missed",
        "lost": ", ".join(f"{count} {what}" for what, count in lost.items() if count) or "nothing",
        "latency": ", ".join(
            f"{key} {number(latency[key], 3, ' ms')}" for key in ("mean", "p50", "p95", "p99")
        ),
        "exits": _exits(found["exit_counts"]),
        "accuracy": f"{percent(found['accuracy'])} of {found['labelled']} labelled",
        "energy": _energy(found["energy_mj"]),
        "records": f"{found['records']} received, {found['malformed']} malformed messages dropped",
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for key, fact in facts.items():
        table.add_row(key, Text(fact))
    parts: list[RenderableType] = [table]
    parts += [_shares_of(found[f"by_{key}"], key) for key in ("profile", "bundle") if found[f"by_{key}"]]
    problems = [*found["repository"]["problems"], *found.get("problems", [])]
    return parts + [Text.assemble(("problem: ", "red"), problem) for problem in problems]


_STATES = {"revoked": "revoked", "problem": "with a problem", "differs": "not as wanted"}


def _shares_of(rows: list[dict[str, Any]], key: str) -> Table:
    table = _table(key, "online", "boards", "requests", "p50 ms", "p99 ms", "mJ each")
    for row in rows:
        figures = (row["latency_ms"]["p50"], row["latency_ms"]["p99"], row["energy_mj"]["mean"])
        counts = (row[name] for name in ("online", "boards", "requests"))
        table.add_row(*(Text(str(cell)) for cell in (row[key], *counts, *map(number, figures))))
    return table


@click.command(
    epilog="""Examples:

\b
  edgekit fleet devices pi5-a --server http://127.0.0.1:8080 --token-file api.token
  edgekit fleet devices --state problem --profile raspberrypi5
  edgekit fleet devices --sort p99 --descending --limit 10 --watch 5"""
)
@click.argument("name", required=False)
@click.option("--search", metavar="TEXT", help="Boards with this in their name.")
@click.option("--profile", metavar="NAME", help="Boards of this profile.")
@click.option("--bundle", metavar="NAME[/VERSION]", help="Boards that run this.")
@click.option(
    "--state", type=click.Choice(["online", "offline", "revoked", "problem", "differs", "throttled"])
)
@click.option("--tag", metavar="TAG", help="Boards with this tag.")
@click.option(
    "--sort",
    metavar="COLUMN",
    help="name, profile, bundle, last_seen, temperature_c, or a figure of the last 24 h: requests, errors, "
    "deadline_missed, p50, p95, p99, accuracy, energy_mj.",
)
@click.option("--descending", is_flag=True, help="The largest first.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--all", "every", is_flag=True, help="However many there are.")
@server_options
@window_option
@watch_option
@json_option
def devices(
    name: str | None,
    limit: int,
    every: bool,
    server: str,
    token_file: Path | None,
    hours: float,
    watch: float | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Show boards, or the one called NAME with its events and jobs."""
    client = client_of(server, token_file)
    chosen = {key: value for key, value in filters.items() if value}
    if name is not None and chosen:
        raise BadInput(f"give a board's NAME or --{', --'.join(chosen)}, not both")

    def ask() -> Answer:
        if name is not None:
            device = client.device(name, hours * 3600)
            return {"window_s": hours * 3600, "device": device}, _board(device)
        found = client.devices(hours * 3600, None if every else limit, **chosen)
        count = client.device_count(**{k: v for k, v in chosen.items() if k not in {"sort", "descending"}})
        answer = {"window_s": hours * 3600, "total": count, "devices": found}
        if found:
            return answer, [_boards(found), _of(len(found), count, "board")]
        none = "no such board" if chosen else "no board is enrolled yet: edgekit fleet enroll NAME -o DIR"
        return answer, [none]

    show(ask, watch, as_json=as_json)


def _of(shown: int, total: int, what: str) -> Text:
    """How much of it is shown."""
    more = "" if shown >= total else f"{shown} of "
    return Text(f"{more}{counted(total, what)}" + (": --all shows all" if more else ""), "dim")


def _board(device: Mapping[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = [_boards([dict(device)])]
    refused = device["settings"]["refused"]
    if device["why"]:
        parts.append(Text(device["why"], "yellow"))
    elif refused:
        parts.append(Text("active, but settings refused", "yellow"))
    parts += [Text(f"setting {key} refused: {why}", "yellow") for key, why in refused.items()]
    parts += [
        Text(f"setting {key} = {json.dumps(value)}") for key, value in device["settings"]["config"].items()
    ]
    lost = {
        "inputs dropped": device["inputs_dropped"],
        "answers lost": device["answers_lost"],
        "cancelled": device["cancelled"],
        "confidences without a number": device["nan_confidences"],
    }
    if any(lost.values()):
        parts.append(Text(", ".join(f"{count} {what}" for what, count in lost.items() if count)))
    if device["idle_power_mw"] is not None:
        parts.append(Text(f"idle power {device['idle_power_mw']:.0f} mW", "dim"))
    if device["certificate_expires"] is not None and device["revoked_at"] is None:
        until = time.strftime("%Y-%m-%d", time.localtime(device["certificate_expires"]))
        parts.append(Text(f"certificate until {until}", "dim"))
    if device["energy_mj"]["why"]:
        parts.append(Text(f"energy unknown: {device['energy_mj']['why']}", "dim"))
    for event in reversed(device["events"][:10]):
        parts.append(Text(f"{_clock(event['at'])}  {event['text']}"))
    for job in reversed(device["jobs"][:10]):
        title = f"{_clock(job['updated'])}  job {job['job_id']}  {job_states.title(job)}"
        parts.append(Text(f"{title}  {job['state']}  {_why(job)}"))
    return parts


def _why(row: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (row["reason"], row["detail"]) if part)


@click.command(
    epilog="""Examples:

\b
  edgekit fleet jobs --server http://127.0.0.1:8080 --token-file api.token
  edgekit fleet jobs JOB --state failed"""
)
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--state", metavar="STATE", help="Of one job: boards in this state, such as failed.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@click.option("--all", "every", is_flag=True, help="However many there are.")
@server_options
@watch_option
@json_option
def jobs(
    job_id: str | None,
    state: str | None,
    limit: int,
    every: bool,
    server: str,
    token_file: Path | None,
    watch: float | None,
    as_json: bool,
) -> None:
    """Show the newest jobs, or one with its state on each board."""
    client = client_of(server, token_file)
    if job_id is None and state is not None:
        raise BadInput("--state is of one job's boards: give the JOB, too")

    def ask() -> Answer:
        if job_id is not None:
            job = client.job(job_id, state=state)
            return {"job": job}, _job(job)
        found = client.jobs(2**31 if every else limit)
        return {"jobs": found}, [_jobs(found) if found else "no job yet: edgekit push BUNDLE --to all"]

    show(ask, watch, as_json=as_json)


def _job(job: Mapping[str, Any]) -> list[RenderableType]:
    head = f"{job_states.title(job)} to {job['to']}, {_clock(job['created'])}, "
    table = _table("board", "state", "why")
    for board, row in job["devices"].items():
        table.add_row(Text(board), _state(row["state"]), Text(_why(row)))
    return [Text(f"{head}policy {job['policy'] or 'as configured'}"), table]


def _boards(rows: list[dict[str, Any]]) -> Table:
    """Two lines a board, so that it fits a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("board", "bundle", "requests", "p50/p95\np99 ms", "exits %\nmJ each", "seen"):
        table.add_column(column, no_wrap=column != "bundle", overflow="fold", min_width=6)
    for row in rows:
        seen = "never" if row["last_seen"] is None else _ago(time.time() - row["last_seen"])
        state = ("online", "green") if row["online"] else ("offline", "red")
        if row["revoked_at"] is not None:
            state = ("revoked", "red")
        latency, energy = row["latency_ms"], row["energy_mj"]
        table.add_row(
            _lines(row["name"], row["profile"] or "profile unknown"),
            _lines(row["bundle"] or "none", row["policy"] or ""),
            _lines(str(row["requests"]), percent(row["accuracy"]) if row["labelled"] else "no labels"),
            _lines(f"{number(latency['p50'], 2)}/{number(latency['p95'], 2)}", number(latency["p99"], 2))
            if latency["p50"] is not None
            else Text("unknown"),
            _lines(_shares(row["exit_counts"]), f"{number(energy['mean'], 2)} {energy['provenance'] or ''}"),
            Text.assemble(state, "\n", seen),
        )
    return table


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _lines(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return "/".join(f"{100 * count / total:.0f}" for count in counts.values()) if total else "none"


def _jobs(rows: list[dict[str, Any]]) -> Table:
    table = _table("job", "target", "to", "policy", "boards", "created")
    for row in rows:
        states = ", ".join(f"{count} {state}" for state, count in row["states"].items())
        policy = row["policy"] or "as configured"
        table.add_row(
            *(
                Text(cell)
                for cell in (
                    row["job_id"],
                    job_states.title(row),
                    row["to"],
                    policy,
                    states,
                    _clock(row["created"]),
                )
            )
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _ingest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each ingester's Records a second and how late they are, of the last minute."""
    late = [row["lag_p99_ms"] for row in rows if row["lag_p99_ms"] is not None]
    rates = " + ".join(f"{row['rate']:.1f}" for row in rows)
    if not late:
        return f"{rates} records/s" if rows else "no ingester lives"
    return f"{rates} records/s, stored within {number(max(late), 3, ' ms')} (p99 of the last minute)"


def _exits(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return (
        ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in counts.items())
        if total
        else "none"
    )


def _energy(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return f"unknown ({value['why']})" if value["why"] else "unknown"
    kinds = f" ({', '.join(value['provenances'])})" if len(value["provenances"]) > 1 else ""
    return f"{value['mean']:.2f} mJ a request, {value['provenance']}{kinds}"


def _state(state: str) -> Text:
    color = "green" if state in job_states.GOOD else "red" if state in job_states.FINAL else "yellow"
    return Text(state, color)


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
