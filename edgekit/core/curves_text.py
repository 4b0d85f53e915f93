"""What curves say, in words and short texts: the same in a terminal as on a page. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.core.curves import LEAD_UNTIL, Curves
from edgekit.core.manifest import METRICS


def quality_of(curves: Curves) -> str:
    """What quality is, in a word or two."""
    return "accuracy" if curves.metric == METRICS[0] else "agreement"


def verdict(curves: Curves) -> str:
    """The policy against the static exits, in a sentence."""
    lead = curves.lead
    if lead is None:
        return f"No budget lies below {100 * LEAD_UNTIL:.0f} % of the full network's cost: there is nothing to compare."
    where = (
        "nowhere significantly below the static exits"
        if lead.nowhere_below
        else "somewhere significantly below the static exits"
    )
    span = f"{100 * curves.static[0].cost_share:.0f} to {100 * lead.until:.0f} % of the cost"
    return (
        f"On {curves.count} samples the budget policy is {where}; from {span} its mean lead is "
        f"{in_points(lead.mean)} points of {quality_of(curves)} "
        f"(95 %: {in_points(lead.low)} to {in_points(lead.high)})."
    )


def timely(curves: Curves) -> str:
    """How many requests were answered before their deadline, in a sentence; empty where none had one."""
    if not curves.anytime:
        return ""
    requests = sum(point.requests for point in curves.anytime)
    share = sum(point.in_time * point.requests for point in curves.anytime) / requests
    worst = min(curves.anytime, key=lambda point: point.in_time)
    return (
        f"In time: {100 * share:.2f} % of requests; least at deadlines of about {worst.deadline_ms:.3g} ms, "
        f"{100 * worst.in_time:.2f} %."
    )


def in_points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * round(share, 4) + 0.0:+.2f}"  # never -0.00


def exit_mix(shares: Sequence[float]) -> str:
    """Shares of the exits, in per cent."""
    return " / ".join(f"{100 * share:.1f}" for share in shares)
