"""`edgekit bench --curves`: what a bundle's exits are worth on this machine, measured, printed, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from edgekit.cli.output import console, number, percent, progress
from edgekit.core.curves import Curves
from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.files import write_atomic
from edgekit.core.manifest import METRICS
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
    quality = "accuracy" if found.metric == METRICS[0] else "agreement"
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
            f"{_points(point.lead)} ({_points(point.low)} to {_points(point.high)})",
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
            _mix(entry.exit_shares),
        )
    for table in (budgets, deadlines):
        table.title_justify = "left"
        console.print(table)
    lead = found.lead
    if lead is not None:
        where = "nowhere" if lead.nowhere_below else "somewhere"
        console.print(
            f"dynamic against static exits: {where} significantly below; mean lead {_points(lead.mean)} points "
            f"({_points(lead.low)} to {_points(lead.high)}) up to {100 * lead.until:.0f} % of the cost",
            markup=False,
            soft_wrap=True,
        )


def _points(share: float) -> str:
    return f"{100 * round(share, 4) + 0.0:+.2f}"  # never -0.00


def _mix(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)
