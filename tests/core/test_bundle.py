"""The bundle file: one byte form, and nothing read from a file that is not in it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from bundles import null_bundle, null_files, null_manifest

from edgekit.core.bundle import content_id, open_bundle, pack
from edgekit.core.errors import BadBundle, BadInput
from edgekit.core.manifest import Manifest


def test_the_same_contents_give_the_same_bytes() -> None:
    assert null_bundle() == null_bundle()


def test_the_report_does_not_change_the_content_id(tmp_path: Path) -> None:
    files, parts = null_files()
    manifest = null_manifest(files, parts)
    first, second = tmp_path / "a.edge", tmp_path / "b.edge"
    first.write_bytes(pack(manifest, files, {"latency": 1.0}))
    second.write_bytes(pack(manifest, files, {"latency": 2.0}))
    assert first.read_bytes() != second.read_bytes()
    assert open_bundle(first).content_id == open_bundle(second).content_id == content_id(manifest)


def test_manifest_comes_first_and_report_last() -> None:
    names = zipfile.ZipFile(io.BytesIO(null_bundle())).namelist()
    assert names[0] == "manifest.json"
    assert names[-1] == "report.json"
    assert names[1:-1] == sorted(names[1:-1])


def test_an_opened_bundle_gives_back_what_was_packed(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(null_bundle())
    files, _ = null_files()
    bundle = open_bundle(path)
    assert bundle.label == "toy/1"
    assert {name: bundle.read(name) for name in files} == files


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    good = null_bundle()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
        with pytest.raises(BadBundle):
            open_bundle(path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -30])
def test_a_cut_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(null_bundle()[:kept])
    with pytest.raises(BadBundle):
        open_bundle(path)


def test_bytes_before_or_after_the_bundle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    for data in (null_bundle() + b"\0", b"\0" + null_bundle()):
        path.write_bytes(data)
        with pytest.raises(BadBundle):
            open_bundle(path)


def _rezip(change: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The good bundle's members, some added or replaced, written by an ordinary zip program."""
    good = zipfile.ZipFile(io.BytesIO(null_bundle()))
    contents = {name: good.read(name) for name in good.namelist()}
    report = contents.pop("report.json")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in {**contents, **change, "report.json": report}.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = compression, 3, 0o100644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def test_the_rezip_helper_makes_a_good_bundle_when_nothing_is_changed() -> None:
    assert _rezip({}) == null_bundle()


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        ".hidden",
        "a//b",
        "C:evil",
        "stages/0.json/",
        "né",
        "a\nb",
    ],
)
def test_unsafe_member_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(_rezip({name: b"x"}))
    with pytest.raises(BadBundle) as caught:
        open_bundle(path)
    assert "\n" not in str(caught.value)


def test_a_member_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(_rezip({"zz-extra": b"x"}))
    with pytest.raises(BadBundle, match="not those"):
        open_bundle(path)


def test_compressed_members_are_refused_so_that_nothing_can_explode(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(_rezip({}, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(BadBundle, match="canonical"):
        open_bundle(path)


def test_a_duplicate_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    buffer = io.BytesIO(null_bundle())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("recipe.toml", b"other")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(BadBundle):
        open_bundle(path)


def _with_manifest(**changes: object) -> bytes:
    manifest = json.loads(zipfile.ZipFile(io.BytesIO(null_bundle())).read("manifest.json"))
    manifest.update(changes)
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return _rezip({"manifest.json": data})


def test_a_newer_major_format_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(_with_manifest(format="edgekit.bundle/2"))
    with pytest.raises(BadBundle, match=r"edgekit.bundle/2.*newer.*update edgekit"):
        open_bundle(path)


def test_a_newer_minor_format_with_unknown_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(_with_manifest(format="edgekit.bundle/1.7", novelty={"a": 1}))
    assert open_bundle(path).label == "toy/1"


def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(_with_manifest(recipe="../recipe.toml"))
    with pytest.raises(BadBundle, match="plain relative file name"):
        open_bundle(path)


def test_a_missing_file_and_a_too_large_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        open_bundle(tmp_path / "none.edge")
    path = tmp_path / "toy.edge"
    path.write_bytes(null_bundle())
    with pytest.raises(BadBundle, match="more than the 100"):
        open_bundle(path, max_bytes=100)


def test_packing_other_files_than_the_manifest_lists_is_refused() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, parts)
    with pytest.raises(BadBundle, match="exactly what is packed"):
        pack(manifest, {**files, "more": b""}, {})


def test_a_manifest_survives_the_way_to_json_and_back() -> None:
    files, parts = null_files()
    manifest = null_manifest(files, parts)
    assert Manifest.parse(json.loads(json.dumps(manifest.to_json()))) == manifest
