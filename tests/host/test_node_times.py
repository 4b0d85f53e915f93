"""Times go to the nodes that do the work, whatever onnxruntime calls its kernels."""

from __future__ import annotations

from pathlib import Path

from networks import CLASSES, SIDE, Builder, save, three_exits, write_data

from edgekit.host.load import load
from edgekit.host.node_times import node_times, rounding_ms
from edgekit.host.passes import Context, run_steps, step
from edgekit.runtime.data import load_data


def times(tmp_path: Path, model: object) -> tuple[dict[str, float], set[str]]:
    graph = load(save(model, tmp_path / "m.onnx")).graph  # type: ignore[arg-type]
    data = load_data(write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], 8), graph.inputs)
    plain = run_steps(graph, [step("fold")], Context())
    products = {node.name or "" for node in plain.model.graph if node.op_type in ("Conv", "Gemm")}
    return dict(node_times(plain, data, runs=10)), products


def test_every_product_has_a_time_though_its_kernel_goes_by_another_name(tmp_path: Path) -> None:
    found, products = times(tmp_path, three_exits(channels=16))  # ReLUs and sums are fused into convolutions
    assert products <= set(found)
    assert all(found[name] > 0 for name in products if name.startswith("n_"))
    assert "n_b2" not in found  # the ReLU behind the sum


def test_a_larger_layer_takes_longer(tmp_path: Path) -> None:
    b = Builder()
    b.conv("x", "small", (3, 8))
    b.conv("small", "large", (8, 96), kernel=5)
    b.head("large", "y", 96)
    found, _ = times(tmp_path, b.model([("y", (1, CLASSES))], [("x", (1, 3, 2 * SIDE, 2 * SIDE))]))
    assert found["n_large_y"] > 2 * found["n_small_y"]


def test_turning_values_to_codes_costs_more_the_more_there_are() -> None:
    call_ms, value_ms = rounding_ms()
    assert call_ms >= 0
    assert 0 < value_ms < 1e-4
