"""Atomic writing: the old content or the new, and no remains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.core import files
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import make_folder, remove_interrupted, write_atomic


@pytest.mark.parametrize(
    ("cause", "wanted"),
    [(OSError(28, "No space left on device"), WorldFailed), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException, wanted: type[BaseException]
) -> None:
    path = tmp_path / "model.edge"
    write_atomic(path, b"old")

    def fail(descriptor: int) -> None:
        raise cause

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(wanted):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.edge"]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldFailed, match=r"a\.edge: could not be written: No space left on device"):
        write_atomic(tmp_path / "a.edge", b"x")


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"one", 0o600)
    write_atomic(path, b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    write_atomic(tmp_path / "there/real.edge", b"old")
    (tmp_path / "link.edge").symlink_to(tmp_path / "there/real.edge")
    write_atomic(tmp_path / "link.edge", b"new")
    assert (tmp_path / "link.edge").is_symlink()
    assert (tmp_path / "there/real.edge").read_bytes() == b"new"


def test_a_device_or_pipe_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="pipe: must be a file"):
        write_atomic(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_was_made_survives_a_power_cut_with_those_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2, "nothing was new"


def test_what_killed_writers_left_goes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "state.json", b"old")
    (tmp_path / "kept.part").write_bytes(b"somebody's")
    monkeypatch.setattr(Path, "unlink", lambda path, **given: None)  # as a kill before the rename would
    monkeypatch.setattr(Path, "replace", lambda path, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "state.json", b"new")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 3
    remove_interrupted(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"state.json", "kept.part"}
