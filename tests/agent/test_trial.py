from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from agents import until
from bundles import null_files, null_manifest, write_null_bundle

from edgekit.agent import trial
from edgekit.agent.child import ChildLimits
from edgekit.agent.jobs import Superseded
from edgekit.agent.trial import How, try_out
from edgekit.core.bundle import pack

LIMITS = ChildLimits(30.0, 1024, 1, ("CPUExecutionProvider",), accepts_code=False)
HOW = How(requests=10, seconds=1.0)


def nothing() -> None:
    pass


def test_a_good_bundle_passes(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "good.edge")
    result = try_out(bundle.path, HOW, LIMITS, nothing)
    assert result.reason is None
    assert re.fullmatch(
        r"latency 0\.\d+ ms \(p95 0\.\d+ ms, 10 requests\), memory \S+ MB", result.detail or ""
    )


def test_golden_cases_that_are_off_fail_and_say_by_how_much(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "bad.edge", golden_error=0.5)
    result = try_out(bundle.path, HOW, LIMITS, nothing)
    assert result.reason == "golden"
    assert "exit1 is off by 0.5" in (result.detail or "")


def test_a_bundle_whose_runtime_is_not_installed_fails_for_that_and_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a board without onnxruntime: the golden cases were never tried."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('there is none')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    files, parts = null_files()
    parts[0] = replace(parts[0], backend="onnxruntime")
    path = tmp_path / "foreign.edge"
    path.write_bytes(pack(null_manifest(files, parts), files, {"v": 1}))
    result = try_out(path, HOW, LIMITS, nothing)
    assert result.reason == "runtime"
    assert "onnxruntime is not installed: pip install" in (result.detail or "")


def test_a_bundle_that_its_runtime_does_not_take_fails_and_says_why(tmp_path: Path) -> None:
    files, parts = null_files()
    stage = json.loads(files["stages/0.json"])
    stage["outputs"].popitem()
    files["stages/0.json"] = json.dumps(stage).encode()
    digest = hashlib.sha256(files["stages/0.json"]).hexdigest()
    parts[0] = type(parts[0])("null", "stages/0.json", digest, parts[0].inputs, parts[0].outputs)
    path = tmp_path / "strange.edge"
    path.write_bytes(pack(null_manifest(files, parts), files, {"v": 1}))
    result = try_out(path, HOW, LIMITS, nothing)
    assert result.reason == "golden"
    assert "outputs must be" in (result.detail or "")


def test_a_trial_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "slow.edge", delay_ms=30_000)
    result = try_out(
        bundle.path, HOW, ChildLimits(0.5, 1024, 1, LIMITS.providers, accepts_code=False), nothing
    )
    assert result.reason == "timeout"
    assert result.seconds < 10


def test_a_trial_that_swallows_memory_crashes_alone(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "large.edge", padding=2**20)
    result = try_out(
        bundle.path, HOW, ChildLimits(30.0, 16, 1, LIMITS.providers, accepts_code=False), nothing
    )
    assert result.reason == "crash"


def test_a_trial_that_is_killed_is_a_crash_with_the_signals_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    script.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(script))
    result = try_out(tmp_path / "any.edge", HOW, LIMITS, nothing)
    assert result.reason == "crash"
    assert "SIGSEGV" in (result.detail or "")


def test_giving_up_ends_the_child(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "slow.edge", delay_ms=30_000)
    children: list[int] = []

    def check() -> None:
        found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        mine = [int(pid) for pid in found if "trial" in Path(f"/proc/{pid}/cmdline").read_text()]
        if mine:
            children.extend(mine)
            raise Superseded("newer")

    with pytest.raises(Superseded):
        try_out(bundle.path, HOW, LIMITS, check)
    until(lambda: not Path(f"/proc/{children[0]}").exists(), "the child's end")
