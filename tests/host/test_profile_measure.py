"""Measuring a profile on a tiny grid: what is in it, what is left out in time, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgekit.core.cost import predict
from edgekit.core.errors import BadInput
from edgekit.core.profile import parse_profile
from edgekit.core.profile_toml import profile_toml
from edgekit.host.lower import backend_for
from edgekit.host.measure_costs import as_one_stage, clock_for
from edgekit.host.micro import cases
from edgekit.host.profile_measure import Grid, describe, measure_profile

TINY = Grid(("Conv.1x1", "Conv.depthwise", "Add", "residual"), most=2, rounds=1)


def test_a_measured_profile_predicts_a_network_of_its_kinds_and_says_how_it_came_about() -> None:
    made = measure_profile("here", grid=TINY)
    read = parse_profile(profile_toml(made.profile, describe(made)), "here.toml")

    assert (read.name, read.cost.threads, made.networks, made.left_out) == ("here", 1, 16, 0)
    assert set(made.over_float) == {"uint8", "int8"}
    assert read.backend("onnxruntime").int8_activation == min(
        made.over_float, key=made.over_float.__getitem__
    )
    fast = min(made.over_float.values()) <= 0.95
    assert ("int8" in read.backend("onnxruntime").fast_formats) == fast
    assert {"Conv.1x1", "Conv.depthwise", "Add"} <= set(read.cost.operators)
    case = next(cases(("float32",), ["residual"]))
    manifest = as_one_stage(case.graph, backend_for(read)).manifest
    predicted = predict(read, manifest.stages[0].work)
    assert predicted.value is not None
    assert predicted.value > 0
    assert (predicted.provenance, predicted.on) == ("estimated", "here")


def test_what_time_does_not_allow_is_left_out_but_one_of_each_kind() -> None:
    ticks = itertools.count(step=1000.0)
    made = measure_profile("here", grid=TINY, clock=lambda: next(ticks))

    assert (made.networks, made.left_out) == (8, 8)


def test_a_backend_or_kind_of_network_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadInput, match="onnxruntime"):
        measure_profile("here", "tensorflow", grid=TINY)
    with pytest.raises(BadInput, match="profile measure knows the backends"):
        measure_profile("here", "native", grid=TINY)
    with pytest.raises(BadInput, match=r"unknown kind of network 'Conv\.9x9'; known: Conv\.kxk"):
        measure_profile("here", grid=Grid(("Conv.9x9",)))


def test_one_thread_is_timed_by_its_own_cpu_time_and_more_by_the_wall() -> None:
    import time

    assert clock_for(1) is time.thread_time
    assert clock_for(2) is time.perf_counter


def test_measuring_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measure_profile("here", grid=Grid(("Add",), rounds=1))
    assert list(tmp_path.iterdir()) == []
