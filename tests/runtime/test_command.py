from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.core.errors import WorldFailed
from edgekit.runtime.command import runner


def program(root: Path, name: str, script: str, mode: int = 0o755) -> None:
    path = root / "usr/bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)


def test_a_program_is_found_under_the_root_and_gets_its_arguments(tmp_path: Path) -> None:
    program(tmp_path, "vcgencmd", 'echo "$1 for $2"')

    assert runner(tmp_path)(["vcgencmd", "measure_volts", "core"]) == "measure_volts for core\n"


def test_nothing_outside_the_root_is_run(tmp_path: Path) -> None:
    with pytest.raises(WorldFailed, match="ls: no such program on this board"):
        runner(tmp_path)(["ls"])


def test_the_real_root_is_the_real_machine() -> None:
    assert runner()(["echo", "hello"]) == "hello\n"


def test_a_program_that_fails_says_its_code_and_what_it_complained_of(tmp_path: Path) -> None:
    program(tmp_path, "vcgencmd", "echo 'VCHI initialization failed' >&2; exit 255")

    with pytest.raises(WorldFailed, match="vcgencmd: ended with code 255: VCHI initialization failed"):
        runner(tmp_path)(["vcgencmd"])


def test_a_program_without_permission_is_not_there(tmp_path: Path) -> None:
    program(tmp_path, "vcgencmd", "echo", mode=0o644)

    with pytest.raises(WorldFailed, match="no such program"):
        runner(tmp_path)(["vcgencmd"])


def test_a_file_that_is_no_program_is_the_worlds_fault(tmp_path: Path) -> None:
    path = tmp_path / "usr/bin/vcgencmd"
    path.parent.mkdir(parents=True)
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)

    with pytest.raises(WorldFailed, match="vcgencmd: cannot be run"):
        runner(tmp_path)(["vcgencmd"])


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    program(tmp_path, "vcgencmd", "sleep 60 & wait")
    began = time.monotonic()

    with pytest.raises(WorldFailed, match=r"vcgencmd: no answer within 0\.2 s"):
        runner(tmp_path, timeout_s=0.2)(["vcgencmd"])

    assert time.monotonic() - began < 30
