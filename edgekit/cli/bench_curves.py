"""`edgekit bench --curves`: what a bundle's exits are worth on this machine, measured, printed, drawn."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from edgekit.cli.output import console, number, percent, progress
from edgekit.core.curves import Curves
from edgekit.core.curves_text import exit_mix, in_points, quality_of, verdict
from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.files import write_atomic
from edgekit.runtime.curves import BUCKETS, Times, curves, measured_anytime, with_measured
from edgekit.runtime.data import Data
from edgekit.runtime.measure import exit_table, machine_name
from edgekit.runtime.policy import StageCosts
from edgekit.runtime.session import Session


def check_curves(exits: int, data: Path | None) -> None:
    """Refuse before anything is measured. Raises BadInput."""
    if data is None:
        raise BadInput("--curves wants --data: a bundle's own golden cases are too few to tell exits apart")
    if exits < 2:
        raise BadInput(
            "--curves wants a bundle with two exits or more, this one has 1: there is nothing to choose"
        )


def measure_curves(session: Session, data: Data, costs: StageCosts) -> Curves:
    """Every exit's answer to every sample, then every sample under a deadline. Raises BadInput without classes."""
    with progress() as bar:
        task = bar.add_task("curves", total=(1 + BUCKETS) * data.count)
        table = exit_table(session, data, lambda done: bar.advance(task, done))
        found = curves(session.manifest, table, Times.of(table.latency_ms, "measured", machine_name()))
        if found is None:
            raise BadInput(
                f"--curves: bundle {session.manifest.name} has no operating points, or its exits give no classes to "
                "compare"
            )
        anytime = measured_anytime(session, data, table, costs, lambda done: bar.advance(task, done))
    return with_measured(found, anytime)


def write_page(path: Path, label: str, data: str, found: Curves) -> None:
    """Both curves as a page that needs no network. Raises MissingExtra where the converter's packages are not there."""
    try:
        from edgekit.host.report_curves import page
    except ImportError as err:
        raise MissingExtra(
            f"--report draws with the converter, which needs: pip install 'edgekit[host]' ({err})"
        ) from err
    write_atomic(path, page(label, machine_name(), data, found).encode())


def print_curves(found: Curves) -> None:
    """Two tables and the verdict."""
    quality = quality_of(found)
    budgets = Table(
        "budget",
        "cost",
        "time",
        quality,
        "static",
        "lead, points (95 %)",
        title="budget curve",
    )
    for point in found.budget:
        budgets.add_row(
            percent(point.budget, 1),
            percent(point.cost_share, 1),
            number(point.ms, 3, " ms"),
            percent(point.quality),
            percent(point.static),
            f"{in_points(point.lead)} ({in_points(point.low)} to {in_points(point.high)})",
        )
    deadlines = Table(
        "deadline",
        "requests",
        "in time",
        quality,
        "mean",
        "exits taken, %",
        title=f"anytime curve, {found.anytime_how}",
    )
    for entry in found.anytime:
        deadlines.add_row(
            number(entry.deadline_ms, 3, " ms"),
            str(entry.requests),
            percent(entry.in_time),
            percent(entry.quality),
            number(entry.ms, 3, " ms"),
            exit_mix(entry.exit_shares),
        )
    for table in (budgets, deadlines):
        table.title_justify = "left"
        console.print(table)
    console.print(verdict(found), markup=False, soft_wrap=True)
