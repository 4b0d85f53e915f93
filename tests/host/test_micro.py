"""Generated networks: they run, in either int8 too, and they exercise what they are named for."""

from __future__ import annotations

import pytest

from edgekit.core.profile import Backend
from edgekit.host.lower import backend_for
from edgekit.host.measure_costs import Opened, open_case
from edgekit.host.micro import FAMILIES, SINGLE, cases, count_cases
from edgekit.host.work import layers
from edgekit.runtime.detect import find_profile


@pytest.fixture(scope="module")
def backend() -> Backend:
    return backend_for(find_profile("host"))


@pytest.mark.parametrize("fmt", ["float32", "uint8"])
def test_the_first_network_of_every_kind_runs(fmt: str, backend: Backend) -> None:
    seen = set()
    for case in cases((fmt,), most=1):
        opened: Opened = open_case(case, backend)
        assert list(opened.session.stages(opened.inputs))[-1][1] > 0
        assert sum(entry.calls for entry in opened.work) > 1
        seen.add(case.family)
    assert seen >= set(FAMILIES) - {"LSTM", "GRU", "LRN", "LayerNormalization"}


@pytest.mark.parametrize("family", [name for name in SINGLE if name.startswith(("Conv", "Gemm", "MatMul"))])
def test_a_kind_named_for_a_class_exercises_it(family: str) -> None:
    classes = [
        entry.op
        for case in cases(("float32",), [family])
        for layer in layers(case.graph.model)
        for entry in layer.work
    ]
    kind = family.partition(",")[0]
    assert any(op == kind or op.startswith(f"{kind}.") for op in classes), sorted(set(classes))


def test_int8_networks_multiply_in_int8_only() -> None:
    for case in cases(("uint8",), ["residual", "inverted", "separable", "Conv.kxk"], most=1):
        products = [layer for layer in layers(case.graph.model) if layer.macs]
        assert products
        assert {layer.format for layer in products} == {"int8"}


def test_the_same_networks_come_again_and_the_first_of_all_kinds_before_the_second_of_any() -> None:
    kinds = ("Add", "Conv.1x1", "residual")
    first, again = (list(cases(("float32", "uint8"), kinds, most=2)) for _ in range(2))
    assert [case.graph.fingerprint() for case in first] == [case.graph.fingerprint() for case in again]
    assert [case.index for case in first] == [0] * 6 + [1] * 6
    assert count_cases(("float32", "uint8"), kinds, most=2) == 12
