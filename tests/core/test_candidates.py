from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from bundles import null_bundle

from edgekit.core.bench import MAX_CANDIDATES
from edgekit.core.bundle import stored_zip
from edgekit.core.candidates import pack_candidates, target_of_candidates, unpack_candidates
from edgekit.core.errors import BadBundle, BadInput

ONE, TWO = null_bundle(version=1), null_bundle(version=2)


def unpack(tmp_path: Path, data: bytes, **options: int) -> tuple[object, ...]:
    (tmp_path / "round.edge").write_bytes(data)
    (tmp_path / "out").mkdir()
    return unpack_candidates(tmp_path / "round.edge", tmp_path / "out", **options)


def test_bundles_come_out_as_they_went_in_and_in_their_order(tmp_path: Path) -> None:
    bundles = unpack(tmp_path, pack_candidates([TWO, ONE]))
    assert [bundle.label for bundle in bundles] == ["toy/2", "toy/1"]  # type: ignore[attr-defined]
    assert [bundle.path.read_bytes() for bundle in bundles] == [TWO, ONE]  # type: ignore[attr-defined]


def test_the_same_bundles_give_the_same_bytes() -> None:
    assert pack_candidates([ONE, TWO]) == pack_candidates([ONE, TWO])


def test_a_round_has_at_least_one_candidate_and_not_too_many() -> None:
    for count in (0, MAX_CANDIDATES + 1):
        with pytest.raises(BadInput, match="1 to 64 candidates"):
            pack_candidates([ONE] * count)


def other_order() -> bytes:
    return stored_zip({"001.edge": ONE, "000.edge": TWO})


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000.edge", ONE)
    return buffer.getvalue()


def flipped() -> bytes:
    data = bytearray(pack_candidates([ONE]))
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"no zip",
        other_order(),
        compressed(),
        flipped(),
        stored_zip({"../000.edge": ONE}),
        stored_zip({"000.edge": b"no bundle"}),
        pack_candidates([ONE]) + b"more",
        ONE,
    ],
    ids=["no zip", "order", "compressed", "flipped", "way out", "no bundle", "trailing", "a bundle itself"],
)
def test_anything_else_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadBundle):
        unpack(tmp_path, data)
    assert not (tmp_path / "000.edge").exists()


def test_a_file_larger_than_the_board_takes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="more than the 100"):
        unpack(tmp_path, pack_candidates([ONE]), max_bytes=100)


def test_the_target_is_called_as_its_board_and_names_every_candidate_in_order(tmp_path: Path) -> None:
    bundles = unpack(tmp_path, pack_candidates([ONE, TWO]))
    target = target_of_candidates("pi5-a", 3, bundles)  # type: ignore[arg-type]
    assert (target.path, target.profiles, target.executes_code) == (
        "measure/pi5-a/3.edge",
        ("host",),
        False,
    )
    turned = target_of_candidates("pi5-a", 3, bundles[::-1])  # type: ignore[arg-type]
    assert turned.content_id != target.content_id


def test_candidates_for_different_boards_are_no_round(tmp_path: Path) -> None:
    other = null_bundle(profiles=("raspberrypi5",))
    bundles = unpack(tmp_path, pack_candidates([ONE, other]))
    with pytest.raises(BadInput, match="profile in common"):
        target_of_candidates("pi5-a", 1, bundles)  # type: ignore[arg-type]
