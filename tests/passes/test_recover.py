"""The pass recover where nothing is trained: what it needs, and that it needs nothing by default."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from networks import perceptron, save

from edgekit.core.errors import BadInput, MissingExtra
from edgekit.host.load import load
from edgekit.host.passes import PASSES, Context, run_steps, step


def test_by_default_the_graph_comes_back_as_it_is(tmp_path: Path) -> None:
    graph = load(save(perceptron(), tmp_path / "m.onnx")).graph
    assert run_steps(graph, [step("recover")], Context()) is graph


def test_without_pytorch_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load(save(perceptron(), tmp_path / "m.onnx")).graph
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"recover needs PyTorch: pip install 'edgekit\[train\]'"):
        PASSES["recover"].apply(graph, step("recover", epochs=1).options, Context())


def test_options_are_checked_before_any_work() -> None:
    with pytest.raises(BadInput, match="quantize_aware"):
        step("recover", quantize_aware="int3")
