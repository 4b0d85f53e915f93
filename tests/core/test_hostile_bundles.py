"""Hostile bundles, rounds and manifests are refused with one line, and cost no memory to refuse."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bundles import null_bundle
from hostile import Entry, cases, entries, fuzzed_text, write

from edgekit.core.bundle import open_bundle
from edgekit.core.candidates import pack_candidates, unpack_candidates
from edgekit.core.checks import parse_json
from edgekit.core.errors import BadBundle, BadInput, EdgekitError
from edgekit.core.manifest import Manifest

BIG = ("bomb", "nest", "overlapping", "size", "members", "MB")
LONGEST = 1000  # characters of a refusal, beside the file's own name
MANIFEST = json.loads(entries()[0].data)


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    """What it tries -> the file."""
    return dict(cases())


def said(action: Callable[[], object], where: Path | str = "") -> str | None:
    """The refusal, None where it is accepted; anything else than one readable line fails."""
    try:
        action()
    except EdgekitError as err:
        text = str(err)
        assert text
        assert len(text) <= LONGEST + len(str(where)), f"{len(text)} characters: {text[:200]}…"
        assert text.isprintable(), f"it would break or turn a terminal's line: {text!r}"
        return text
    return None


def test_the_writer_makes_a_good_bundle_when_nothing_lies(tmp_path: Path) -> None:
    assert write(entries()) == null_bundle()


def test_there_are_hundreds_of_hostile_files(hostile: dict[str, bytes]) -> None:
    assert len(hostile) > 350
    assert len(set(hostile.values())) > 340


@pytest.mark.parametrize("kind", ["bundle", "round", "bundle in a round"])
def test_every_hostile_file_is_refused_with_one_line(
    tmp_path: Path, hostile: dict[str, bytes], kind: str
) -> None:
    path, folder = tmp_path / "hostile.edge", tmp_path / "unpacked"
    folder.mkdir()
    action = partial(open_bundle, path) if kind == "bundle" else partial(unpack_candidates, path, folder)
    for what, data in hostile.items():
        path.write_bytes(pack_candidates([data]) if kind == "bundle in a round" else data)
        refusal = said(action, path)
        assert refusal is not None, f"{what} was accepted"
        written = {entry.name for entry in tmp_path.rglob("*")} - {"hostile.edge", "unpacked"}
        assert written <= {"000.edge"}, f"{what} left {written}"


def test_a_round_is_as_strict_as_a_bundle_about_its_own_members(tmp_path: Path) -> None:
    good = Entry(b"000.edge", null_bundle())
    (tmp_path / "out").mkdir()
    tricks: dict[str, bytes] = {
        "slip": write([Entry(b"../000.edge", good.data)]),
        "gap": write([Entry(b"000.edge", good.data, gap=b"hidden")]),
        "link": write([Entry(b"000.edge", good.data, mode=0o120777 << 16)]),
        "compressed": write([Entry(b"000.edge", good.data, method=8)]),
        "twice": write([good, good]),
        "one left out": write([good, Entry(b"002.edge", good.data)]),
        "no end": write([good])[:-1],
        "prefix": write([good], prefix=b"x"),
        "too many": write([Entry(b"%03d.edge" % i, b"") for i in range(1000)]),
        "huge": write([Entry(b"000.edge", good.data, size=2**32 - 1, packed_size=2**32 - 1)]),
    }
    for what, data in tricks.items():
        (tmp_path / "round.edge").write_bytes(data)
        refusal = said(lambda: unpack_candidates(tmp_path / "round.edge", tmp_path / "out"), tmp_path)
        assert refusal is not None, what


def test_refusing_takes_little_memory(tmp_path: Path, hostile: dict[str, bytes]) -> None:
    """Bombs and lies about sizes above all; what a file really holds may be held."""
    path = tmp_path / "hostile.edge"
    for what, data in hostile.items():
        if not any(word in what for word in BIG):
            continue  # as small as a good one
        path.write_bytes(data)
        tracemalloc.start()
        try:
            said(lambda: open_bundle(path), path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        allowed = 48 * 2**20 if "members" in what else 8 * 2**20
        assert peak < allowed, f"{what} took {peak / 2**20:.0f} MB"


CHILD = """
import resource, sys
from pathlib import Path
from edgekit.core.bundle import open_bundle
from edgekit.core.errors import EdgekitError
resource.setrlimit(resource.RLIMIT_AS, (500 << 20,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_bundle(path)
    except EdgekitError:
        continue
    sys.exit(f"{path} was accepted")
"""


def test_bombs_are_refused_under_a_hard_limit_of_memory(tmp_path: Path, hostile: dict[str, bytes]) -> None:
    bombs = [
        data for what, data in hostile.items() if any(w in what for w in ("bomb", "nest", "overl", "size"))
    ]
    assert len(bombs) > 20
    for index, data in enumerate(bombs):
        (tmp_path / f"{index}.edge").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# --- manifests -------------------------------------------------------------------------------------------------------


def test_the_manifest_that_is_mutated_is_good_itself() -> None:
    assert Manifest.parse(MANIFEST).to_json() == MANIFEST


def check_manifest(data: bytes) -> bool:
    """Whether it was accepted. What is accepted says the same when it is written and read again."""
    kept: list[Manifest] = []

    def parse() -> None:
        kept.append(Manifest.parse(parse_json(data, "manifest.json"), "manifest.json"))

    refusal = said(parse)
    if refusal is None:
        again = json.loads(json.dumps(kept[0].to_json(), allow_nan=False))
        assert Manifest.parse(again) == kept[0]
        json.dumps(again, ensure_ascii=False).encode()  # canonical_json and with it content_id can be made
    return refusal is None


def fuzz(count: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    return (fuzzed_text(MANIFEST, chance) for _ in range(count))


def test_3000_fuzzed_manifests_are_refused_with_one_line_or_are_good() -> None:
    accepted = sum(check_manifest(data) for data in fuzz(3000, 1))
    assert 30 < accepted < 1500, "the mutations hurt, and not all of them"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_50000_fuzzed_manifests_are_refused_with_one_line_or_are_good() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = sum(check_manifest(data) for data in fuzz(50_000, 2))
    assert 500 < accepted < 25_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown / 1024:.0f} MB more after 50,000 manifests"


def test_fuzzed_manifests_inside_a_bundle_are_refused_with_one_line_or_are_good(tmp_path: Path) -> None:
    path, members = tmp_path / "fuzzed.edge", entries()
    for data in fuzz(200, 3):
        path.write_bytes(write([Entry(members[0].name, data), *members[1:]]))
        said(lambda: open_bundle(path), path)


@pytest.mark.parametrize(
    "hurt",
    [
        lambda data: data["golden"]["inputs"].update({"a\nb" * 1000: 1}),
        lambda data: data["golden"]["inputs"].update({"a\nb": 1}),
        lambda data: data["stages"][0]["parts"][0].update(names={"x\ny": 1}),
        lambda data: data["stages"][0]["parts"][0].update(names={"x" * 10**6: 1}),
    ],
    ids=["long key", "newline in a key", "newline in a name", "key of a megabyte"],
)
def test_what_a_key_holds_does_not_break_the_line(hurt: Callable[[Any], None]) -> None:
    data = json.loads(json.dumps(MANIFEST))
    hurt(data)
    refusal = said(lambda: Manifest.parse(data))
    assert refusal is not None


def test_bad_input_is_bad_bundle_where_a_file_is_to_blame(tmp_path: Path, hostile: dict[str, bytes]) -> None:
    path = tmp_path / "hostile.edge"
    path.write_bytes(hostile["bomb"])
    with pytest.raises(BadBundle):
        open_bundle(path)
    with pytest.raises(BadInput):
        open_bundle(tmp_path / "none.edge")
