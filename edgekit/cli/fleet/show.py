"""`edgekit fleet status|devices|jobs`: what the server knows, as tables or JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, number, percent, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core import jobs as job_states

window_option = click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="How far to look back for figures.",
)


@click.command(epilog="Example:  edgekit fleet status --server http://127.0.0.1:8080 --token-file api.token")
@server_options
@window_option
@json_option
def status(server: str, token_file: Path | None, hours: float, as_json: bool) -> None:
    """Show the whole fleet in a few lines."""
    found = client_of(server, token_file).status(hours * 3600)
    if as_json:
        print_json(found)
        return
    latency, boards = found["latency_ms"], found["boards"]
    ingest = found["ingest"] or {"connected": False, "why": "starting"}
    facts = {
        "fleet": found["fleet"],
        "boards": f"{boards['online']} online of {boards['enrolled']}",
        "broker": "connected" if ingest["connected"] else f"not connected: {ingest['why'] or 'starting'}",
        "ingest": _ingest(found.get("ingesters", ())),
        "requests": f"{found['requests']} in {hours:g} h, {found['deadline_missed']} deadlines missed",
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
    console.print(table)
    for problem in found["repository"]["problems"]:
        console.print(Text.assemble(("problem: ", "red"), problem), soft_wrap=True)


@click.command(
    epilog="Example:  edgekit fleet devices pi5-a --server http://127.0.0.1:8080 --token-file api.token"
)
@click.argument("name", required=False)
@server_options
@window_option
@json_option
def devices(name: str | None, server: str, token_file: Path | None, hours: float, as_json: bool) -> None:
    """Show every board, or the one called NAME with its events and jobs."""
    client = client_of(server, token_file)
    if name is None:
        found = client.devices(hours * 3600)
        if as_json:
            print_json({"window_s": hours * 3600, "devices": found})
        else:
            console.print(
                _boards(found) if found else "no board is enrolled yet: edgekit fleet enroll NAME -o DIR"
            )
        return
    device = client.device(name, hours * 3600)
    if as_json:
        print_json({"window_s": hours * 3600, "device": device})
        return
    console.print(_boards([device]))
    if device["why"]:
        console.print(Text(device["why"], "yellow"), soft_wrap=True)
    if device["certificate_expires"] is not None and device["revoked_at"] is None:
        until = time.strftime("%Y-%m-%d", time.localtime(device["certificate_expires"]))
        console.print(Text(f"certificate until {until}", "dim"))
    if device["energy_mj"]["why"]:
        console.print(Text(f"energy unknown: {device['energy_mj']['why']}", "dim"), soft_wrap=True)
    for event in reversed(device["events"][:10]):
        detail = ", ".join(f"{key} {value}" for key, value in event["detail"].items())
        console.print(Text(f"{_clock(event['at'])}  {event['kind']}  {detail}"), soft_wrap=True)
    for job in reversed(device["jobs"][:10]):
        why = ": ".join(part for part in (job["reason"], job["detail"]) if part)
        console.print(
            Text(
                f"{_clock(job['updated'])}  job {job['job_id']}  {job_states.title(job)}  {job['state']}  {why}"
            ),
            soft_wrap=True,
        )


@click.command(epilog="Example:  edgekit fleet jobs --server http://127.0.0.1:8080 --token-file api.token")
@click.argument("job_id", required=False)
@server_options
@json_option
def jobs(job_id: str | None, server: str, token_file: Path | None, as_json: bool) -> None:
    """Show the newest jobs, or one with its state on each board."""
    client = client_of(server, token_file)
    if job_id is None:
        found = client.jobs()
        if as_json:
            print_json({"jobs": found})
        else:
            console.print(_jobs(found) if found else "no job yet: edgekit push BUNDLE --to all")
        return
    job = client.job(job_id)
    if as_json:
        print_json({"job": job})
        return
    console.print(
        Text(
            f"{job_states.title(job)} to {job['to']}, {_clock(job['created'])}, "
            f"policy {job['policy'] or 'as configured'}"
        )
    )
    table = _table("board", "state", "why")
    for board, row in job["devices"].items():
        why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
        table.add_row(Text(board), _state(row["state"]), Text(why))
    console.print(table)


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
