"""Bytes as a mapped file without a name: gone when nobody maps them, not in this process's memory, and no must."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import IO, Any

import pytest

from edgekit.runtime.backends import _mapped as subject
from edgekit.runtime.backends._mapped import opened_from_file
from edgekit.runtime.memory import resident

DATA = bytes(range(256)) * 32768  # 8 MiB


def mapped(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert pages[:] == DATA
    return pages


def test_what_is_mapped_can_be_read_for_ever_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pages = opened_from_file(DATA, mapped)
    assert list(tmp_path.iterdir()) == []
    assert pages is not None
    assert pages[:] == DATA


def test_pages_that_opening_read_are_let_go() -> None:
    before = resident().mapped
    pages = opened_from_file(DATA, mapped)
    assert pages is not None
    assert resident().mapped - before < len(DATA) / 2
    assert pages[:] == DATA
    assert resident().mapped - before > len(DATA) / 2


def test_without_a_folder_to_write_to_nothing_is_opened_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert opened_from_file(DATA, mapped) is None


def test_with_a_full_disk_nothing_is_opened_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**settings: Any) -> IO[bytes]:
        return Path("/dev/full").open("wb", buffering=settings["buffering"])

    monkeypatch.setattr(subject.tempfile, "TemporaryFile", full)
    assert opened_from_file(DATA, mapped) is None


def test_what_opening_raises_is_raised() -> None:
    def refuses(path: str) -> None:
        raise ValueError(path)

    with pytest.raises(ValueError, match="/proc/self/fd/"):
        opened_from_file(DATA, refuses)
