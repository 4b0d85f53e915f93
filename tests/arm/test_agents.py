"""Three emulated boards of one fleet: their agents, from the wheels that boards install, fetch, try and serve the
demo's network from a real server, broker and signed repository on this machine. Times taken here say nothing."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_boards import BOARDS, Cpu, answers, convert, everywhere, python
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from edgekit.cli.demo.processes import Process, Processes, wait_for
from edgekit.cli.demo.steps import Demo, call, start_server
from edgekit.client import Client
from edgekit.core.bundle import open_bundle
from edgekit.runtime.preprocess import preprocess
from edgekit.runtime.session import open_session

pytestmark = [pytest.mark.arm, pytest.mark.timeout(600)]
RUNTIMES = ("onnxruntime", "litert")
IMAGES = 12
ROUNDING = 2e-5  # of outputs up to 10 in float32: twenty units in the last place
WAIT_S = 300.0

on_every_board = pytest.mark.parametrize("cpu", BOARDS, ids=[cpu.name for cpu in BOARDS])


@dataclass
class Fleet:
    """A server and its boards; every board's folder is called after its CPU."""

    folder: Path
    client: Client
    address: str
    agents: dict[str, Process]

    def device(self, cpu: Cpu) -> dict[str, Any]:
        return dict(self.client.device(cpu.name))

    def served(self, cpu: Cpu, label: str) -> dict[str, dict[str, Any]]:
        """The last answer to each image by that bundle."""
        path = self.folder / cpu.name / "answers.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {Path(line["id"]).stem: line for line in lines if line["bundle"] == label}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Real images as files 00.png, 01.png, ..."""
    folder = tmp_path_factory.mktemp("images")
    with np.load(data / "val.npz") as arrays:
        for number, image in enumerate(arrays["x"][:IMAGES]):
            Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def bundles(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One for each runtime and CPU, converted here for the board that has it."""
    folder = tmp_path_factory.mktemp("bundles")
    rows = [(runtime, cpu) for runtime in RUNTIMES for cpu in BOARDS]

    def made(row: tuple[str, Cpu]) -> Path:
        runtime, cpu = row
        name, out = f"{cpu.name}-{runtime}", folder / f"{cpu.name}-{runtime}.edge"
        return convert("fashion_mnist_3exit.onnx", cpu.profile, runtime, name, 1, data, out)

    return {(row[0], row[1].name): path for row, path in zip(rows, everywhere(made, rows), strict=True)}


@pytest.fixture(scope="module")
def fleet(lab: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Everything runs; no board has a bundle."""
    folder = tmp_path_factory.mktemp("fleet")
    processes = Processes(folder)
    try:
        client, address = start_server(Demo(folder, 0, lambda text: None, processes))
        made = Fleet(folder, client, address, {})
        for cpu in BOARDS:
            board = folder / cpu.name
            call(
                *("fleet", "enroll", cpu.name, "--profile", cpu.profile, "-o", board),
                *("--server", address, "--token-file", folder / "server/api.token"),
            )
            configure(board / "agent.toml", images)
            command = [lab / cpu.name / "bin/edgekit", "agent", "--config", board / "agent.toml", "--json"]
            made.agents[cpu.name] = processes.start(cpu.name, command)
        yield made
    finally:
        processes.end_all()


def configure(path: Path, images: Path) -> None:
    """What a person would change: images over and over, answers to a file, a short trial."""
    changed = ("telemetry", "source", "trial")
    kept = [part for part in path.read_text().split("\n[") if part.split("]")[0] not in changed]
    path.write_text(
        "\n[".join(kept).rstrip()
        + '\n\n[telemetry]\ninterval_s = 1\nack = "server"\n'
        + f'\n[source]\nkind = "folder"\npath = "{images}"\nloop = true\nrate_hz = 2\n'
        + '\n[[sink]]\nkind = "file"\npath = "answers.jsonl"\nmax_mb = 64\noutputs = true\n'
        + "\n[trial]\nrequests = 10\nseconds = 2\nlive_requests = 10\nlive_seconds = 5\n"
    )


@pytest.fixture(scope="module", params=RUNTIMES)
def pushed(fleet: Fleet, bundles: dict[tuple[str, str], Path], request: pytest.FixtureRequest) -> str:
    """Every board has got the bundle of this runtime, and has answered every image with it. The runtime's name."""
    runtime: str = request.param
    for cpu in BOARDS:
        call(
            *("push", bundles[runtime, cpu.name], "--server", fleet.address, "--to", f"name={cpu.name}"),
            *("--key", fleet.folder / "repository/keys/targets.pem"),
            *("--token-file", fleet.folder / "server/api.token"),
        )
    alive = list(fleet.agents.values())
    for cpu in BOARDS:
        label = f"{cpu.name}-{runtime}/1"
        ended = lambda cpu=cpu: state(fleet, cpu, runtime) in ("active", "failed", "refused", "expired")  # noqa: E731
        wait_for(f"the end of {cpu.name}'s job", ended, WAIT_S, alive)
        if state(fleet, cpu, runtime) == "active":
            every = lambda cpu=cpu, label=label: len(fleet.served(cpu, label)) == IMAGES  # noqa: E731
            wait_for(f"{cpu.name}'s answers", every, WAIT_S, alive)
    return runtime


def state(fleet: Fleet, cpu: Cpu, runtime: str) -> str:
    job = next(job for job in fleet.client.jobs() if job["target"] == f"{cpu.name}-{runtime}/1")
    return str(fleet.client.job(job["job_id"])["devices"][cpu.name]["state"])


@on_every_board
def test_the_bundle_stands_its_trial_and_serves(fleet: Fleet, pushed: str, cpu: Cpu) -> None:
    assert state(fleet, cpu, pushed) == "active"
    device = fleet.device(cpu)
    assert device["online"]
    assert device["bundle"] == f"{cpu.name}-{pushed}/1"


@on_every_board
def test_its_answers_are_those_of_x86(
    fleet: Fleet, pushed: str, bundles: dict[tuple[str, str], Path], images: Path, cpu: Cpu
) -> None:
    """Within the golden cases' tolerance."""
    bundle = open_bundle(bundles[pushed, cpu.name])
    session = open_session(bundle.manifest, bundle.read)
    limits = {output.tensor: output.tolerance for output in bundle.manifest.golden.outputs}
    (given,) = bundle.manifest.inputs
    for name, line in fleet.served(cpu, f"{cpu.name}-{pushed}/1").items():
        pixels = np.asarray(Image.open(images / f"{name}.png"))
        wanted = session.run_all({given.tensor.name: preprocess(pixels, given)})
        for tensor, values in line["outputs"].items():
            off = np.abs(np.float64(values) - np.float64(wanted[tensor])).max()
            assert off <= limits[tensor], f"{name}: {tensor} is off by {off}"


@on_every_board
def test_what_litert_computes_in_int8_has_the_bits_of_x86(
    lab: Path, bundles: dict[tuple[str, str], Path], cpu: Cpu, tmp_path: Path
) -> None:
    """One bundle everywhere: int8 up to the stages' borders, behind all convolutions before; its heads are float."""
    bundle = bundles["litert", BOARDS[0].name]
    wanted: dict[str, NDArray[Any]] = answers(sys.executable, bundle, tmp_path / "here.npz")
    got = answers(python(lab, cpu), bundle, tmp_path / "there.npz")
    assert set(got) == set(wanted) > {"exit1", "exit2", "exit3"}
    in_int8 = {tensor for tensor, values in wanted.items() if values.dtype == np.int8}
    assert len(in_int8) == 2
    for tensor, values in wanted.items():
        if tensor in in_int8:
            assert_array_equal(got[tensor], values, tensor)
        else:
            assert_allclose(got[tensor], values, rtol=0, atol=ROUNDING, err_msg=tensor)


def test_the_boards_records_arrive(fleet: Fleet, pushed: str) -> None:
    for cpu in BOARDS:
        before = fleet.device(cpu)

        def more(cpu: Cpu = cpu, before: dict[str, Any] = before) -> bool:
            now = fleet.device(cpu)
            return bool(now["records"] > before["records"] and now["requests"] > before["requests"])

        wait_for(f"records of {cpu.name}", more, WAIT_S, list(fleet.agents.values()))


def test_told_to_stop_they_end_cleanly_and_say_what_they_did(fleet: Fleet, pushed: str) -> None:
    """The last of the file: they are gone afterwards."""
    if pushed != RUNTIMES[-1]:
        pytest.skip("the boards are needed for the other runtime")
    for cpu in BOARDS:
        agent = fleet.agents[cpu.name]
        assert agent.end(signal.SIGTERM) == 0
        summary = json.loads(agent.log.read_text().strip().splitlines()[-1])
        assert summary["requests"] >= 2 * IMAGES
        assert summary["records"]["made"] > 0
