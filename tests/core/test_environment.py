"""The file of an environment: what goes in comes out, and nothing else is read."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.core import environment as subject
from edgekit.core.bundle import members_of, stored_zip
from edgekit.core.checks import canonical_json
from edgekit.core.environment import MANIFEST, Environment, open_environment, pack_environment, runs_on
from edgekit.core.errors import BadBundle, BadInput
from edgekit.core.target import Target, target_path
from edgekit.core.trust import Board, Running, decide
from edgekit.core.wheel import parse_wheel

WHEELS = {"a-1-py3-none-any.whl": b"content of a", "b-2-cp311-cp311-linux_aarch64.whl": b"content of b"}
MADE = Environment(
    name="agent",
    version=3,
    profiles=("raspberrypi5",),
    pythons=("3.11",),
    machines=("aarch64",),
    glibc="2.28",
    system_packages=False,
    entry="edgekit",
    wheels=members_of(WHEELS),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agent-3.env"
    path.write_bytes(pack_environment(MADE, WHEELS))
    return path


def test_what_was_packed_is_read_back(file: Path) -> None:
    opened = open_environment(file)
    assert opened.environment == MADE
    assert (opened.label, opened.size) == ("agent/3", file.stat().st_size)
    assert opened.content_id == MADE.content_id != replace(MADE, pythons=("3.12",)).content_id
    assert subject.is_environment(file)
    assert pack_environment(MADE, dict(reversed(WHEELS.items()))) == file.read_bytes()


def changed(**changes: Any) -> bytes:
    return stored_zip({MANIFEST: canonical_json(MADE.to_json() | changes), **WHEELS})


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, canonical_json(MADE.to_json()))
        for name, data in WHEELS.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK", "not an edgekit bundle"),
        (stored_zip(WHEELS), "environment.json must come first"),
        (pack_environment(MADE, WHEELS) + b"x", "canonical form"),
        (compressed(), "canonical form"),
        (pack_environment(MADE, {**WHEELS, "a-1-py3-none-any.whl": b"another of a"}), "sha256"),
        (pack_environment(MADE, {**WHEELS, "c-1-py3-none-any.whl": b""}), "members are not the wheels"),
        (changed(format=2), "newer than this edgekit reads"),
        (changed(entry="os;evil"), "name of a module"),
        (changed(wheels=[]), "wheels must be"),
        (changed(pythons=["2.7"]), "version of Python"),
        (changed(glibc=2.28), "version of glibc"),
        (changed(machines="aarch64"), "a list"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "bad.env"
    path.write_bytes(data)
    with pytest.raises(BadBundle, match=said) as caught:
        open_environment(path)
    assert "\n" not in str(caught.value)


def test_pythons_and_machines_are_what_all_wheels_have_in_common() -> None:
    def common(*files: str, wanted: tuple[str, ...] = ()) -> tuple[Any, ...]:
        return runs_on({file: parse_wheel(file) for file in files}, wanted)

    pure, arm = "a-1-py3-none-any.whl", "n-2-cp311-cp311-manylinux_2_17_aarch64.whl"
    abi = "c-3-cp39-abi3-manylinux_2_28_aarch64.whl"
    assert common(pure, arm, abi) == (("3.11",), ("aarch64",), "2.28")
    assert common(pure, wanted=("3.10", "3.12")) == (("3.10", "3.12"), (), None)
    with pytest.raises(BadInput, match=r"does not run on Python 3\.12"):
        common(pure, arm, wanted=("3.12",))
    with pytest.raises(BadInput, match="is for x86_64"):
        common(arm, "x-1-cp311-cp311-linux_x86_64.whl")


def test_a_target_says_where_an_environment_runs_and_a_board_refuses_what_does_not() -> None:
    target = subject.target_of_environment(MADE)
    assert target.path == target_path("agent", 3, "agent") == "agent/agent/3.env"
    assert Target.parse(target.to_custom(), "custom") == target
    board = Board("raspberrypi5", python="3.11", machine="aarch64", glibc="2.36")
    assert decide(target, board, None, "agent").accepted
    assert decide(target, Board("raspberrypi5"), None, "agent").accepted
    for other, reason in (
        (replace(board, python="3.13"), "wrong-python"),
        (replace(board, machine="x86_64"), "wrong-machine"),
        (replace(board, glibc="2.17"), "wrong-machine"),
        (replace(board, profile="host"), "wrong-profile"),
    ):
        assert decide(target, other, None, "agent").reason == reason
    assert decide(target, board, None).reason == "wrong-use"
    newer = Running("agent", 4, "a" * 64)
    assert decide(target, board, newer, "agent").reason == "older"
    assert decide(replace(target, state="allowed"), board, newer, "agent").accepted
    assert decide(replace(target, state="revoked"), board, None, "agent").reason == "revoked"
