"""The Session: stages, early answers, and inputs that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import CLASSES, SHAPE, null_files, null_manifest, write_null_bundle

from edgekit.core.bundle import Bundle, members_of
from edgekit.core.errors import BadInput, Refused
from edgekit.core.policy import Budget, PolicySpec
from edgekit.runtime.backends import allocate
from edgekit.runtime.policy import StageCosts, Thresholds, make_policy
from edgekit.runtime.session import Answer, Session, open_session


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_null_bundle(tmp_path / "toy.edge")


@pytest.fixture
def session(bundle: Bundle) -> Iterator[Session]:
    opened = open_session(bundle.manifest, bundle.read)
    yield opened
    opened.close()


def image(*values: float) -> dict[str, np.ndarray]:
    x = np.zeros(SHAPE, np.float32)
    x.ravel()[: len(values)] = values
    return {"x": x}


def test_the_answer_is_that_of_the_exit_that_was_sure_enough(session: Session) -> None:
    sure, unsure = image(9, 0, 0), image(0.1, 0, 0)
    policy = Thresholds((0.9, 0.9))
    early, late = session.run(sure, policy), session.run(unsure, policy)
    assert (early.exit, early.exit_index) == ("exit1", 0)
    assert (late.exit, late.exit_index) == ("exit3", 2)
    assert early.confidence is not None
    assert early.confidence >= 0.9
    np.testing.assert_allclose(early.outputs["exit1"], [[9, 0, 0]])
    np.testing.assert_allclose(late.outputs["exit3"], [[0.4, 0, 0]], rtol=1e-6)
    assert early.label == 0


def test_an_answer_stays_as_it_was_when_the_next_request_runs(session: Session) -> None:
    policy = Thresholds((0.0, 0.0))
    first = session.run(image(1, 2, 3), policy)
    session.run(image(7, 8, 9), policy)
    np.testing.assert_allclose(first.outputs["exit1"], [[1, 2, 3]])


def test_later_stages_do_not_run_after_an_early_exit(session: Session) -> None:
    session.run_all(image(1, 2, 3))
    session.run(image(5, 5, 5), Thresholds((0.0, 0.0)))
    np.testing.assert_allclose(session.output(2), [[4, 8, 12]])


def test_run_all_gives_every_tensor_the_stages_make(session: Session) -> None:
    made = session.run_all(image(1, 0, 0))
    assert set(made) == {f"exit{i}{end}" for i in (1, 2, 3) for end in ("", "/confidence")}
    assert made["exit3"].shape == (1, CLASSES)


def test_a_missed_deadline_is_said_and_still_answered(bundle: Bundle) -> None:
    ticks = iter(range(1000))
    slow = open_session(bundle.manifest, bundle.read, clock=lambda: next(ticks) * 1.0)
    costs = StageCosts((1.0,) * 3, (1.0,) * 3)
    answer = slow.run(image(1), make_policy(PolicySpec("anytime", None, 5.0), bundle.manifest, costs))
    assert answer.exit == "exit1"
    assert answer.deadline_missed
    assert answer.latency_ms == 2000.0


def test_what_a_request_waited_counts_against_its_deadline_and_into_its_latency(bundle: Bundle) -> None:
    ticks = iter(range(1000))
    slow = open_session(bundle.manifest, bundle.read, clock=lambda: next(ticks) * 1e-3)
    policy = make_policy(
        PolicySpec("anytime", None, 100.0), bundle.manifest, StageCosts((1.0,) * 3, (1.0,) * 3)
    )
    patient = slow.run(image(1), policy)
    assert (patient.exit, patient.deadline_missed) == ("exit3", False)
    hurried = slow.run(image(1), policy, waited_ms=98.5)
    assert (hurried.exit, hurried.deadline_missed) == ("exit1", True)
    assert hurried.latency_ms == pytest.approx(100.5)


@pytest.mark.parametrize("kind", ["confidence", "budget", "anytime"])
def test_a_confidence_that_is_no_number_goes_on_and_is_counted(session: Session, kind: str) -> None:
    spec = {
        "confidence": PolicySpec("confidence", max_drop=100),
        "budget": PolicySpec("budget", Budget(1, "%")),
        "anytime": PolicySpec("anytime", None, 1e-6),
    }[kind]
    policy = make_policy(spec, session.manifest, StageCosts((1.0,) * 3, (1.0,) * 3))
    assert (session.run(image(1), policy).exit_index, session.run(image(1), policy).nan_confidences) == (0, 0)
    answer = session.run(image(float("nan")), policy)
    assert (answer.exit, answer.nan_confidences) == ("exit3", 3)


@pytest.mark.parametrize(
    ("inputs", "came"),
    [
        ({}, "nothing"),
        ({"y": np.zeros(SHAPE, np.float32)}, "nothing"),
        ({"x": np.zeros((1, 1, 5, 4), np.float32)}, r"float32 \[1, 1, 5, 4\]"),
        ({"x": np.zeros(SHAPE, np.float64)}, "float64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(
    session: Session, inputs: dict[str, np.ndarray], came: str
) -> None:
    with pytest.raises(BadInput, match=f"must be float32 .* got {came}"):
        session.run(inputs, Thresholds((2.0, 2.0)))


def test_a_bundle_that_runs_code_needs_consent() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, [replace(part, executes_code=True) for part in parts])
    with pytest.raises(Refused, match="code"):
        open_session(manifest, files.__getitem__)
    open_session(manifest, files.__getitem__, accepts_code=True).close()


@pytest.mark.parametrize(
    ("shape", "is_one"),
    [((1, 10), True), ((10,), True), ((1, 10, 1, 1), True), ((1, 1), False), ((1, 3, 8, 8), False)],
)
def test_only_a_vector_of_classes_has_a_label(shape: tuple[int, ...], is_one: bool) -> None:
    output = np.zeros(shape, np.float32)
    assert (Answer({"out": output}, "last", 0, None, 1.0).label is not None) == is_one


def test_an_unknown_backend_lists_the_known_ones() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, [replace(part, backend="vulkan") for part in parts])
    with pytest.raises(BadInput, match=r"unknown backend 'vulkan'; known: .*null, onnxruntime"):
        open_session(manifest, files.__getitem__)


def test_a_part_that_is_no_program_is_refused() -> None:
    files, parts = null_files()
    files["stages/1.json"] = b"{}"
    manifest = replace(null_manifest(files, parts), files=members_of(files))
    with pytest.raises(BadInput, match=r"stages/1\.json"):
        open_session(manifest, files.__getitem__)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (1, 3, 5), (1, 64, 56, 56)])
def test_a_buffer_is_zeroed_contiguous_and_begins_a_cache_line(shape: tuple[int, ...], dtype: str) -> None:
    made = allocate(dtype, shape)
    assert made.shape == shape
    assert made.dtype.name == dtype
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert not made.any()
    assert made.size == 0 or made.ctypes.data % 64 == 0  # numpy does not move the pointer of an empty slice
