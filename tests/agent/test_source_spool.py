"""Files as they appear: whole ones, once each, and put away when they are answered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from bundles import write_null_bundle
from taking import Running, Take, png

from edgekit.agent import config
from edgekit.agent.sources import open_source, spool
from edgekit.core.errors import BadInput


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LOOK_S", 0.005)


@pytest.fixture
def take(tmp_path: Path) -> Take:
    return Take(write_null_bundle(tmp_path / "toy.edge").manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def running(folder: Path, take: Take, **options: Any) -> Running:
    return Running(open_source(config.Source("folder", folder, watch=True, **options)), take)


def drop(folder: Path, name: str, data: bytes) -> Path:
    """Write elsewhere and rename into place, last changed long ago."""
    made = folder.parent / "made"
    made.write_bytes(data)
    os.utime(made, (1, 1))
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return made.rename(path)


def test_what_is_there_and_what_comes_is_answered_once(folder: Path, take: Take) -> None:
    drop(folder, "b.png", png(2))
    drop(folder, "a.png", png(1))
    with running(folder, take) as run:
        until(lambda: take.pixels == [1, 2], "what was there")
        drop(folder, "two/c.png", png(3))
        until(lambda: take.pixels == [1, 2, 3], "what came")
        run.thread.join(0.05)
    assert take.ids == ["a.png", "b.png", "two/c.png"]
    assert [label for _, label in take.samples] == [None, None, 2]
    assert run.handed == 3


def test_a_file_that_is_still_written_is_waited_for(
    folder: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    data, path = png(5), folder / "slow.png"
    looks: list[float] = []
    true_files = spool.SpoolSource._files

    def counted(source: spool.SpoolSource) -> Any:
        looks.append(now[0])
        return true_files(source)

    monkeypatch.setattr(spool.SpoolSource, "_files", counted)

    def look_again() -> None:
        seen = len(looks)
        until(lambda: len(looks) >= seen + 2, "another look")

    future = 4_000_000_000  # a clock that went back must not make a file look old
    source = spool.SpoolSource(folder, delete=False, target=None, rate_hz=None, clock=lambda: now[0])
    with Running(source, take):
        for cut in (10, 20, 30):
            path.write_bytes(data[:cut])
            os.utime(path, (future, future + cut))
            look_again()
            now[0] += 0.4  # less than it must stay the same
            look_again()
        assert take.samples == []
        path.write_bytes(data)
        os.utime(path, (future, future))
        look_again()
        now[0] += 0.6
        until(lambda: take.pixels == [5], "the whole file")


def test_a_file_that_is_written_anew_is_a_new_input(folder: Path, take: Take) -> None:
    with running(folder, take):
        drop(folder, "a.png", png(1))
        until(lambda: take.pixels == [1])
        path = drop(folder, "a.png", png(2))
        os.utime(path, (2, 2))
        until(lambda: take.pixels[-1] == 2)


def test_hidden_partial_and_foreign_files_are_left_alone(folder: Path, take: Take) -> None:
    for name in (".a.png", "a.png.part", "notes.txt", ".hidden/a.png"):
        drop(folder, name, png(1))
    (folder / "folder.png").mkdir()
    with running(folder, take, delete=True):
        drop(folder, "z.png", png(9))
        until(lambda: take.samples)
    assert take.ids == ["z.png"]
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 4


def test_an_answered_file_is_deleted_broken_or_not(folder: Path, take: Take) -> None:
    with running(folder, take, delete=True):
        drop(folder, "a.png", png(1))
        drop(folder, "b.png", b"broken")
        until(lambda: not list(folder.iterdir()), "the deletion")
    assert (take.pixels, len(take.errors)) == ([1], 1)


def test_an_answered_file_is_moved_and_overwrites_nothing(folder: Path, take: Take) -> None:
    target = folder.parent / "done"
    with running(folder, take, move_to=target):
        for value in (1, 2):
            drop(folder, "one/a.png", png(value))
            until(lambda: not (folder / "one/a.png").exists(), "the move")
    assert (target / "one/a.png").read_bytes() == png(1)
    assert (target / "one/a.1.png").read_bytes() == png(2)


def test_a_file_is_there_until_it_is_answered(folder: Path, take: Take) -> None:
    take.room.clear()
    path = drop(folder, "a.png", png(1))
    with running(folder, take, delete=True):
        until(lambda: take.begun)
        assert path.exists()
        take.room.set()
        until(lambda: not path.exists())


def test_a_file_that_cannot_be_put_away_is_not_answered_twice(
    folder: Path, take: Take, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parent / "done").write_text("no folder")
    with running(folder, take, move_to=folder.parent / "done"):
        drop(folder, "a.png", png(1))
        until(lambda: "cannot be put away" in caplog.text)
        drop(folder, "b.png", png(2))
        until(lambda: len(take.samples) == 2)
    assert take.pixels == [1, 2]


def test_a_file_that_is_gone_when_its_turn_comes_is_a_broken_input(folder: Path, take: Take) -> None:
    take.room.clear()
    path = drop(folder, "a.png", png(1))
    with running(folder, take):
        until(lambda: take.begun)
        path.unlink()
        take.room.set()
        drop(folder, "b.png", png(2))
        until(lambda: take.pixels == [2])
    assert len(take.errors) == 1


def test_a_folder_that_vanishes_is_said_once_and_looked_for(
    folder: Path, take: Take, caplog: pytest.LogCaptureFixture
) -> None:
    away = folder.with_name("away")
    with running(folder, take):
        folder.rename(away)
        until(lambda: "cannot be read" in caplog.text)
        away.rename(folder)
        drop(folder, "a.png", png(1))
        until(lambda: take.pixels == [1])
    assert caplog.text.count("cannot be read") == 1


def test_what_is_known_of_a_file_goes_with_it(folder: Path, take: Take) -> None:
    source = open_source(config.Source("folder", folder, watch=True, delete=True))
    with Running(source, take):
        for number in range(30):
            drop(folder, f"{number}.png", png(number))
        until(lambda: len(take.samples) == 30)
        until(lambda: not source._seen)  # type: ignore[attr-defined]


def test_an_npz_of_one_sample_is_an_input_and_one_of_two_is_none(folder: Path, take: Take) -> None:
    for name, count in (("a.npz", 1), ("b.npz", 2)):
        np.savez(folder / name, x=np.full((count, 1, 4, 4), 0.2, np.float32))
        os.utime(folder / name, (1, 1))
    with running(folder, take):
        until(lambda: len(take.samples) == 2)
    assert take.pixels == [51]
    assert "must hold one sample, got 2" in take.errors[0]


BAD: list[tuple[Callable[[Path], config.Source], str]] = [
    (lambda folder: config.Source("folder", folder, watch=True, loop=True), "choose one"),
    (lambda folder: config.Source("folder", folder, delete=True), "done goes with watch"),
    (
        lambda folder: config.Source("folder", folder, watch=True, move_to=folder / "done"),
        "lies in the watched folder",
    ),
    (lambda folder: config.Source("folder", folder.parent / "toy.edge", watch=True), "watch needs a folder"),
]


@pytest.mark.parametrize(("make", "said"), BAD, ids=[said for _, said in BAD])
def test_settings_that_contradict_each_other_are_refused(
    make: Callable[[Path], config.Source], said: str, folder: Path, take: Take
) -> None:
    with pytest.raises(BadInput, match=said):
        open_source(make(folder))
