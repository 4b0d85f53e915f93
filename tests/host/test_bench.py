from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from networks import three_exits

from edgekit.core.bundle import open_bundle
from edgekit.core.profile import HOST
from edgekit.host.bench import as_bundle, local_bench
from edgekit.host.lower import backend_for
from edgekit.host.pack import Draft, draft
from edgekit.host.split import split
from edgekit.runtime.data import Data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import check_golden
from edgekit.runtime.session import open_session


@pytest.fixture
def candidates(make: Callable[..., object]) -> tuple[tuple[Draft, ...], Data]:
    """A network in float and in int8, and data for it."""
    made = make(three_exits())
    backend = backend_for(find_profile(HOST))
    graphs = (made.plain, made.quantized)  # type: ignore[attr-defined]
    return tuple(draft(graph, split(graph), backend, "net", 1, HOST) for graph in graphs), made.data  # type: ignore[attr-defined]


def test_every_candidate_is_timed_here_to_each_exit_and_per_stage(
    candidates: tuple[tuple[Draft, ...], Data],
) -> None:
    drafts, data = candidates
    reports = local_bench(rounds=3)(drafts, data)
    for report, made in zip(reports, drafts, strict=True):
        assert report.problems == ()
        assert len(report.exits) == len(report.stages) == len(made.manifest.exits)
        means = [entry.mean for entry in report.exits]
        assert means == sorted(means)
        assert sum(entry.mean for entry in report.stages) == pytest.approx(means[-1], rel=1e-3)
        assert len(report.turns_ms) == 3
        assert (report.provenance, report.device, report.busy) == ("measured", None, False)
        assert report.on


def test_a_candidate_that_cannot_be_opened_has_a_problem_and_the_others_their_times(
    candidates: tuple[tuple[Draft, ...], Data],
) -> None:
    drafts, data = candidates
    broken = replace(drafts[0], files=dict.fromkeys(drafts[0].files, b"nonsense"))
    first, second = local_bench(rounds=1)((broken, drafts[1]), data)
    assert first.problems
    assert first.exits == ()
    assert second.latency.mean is not None


def test_a_draft_becomes_a_bundle_that_a_board_can_check_and_time(
    candidates: tuple[tuple[Draft, ...], Data], tmp_path: Path
) -> None:
    drafts, data = candidates
    for made in drafts:
        (tmp_path / "one.edge").write_bytes(as_bundle(made, data, "raspberrypi5"))
        bundle = open_bundle(tmp_path / "one.edge")
        session = open_session(bundle.manifest, bundle.read)
        assert check_golden(session, bundle.manifest, bundle.read) == ()
        assert bundle.manifest.golden.outputs
        assert bundle.manifest.profiles == ("raspberrypi5",)
