"""Keys that change under boards which go on refreshing: with all keys at hand, with keys elsewhere, with keys lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from repositories import NOW, BoardClient, Killed, kill_at_rename
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError

from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput
from edgekit.repo import write
from edgekit.repo.add import Conflict, measure, sign_targets, with_bundle
from edgekit.repo.init import init
from edgekit.repo.keyring import Held, key_id, keyring
from edgekit.repo.keys import make_key, read_key
from edgekit.repo.metadata import key_file, metadata_folder, read_current, read_root
from edgekit.repo.pending import Outcome, cancel, pending_file, sign, sign_file
from edgekit.repo.publish import publish, renew
from edgekit.repo.rotate import ROTATED, rotate, rotate_root
from edgekit.repo.status import status

MakeBundle = Callable[..., Bundle]


def sign_here(repository: Path, *more: Path, files: tuple[Path, ...] = ()) -> Outcome:
    return sign(repository, keyring(repository, more=more), NOW, files)


def turn(repository: Path, duty: str, *more: Path) -> Outcome:
    return rotate_root(repository, NOW, more) if duty == "root" else rotate(repository, duty, NOW, more)


def add(repository: Path, bundle: Bundle, key: Path | None = None) -> None:
    targets_key = read_key(key or key_file(repository, "targets"))
    data = sign_targets(with_bundle(read_current(repository).targets, bundle, NOW), targets_key)
    publish(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)


def ids(repository: Path, role: str) -> list[str]:
    return list(read_current(repository).root.signed.roles[role].keyids)


@pytest.fixture
def elsewhere(repository: Path, tmp_path: Path) -> list[Path]:
    """The root keys, each in a folder of its own, none beside the repository."""
    places = []
    for number in (1, 2, 3):
        place = tmp_path / f"person{number}" / f"root-{number}.pem"
        place.parent.mkdir()
        places.append(key_file(repository, f"root-{number}").rename(place))
    return places


@pytest.mark.parametrize("duty", ROTATED)
def test_a_board_follows_every_change_of_keys(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, tmp_path: Path, duty: str
) -> None:
    add(repository, make_bundle(version=1))
    before = board.versions()
    outcome = turn(repository, duty)
    assert outcome.waiting == ()
    new = BoardClient(repository, tmp_path / "new")
    for client in (board, new):
        after = client.versions()
        assert all(after[role] >= before[role] for role in before)
        assert after["root"] == (1 if duty == "measure" else 2)
    add(repository, make_bundle(version=2))
    assert board.target("run/toy/2.edge") is not None
    assert status(repository, NOW)["problems"] == []


@pytest.mark.parametrize("duty", ROTATED)
def test_the_old_key_signs_nothing_any_more_and_is_kept_apart(
    repository: Path, board: BoardClient, duty: str
) -> None:
    names = [f"root-{number}" for number in (1, 2, 3)] if duty == "root" else [duty]
    old = {name: read_key(key_file(repository, name)) for name in names}
    turn(repository, duty)
    for name, key in old.items():
        kept = repository / f"keys/retired/{name}-{key_id(key)[:8]}.pem"
        assert key_id(read_key(kept)) == key_id(key)
        assert kept.stat().st_mode & 0o777 == 0o600
        assert key_id(read_key(key_file(repository, name))) != key_id(key)
    assert (repository / "keys/retired").stat().st_mode & 0o777 == 0o700
    assert list((repository / "keys/next").iterdir()) == []
    if duty == "online":
        write.write_online_roles(repository, read_current(repository), {}, NOW, tuple(old.values()))
        with pytest.raises(UnsignedMetadataError):
            board.refresh()


def test_two_of_three_root_keys_change_keys_and_one_does_not(
    repository: Path, board: BoardClient, elsewhere: list[Path]
) -> None:
    outcome = rotate(repository, "online", NOW, elsewhere[:1])
    assert (outcome.enforced, len(outcome.waiting)) == ((), 1)
    assert "wants 1 more of the root keys root-2" in outcome.waiting[0]
    assert board.versions()["root"] == 1
    assert sign_here(repository, elsewhere[0]).enforced == ()
    assert sign_here(repository, elsewhere[2]).enforced == (2,)
    assert board.versions()["root"] == 2


def test_a_copy_is_signed_where_the_key_is_and_carried_back(
    repository: Path, board: BoardClient, elsewhere: list[Path]
) -> None:
    rotate(repository, "targets", NOW)
    copies = []
    for place in elsewhere[:2]:
        copy = place.parent / "2.root.json"
        shutil.copy(pending_file(repository, 2), copy)
        key = read_key(place)
        _, names = sign_file(copy, {key_id(key): Held(place, key)})
        assert [name.split()[0] for name in names] == [place.stem]
        copies.append(copy)
    outcome = sign_here(repository, files=tuple(copies))
    assert outcome.enforced == (2,)
    assert board.versions() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}
    assert not pending_file(repository, 2).exists()


def test_a_copy_of_another_root_is_not_taken(
    repository: Path, tmp_path: Path, board: BoardClient, elsewhere: list[Path]
) -> None:
    rotate(repository, "online", NOW)
    foreign = read_root(pending_file(repository, 2))
    foreign.signed.expires += timedelta(days=1)
    for version, says in ((2, "is another root 2 than the one that waits"), (3, "does not wait here")):
        foreign.signed.version = version
        (tmp_path / "copy.json").write_bytes(foreign.to_bytes())
        with pytest.raises(Conflict, match=says):
            sign_here(repository, *elsewhere, files=(tmp_path / "copy.json",))
    assert board.versions()["root"] == 1


def test_a_root_that_a_restored_repository_lost_is_put_back(
    repository: Path, board: BoardClient, tmp_path: Path, elsewhere: list[Path]
) -> None:
    shutil.copytree(repository, tmp_path / "backup")
    rotate_root(repository, NOW, elsewhere, which="root-2")
    board.refresh()
    lost = metadata_folder(repository) / "2.root.json"
    shutil.copy(lost, tmp_path / "found.json")
    shutil.rmtree(repository)
    shutil.copytree(tmp_path / "backup", repository)
    assert sign_here(repository, files=(tmp_path / "found.json",)).enforced == (2,)
    assert board.versions()["root"] == 2


@pytest.mark.parametrize("duty", ["targets", "online"])
def test_a_lost_key_is_replaced_without_it(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, duty: str
) -> None:
    add(repository, make_bundle(version=1))
    board.refresh()
    key_file(repository, duty).unlink()
    assert rotate(repository, duty, NOW).enforced == (2, 3)
    assert board.versions()["root"] == 3
    assert len(ids(repository, "timestamp")) == len(ids(repository, "targets")) == 1
    add(repository, make_bundle(version=2))
    assert board.target("run/toy/2.edge") is not None


def test_a_lost_online_key_is_a_problem_with_its_remedy(repository: Path) -> None:
    key_file(repository, "online").unlink()
    assert "edgekit repo rotate" in status(repository, NOW)["problems"][0]
    with pytest.raises(
        BadInput, match=r"must hold the online key that the root names .* repo rotate .* online"
    ):
        renew(repository, NOW + timedelta(days=2))


def test_boards_recover_from_versions_that_a_stolen_online_key_drove_up(
    repository: Path, board: BoardClient, make_bundle: MakeBundle
) -> None:
    stolen = read_key(key_file(repository, "online"))
    honest = read_current(repository)
    write.write_online_roles(
        repository, honest, {}, NOW, (stolen,), {"timestamp": 2**31 - 2, "snapshot": 2**31 - 2}
    )
    assert board.versions()["timestamp"] == 2**31 - 1
    (metadata_folder(repository) / "timestamp.json").write_bytes(honest.timestamp.to_bytes())
    with pytest.raises(RepositoryError):
        board.refresh()
    rotate(repository, "online", NOW)
    assert board.versions() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 1}
    add(repository, make_bundle())
    assert board.target("run/toy/1.edge") is not None


def test_one_root_key_is_replaced_and_the_others_stay(repository: Path, board: BoardClient) -> None:
    before = ids(repository, "root")
    rotate_root(repository, NOW, which="root-2")
    after = ids(repository, "root")
    assert (after[:2], len(set(after) - set(before))) == ([before[0], before[2]], 1)
    rotate_root(repository, NOW, which=after[0][:10])
    assert board.versions()["root"] == 3
    with pytest.raises(BadInput, match=r"no one root key called 'root-9'; there are: root-"):
        rotate_root(repository, NOW, which="root-9")


def test_a_repository_with_one_root_key_goes_on_and_gets_three(tmp_path: Path) -> None:
    repository = tmp_path / "old"
    init(repository, NOW, root_keys=1)
    assert key_file(repository, "root").exists()
    board = BoardClient(repository, tmp_path / "cache")
    rotate(repository, "targets", NOW)
    rotate_root(repository, NOW, count=3, threshold=2)
    assert board.versions()["root"] == 3
    root = read_current(repository).root.signed
    assert (len(root.roles["root"].keyids), root.roles["root"].threshold) == (3, 2)
    names = {path.name for path in (repository / "keys").iterdir() if path.is_file()}
    assert names == {f"root-{n}.pem" for n in (1, 2, 3)} | {"targets.pem", "measure.pem", "online.pem"}
    for name in ("root-1", "root-2"):
        key_file(repository, name).unlink()
    assert len(rotate(repository, "online", NOW).waiting) == 1


def test_a_threshold_that_cannot_be_is_refused(repository: Path, tmp_path: Path) -> None:
    for keys, threshold in ((2, 3), (3, 0)):
        with pytest.raises(BadInput, match=f"threshold of {keys} root keys must be from 1 to {keys}"):
            init(tmp_path / "new", NOW, keys, threshold)
        with pytest.raises(BadInput, match=f"threshold of {keys} root keys must be from 1 to {keys}"):
            rotate_root(repository, NOW, count=keys, threshold=threshold)
    assert not (tmp_path / "new").exists()


def test_changes_of_different_keys_wait_one_upon_the_other(
    repository: Path, board: BoardClient, elsewhere: list[Path]
) -> None:
    rotate(repository, "online", NOW)
    rotate(repository, "targets", NOW)
    with pytest.raises(Conflict, match=r"root 2 waits already and changes the online keys: .* --cancel"):
        rotate(repository, "online", NOW)
    assert [row["version"] for row in status(repository, NOW)["pending"]] == [2, 3]
    assert sign_here(repository, *elsewhere[1:]).enforced == (2, 3)
    assert board.versions()["root"] == 3


def test_what_a_kill_left_of_a_proposal_does_not_follow_the_next_one(
    repository: Path, board: BoardClient, elsewhere: list[Path]
) -> None:
    key_file(repository, "targets").unlink()
    rotate(repository, "targets", NOW)
    pending_file(repository, 2).unlink()  # it is written last
    assert status(repository, NOW)["pending"] == []
    rotate(repository, "online", NOW)
    assert sign_here(repository, *elsewhere).enforced == (2,)
    assert status(repository, NOW)["pending"] == []
    assert board.versions()["root"] == 2


def test_what_waits_is_thrown_away_with_the_keys_drawn_for_it(
    repository: Path, board: BoardClient, elsewhere: list[Path]
) -> None:
    rotate(repository, "online", NOW)
    assert cancel(repository) == (2,)
    assert list((repository / "keys/next").iterdir()) == []
    assert sign_here(repository, *elsewhere).enforced == ()
    assert board.versions()["root"] == 1


def test_a_push_between_proposal_and_signatures_is_carried_over(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, elsewhere: list[Path]
) -> None:
    rotate(repository, "targets", NOW)
    add(repository, make_bundle())
    assert sign_here(repository, *elsewhere[:2]).enforced == (2,)
    assert board.target("run/toy/1.edge") is not None


def test_a_signed_root_waits_for_the_key_that_must_sign_below_it(
    repository: Path, board: BoardClient, tmp_path: Path
) -> None:
    rotate(repository, "targets", NOW)
    kept = key_file(repository, "targets").rename(tmp_path / "targets.pem")
    for number in (1, 2, 3):
        key_file(repository, f"root-{number}").rename(tmp_path / f"root-{number}.pem")
    rotate(repository, "online", NOW)
    online = (repository / "keys/next/online.pem").rename(tmp_path / "online.pem")
    signers = [tmp_path / "root-1.pem", tmp_path / "root-3.pem"]
    outcome = sign_here(repository, *signers)
    assert "has its signatures, and waits: the online key online" in outcome.waiting[0]
    assert board.versions()["root"] == 2
    assert sign_here(repository, online, kept).enforced == (3,)


def test_a_root_that_expired_while_it_waited_never_comes_into_force(
    repository: Path, elsewhere: list[Path]
) -> None:
    rotate(repository, "online", NOW)
    late = NOW + timedelta(days=366)
    outcome = sign(repository, keyring(repository, more=elsewhere), late)
    assert outcome.enforced == ()
    assert "root 2 has expired while it waited" in outcome.waiting[0]


def test_a_stranger_signs_nothing(repository: Path, tmp_path: Path, elsewhere: list[Path]) -> None:
    make_key(tmp_path / "stranger.pem")
    rotate(repository, "online", NOW)
    outcome = sign_here(repository, tmp_path / "stranger.pem", key_file(repository, "targets"))
    assert (outcome.signed, outcome.enforced) == ((), ())
    assert read_root(pending_file(repository, 2)).signatures == {}


def test_roots_are_kept_for_ever_and_a_board_walks_all_of_them(
    repository: Path, board: BoardClient, make_bundle: MakeBundle
) -> None:
    for number in range(12):
        rotate(repository, "online" if number % 2 else "targets", NOW)
    for version in range(1, 13):
        add(repository, make_bundle(version=version))
    names = {path.name for path in metadata_folder(repository).iterdir()}
    assert {f"{version}.root.json" for version in range(1, 14)} <= names
    assert board.versions()["root"] == 13


SLOW = pytest.mark.slow
KILLED = [
    pytest.param("online", False, False, id="online, before"),
    pytest.param("targets", True, False, id="lost targets, before"),
    *(
        pytest.param(duty, False, after, marks=SLOW, id=f"{duty}, {after=}")
        for duty in ROTATED
        for after in (0, 1)
    ),
    *(
        pytest.param(duty, True, after, marks=SLOW, id=f"lost {duty}, {after=}")
        for duty in ("targets", "online")
        for after in (0, 1)
    ),
]


@pytest.mark.parametrize(("duty", "lost", "after"), KILLED)
def test_a_kill_at_any_write_of_a_rotation_leaves_a_repository_that_boards_refresh_from(
    repository: Path,
    board: BoardClient,
    make_bundle: MakeBundle,
    tmp_path: Path,
    duty: str,
    *,
    lost: bool,
    after: bool,
) -> None:
    add(repository, make_bundle(version=1))
    board.refresh()
    if lost:
        key_file(repository, duty).unlink()
    shutil.copytree(repository, tmp_path / "whole")
    number, done = 0, False
    while not done:
        number += 1
        trial = tmp_path / f"trial{number}"
        shutil.copytree(tmp_path / "whole", trial)
        old = board.twin(tmp_path / f"old{number}")
        old.repository = trial
        with pytest.MonkeyPatch.context() as patch:
            kill_at_rename(patch, number, after=after)
            try:
                turn(trial, duty)
                done = True
            except Killed:
                pass
        fresh = BoardClient(trial, tmp_path / f"fresh{number}")
        assert old.target("run/toy/1.edge") is not None
        assert fresh.target("run/toy/1.edge") is not None
        # What was begun is ended by the same command, or by signing what waits; then everything goes on.
        if not sign_here(trial).enforced and read_current(trial).root.signed.version == 1:
            turn(trial, duty)
        renew(trial, NOW + timedelta(days=2))
        seen = read_current(trial)
        assert old.versions()["timestamp"] == fresh.versions()["timestamp"] == seen.timestamp.signed.version
        assert all(row["file"] for row in status(trial, NOW)["keys"]), "a private key in force went missing"
    assert number > 8
