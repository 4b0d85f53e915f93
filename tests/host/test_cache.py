"""The cache gives back what was put in, or nothing; it never grows without bound and never stops the work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from networks import three_exits

from edgekit.host.cache import Cache, content_key, graph_bytes, graph_from, key_of


def test_what_was_put_comes_back_and_a_damaged_entry_is_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    cache.put("k", b"something")
    assert cache.get("k") == b"something"
    assert cache.get("other") is None
    path = tmp_path / "c" / "k"
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get("k") is None


def test_no_folder_remembers_nothing() -> None:
    cache = Cache()
    cache.put("k", b"something")
    assert cache.get("k") is None


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=400)
    for place, name in enumerate(("a", "b", "c")):
        cache.put(name, bytes(100))
        os.utime(tmp_path / name, (place, place))
    assert cache.get("a") is not None  # used again: now "b" is the oldest
    cache.put("d", bytes(100))
    assert [cache.get(name) is not None for name in ("a", "b", "c", "d")] == [True, False, True, True]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file")
    cache.put("k", b"something")
    assert cache.get("k") is None


def test_keys_differ_by_every_part() -> None:
    keys = {
        key_of("graph", "a", "b"),
        key_of("graph", "ab", ""),
        key_of("other", "a", "b"),
        key_of("graph", "b", "a"),
    }
    assert len(keys) == 4


def test_the_key_of_data_follows_its_content(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "one").write_text("1")
    first = content_key(tmp_path / "x")
    assert content_key(tmp_path / "x") == first
    (tmp_path / "x" / "one").write_text("2")
    assert content_key(tmp_path / "x") != first
    assert content_key(tmp_path / "x" / "one") != first


def test_a_graph_comes_back_with_its_exits(make: Callable) -> None:
    plain = make(three_exits()).plain
    again = graph_from(graph_bytes(plain), plain)
    assert again.fingerprint() == plain.fingerprint()
    assert again.exits == plain.exits
