"""The local API with a client that was not written for it: NVIDIA's tritonclient, as it is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apis import FULL, IMAGE, Running, running
from bundles import write_null_bundle

from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import open_session

triton = pytest.importorskip("tritonclient.http")  # not on the board's Python 3.10


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("board")) as made:
        yield made


@pytest.fixture
def client(board: Running) -> Iterator[Any]:
    made = triton.InferenceServerClient(f"127.0.0.1:{board.api.port}")
    yield made
    made.close()


def given(array: Any = IMAGE, *, binary: bool = True) -> Any:
    made = triton.InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_it_finds_a_live_server_and_its_model(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("other")
    assert "classification" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("toy", "1")
    assert [(i["name"], i["datatype"], i["shape"]) for i in metadata["inputs"]] == [
        ("x", "FP32", [1, 1, 4, 4])
    ]
    assert client.get_model_config("toy")["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_repository_index()[0]["state"] == "READY"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_its_answers_are_those_of_the_session(
    client: Any, tmp_path: Path, compression: str | None, binary_in: bool, binary_out: bool | None
) -> None:
    bundle = write_null_bundle(tmp_path / "expected.edge")
    session = open_session(bundle.manifest, bundle.read)
    policy = make_policy(FULL, bundle.manifest, None)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("exit3", binary_data=binary_out)]
    for case in np.random.default_rng(3).uniform(-1, 1, (5, *IMAGE.shape)).astype(np.float32):
        result = client.infer(
            "toy",
            [given(case, binary=binary_in)],
            outputs=outputs,
            request_id="7",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        wanted = session.run({"x": case}, policy)
        assert np.array_equal(result.as_numpy("exit3"), wanted.outputs["exit3"])
        said = result.get_response()
        assert (said["id"], said["parameters"]["exit"]) == ("7", wanted.exit)
        assert said["parameters"]["confidence"] == wanted.confidence


def test_a_large_answer_comes_compressed(client: Any) -> None:
    result = client.infer(
        "toy",
        [given()],
        request_id="i" * 1000,
        response_compression_algorithm="gzip",
        parameters={"deadline_ms": 9e3},
    )
    assert result.get_response()["id"] == "i" * 1000
    assert result.as_numpy("exit3").shape == (1, 3)


def test_deadline_and_policy_go_as_parameters(client: Any) -> None:
    late = client.infer("toy", [given()], parameters={"deadline_ms": 1e-3}).get_response()["parameters"]
    assert (late["exit"], late["policy"], late["deadline_missed"]) == ("exit1", "anytime 0.001ms", True)
    cheap = client.infer("toy", [given()], parameters={"policy": "budget", "budget": "25%"})
    assert cheap.get_response()["parameters"]["exit"] == "exit1"


def test_its_own_parameters_do_no_harm(client: Any) -> None:
    result = client.infer("toy", [given()], priority=3, timeout=1000, sequence_id=5, sequence_start=True)
    assert result.as_numpy("exit3").shape == (1, 3)


@pytest.mark.parametrize("binary_data", [True, False])
def test_it_reads_classes_with_labels(client: Any, binary_data: bool) -> None:
    outputs = [triton.InferRequestedOutput("exit3", class_count=2, binary_data=binary_data)]
    texts = client.infer("toy", [given()], outputs=outputs).as_numpy("exit3")
    names = [text.decode() if isinstance(text, bytes) else text for text in texts]
    assert [name.split(":")[1:] for name in names] == [["2", "two"], ["1", "one"]]


def test_it_asks_side_by_side(client: Any, board: Running) -> None:
    asked = [client.async_infer("toy", [given()]) for _ in range(20)]
    assert all(one.get_result().as_numpy("exit3").shape == (1, 3) for one in asked)

    def ask(_: int) -> bool:
        own = triton.InferenceServerClient(f"127.0.0.1:{board.api.port}")
        try:
            return bool(own.infer("toy", [given()]).as_numpy("exit3").shape == (1, 3))
        finally:
            own.close()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(12)))


def test_it_reads_refusals(client: Any) -> None:
    from tritonclient.utils import InferenceServerException as errors  # noqa: N813

    with pytest.raises(errors, match="must be FP32"):
        client.infer("toy", [given(np.zeros((2, 1, 4, 4), np.float32))])
    with pytest.raises(errors, match="unknown model"):
        client.infer("other", [given()])
    with pytest.raises(errors, match="come to this board through its fleet"):
        client.load_model("toy")
    with pytest.raises(errors, match="no such route"):
        client.get_system_shared_memory_status()


def test_it_reads_statistics(client: Any) -> None:
    client.infer("toy", [given()])
    (row,) = client.get_inference_statistics("toy")["model_stats"]
    assert row["inference_count"] >= 1
