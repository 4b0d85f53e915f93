"""What was published is taken back: for every board, for ever, and through any publisher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from repositories import NOW, BoardClient, Killed, kill_at_rename

from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput
from edgekit.core.target import Target
from edgekit.core.trust import Board, Running, decide
from edgekit.repo.add import Conflict, measure, sign_targets, with_bundle, with_state
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import key_file, read_current
from edgekit.repo.publish import publish
from edgekit.repo.revoke import is_revoked, revoked_labels, with_revoked

MakeBundle = Callable[..., Bundle]


def add(repository: Path, bundle: Bundle) -> None:
    key = read_key(key_file(repository, "targets"))
    data = sign_targets(with_bundle(read_current(repository).targets, bundle, NOW), key)
    publish(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)


def revoke(repository: Path, label: str) -> None:
    key = read_key(key_file(repository, "targets"))
    publish(
        repository, sign_targets(with_revoked(read_current(repository).targets, label, NOW), key), {}, NOW
    )


def state(board: BoardClient, path: str) -> str:
    info = board.target(path)
    assert info is not None
    return Target.parse(info.custom, "custom").state


def test_a_board_learns_that_its_bundle_was_revoked_and_may_go_back(
    repository: Path, board: BoardClient, make_bundle: MakeBundle
) -> None:
    for version in (1, 2):
        add(repository, make_bundle(version=version))
    revoke(repository, "toy/2")
    assert [state(board, f"run/toy/{version}.edge") for version in (1, 2)] == ["allowed", "revoked"]
    assert revoked_labels(read_current(repository).targets.signed) == {"toy/2"}
    here, runs = Board("host"), Running("toy", 2, "0" * 64)
    for version, reason in ((1, None), (2, "revoked")):
        info = board.target(f"run/toy/{version}.edge")
        assert info is not None
        assert decide(Target.parse(info.custom, "custom"), here, runs).reason == reason


def test_what_comes_after_leaves_it_revoked_and_nobody_brings_it_back(
    repository: Path, board: BoardClient, make_bundle: MakeBundle
) -> None:
    add(repository, make_bundle(version=1))
    revoke(repository, "toy/1")
    add(repository, make_bundle(version=2))
    assert state(board, "run/toy/1.edge") == "revoked"
    assert is_revoked(read_current(repository).targets.signed, "toy/1")
    back = with_revoked(read_current(repository).targets, "toy/1", NOW)
    back.signed.targets["run/toy/1.edge"] = with_state(back.signed.targets["run/toy/1.edge"], "allowed")
    with pytest.raises(Conflict, match="must keep toy/1 revoked"):
        publish(repository, sign_targets(back, read_key(key_file(repository, "targets"))), {}, NOW)


def test_what_is_not_published_cannot_be_revoked(repository: Path, make_bundle: MakeBundle) -> None:
    add(repository, make_bundle(version=4))
    for label, says in (
        ("toy/5", r"versions of toy: toy/4"),
        ("boat/1", "versions of boat: none"),
        ("x", "NAME/VERSION"),
    ):
        with pytest.raises(BadInput, match=says):
            revoke(repository, label)


def test_a_kill_at_any_write_of_a_revocation_leaves_a_repository_that_boards_refresh_from(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    add(repository, make_bundle(version=1))
    board.refresh()
    shutil.copytree(repository, tmp_path / "whole")
    number, done = 0, False
    while not done:
        number += 1
        trial = tmp_path / f"trial{number}"
        shutil.copytree(tmp_path / "whole", trial)
        old = board.twin(tmp_path / f"old{number}")
        old.repository = trial
        with pytest.MonkeyPatch.context() as patch:
            kill_at_rename(patch, number, after=False)
            try:
                revoke(trial, "toy/1")
                done = True
            except Killed:
                pass
        before = state(old, "run/toy/1.edge")
        assert before in {"current", "revoked"}
        if before == "current":
            revoke(trial, "toy/1")
        assert state(old, "run/toy/1.edge") == "revoked"
    assert number >= 6
