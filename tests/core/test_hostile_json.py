"""What a hostile peer can put into JSON becomes BadInput, never another error."""

from __future__ import annotations

import pytest

from edgekit.core import checks
from edgekit.core.errors import BadInput


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{", b"NaN", b"[-Infinity]", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"],
    ids=["nothing", "not UTF-8", "cut short", "NaN", "infinity", "too deep", "too many digits"],
)
def test_json_that_cannot_be_read_is_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput, match="payload must be JSON"):
        checks.parse_json(data, "payload")


@pytest.mark.parametrize(
    "value", [10**400, 1e999, True, "1", None], ids=["huge", "infinite", "bool", "text", "null"]
)
def test_a_number_must_be_finite(value: object) -> None:
    with pytest.raises(BadInput, match="temperature must be a finite number"):
        checks.number(value, "temperature")


@pytest.mark.parametrize("value", ["a\x00b", "a\ud800b", ""], ids=["NUL", "half a surrogate pair", "empty"])
def test_a_text_can_be_stored_in_any_database(value: str) -> None:
    with pytest.raises(BadInput, match="bundle must be a text"):
        checks.text(value, "bundle")


def test_a_text_of_every_language_passes() -> None:
    assert checks.text("Überhitzt 🌡 温度", "detail") == "Überhitzt 🌡 温度"
