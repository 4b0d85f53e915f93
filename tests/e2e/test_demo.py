"""The demo, short but real: the whole way on the demo model, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from edgekit.cli.demo.steps import DATA_FOLDERS, edgekit
from edgekit.core.schemas import OUTPUTS

jsonschema = pytest.importorskip("jsonschema")
pytestmark = pytest.mark.skipif(
    not any(folder.is_dir() for folder in DATA_FOLDERS),
    reason="Fashion-MNIST is not here: run tools/fetch_data.py",
)
START_S = 60.0


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that name the demo's folder, and what it left on disk."""
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def wait_until_gone(folder: Path) -> None:
    end = time.monotonic() + START_S
    while left_over(folder):
        assert time.monotonic() < end, left_over(folder)
        time.sleep(0.05)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.mark.timeout(300)
def test_the_demo_goes_the_whole_way_and_every_record_arrives(scratch: Path) -> None:
    done = subprocess.run(
        edgekit("demo", "--images", "400", "--json"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    jsonschema.validate(result, OUTPUTS["demo"])
    assert result["telemetry"]["sent"] == result["telemetry"]["received"] > 0
    for board in result["boards"]:
        assert board["requests"] == sum(board["exit_counts"].values()) == 400
        assert board["bundle"] == f"fashion-{board['name']}/1"
        assert board["online"]
        assert board["accuracy"] > result["fp32_accuracy"] - 0.03
    assert result["budget_over_full_latency"] < 0.7
    assert abs(result["budget_accuracy"] - result["fp32_accuracy"]) < 0.03
    exits = {board["name"]: board["exit_counts"] for board in result["boards"]}
    assert all(counts["exit1"] > counts["exit3"] for counts in exits.values())
    energy = {board["name"]: board["energy_mj"] for board in result["boards"]}
    assert energy["pi4"]["mean"] is None
    assert energy["pi4"]["provenance"] is None
    assert {energy[name]["provenance"] for name in ("pi5", "orin")} == {"simulated"}
    wait_until_gone(scratch)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_that_the_demo_started_outlives_it(scratch: Path, kind: signal.Signals) -> None:
    process = subprocess.Popen(
        edgekit("demo", "--images", "400"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "convert for" in line:
            break
    assert any("mosquitto" in line for line in left_over(scratch))
    os.kill(process.pid, kind)
    process.wait(START_S)
    process.stderr.close()
    if kind == signal.SIGKILL:  # nobody is left to empty the folder, but the processes must go
        for folder in scratch.iterdir():
            end = time.monotonic() + START_S
            while any(
                str(folder) in line and not line.startswith(str(folder)) for line in left_over(scratch)
            ):
                assert time.monotonic() < end, left_over(scratch)
                time.sleep(0.05)
    else:
        assert process.returncode == 130
        wait_until_gone(scratch)
