"""What a publisher lets through, what boards then see, and what a kill between any two writes leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from repositories import NOW, BoardClient, Killed, kill_at_rename

from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.core.target import Target
from edgekit.repo import add, init, metadata, publish
from edgekit.repo.add import Conflict, check_successor, measure, sign_targets, with_bundle
from edgekit.repo.keys import make_key, read_key
from edgekit.repo.metadata import Current, key_file, read_current
from edgekit.repo.publish import renew

MakeBundle = Callable[..., Bundle]


def publish_bundle(repository: Path, bundle: Bundle) -> Current:
    current = read_current(repository)
    key = read_key(key_file(repository, "targets"))
    data = sign_targets(with_bundle(current.targets, bundle, NOW), key)
    return publish.publish(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)


def state_of(current: Current, path: str) -> str:
    return metadata.entries(current.targets.signed)[path].target.state


def test_a_board_downloads_what_was_added(
    repository: Path, board: BoardClient, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(version=3, profiles=("host", "raspberrypi5"))
    publish_bundle(repository, bundle)
    info = board.target("run/toy/3.edge")
    assert info is not None
    target = Target.parse(info.custom, "custom")
    assert (target.label, target.profiles, target.state) == ("toy/3", ("host", "raspberrypi5"), "current")
    assert target.content_id == bundle.content_id
    assert board.download("run/toy/3.edge") == bundle.path.read_bytes()


def test_the_version_before_becomes_allowed_and_other_names_stay(
    repository: Path, make_bundle: MakeBundle
) -> None:
    publish_bundle(repository, make_bundle(version=1))
    publish_bundle(repository, make_bundle(name="other", version=1))
    current = publish_bundle(repository, make_bundle(version=2))
    assert state_of(current, "run/toy/1.edge") == "allowed"
    assert state_of(current, "run/toy/2.edge") == "current"
    assert state_of(current, "run/other/1.edge") == "current"
    assert current.targets.signed.version == 4


def test_a_version_that_is_taken_is_refused_with_other_content(
    repository: Path, make_bundle: MakeBundle
) -> None:
    publish_bundle(repository, make_bundle(version=1))
    with pytest.raises(Conflict, match="toy/1 is published with other content"):
        publish_bundle(repository, make_bundle("changed.edge", version=1, padding=7))


def test_a_version_below_the_newest_is_refused(repository: Path, make_bundle: MakeBundle) -> None:
    publish_bundle(repository, make_bundle(version=5))
    with pytest.raises(Conflict, match="version 5 is published; a new version must be above it"):
        publish_bundle(repository, make_bundle(version=4))


def test_the_second_of_two_engineers_who_signed_on_the_same_version_is_refused(
    repository: Path, make_bundle: MakeBundle
) -> None:
    key = read_key(key_file(repository, "targets"))
    old = read_current(repository).targets
    first, second = make_bundle(name="a"), make_bundle(name="b")
    publish_bundle(repository, first)
    late = sign_targets(with_bundle(old, second, NOW), key)
    with pytest.raises(Conflict, match="must be version 3, got 2: somebody else published meanwhile"):
        publish.publish(repository, late, {measure(second.path)[1]: second.path}, NOW)
    assert not (repository / "targets/run/b").exists()


def test_metadata_signed_by_another_key_is_refused(
    repository: Path, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    stranger = make_key(tmp_path / "stranger.pem")
    bundle = make_bundle()
    data = sign_targets(with_bundle(read_current(repository).targets, bundle, NOW), stranger)
    with pytest.raises(BadInput, match="targets metadata: targets was signed by 0/1 keys"):
        publish.publish(repository, data, {measure(bundle.path)[1]: bundle.path}, NOW)


def test_metadata_changed_after_signing_is_refused(repository: Path, make_bundle: MakeBundle) -> None:
    key = read_key(key_file(repository, "targets"))
    bundle = make_bundle()
    data = sign_targets(with_bundle(read_current(repository).targets, bundle, NOW), key)
    changed = data.replace(b'"toy"', b'"joy"')
    assert changed != data
    with pytest.raises(BadInput, match="signed by 0/1 keys"):
        publish.publish(repository, changed, {measure(bundle.path)[1]: bundle.path}, NOW)


def test_a_bundle_changed_after_signing_is_refused(repository: Path, make_bundle: MakeBundle) -> None:
    key = read_key(key_file(repository, "targets"))
    bundle = make_bundle()
    sha256 = measure(bundle.path)[1]
    data = sign_targets(with_bundle(read_current(repository).targets, bundle, NOW), key)
    changed = bytearray(bundle.path.read_bytes())
    changed[200] ^= 1
    bundle.path.write_bytes(changed)
    with pytest.raises(BadBundle, match="not the one that was signed"):
        publish.publish(repository, data, {sha256: bundle.path}, NOW)
    assert read_current(repository).targets.signed.version == 1


def test_a_signed_description_that_is_not_the_bundles_is_refused(
    repository: Path, make_bundle: MakeBundle
) -> None:
    key = read_key(key_file(repository, "targets"))
    bundle = make_bundle(profiles=("host",))
    lying = with_bundle(read_current(repository).targets, bundle, NOW)
    info = lying.signed.targets["run/toy/1.edge"]
    info.unrecognized_fields["custom"]["profiles"] = ["raspberrypi5"]
    with pytest.raises(BadBundle, match="does not describe the bundle"):
        publish.publish(repository, sign_targets(lying, key), {measure(bundle.path)[1]: bundle.path}, NOW)


def test_a_bundle_that_was_not_uploaded_is_asked_for(repository: Path, make_bundle: MakeBundle) -> None:
    key = read_key(key_file(repository, "targets"))
    data = sign_targets(with_bundle(read_current(repository).targets, make_bundle(), NOW), key)
    with pytest.raises(BadInput, match=r"toy/1, whose bundle .* was not uploaded"):
        publish.publish(repository, data, {}, NOW)


def test_dropping_changing_or_unrevoking_a_target_is_refused(
    repository: Path, make_bundle: MakeBundle
) -> None:
    old = publish_bundle(repository, make_bundle()).targets.signed
    for change in ("drop", "content"):
        new = metadata.parse(read_current(repository).targets.to_bytes(), type(old), "new").signed
        new.version += 1
        if change == "drop":
            del new.targets["run/toy/1.edge"]
        else:
            new.targets["run/toy/1.edge"].hashes["sha256"] = "0" * 64
        with pytest.raises(Conflict, match="must keep toy/1 as it was published"):
            check_successor(old, new)
    old.targets["run/toy/1.edge"].unrecognized_fields["custom"]["state"] = "revoked"
    new = read_current(repository).targets.signed
    new.version += 1
    with pytest.raises(Conflict, match="must keep toy/1 revoked"):
        check_successor(old, new)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\x00" * 10, b"[" * 50_000], ids=["empty", "bare", "bytes", "deep"]
)
def test_what_is_no_metadata_is_refused(data: bytes, repository: Path) -> None:
    with pytest.raises(BadInput, match="targets metadata: must be TUF metadata"):
        publish.publish(repository, data, {}, NOW)


def test_another_roles_metadata_is_refused(repository: Path) -> None:
    data = (repository / "metadata/1.snapshot.json").read_bytes()
    with pytest.raises(BadInput, match="must be targets metadata, got snapshot"):
        publish.publish(repository, data, {}, NOW)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_write_of_a_publication_leaves_a_repository_that_boards_refresh_from(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, after: bool
) -> None:
    publish_bundle(repository, make_bundle(version=1))
    bundle, other = make_bundle(version=2), make_bundle(name="other", version=1)
    board.refresh()
    points = 0
    while True:
        points += 1
        with pytest.MonkeyPatch.context() as patch:
            count = kill_at_rename(patch, points, after=after)
            try:
                publish_bundle(repository, bundle)
            except Killed:
                pass
            else:
                break
            assert count() == points
        # Whatever the kill left, a board goes on from it, and from a cache of any state before it.
        if board.target("run/toy/2.edge") is not None:
            assert board.download("run/toy/2.edge") == bundle.path.read_bytes()
            break
        assert board.download("run/toy/1.edge")
        # Another engineer may come first now: what the kill left must not be in the way.
        if points == 4:
            publish_bundle(repository, other)
    assert points >= 5
    if board.target("run/toy/2.edge") is None:
        publish_bundle(repository, bundle)
    publish_bundle(repository, make_bundle(version=3))
    assert board.download("run/toy/3.edge")
    assert board.download("run/other/1.edge") == other.path.read_bytes()


def test_a_kill_at_any_write_of_init_is_mended_by_calling_it_again(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        folder = tmp_path / f"repo{number}"
        with pytest.MonkeyPatch.context() as patch:
            kill_at_rename(patch, number, after=False)
            try:
                init.init(folder, NOW)
            except Killed:
                pass
            else:
                break
        if not (folder / "metadata" / "timestamp.json").exists():
            init.init(folder, NOW)
        BoardClient(folder, tmp_path / f"cache{number}").refresh()
    assert number >= 8


def test_a_full_disk_while_publishing_leaves_the_old_state_in_force(
    repository: Path, board: BoardClient, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(WorldFailed, match="No space left on device"):
            publish_bundle(repository, make_bundle())
    assert board.target("run/toy/1.edge") is None
    assert not list(repository.rglob("*.part"))
    publish_bundle(repository, make_bundle())
    assert board.target("run/toy/1.edge") is not None


def test_renewing_keeps_boards_from_expiry_and_does_nothing_twice_a_day(
    repository: Path, board: BoardClient, make_bundle: MakeBundle
) -> None:
    publish_bundle(repository, make_bundle())
    before = read_current(repository)
    assert not renew(repository, NOW + timedelta(hours=23))
    assert renew(repository, NOW + timedelta(days=2))
    daily = read_current(repository)
    assert daily.timestamp.signed.version == before.timestamp.signed.version + 1
    assert daily.snapshot.signed.version == before.snapshot.signed.version
    assert renew(repository, NOW + timedelta(days=12))
    later = read_current(repository)
    assert later.snapshot.signed.version == before.snapshot.signed.version + 1
    assert later.snapshot.signed.expires == NOW + timedelta(days=42)
    assert board.target("run/toy/1.edge") is not None


def test_old_metadata_files_do_not_pile_up(repository: Path, make_bundle: MakeBundle) -> None:
    for version in range(1, 15):
        publish_bundle(repository, make_bundle(version=version))
    files = {path.name for path in (repository / "metadata").iterdir()}
    assert {
        "15.targets.json",
        "6.targets.json",
        "15.snapshot.json",
        "6.snapshot.json",
        "1.root.json",
    } <= files
    assert "5.targets.json" not in files
    assert len(files) == 23


def test_metadata_is_handed_out_with_the_key_that_signed_it_known(repository: Path, tmp_path: Path) -> None:
    targets = read_current(repository).targets
    assert metadata.is_signed_by(targets, read_key(key_file(repository, "targets")))
    assert not metadata.is_signed_by(targets, make_key(tmp_path / "other.pem"))
    targets.signed.version += 1
    assert not metadata.is_signed_by(targets, read_key(key_file(repository, "targets")))


def test_a_manipulated_repository_is_not_read(repository: Path) -> None:
    path = repository / "metadata/1.targets.json"
    data = json.loads(path.read_bytes())
    data["signed"]["version"] = 9
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=r"1\.targets\.json: targets was signed by 0/1 keys"):
        read_current(repository)


def test_nothing_is_added_twice(repository: Path, make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    current = publish_bundle(repository, bundle)
    found = add.published(current.targets.signed, bundle)
    assert found is not None
    assert found.target.content_id == bundle.content_id
    with pytest.raises(Conflict, match="toy/1 is published already"):
        with_bundle(current.targets, bundle, NOW)
