"""Signatures that are renewed in time: by whoever has the keys, and said in time where nobody here has them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from repositories import NOW, BoardClient, Killed, kill_at_rename
from tuf.api.exceptions import RepositoryError

from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput
from edgekit.repo.add import measure, sign_targets, with_bundle
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import key_file, read_current
from edgekit.repo.pending import pending_file
from edgekit.repo.publish import publish
from edgekit.repo.refresh import advance, refresh
from edgekit.repo.status import status

MakeBundle = Callable[..., Bundle]


def versions(repository: Path) -> dict[str, int]:
    return {role: facts["version"] for role, facts in status(repository, NOW)["roles"].items()}


def take_away(repository: Path, tmp_path: Path, *names: str) -> list[Path]:
    return [key_file(repository, name).rename(tmp_path / f"{name}.pem") for name in names]


@pytest.mark.parametrize(
    ("days", "renewed"),
    [
        (0, set()),
        (0.9, set()),
        (1.1, {"timestamp"}),
        (11, {"timestamp", "snapshot"}),
        (121, {"timestamp", "snapshot"}),
        (122, {"timestamp", "snapshot", "targets", "root"}),
    ],
)
def test_each_role_is_renewed_once_a_third_of_its_life_is_gone_and_the_timestamp_daily(
    repository: Path, board: BoardClient, days: float, renewed: set[str]
) -> None:
    board.refresh()
    board.now = NOW + timedelta(days=days)
    found = refresh(repository, board.now)
    assert (set(found.renewed), found.waiting, found.alarming) == (renewed, (), False)
    assert refresh(repository, board.now).renewed == {}
    if days < 14:
        assert board.versions() == versions(repository)
    assert status(repository, board.now)["problems"] == []


def test_what_cannot_be_renewed_here_is_said_with_the_keys_that_it_wants(
    repository: Path, tmp_path: Path
) -> None:
    roots = take_away(repository, tmp_path, "root-1", "root-2", "root-3")
    (targets,) = take_away(repository, tmp_path, "targets")
    early = refresh(repository, NOW + timedelta(days=200))
    assert [line.split(" (")[0] for line in early.waiting] == [
        "root wants 2 of the keys root-1",
        "targets wants the key targets",
    ]
    assert all("expires on 2027-05-01; an alarm is raised from 2026-12-30" in line for line in early.waiting)
    assert not early.alarming
    late = NOW + timedelta(days=250)
    alarming = refresh(repository, late)
    assert alarming.alarming
    assert "2.root.json) wants 2 more of the root keys root-1" in alarming.waiting[0]
    assert pending_file(repository, 2).exists()
    one = refresh(repository, late, roots[:1])
    assert (one.alarming, "wants 1 more of the root keys root-2" in one.waiting[0]) == (True, True)
    done = refresh(repository, late, [roots[2], targets])
    assert (set(done.renewed), done.waiting, done.alarming) == (
        {"root", "targets", "snapshot", "timestamp"},
        (),
        False,
    )


def test_without_the_online_key_the_rest_says_so_and_root_is_renewed_all_the_same(
    repository: Path, tmp_path: Path
) -> None:
    take_away(repository, tmp_path, "online")
    found = refresh(repository, NOW + timedelta(days=130))
    assert (set(found.renewed), found.alarming, len(found.waiting)) == ({"root"}, True, 1)
    assert "must hold the online key that the root names" in found.waiting[0]


def test_a_repository_restored_from_an_old_backup_goes_past_what_boards_have_seen(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "backup")
    bundle = make_bundle()
    for version in (1, 2):
        bundle = make_bundle(version=version)
        current = read_current(repository)
        data = sign_targets(
            with_bundle(current.targets, bundle, NOW), read_key(key_file(repository, "targets"))
        )
        publish(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)
    seen = board.versions()
    shutil.rmtree(repository)
    shutil.copytree(tmp_path / "backup", repository)
    with pytest.raises(RepositoryError):
        board.refresh()
    advance(repository, {"timestamp": seen["timestamp"], "snapshot": seen["snapshot"]}, NOW)
    with pytest.raises(RepositoryError):  # the snapshot still names older targets
        board.refresh()
    advance(repository, {"targets": seen["targets"], "measure": 1}, NOW)
    assert board.versions() == versions(repository)
    assert board.versions()["targets"] == seen["targets"] + 1


def test_what_is_ahead_already_is_left_alone_and_nonsense_refused(repository: Path, tmp_path: Path) -> None:
    advance(repository, {"timestamp": 40}, NOW)
    assert versions(repository) == {"root": 1, "targets": 1, "snapshot": 2, "timestamp": 41}
    advance(repository, {"timestamp": 40, "snapshot": 1}, NOW)
    assert versions(repository)["timestamp"] == 41
    for past in ({"root": 3}, {"timestamp": 2**31}, {"timestamp": 0}):
        with pytest.raises(
            BadInput, match="must be one of targets, snapshot, timestamp, measure and a version"
        ):
            advance(repository, past, NOW)
    take_away(repository, tmp_path, "targets", "measure")
    for role in ("targets", "measure"):
        with pytest.raises(BadInput, match=f"{role} wants .* key {role}"):
            advance(repository, {role: 5}, NOW)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_write_of_a_renewal_leaves_a_repository_that_boards_refresh_from(
    repository: Path, board: BoardClient, tmp_path: Path, *, after: bool
) -> None:
    board.refresh()
    shutil.copytree(repository, tmp_path / "whole")
    late, number, done = NOW + timedelta(days=13), 0, False
    while not done:
        number += 1
        trial = tmp_path / f"trial{number}"
        shutil.copytree(tmp_path / "whole", trial)
        old = board.twin(tmp_path / f"old{number}")
        old.repository, old.now = trial, late
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgekit.repo.refresh.is_due", lambda *_: True)
            kill_at_rename(patch, number, after=after)
            try:
                refresh(trial, late)
                done = True
            except Killed:
                pass
        old.refresh()
        refresh(trial, late)
        assert old.versions() == versions(trial)
    assert number > 8
