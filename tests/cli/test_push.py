"""Selectors of boards, and that a wrong one stops a push before it does anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import write_null_bundle

from edgekit.cli import push
from edgekit.cli.main import run
from edgekit.core.errors import BadInput
from edgekit.core.selector import parse_selector


def test_the_same_key_twice_are_alternatives() -> None:
    assert parse_selector("tag=a, tag=b,profile=pi").wanted == {
        "tag": frozenset({"a", "b"}),
        "profile": frozenset({"pi"}),
    }
    assert parse_selector(" all ").wanted == {}


@pytest.mark.parametrize("text", ["", "pi5", "tag=", "place=here", "tag=a,,name=b"])
def test_anything_else_is_no_selector(text: str) -> None:
    with pytest.raises(BadInput, match='must be "all" or pairs'):
        parse_selector(text)


def test_a_push_with_a_wrong_selector_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published: list[object] = []
    monkeypatch.setattr(push, "publish_bundle", lambda *args: published.append(args) or True)
    write_null_bundle(tmp_path / "a.edge")
    where = ["--server", "http://127.0.0.1:9", "--key", str(tmp_path / "none.pem")]
    monkeypatch.setenv("EDGEKIT_TOKEN", "t")
    assert run(["push", str(tmp_path / "a.edge"), *where, "--to", "pi5"]) == 2
    assert "--to must be" in capsys.readouterr().err
    assert not published
