"""Whatever publishers do, in whatever order: every board goes on from wherever it was, and never goes back."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from bundles import write_null_bundle
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from repositories import NOW, BoardClient

from edgekit.repo.add import measure, sign_targets, with_bundle
from edgekit.repo.delegate import without_candidates
from edgekit.repo.init import init
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import entries, key_file, read_current
from edgekit.repo.publish import publish, publish_measure
from edgekit.repo.refresh import advance, refresh
from edgekit.repo.revoke import is_revoked, with_revoked
from edgekit.repo.rotate import ROTATED, rotate, rotate_root
from edgekit.repo.status import status


class Publishers(RuleBasedStateMachine):
    """One repository, its publishers, and boards that looked at it at different times."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="edgekit-any-order-"))
        self.repository, self.now, self.version = self.folder / "repo", NOW, 0
        self.boards: list[tuple[BoardClient, dict[str, int]]] = []

    @initialize(keys=st.integers(1, 3))
    def make(self, keys: int) -> None:
        init(self.repository, self.now, keys)
        self.board_comes()

    @rule()
    def board_comes(self) -> None:
        board = BoardClient(self.repository, self.folder / f"board{len(self.boards)}")
        self.boards.append((board, {}))
        self._look(len(self.boards) - 1)

    @rule(which=st.integers(0, 100))
    def board_looks(self, which: int) -> None:
        self._look(which % len(self.boards))

    @rule()
    def add(self) -> None:
        self.version += 1
        bundle = write_null_bundle(self.folder / f"{self.version}.edge", version=self.version)
        key = read_key(key_file(self.repository, "targets"))
        data = sign_targets(with_bundle(read_current(self.repository).targets, bundle, self.now), key)
        publish(self.repository, data, {measure(bundle.path)[1]: bundle.path}, self.now)

    @precondition(lambda self: self.version > 0)
    @rule(which=st.integers(0, 100))
    def revoke(self, which: int) -> None:
        targets = read_current(self.repository).targets
        label = f"toy/{which % self.version + 1}"
        if is_revoked(targets.signed, label):
            return
        key = read_key(key_file(self.repository, "targets"))
        publish(self.repository, sign_targets(with_revoked(targets, label, self.now), key), {}, self.now)

    @rule(duty=st.sampled_from(ROTATED), lost=st.booleans())
    def rotate(self, duty: str, *, lost: bool) -> None:
        if lost and duty in ("targets", "online"):
            key_file(self.repository, duty).unlink()
        turned = (
            rotate_root(self.repository, self.now)
            if duty == "root"
            else rotate(self.repository, duty, self.now)
        )
        assert turned.waiting == ()

    @rule()
    def publish_measure(self) -> None:
        current = read_current(self.repository).measure
        assert current is not None
        key = read_key(key_file(self.repository, "measure"))
        publish_measure(
            self.repository, sign_targets(without_candidates(current, "pi5", self.now), key), {}, self.now
        )

    @rule(days=st.integers(1, 300))
    def time_passes(self, days: int) -> None:
        self.now += timedelta(days=days)
        found = refresh(self.repository, self.now)
        assert (found.waiting, found.alarming) == ((), False)

    @rule(role=st.sampled_from(["timestamp", "snapshot", "targets", "measure"]), by=st.integers(0, 50))
    def advance(self, role: str, by: int) -> None:
        current = getattr(read_current(self.repository), role)
        advance(self.repository, {role: current.signed.version + by}, self.now)

    @invariant()
    def nothing_is_wrong(self) -> None:
        if self.boards:
            found = status(self.repository, self.now)
            assert found["problems"] == []
            assert (
                len(list((self.repository / "metadata").glob("*.root.json")))
                == found["roles"]["root"]["version"]
            )

    def _look(self, which: int) -> None:
        board, before = self.boards[which]
        board.now = self.now
        after = board.versions()
        current = read_current(self.repository)
        assert after == {role: getattr(current, role).signed.version for role in after}
        assert all(after[role] >= version for role, version in before.items())
        for path in entries(current.targets.signed):
            assert board.download(path)
        self.boards[which] = board, after

    def teardown(self) -> None:
        try:
            for which in range(len(self.boards)):
                self._look(which)
        finally:
            shutil.rmtree(self.folder)


def check(examples: int, steps: int) -> None:
    limits = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    case = Publishers.TestCase
    case.settings = limits
    case("runTest").runTest()


def test_boards_go_on_from_wherever_they_were_and_never_go_back() -> None:
    check(12, 15)


@pytest.mark.slow
def test_the_same_for_long() -> None:
    check(100, 30)
