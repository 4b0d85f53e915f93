"""The key for measuring: what it may sign, what it may not, and what boards then find."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from bundles import null_bundle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from repositories import NOW, BoardClient
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets

from edgekit.core.bundle import Bundle
from edgekit.core.candidates import pack_candidates, unpack_candidates
from edgekit.core.errors import BadBundle, BadInput
from edgekit.core.target import Target
from edgekit.repo import publish, write
from edgekit.repo.add import Conflict, measure, sign_targets, with_bundle
from edgekit.repo.delegate import delegation, with_candidates, without_candidates
from edgekit.repo.keys import make_key, read_key
from edgekit.repo.metadata import (
    Current,
    key_file,
    metadata_folder,
    parse_targets,
    read_current,
    target_file,
)
from edgekit.repo.publish import delegate, publish_measure, renew
from edgekit.repo.status import status


def key_of(repository: Path, role: str = "measure") -> Ed25519PrivateKey:
    return read_key(key_file(repository, role))


def current_measure(repository: Path) -> Metadata[Targets]:
    found = read_current(repository).measure
    assert found is not None
    return found


@pytest.fixture
def round_file(tmp_path: Path) -> tuple[Path, tuple[Bundle, ...]]:
    """A round of two candidates, and its bundles."""
    file = tmp_path / "round.edge"
    file.write_bytes(pack_candidates([null_bundle(version=1), null_bundle(version=2)]))
    (tmp_path / "unpacked").mkdir()
    return file, unpack_candidates(file, tmp_path / "unpacked")


Round = tuple[Path, tuple[Bundle, ...]]


def publish_round(repository: Path, made: Round, board: str = "pi5") -> tuple[Current, Target]:
    metadata, target = with_candidates(current_measure(repository), board, *made, NOW)
    data = sign_targets(metadata, key_of(repository))
    return publish_measure(repository, data, {measure(made[0])[1]: made[0]}, NOW), target


def test_a_board_finds_and_downloads_its_round(
    repository: Path, board: BoardClient, round_file: Round
) -> None:
    _, target = publish_round(repository, round_file)
    info = board.target("measure/pi5/2.edge")
    assert info is not None
    assert Target.parse(info.custom, "custom") == target
    assert (target.use, target.name, target.version) == ("measure", "pi5", 2)
    assert board.download("measure/pi5/2.edge") == round_file[0].read_bytes()


def test_a_new_round_takes_the_boards_last_one_away_and_leaves_other_boards(
    repository: Path, board: BoardClient, round_file: Round
) -> None:
    publish_round(repository, round_file)
    publish_round(repository, round_file, "other")
    publish_round(repository, round_file)
    assert board.target("measure/pi5/2.edge") is None
    assert not target_file(repository, "measure/pi5/2.edge").exists()
    for path in ("measure/other/3.edge", "measure/pi5/4.edge"):
        assert board.target(path) is not None
    assert status(repository, NOW)["measure"]["targets"] == ["other/3", "pi5/4"]


def test_what_was_measured_is_taken_away_with_its_file(
    repository: Path, board: BoardClient, round_file: Round
) -> None:
    publish_round(repository, round_file)
    data = sign_targets(without_candidates(current_measure(repository), "pi5", NOW), key_of(repository))
    publish_measure(repository, data, {}, NOW)
    assert board.target("measure/pi5/2.edge") is None
    assert list((repository / "targets").rglob("*.edge")) == []


def smuggle(repository: Path, bundle: Bundle, path: str, target: Target) -> Metadata[Targets]:
    """The next measure metadata with an entry of its signer's own making."""
    new = without_candidates(current_measure(repository), "nobody", NOW)
    length, sha256 = measure(bundle.path)
    new.signed.targets[path] = TargetFile(length, {"sha256": sha256}, path, {"custom": target.to_custom()})
    return new


def test_the_key_for_measuring_cannot_sign_what_a_board_would_run(
    repository: Path, board: BoardClient, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    target = Target("toy", 1, ("host",), "run", "current", bundle.content_id)
    new = smuggle(repository, bundle, target.path, target)
    data = sign_targets(new, key_of(repository))
    with pytest.raises(BadInput, match="may name only what is to be measured"):
        publish_measure(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)
    publisher_is_compromised(repository, new)
    assert board.target(target.path) is None


def publisher_is_compromised(repository: Path, new: Metadata[Targets]) -> None:
    """Put measure metadata in force without any of the publisher's checks."""
    data = sign_targets(new, key_of(repository))
    named = {"measure.json": write.write_role(repository, "measure", new.signed.version, data)}
    online = key_of(repository, "online")
    write.write_online_roles(repository, read_current(repository), named, NOW, (online,))


def test_the_key_for_measuring_cannot_sign_the_targets_metadata_either(
    repository: Path, make_bundle: Callable[..., Bundle]
) -> None:
    data = sign_targets(with_bundle(read_current(repository).targets, make_bundle(), NOW), key_of(repository))
    with pytest.raises(BadInput):
        publish.publish(repository, data, {}, NOW)


def test_another_key_than_the_delegated_one_signs_no_round(repository: Path, tmp_path: Path) -> None:
    new = without_candidates(current_measure(repository), "pi5", NOW)
    for stranger in (make_key(tmp_path / "s.pem"), key_of(repository, "targets")):
        with pytest.raises(BadInput, match="measure metadata"):
            publish_measure(repository, sign_targets(deepcopy(new), stranger), {}, NOW)


def test_a_round_lives_for_a_day_and_the_publisher_takes_nothing_that_lives_for_long(
    repository: Path, board: BoardClient, round_file: Round
) -> None:
    publish_round(repository, round_file)
    assert current_measure(repository).signed.expires == NOW + timedelta(days=1)
    late = board.refresh()
    late._trusted_set.reference_time = NOW + timedelta(days=1, seconds=1)
    with pytest.raises((ExpiredMetadataError, RepositoryError)):
        late.get_targetinfo("measure/pi5/2.edge")
    new = without_candidates(current_measure(repository), "pi5", NOW)
    new.signed.expires = NOW + timedelta(days=30)
    with pytest.raises(BadInput, match="must expire within 2 days"):
        publish_measure(repository, sign_targets(new, key_of(repository)), {}, NOW)


def test_expired_measure_metadata_keeps_no_board_from_its_updates(
    repository: Path, board: BoardClient, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    data = sign_targets(
        with_bundle(read_current(repository).targets, bundle, NOW), key_of(repository, "targets")
    )
    publish.publish(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)
    later = NOW + timedelta(days=5)
    assert renew(repository, later)
    updater = board.refresh()
    updater._trusted_set.reference_time = later
    assert updater.get_targetinfo("run/toy/1.edge") is not None
    assert status(repository, later)["problems"] == []


@pytest.mark.parametrize("change", ["version", "content", "delegates", "foreign file", "no file"])
def test_a_round_that_is_not_what_it_says_is_refused(
    repository: Path, round_file: Round, tmp_path: Path, change: str
) -> None:
    metadata, target = with_candidates(current_measure(repository), "pi5", *round_file, NOW)
    files = {measure(round_file[0])[1]: round_file[0]}
    wanted: type[BadInput] = BadInput
    if change == "version":
        metadata.signed.version += 1
        wanted = Conflict
    elif change == "content":
        custom = replace(target, content_id="0" * 64).to_custom()
        metadata.signed.targets[target.path].unrecognized_fields["custom"] = custom
        wanted = BadBundle
    elif change == "delegates":
        metadata.signed.delegations = delegation(make_key(tmp_path / "more.pem"))
    elif change == "foreign file":
        path = tmp_path / "plain.edge"
        path.write_bytes(null_bundle())
        metadata.signed.targets[target.path].hashes["sha256"] = measure(path)[1]
        metadata.signed.targets[target.path].length = measure(path)[0]
        files, wanted = {measure(path)[1]: path}, BadBundle
    else:
        files = {}
    before = current_measure(repository).signed.version
    with pytest.raises(wanted):
        publish_measure(repository, sign_targets(metadata, key_of(repository)), files, NOW)
    assert current_measure(repository).signed.version == before


def without_delegation(repository: Path) -> None:
    """As a repository that was made before there was a key for measuring."""
    targets = deepcopy(read_current(repository).targets)
    targets.signed.delegations = None
    data = sign_targets(targets, key_of(repository, "targets"))
    named = {"targets.json": write.write_role(repository, "targets", 1, data)}
    current = read_current(repository)
    write.write_online_roles(repository, current, named, NOW, (key_of(repository, "online"),))
    (metadata_folder(repository) / "1.measure.json").unlink()


def test_an_older_repository_says_how_to_get_the_delegation_and_gets_it(
    repository: Path, board: BoardClient, round_file: Round
) -> None:
    without_delegation(repository)
    assert read_current(repository).measure is None
    with pytest.raises(BadInput, match="edgekit repo measure"):
        publish_measure(repository, sign_targets(Metadata(Targets()), key_of(repository)), {}, NOW)
    assert board.target("measure/pi5/2.edge") is None
    delegate(repository, key_of(repository, "targets"), key_of(repository), NOW)
    _, target = publish_round(repository, round_file)
    assert board.target(target.path) is not None


def test_a_new_key_for_measuring_ends_the_old_one(
    repository: Path, board: BoardClient, round_file: Round, tmp_path: Path
) -> None:
    publish_round(repository, round_file)
    old = key_of(repository)
    key_file(repository, "measure").unlink()
    delegate(repository, key_of(repository, "targets"), make_key(key_file(repository, "measure")), NOW)
    assert board.target("measure/pi5/2.edge") is None
    new = without_candidates(current_measure(repository), "pi5", NOW)
    with pytest.raises(BadInput):
        publish_measure(repository, sign_targets(new, old), {}, NOW)
    _, target = publish_round(repository, round_file)
    assert board.target(target.path) is not None


def test_a_push_leaves_the_delegation_as_it_is_and_cannot_change_it(
    repository: Path, round_file: Round, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    publish_round(repository, round_file)
    bundle = make_bundle()
    new = with_bundle(read_current(repository).targets, bundle, NOW)
    changed = parse_targets(sign_targets(deepcopy(new), key_of(repository, "targets")), "new")
    changed.signed.delegations = delegation(make_key(tmp_path / "mine.pem"))
    files = {measure(bundle.path)[1]: bundle.path}
    with pytest.raises(Conflict, match="must delegate as before"):
        publish.publish(repository, sign_targets(changed, key_of(repository, "targets")), files, NOW)
    publish.publish(repository, sign_targets(new, key_of(repository, "targets")), files, NOW)
    assert status(repository, NOW)["measure"]["targets"] == ["pi5/2"]
