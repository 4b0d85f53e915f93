"""Stages that are plans in a session: bits cross the border, exits are taken, weights are held once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bundles import npy
from plan_reference import run

from edgekit.core.bundle import Bundle, members_of, open_bundle, pack
from edgekit.core.cost import Work
from edgekit.core.errors import BadBundle
from edgekit.core.manifest import (
    Exit,
    Golden,
    GoldenOutput,
    Input,
    Manifest,
    OperatingPoint,
    Part,
    Preprocess,
    Stage,
    Tensor,
)
from edgekit.native import door
from edgekit.native import plan as p
from edgekit.runtime.backends import Options, opener
from edgekit.runtime.memory import measure_memory
from edgekit.runtime.policy import Thresholds
from edgekit.runtime.session import open_session

MIB = 2**20
FEATURES, HIDDEN, CLASSES = 20, 70, 4
Made = tuple[p.Plan, tuple[Tensor, ...], tuple[Tensor, ...]]


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> p.Linear:
    return p.Linear(rng.integers(0, 2, (outputs, 1, 1, inputs)).astype(np.uint8), p.BIPOLAR, (1, 1))


def scaled(of: p.Linear) -> p.Linear:
    ones = np.ones(len(of.weights), np.float32)
    return p.Linear(of.weights, of.coding, of.kernel, epilogue=p.SCALED, scale=ones / 4, bias=0 * ones)


def first_stage(rng: np.random.Generator) -> Made:
    """Floats to hidden bits that the next stage takes, an exit and its confidence."""
    thresholds = np.zeros((FEATURES, 1), np.float32)
    cut = dense(rng, FEATURES, HIDDEN)
    cut = p.Linear(
        *(cut.weights, cut.coding, cut.kernel),
        epilogue=p.THRESHOLDS,
        thresholds=np.zeros((HIDDEN, 1), np.int32),
    )
    tensors = (
        p.PlanTensor(p.F32, 1, 1, FEATURES, is_input=True, name="x"),
        p.PlanTensor(p.BITS, 1, 1, FEATURES, p.BIPOLAR),
        p.PlanTensor(p.BITS, 1, 1, HIDDEN, p.BIPOLAR, is_output=True, name="hidden"),
        p.PlanTensor(p.F32, 1, 1, CLASSES, is_output=True, name="early"),
        p.PlanTensor(p.F32, 1, 1, 1, is_output=True, name="early/confidence"),
    )
    operators = (
        p.Operator(p.THRESHOLD, (0,), 1, p.Threshold(thresholds)),
        p.Operator(p.LINEAR, (1,), 2, cut),
        p.Operator(p.LINEAR, (2,), 3, scaled(dense(rng, HIDDEN, CLASSES))),
        p.Operator(p.CONFIDENCE, (3,), 4),
    )
    made = (
        Tensor("hidden", "uint8", (1, 1, 1, (HIDDEN + 7) // 8)),
        Tensor("early", "float32", (1, CLASSES)),
        Tensor("early/confidence", "float32", (1,)),
    )
    return p.Plan(tensors, operators), (Tensor("x", "float32", (1, FEATURES)),), made


def last_stage(rng: np.random.Generator) -> Made:
    tensors = (
        p.PlanTensor(p.BITS, 1, 1, HIDDEN, p.BIPOLAR, is_input=True, name="hidden"),
        p.PlanTensor(p.F32, 1, 1, CLASSES, is_output=True, name="late"),
    )
    operators = (p.Operator(p.LINEAR, (0,), 1, scaled(dense(rng, HIDDEN, CLASSES))),)
    given = (Tensor("hidden", "uint8", (1, 1, 1, (HIDDEN + 7) // 8)),)
    return p.Plan(tensors, operators), given, (Tensor("late", "float32", (1, CLASSES)),)


def write_bundle(path: Path, stages: Sequence[Made], exits: Sequence[Exit]) -> Bundle:
    """Plans as a bundle of one stage each, with one golden case."""
    files = {f"stages/{index}.plan": p.encode(plan) for index, (plan, _, _) in enumerate(stages)}
    parts = [
        Part("native", name, hashlib.sha256(content).hexdigest(), given, made)
        for (name, content), (_, given, made) in zip(files.items(), stages, strict=True)
    ]
    x = stages[0][1][0]
    files["golden/x.npy"] = npy(np.ones((1, *x.shape), x.dtype))
    for leaving in exits:
        files[f"golden/{leaving.name}.npy"] = npy(np.zeros((1, 1, CLASSES), np.float32))
    files["recipe.toml"] = b'kind = "plans"\n'
    more = len(exits) - 1
    manifest = Manifest(
        name="plans",
        version=1,
        profiles=("host",),
        inputs=(Input(x, "flat", Preprocess(channels="L")),),
        labels=None,
        stages=tuple(Stage((part,), (Work("MatMul", "w1a1", 1, 1, 1),)) for part in parts),
        exits=tuple(exits),
        quality_metric="agreement",
        operating_points=(OperatingPoint((2.0,) * more, 1.0, (0.0,) * more + (1.0,), 1.0),),
        golden=Golden(
            1,
            {"x": "golden/x.npy"},
            tuple(
                GoldenOutput(leaving.name, leaving.stage, f"golden/{leaving.name}.npy", 1.0)
                for leaving in exits
            ),
        ),
        recipe="recipe.toml",
        files=members_of(files),
    )
    path.write_bytes(pack(manifest, files, {"v": 1}))
    return open_bundle(path)


def test_exits_over_plans_are_taken_and_the_late_one_reads_the_bits_handed_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    stages = [first_stage(rng), last_stage(rng)]
    exits = (Exit("early", 0, "early", "early/confidence", 0.6), Exit("late", 1, "late", None, 1.0))
    bundle = write_bundle(tmp_path / "m.edge", stages, exits)
    session = open_session(bundle.manifest, bundle.read)
    assert set(session.providers) == {f"native/{[row.name for row in door.kernels() if row.chosen][-1]}"}
    seen = set()
    for _ in range(40):
        x = rng.normal(0, 1, (1, FEATURES)).astype(np.float32)
        answer = session.run({"x": x}, Thresholds((0.8,)))
        first = run(stages[0][0], [x.reshape(1, 1, -1)])
        assert answer.exit == ("early" if first[4].item() >= 0.8 else "late")
        wanted = first[3] if answer.exit == "early" else run(stages[1][0], [first[2]])[1]
        np.testing.assert_array_equal(answer.outputs[answer.exit].ravel(), wanted.ravel())
        seen.add(answer.exit)
    assert seen == {"early", "late"}


def test_a_plans_weights_are_held_once(tmp_path: Path) -> None:
    side = 8192
    x = p.PlanTensor(p.F32, 1, 1, side, is_input=True, name="x")
    bits = p.PlanTensor(p.BITS, 1, 1, side, p.BIPOLAR)
    y = p.PlanTensor(p.F32, 1, 1, side, is_output=True, name="y")
    of = scaled(dense(np.random.default_rng(0), side, side))
    cut = p.Threshold(np.zeros((side, 1), np.float32))
    plan = p.Plan((x, bits, y), (p.Operator(p.THRESHOLD, (0,), 1, cut), p.Operator(p.LINEAR, (1,), 2, of)))
    made = (plan, (Tensor("x", "float32", (1, side)),), (Tensor("y", "float32", (1, side)),))
    write_bundle(tmp_path / "m.edge", [made], (Exit("y", 0, "y", None, 1.0),))
    memory = measure_memory(tmp_path / "m.edge")
    assert memory.weights_bytes == memory.weights_file_bytes == side * side // 8 + 3 * 4 * side
    assert memory.opened_bytes < 1.25 * memory.weights_bytes + MIB
    assert memory.mapped_bytes < 0.5 * memory.weights_bytes


def test_parts_of_one_file_share_what_was_opened() -> None:
    plan, given, made = last_stage(np.random.default_rng(1))
    content = p.encode(plan)
    digest = hashlib.sha256(content).hexdigest()
    options = Options()
    outputs = []
    for index in range(2):
        names = {"in": "hidden", "out": "late"} if index else {}
        inside = Tensor("in" if index else "hidden", given[0].dtype, given[0].shape)
        outside = Tensor("out" if index else "late", made[0].dtype, made[0].shape)
        part = Part("native", "stages/0", digest, (inside,), (outside,), names=names)
        x, y = np.full(inside.shape, 170 + index, np.uint8), np.zeros(outside.shape, np.float32)
        opener("native")(content, part, {inside.name: x}, {outside.name: y}, options).run()
        outputs.append(y)
    assert len(options.opened) == 1
    assert not np.array_equal(*outputs)


def test_a_tensor_of_another_type_or_name_is_a_bad_bundle() -> None:
    plan, given, made = last_stage(np.random.default_rng(1))
    content = p.encode(plan)
    for wrong in (Tensor("hidden", "int8", given[0].shape), Tensor("other", "uint8", given[0].shape)):
        part = Part("native", "stages/0", "", (wrong,), made)
        buffers = (
            {wrong.name: np.zeros(wrong.shape, wrong.dtype)},
            {"late": np.zeros((1, CLASSES), np.float32)},
        )
        with pytest.raises(BadBundle, match="not those its manifest lists"):
            opener("native")(content, part, *buffers, Options())
