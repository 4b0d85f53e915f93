"""Memory of an open bundle: weights are held once, and what is told of it is what is there."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_null_bundle
from onnx_bytes import products, write_products

from edgekit.core.errors import BadBundle, WorldFailed
from edgekit.runtime.memory import Memory, measure_memory
from edgekit.runtime.weights import Weights, weights_of

MIB = 2**20
ALLOWANCE = 4 * MIB
SIDE = 1280


def matrices(*sides: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return [random.random(pair, np.float32) - np.float32(0.5) for pair in itertools.pairwise(sides)]


def test_an_open_session_holds_forty_megabytes_of_weights_once(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    weights = matrices(*[SIDE] * 7)
    write_products(tmp_path / "m.edge", weights)
    memory = measure_memory(tmp_path / "m.edge")
    total = sum(weight.nbytes for weight in weights)
    assert memory.weights_bytes == memory.weights_file_bytes == total
    assert 37 * MIB < total < memory.opened_bytes * 1.1
    assert memory.opened_bytes < 1.25 * total + ALLOWANCE
    assert memory.ran_bytes < 1.25 * total + ALLOWANCE
    assert memory.times is not None
    assert memory.times < 1.25
    assert memory.peak_bytes >= memory.opened_bytes


def test_weights_that_a_runtime_lays_out_anew_are_held_once(tmp_path: Path) -> None:
    """Convolutions are repacked by the optimizer, weights stored in 8 bits decoded by it, on the way to the session."""
    bundle = converted(tmp_path, "onnxruntime", stored=True)
    memory = measure_memory(bundle)
    assert memory.weights_bytes is not None
    assert memory.weights_file_bytes is not None
    assert 3.5 < memory.weights_bytes / memory.weights_file_bytes < 4.5
    assert memory.opened_bytes < 1.25 * memory.weights_bytes + ALLOWANCE


def test_a_tflite_session_holds_weights_once(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    memory = measure_memory(converted(tmp_path, "litert"))
    assert memory.weights_bytes == memory.weights_file_bytes
    assert memory.weights_bytes is not None
    assert memory.weights_bytes > 8 * MIB
    assert memory.opened_bytes < 1.25 * memory.weights_bytes + ALLOWANCE
    assert memory.mapped_bytes < 0.5 * memory.weights_bytes


def test_weights_that_stages_share_are_held_once(tmp_path: Path) -> None:
    """Three rounds through the same matrices with an exit after each."""
    pytest.importorskip("onnx_ir", minversion="0.2.1")
    from networks import Builder

    b, x, side = Builder(), "x", 1536
    b.weight("w", side, side)
    b.weight("head", side, 5)
    exits = []
    for index in range(3):
        x = b.op("Relu", [b.op("MatMul", [x, "w"], f"m{index}")], f"r{index}")
        exits.append(b.op("MatMul", [x, "head"], f"exit{index}"))
    model = b.model([(name, (1, 5)) for name in exits], [("x", (1, side))], exits)
    path = pack_converted(tmp_path, model, (side,), "onnxruntime")
    memory = measure_memory(path)
    once = 4 * (side * side + side * 5)
    assert memory.weights_bytes is not None
    assert once <= memory.weights_bytes < once + 1000
    assert memory.parts_bytes < 1.1 * once
    assert memory.opened_bytes < 1.25 * once + ALLOWANCE


def converted(folder: Path, backend: str, *, stored: bool = False) -> Path:
    """A bundle of three large convolutions, its weights as floats or in 8 bits."""
    pytest.importorskip("onnx_ir", minversion="0.2.1")
    from networks import Builder

    b = Builder()
    x = b.conv("x", "stem", (3, 320), stride=2)
    for name in ("a", "b", "c"):
        x = b.conv(x, name, (320, 320))
    b.head(x, "y", 320)
    model = b.model([("y", (1, 5))], [("x", (1, 3, 8, 8))])
    return pack_converted(folder, model, (3, 8, 8), backend, stored=stored)


def pack_converted(
    folder: Path, model: Any, shape: tuple[int, ...], backend: str, *, stored: bool = False
) -> Path:
    """A model as a bundle, without a search."""
    from networks import save, write_data

    from edgekit.core.bundle import pack
    from edgekit.core.profile import Backend
    from edgekit.host.load import load
    from edgekit.host.pack import draft, finish, golden_cases
    from edgekit.host.passes import Context, Step, run_steps, step
    from edgekit.host.passes.quantize_weights import QuantizeWeights
    from edgekit.host.recipe import Recipe
    from edgekit.host.split import split
    from edgekit.runtime.data import load_data

    graph = load(save(model, folder / "m.onnx")).graph
    data = load_data(write_data(folder / "d.npz", shape, 2), graph.inputs)
    graph = run_steps(graph, (step("confidence"), step("fold")), Context())
    if stored:
        graph = run_steps(graph, (Step("quantize_weights", QuantizeWeights(clip="max")),), Context())
    made = draft(graph, split(graph), Backend(backend, max_opset=21, max_ir=10), "m", 1, "host")
    recipe = Recipe("host", backend, (step("fold"),), (), 1, 0.2, 24, 16)
    more = len(graph.exits) - 1
    full = replace(
        write_null_bundle(folder / "null.edge").manifest.operating_points[-1],
        thresholds=(2.0,) * more,
        exit_shares=(0.0,) * more + (1.0,),
    )
    finished = finish(made, (full,), "agreement", golden_cases(made, data, 1), recipe)
    path = folder / "m.edge"
    path.write_bytes(pack(finished.manifest, finished.files, {"v": 1}))
    return path


def test_what_a_closed_session_took_goes_back_to_the_system(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_products(tmp_path / "m.edge", matrices(*[SIDE] * 4))
    code = (
        "import sys; from pathlib import Path\n"
        "from edgekit.core.bundle import open_bundle\n"
        "from edgekit.runtime.backends.onnxruntime import warm_up\n"
        "from edgekit.runtime.memory import resident\n"
        "from edgekit.runtime.session import open_session\n"
        "bundle = open_bundle(Path(sys.argv[1])); warm_up(); before = resident().private\n"
        "for _ in range(3):\n"
        "    session = open_session(bundle.manifest, bundle.read); session.close(); del session\n"
        "print(resident().private - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.edge")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < ALLOWANCE


def test_a_backend_whose_files_are_not_understood_has_unknown_weights(tmp_path: Path) -> None:
    write_null_bundle(tmp_path / "toy.edge")
    memory = measure_memory(tmp_path / "toy.edge")
    assert (memory.weights_bytes, memory.weights_file_bytes, memory.times) == (None, None, None)
    assert memory.base_bytes > MIB
    assert memory.buffers_bytes == 4 * (16 + 3 * (3 + 1))


def test_few_weights_are_no_measure_of_how_often_they_are_held() -> None:
    memory = Memory(2000, 1000, 1000, 0, 10 * MIB, MIB, MIB, 0, MIB)
    assert memory.times is None
    assert replace(memory, weights_bytes=4 * MIB, opened_bytes=7 * MIB, buffers_bytes=MIB).times == 1.5


def test_a_bundle_that_does_not_open_is_told_as_opening_tells_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_products(tmp_path / "m.edge", matrices(4, 4))
    data = bytearray((tmp_path / "m.edge").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.edge").write_bytes(data)
    with pytest.raises(BadBundle, match=r"bad\.edge"):
        measure_memory(tmp_path / "bad.edge")


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    write_null_bundle(tmp_path / "slow.edge", delay_ms=60_000)
    with pytest.raises(WorldFailed, match=r"slow\.edge: measuring memory took longer than 1"):
        measure_memory(tmp_path / "slow.edge", timeout_s=1)


def test_weights_of_an_onnx_file_are_its_constants() -> None:
    content = products("x", matrices(6, 5, 4), "y")
    assert weights_of(content) == Weights(4 * (30 + 20), 4 * (30 + 20))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, b"\0\0\0\0TFL3", bytes(range(64))])
def test_weights_of_what_is_no_network_are_unknown(content: bytes) -> None:
    assert weights_of(content) in (None, Weights(0, 0))


@pytest.mark.parametrize("form", ["binary", "ternary", "int2", "int4", "int8"])
def test_codes_of_few_bits_count_as_the_floats_they_become(form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir", minversion="0.2.1")
    from networks import Builder, save

    from edgekit.core.profile import Backend
    from edgekit.host.load import load
    from edgekit.host.lower.onnxruntime import lower
    from edgekit.host.passes import Context, Step, run_steps, step
    from edgekit.host.passes.quantize_weights import QuantizeWeights
    from edgekit.host.split import split

    b = Builder()
    b.head(b.conv("x", "a", (3, 48)), "y", 48)
    graph = load(save(b.model([("y", (1, 5))]), tmp_path / "m.onnx")).graph
    steps = (step("fold"), Step("quantize_weights", QuantizeWeights(format=form, clip="max")))
    (stage,) = split(run_steps(graph, steps, Context()))
    (part,) = lower(stage, Backend("onnxruntime", max_opset=21, max_ir=10))
    found = weights_of(part.content)
    assert found is not None
    floats = 4 * (48 * 3 * 9 + 48 + 48 * 5 + 5)
    assert floats <= found.computed_bytes <= floats + 64
    assert found.file_bytes < floats / 2
