from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.toml import read_toml


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[device]\nname = "pi5-ä"\n', encoding="utf-8")
    assert read_toml(path) == {"device": {"name": "pi5-ä"}}


@pytest.mark.parametrize(
    "content",
    [b"[device", b"\xff", b"a = 1\na = 2\n", b"#" * (2**20 + 1)],
    ids=["cut", "UTF-8", "twice", "huge"],
)
def test_a_file_that_is_no_toml_is_bad_input_and_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.toml: must be a TOML file"):
        read_toml(path)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must be an existing TOML file"):
        read_toml(tmp_path / "none.toml")
