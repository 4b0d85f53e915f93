from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.core.bench import MAX_CANDIDATES, BenchReport, parse_reports, reports_json
from edgekit.core.errors import BadInput
from edgekit.core.report import Latency

REPORT = BenchReport(
    content_id="a" * 64,
    exits=(Latency(1.0, 1.0, 1.5, 2.0), Latency(2.0, 2.0, 2.5, 3.0)),
    stages=(Latency(1.0, 1.0, 1.5, 2.0), Latency(1.0, 1.0, 1.0, 1.0)),
    turns_ms=(2.0, 2.1),
    requests=128,
    energy_why="no sensor",
    memory_mb=3.5,
    providers=("CPUExecutionProvider",),
    provenance="simulated",
    on="profile raspberrypi5",
    device="pi5",
    profile="raspberrypi5",
    throttled=False,
    busy=True,
)


def test_a_report_survives_the_way_over_json() -> None:
    assert parse_reports(reports_json((REPORT,)), "reports") == (REPORT,)


def test_the_latency_of_a_candidate_is_that_of_its_last_exit_and_unknown_without_one() -> None:
    assert REPORT.latency.p50 == 2.0
    assert BenchReport("a" * 64, problems=("it crashed",)).latency == Latency()


@pytest.mark.parametrize(
    "changes",
    [{"provenance": "guessed"}, {"content_id": "x"}, {"turns_ms": [-1.0]}, {"busy": None}, {"exits": 3}],
)
def test_a_report_that_says_nonsense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"reports\[0\]"):
        parse_reports([{**REPORT.to_json(), **changes}], "reports")


def test_more_reports_than_a_round_has_and_more_bytes_than_a_message_takes_are_refused() -> None:
    with pytest.raises(BadInput, match="at most 64"):
        parse_reports(reports_json((REPORT,) * (MAX_CANDIDATES + 1)), "reports")
    large = replace(REPORT, turns_ms=(0.123456,) * 100_000)
    with pytest.raises(BadInput, match="bytes"):
        parse_reports(reports_json((large,)), "reports")
