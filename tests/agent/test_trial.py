from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from bundles import null_files, null_manifest, write_null_bundle

from edgekit.agent import trial
from edgekit.agent.child import ChildLimits
from edgekit.agent.jobs import Superseded
from edgekit.agent.trial import How, TrialResult, try_out
from edgekit.core.bundle import pack
from edgekit.core.manifest import BoardLimits
from edgekit.core.policy import PolicySpec, parse_budget
from edgekit.runtime.session import Answer, Session

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


def test_nothing_is_imported_from_the_folder_that_the_agent_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('somebody else's')")
    monkeypatch.chdir(tmp_path)
    write_null_bundle(Path("good.edge"))
    assert try_out(Path("good.edge"), HOW, LIMITS, nothing).reason is None


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


SWALLOWER = """
import sys
from edgekit.agent.child import child_parser, confine
arguments = sys.argv[sys.argv.index("edgekit.agent.trial") + 1 :]
confine(child_parser("swallower", "").parse_known_args(arguments)[0])
swallowed = bytearray(2**28)
print('{"v": 1, "reason": null, "detail": null}')
"""


def test_a_trial_that_swallows_memory_crashes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bundle that takes 256 MB would; what a whole interpreter takes differs too much to be a limit here."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{SWALLOWER}")
    script.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(script))

    def swallow(memory_mb: int) -> TrialResult:
        limits = ChildLimits(30.0, memory_mb, 1, LIMITS.providers, accepts_code=False)
        return try_out(tmp_path / "any.edge", HOW, limits, nothing)

    assert swallow(128).reason == "crash"
    assert "MemoryError" in (swallow(128).detail or "")
    assert swallow(1024).reason is None


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


# --- limits ---


def options(path: Path, *more: str) -> list[str]:
    return [str(path), "--requests", "10", "--seconds", "0.5", *more]


def verdict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What the child says, run here."""
    monkeypatch.setattr(trial, "confine", lambda options: None)
    monkeypatch.setattr(trial.os, "nice", lambda by: 0)
    assert trial._child(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_bundle_slower_than_its_limit_fails_with_both_figures(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "slow.edge", delay_ms=3.0, limits=BoardLimits(latency_ms=4.0))
    result = try_out(bundle.path, HOW, LIMITS, nothing)
    assert result.reason == "latency"
    found = re.match(r"latency (\S+) ms .*, more than the bundle's limit of 4 ms", result.detail or "")
    assert found is not None
    assert float(found[1]) > 9.0


def test_a_bundle_within_its_limits_says_how_far(tmp_path: Path) -> None:
    limits = BoardLimits(latency_ms=500.0, memory_mb=64.0)
    bundle = write_null_bundle(tmp_path / "good.edge", delay_ms=1.0, limits=limits)
    result = try_out(bundle.path, HOW, LIMITS, nothing)
    assert result.reason is None
    wanted = r"latency \S+ ms \(p95 \S+ ms, 10 requests\) of 500 ms, memory \S+ MB of 64 MB"
    assert re.fullmatch(wanted, result.detail or "")


def test_a_slow_network_ends_after_its_seconds_with_three_requests_at_least(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "slow.edge", delay_ms=10.0)
    result = try_out(bundle.path, How(requests=10**6, seconds=0.01), LIMITS, nothing)
    assert result.reason is None
    assert ", 3 requests)" in (result.detail or "")


def test_time_that_the_child_waits_for_a_processor_is_not_its_latency(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = itertools.count(step=1e3)  # a second between two looks
    monkeypatch.setattr(trial, "_waited_ms", lambda: waits)
    limits = BoardLimits(latency_ms=4.0)
    bundle = write_null_bundle(tmp_path / "b.edge", delay_ms=3.0, limits=limits)  # 9 ms and more
    assert verdict(capsys, monkeypatch, *options(bundle.path))["reason"] is None


def test_on_a_throttled_board_latency_is_not_judged_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware = tmp_path / "sys/devices/platform/soc/soc:firmware"
    firmware.mkdir(parents=True)
    (firmware / "get_throttled").write_text("4\n")
    bundle = write_null_bundle(tmp_path / "b.edge", delay_ms=2.0, limits=BoardLimits(latency_ms=1.0))
    said = verdict(capsys, monkeypatch, *options(bundle.path, "--sysroot", str(tmp_path)))
    assert said["reason"] is None
    assert "not judged: the board is throttled" in said["detail"]


@pytest.mark.parametrize(
    ("before_mb", "after_mb", "reason", "words"),
    [
        (100.0, 180.0, "memory", "memory 80 MB, more than the bundle's limit of 64 MB"),
        (100.0, 150.0, None, "memory 50 MB of 64 MB"),
        (None, None, None, "memory not judged: this system does not tell it"),
    ],
)
def test_the_memory_that_opening_takes_is_held_against_the_limit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before_mb: float | None,
    after_mb: float | None,
    reason: str | None,
    words: str,
) -> None:
    told = iter((before_mb, after_mb))
    monkeypatch.setattr(trial, "private_mb", lambda: next(told))
    bundle = write_null_bundle(tmp_path / "b.edge", limits=BoardLimits(memory_mb=64.0))
    said = verdict(capsys, monkeypatch, *options(bundle.path))
    assert said["reason"] == reason
    assert words in said["detail"]


@pytest.mark.parametrize(
    ("limit_mj", "others_s", "sensor", "reason", "words"),
    [
        (1e6, 0.0, "hwmon", None, "mJ of 1e+06 mJ"),
        (0.001, 0.0, "hwmon", "energy", "more than the bundle's limit of 0.001 mJ"),
        (0.001, 9.0, "hwmon", None, "not judged: others took 9.0 s of processors meanwhile"),
        (0.001, 0.0, "none", None, "energy not judged: "),
        (0.001, 0.0, "rapl", None, "energy not judged: "),
    ],
)
def test_energy_is_judged_where_a_sensor_gives_it_and_nobody_else_is_at_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    limit_mj: float,
    others_s: float,
    sensor: str,
    reason: str | None,
    words: str,
) -> None:
    hwmon = tmp_path / "sys/class/hwmon/hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("ina226\n")
    (hwmon / "power1_input").write_text("2500000\n")
    (hwmon / "update_interval").write_text("20\n")
    others = itertools.count(step=others_s)
    monkeypatch.setattr(trial, "_others_s", lambda: next(others))
    bundle = write_null_bundle(tmp_path / "b.edge", limits=BoardLimits(energy_mj=limit_mj))
    more = ("--sensor", sensor, "--sysroot", str(tmp_path))
    said = verdict(capsys, monkeypatch, *options(bundle.path, *more))
    assert said["reason"] == reason
    assert words in said["detail"]


def test_the_policy_that_will_be_in_force_runs_and_one_that_cannot_be_had_is_the_full_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PolicySpec] = []
    true_make = trial.make_policy

    def make(spec: PolicySpec, *rest: Any) -> Any:
        made.append(spec)
        return true_make(spec, *rest)

    monkeypatch.setattr(trial, "make_policy", make)
    bundle = write_null_bundle(tmp_path / "b.edge")
    for budget in ("60%", "5mJ"):
        spec = PolicySpec("budget", parse_budget(budget))
        policy = json.dumps(spec.to_json())
        assert verdict(capsys, monkeypatch, *options(bundle.path, "--policy", policy))["reason"] is None
    assert [str(spec) for spec in made] == ["budget 60%", "budget 5mJ", "full"]


def test_outputs_that_are_no_numbers_fail_although_the_golden_cases_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_run = trial.Session.run

    def odd(session: Session, *rest: Any) -> Answer:
        return true_run(session, *rest)._replace(outputs={"exit3": np.array([np.nan], np.float32)})

    monkeypatch.setattr(trial.Session, "run", odd)
    bundle = write_null_bundle(tmp_path / "b.edge")
    said = verdict(capsys, monkeypatch, *options(bundle.path))
    assert (said["reason"], said["detail"]) == (
        "not-finite",
        "exit exit3 gave what is no number for golden case 0",
    )


def test_the_child_lets_go_first_what_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by: list[int] = []
    monkeypatch.setattr(trial, "confine", lambda options: None)
    monkeypatch.setattr(trial.os, "nice", by.append)
    trial._child(options(write_null_bundle(tmp_path / "b.edge").path))
    assert by == [trial.NICE]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([5.0] * 10 + [9.0] * 40, 5.0),  # busy later
        ([9.0] * 46 + [5.0] * 4, 9.0),  # half of a part is not a part
        ([1.0, 9.0, 9.0] * 10, 9.0),  # now and then quick is not quiet
        ([7.0], 7.0),
        ([3.0, 1.0, 2.0], 2.0),
    ],
)
def test_the_quietest_part_of_a_trial_counts(values: list[float], wanted: float) -> None:
    assert trial.quietest(values) == wanted
