"""Parse untrusted JSON and TOML once, at the edge: each reader says where, what was wanted and what came."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from edgekit.core.errors import BadInput, printable

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SHOWN_CHARACTERS = 60
_LINE_CHARACTERS = 600


def shown(value: object) -> str:
    """A value as it appears in an error: JSON, shortened."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def line(text: str) -> str:
    """A text that may hold what a peer gave, as one line of bounded length: escapes for what would break or turn it."""
    plain = printable(text)
    if len(plain) <= _LINE_CHARACTERS:
        return plain
    return f"{plain[: _LINE_CHARACTERS - 150]}…{plain[-149:]}"


def wrong(where: str, wanted: str, came: object) -> BadInput:
    """The error for one bad value."""
    return BadInput(f"{line(where)} must be {wanted}, got {shown(came)}")


def table(value: object, where: str) -> Mapping[str, Any]:
    """A JSON object or TOML table."""
    if not isinstance(value, Mapping):
        raise wrong(where, "a table", value)
    return value


def rows(value: object, where: str, parse: Callable[[object, str], T]) -> tuple[T, ...]:
    """A list, each entry parsed by `parse(entry, where[i])`."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise wrong(where, "a list", value)
    return tuple(parse(entry, f"{where}[{index}]") for index, entry in enumerate(value))


def text(value: object, where: str) -> str:
    """At least one and at most 4096 characters; no NUL and no half of a surrogate pair, which databases refuse."""
    if not isinstance(value, str) or not value or len(value) > 4096 or _UNSTORABLE.search(value):
        raise wrong(where, "a text", value)
    return value


def name(value: object, where: str) -> str:
    """A name as topics and targets allow it."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise wrong(where, "a name (letters, digits, '_' and '-', at most 64)", value)
    return value


def sha256(value: object, where: str) -> str:
    """64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise wrong(where, "a sha256 in hexadecimal", value)
    return value


def choice(value: object, where: str, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in allowed:
        raise wrong(where, "one of " + ", ".join(allowed), value)
    return value


def flag(value: object, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(where, "true or false", value)
    return value


def integer(value: object, where: str, low: int = 0, high: int = 2**53) -> int:
    """A whole number within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(where, f"a whole number from {low} to {high}", value)
    return value


def number(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within [low, high]."""
    try:
        finite = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        finite = False
    if not finite or not isinstance(value, (int, float)):
        raise wrong(where, "a finite number", value)
    if not low <= value <= high:
        raise wrong(where, f"a number from {low:g} to {high:g}", value)
    return float(value)


def optional(value: object, where: str, parse: Callable[[object, str], T]) -> T | None:
    """None stays None (unknown); anything else is parsed."""
    return None if value is None else parse(value, where)


def parse_json(data: bytes, where: str) -> Any:
    """JSON text in UTF-8 without NaN or Infinity; RecursionError and friends become BadInput."""
    try:
        return _JSON.decode(data.decode("utf-8"))
    except _NotANumber as err:
        raise BadInput(f"{where} must be JSON, got the non-number {err}") from err
    except (ValueError, RecursionError) as err:  # ValueError: also an integer of too many digits
        raise BadInput(
            f"{where} must be JSON: {type(err).__name__}: {' '.join(str(err).split())[:120]}"
        ) from err


class _NotANumber(Exception):
    pass


def _refuse(constant: str) -> Any:
    raise _NotANumber(constant)


_JSON = json.JSONDecoder(
    parse_constant=_refuse
)  # made once: making one takes as long as reading a small message


def canonical_json(value: object) -> bytes:
    """The one byte form of a JSON value that is hashed and signed: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
