"""Measuring: golden cases, exit tables and policies on the shipped Session."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import SHAPE, npy, null_files, null_manifest, write_null_bundle

from edgekit.core.errors import BadBundle
from edgekit.core.manifest import Golden
from edgekit.core.policy import Budget, PolicySpec
from edgekit.runtime.data import Data
from edgekit.runtime.measure import (
    check_golden,
    exit_table,
    golden_data,
    load_array,
    measure_policy,
    stage_costs,
)
from edgekit.runtime.session import open_session


def data_of(images: np.ndarray, labels: np.ndarray | None) -> Data:
    return Data("test", range(len(images)), labels, lambda i: {"x": images[i]}, str)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 3, (count, *SHAPE)).astype(np.float32)


def test_golden_cases_pass_on_the_machine_that_made_them(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge")
    assert check_golden(open_session(bundle.manifest, bundle.read), bundle.manifest, bundle.read) == ()


def test_golden_cases_that_are_off_are_named_one_line_each(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge", golden_error=0.01)
    failures = check_golden(open_session(bundle.manifest, bundle.read), bundle.manifest, bundle.read)
    assert [line.split()[0] for line in failures] == ["exit1", "exit2", "exit3"]
    assert "0.01" in failures[0]
    assert "0.0001" in failures[0]


def test_a_flipped_top1_is_noticed_even_within_the_tolerance_of_the_values() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, parts)
    golden = manifest.golden
    wide = replace(golden, outputs=tuple(replace(o, tolerance=0.05) for o in golden.outputs))
    manifest = replace(manifest, golden=wide)
    session = open_session(manifest, files.__getitem__)
    wanted = load_array(files["golden/0.exit1.npy"], "x").copy()
    case = int(np.argmax(np.ptp(wanted[:, 0], axis=1)))
    wanted[case, 0] = [0.3, 0.1, 0.0]
    session_inputs = load_array(files["golden/in.x.npy"], "x")
    session_inputs[case].ravel()[:3] = [0.1, 0.3, 0.0]
    changed = {**files, "golden/0.exit1.npy": npy(wanted), "golden/in.x.npy": npy(session_inputs)}
    failures = check_golden(session, manifest, changed.__getitem__)
    assert "exit1 has another top-1 on a clear case" in failures


def test_not_a_number_in_an_output_fails_the_golden_cases(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge", golden_error=math.nan)
    assert len(check_golden(open_session(bundle.manifest, bundle.read), bundle.manifest, bundle.read)) == 3


def test_golden_files_of_another_count_are_damage() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, parts)
    wrong = replace(manifest, golden=Golden(5, manifest.golden.inputs, manifest.golden.outputs))
    with pytest.raises(BadBundle, match="must be 5"):
        check_golden(open_session(manifest, files.__getitem__), wrong, files.__getitem__)


def test_the_exit_table_compares_every_exit_with_labels_and_with_the_last() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, parts)
    x = images(20)
    labels = x.reshape(20, -1)[:, :3].argmax(axis=1).astype(np.int64)
    labels[:5] = (labels[:5] + 1) % 3
    table = exit_table(open_session(manifest, files.__getitem__), data_of(x, labels))
    assert table.correct is not None
    assert table.correct.sum(axis=0).tolist() == [15, 15, 15]
    assert table.agreement.all()
    assert (np.diff(table.confidence, axis=1) >= 0).all()
    assert (np.diff(table.latency_ms, axis=1) >= 0).all()


def test_a_measured_policy_counts_every_request_and_knows_accuracy_only_with_labels(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge")
    session = open_session(bundle.manifest, bundle.read)
    x = images(30)
    labels = x.reshape(30, -1)[:, :3].argmax(axis=1).astype(np.int64)
    report = measure_policy(session, data_of(x, labels), PolicySpec("budget", Budget(50, "%")))
    assert report.accuracy == 1.0
    assert sum(report.exit_counts.values()) == report.requests == 30
    assert report.latency.p99 is not None
    assert measure_policy(session, data_of(x, None), PolicySpec("full")).accuracy is None


def test_answers_after_their_deadline_are_counted(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "a.edge")
    session = open_session(bundle.manifest, bundle.read)
    data = data_of(images(30), None)
    assert measure_policy(session, data, PolicySpec("anytime", None, 1e-6)).missed == 30
    assert measure_policy(session, data, PolicySpec("anytime", None, 1e6)).missed == 0
    assert measure_policy(session, data, PolicySpec("full")).missed is None


def test_stage_costs_find_the_slow_stage() -> None:
    files, parts = null_files(delay_ms=0.0)
    files["stages/1.json"] = files["stages/1.json"].replace(b'"delay_ms": 0.0', b'"delay_ms": 3.0')
    manifest = null_manifest(files, parts)
    session = open_session(manifest, files.__getitem__)
    costs = stage_costs(session, golden_data(manifest, files.__getitem__), rounds=10)
    assert max(range(3), key=costs.mean_ms.__getitem__) == 1
    assert costs.mean_ms[1] >= 3.0
    assert costs.cumulative_ms[2] >= costs.cumulative_ms[1] >= 3.0


def test_a_slow_network_is_measured_in_fewer_rounds() -> None:
    files, parts = null_files(delay_ms=4.0)
    manifest = null_manifest(files, parts)
    runs = 0

    def counted(data: Data) -> Data:
        def sample(index: int) -> dict[str, np.ndarray]:
            nonlocal runs
            runs += 1
            return data.sample(index)

        return replace(data, sample=sample)

    golden = counted(golden_data(manifest, files.__getitem__))
    costs = stage_costs(open_session(manifest, files.__getitem__), golden, limit_s=0.0)
    assert runs == 4
    assert min(costs.mean_ms) >= 4.0
