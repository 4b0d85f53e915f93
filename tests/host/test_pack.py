"""Packing: golden cases that pass here, fail on a wrong network, and tolerate another processor's rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from networks import CLASSES, Builder, three_exits

from edgekit.core.profile import Backend
from edgekit.host.choose import operating_points
from edgekit.host.pack import Draft, Finished, draft, finish, golden_cases
from edgekit.host.passes import step
from edgekit.host.passes.quantize_static import Int8
from edgekit.host.recipe import Recipe
from edgekit.host.split import split
from edgekit.runtime.measure import check_golden, exit_table, load_array

BACKEND = Backend("onnxruntime", max_opset=21, max_ir=10)
RECIPE = Recipe("host", "onnxruntime", (step("confidence"), step("fold")), (), 1, 0.2, 24, 16)


def finished(
    make: Callable, which: str = "quantized", count: int = 16, seed: int = 0
) -> tuple[Draft, Finished]:
    made = make(three_exits(seed))
    lowered = draft(getattr(made, which), split(getattr(made, which)), BACKEND, "m", 1, "host")
    table = exit_table(lowered.open(), made.data)
    points = operating_points(table, [leaving.cost_share for leaving in lowered.manifest.exits])
    golden = golden_cases(lowered, made.data, count)
    return lowered, finish(lowered, points, "agreement", golden, RECIPE)


@pytest.mark.parametrize("which", ["plain", "quantized"])
def test_golden_cases_pass_where_they_were_made(make: Callable, which: str) -> None:
    _, done = finished(make, which)
    assert check_golden(done.open(), done.manifest, done.files.__getitem__) == ()


def test_golden_cases_hold_every_tensor_of_every_stage(make: Callable) -> None:
    lowered, done = finished(make)
    golden = done.manifest.golden
    assert golden.count == 16
    wanted = {tensor.name for stage in lowered.stages for tensor in stage.outputs}
    assert {output.tensor for output in golden.outputs} == wanted
    for output in golden.outputs:
        assert load_array(done.files[output.file], output.file).shape[0] == 16
    assert load_array(done.files[golden.inputs["x"]], "x").shape == (16, 1, 3, 12, 12)


def test_a_confidence_of_the_networks_own_is_held_to_its_own_steps(make: Callable) -> None:
    b = Builder(3)
    x = b.conv("x", "a", (3, 8))
    large = b.constant("large", np.array(50, np.float32))
    early = b.op("Mul", [b.head(x, "logits", 8), large], "early")
    score = b.op("Sigmoid", [b.op("ReduceMean", ["a"], "mean", axes=[1, 2, 3], keepdims=0)], "score")
    last = b.head(b.conv(x, "b", (8, 8)), "last", 8)
    exits = [{"name": "one", "output": early, "confidence": score}, {"name": "two", "output": last}]
    shape = (1, CLASSES)
    model = b.model([(early, shape), (score, (1,)), (last, shape)])
    model.metadata_props.add(key="edgekit.exits", value=json.dumps(exits))
    quantized = make(model).quantized
    lowered = draft(quantized, split(quantized), BACKEND, "m", 1, "host")
    golden = {o.tensor: o for o in golden_cases(lowered, make(model).data, 16).golden.outputs}
    assert golden["score"].tolerance < 0.05 * golden["early"].tolerance  # not by its exit's logits


def test_golden_cases_fail_for_another_networks_weights(make: Callable) -> None:
    _, done = finished(make, seed=0)
    _, other = finished(make, seed=1)
    session = replace(done, files=other.files).open()
    assert check_golden(session, done.manifest, done.files.__getitem__) != ()


def test_codes_may_be_a_few_steps_off_and_floats_as_much_of_their_range(make: Callable) -> None:
    _, done = finished(make)
    for output in done.manifest.golden.outputs:
        values = load_array(done.files[output.file], output.file)
        if values.dtype == np.uint8:
            assert 3 <= output.tolerance <= 16
        elif "confidence" in output.tensor:
            assert 0 < output.tolerance < 0.5
        else:
            assert 0 < output.tolerance < 0.2 * (values.max() - values.min())


def test_few_samples_are_repeated(make: Callable) -> None:
    _, done = finished(make, count=40)
    assert done.manifest.golden.count == 40


def test_names_that_differ_in_odd_characters_only_get_their_own_files(make: Callable) -> None:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "a:b", 4)
    b.head(b.conv("c", "d", (4, 4)), "a/b", 4)
    model = b.model([("a:b", (1, CLASSES)), ("a/b", (1, CLASSES))])
    model.metadata_props.add(
        key="edgekit.exits", value='[{"name": "one", "output": "a:b"}, {"name": "two", "output": "a/b"}]'
    )
    made = make(model, Int8("uint8"))
    lowered = draft(made.quantized, split(made.quantized), BACKEND, "m", 1, "host")
    golden = golden_cases(lowered, made.data, 16)
    files = [output.file for output in golden.golden.outputs]
    assert len(set(files)) == len(files)


def test_cost_shares_grow_to_one(make: Callable) -> None:
    lowered, _ = finished(make)
    shares = [leaving.cost_share for leaving in lowered.manifest.exits]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert shares[0] > 0
