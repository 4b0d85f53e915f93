"""Which boards are meant, as people write it: `all`, or pairs such as `tag=site-a,profile=raspberrypi5`. No I/O.

One grammar for push, configure, stick, rollouts and silences:

    selector = "all" | pair {"," pair}
    pair     = key ("=" | "!=") value        key: tag, profile, name, bundle

Pairs with the same key are alternatives, different keys must all hold, and a board that any `!=` names is left out:
`tag=site-a,tag=site-b,profile=raspberrypi5,name!=pi5-old*`. A value may hold `*` (any characters) and `?` (one).
bundle is what a board says it runs: `name/3`, `name` (any version of it), or `none`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from edgekit.core.errors import BadInput, printable

KEYS = ("tag", "profile", "name", "bundle")
NO_BUNDLE = "none"
_MOST_PAIRS = 1000
_MOST_STARS = 3  # in one value: matching takes time to the power of them
_Pairs = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Selector:
    """wanted, unwanted: key -> its values. Neither: every board."""

    wanted: _Pairs
    unwanted: _Pairs

    @cached_property
    def _patterns(self) -> tuple[dict[str, re.Pattern[str]], dict[str, re.Pattern[str]]]:
        return _compiled(self.wanted), _compiled(self.unwanted)

    def matches(
        self,
        *,
        name: str,
        profile: str | None = None,
        tags: Collection[str] = (),
        bundle: str | None = None,
    ) -> bool:
        """Whether a board is meant. profile: None where it is not known. bundle: `name/version` it runs, None: none."""
        has = {
            "tag": tags,
            "profile": () if profile is None else (profile,),
            "name": (name,),
            "bundle": (NO_BUNDLE,) if bundle is None else (bundle, bundle.partition("/")[0]),
        }
        wanted, unwanted = self._patterns
        return all(_any(pattern, has[key]) for key, pattern in wanted.items()) and not any(
            _any(pattern, has[key]) for key, pattern in unwanted.items()
        )


def parse_selector(text: str) -> Selector:
    """Read a selector. Raises BadInput."""
    if text.strip() == "all":
        return Selector({}, {})
    wanted: dict[str, set[str]] = {}
    unwanted: dict[str, set[str]] = {}
    pairs = text.split(",")
    if len(pairs) > _MOST_PAIRS:
        raise BadInput(f"--to must have at most {_MOST_PAIRS} pairs, got {len(pairs)}")
    for pair in pairs:
        key, sign, value = (part.strip() for part in pair.partition("="))
        into = unwanted if key.endswith("!") else wanted
        key = key.removesuffix("!").strip()
        if key not in KEYS or not sign or not value or "=" in value or value.count("*") > _MOST_STARS:
            raise BadInput(
                '--to must be "all" or pairs such as tag=site-a,profile=raspberrypi5,name=pi5-*,bundle=toy/3, with != '
                f"for what is left out, got {printable(pair.strip())[:100]!r}"
            )
        into.setdefault(key, set()).add(value)
    return Selector(_frozen(wanted), _frozen(unwanted))


def _frozen(pairs: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    return {key: frozenset(values) for key, values in pairs.items()}


def _compiled(pairs: _Pairs) -> dict[str, re.Pattern[str]]:
    return {key: re.compile("|".join(sorted(map(_pattern, values)))) for key, values in pairs.items()}


def _pattern(value: str) -> str:
    """`*` and `?` as a regular expression."""
    parts = re.split(r"(\*+|\?)", value)
    return "".join(
        ".*" if part.startswith("*") else "." if part == "?" else re.escape(part) for part in parts
    )


def _any(pattern: re.Pattern[str], values: Iterable[str]) -> bool:
    return any(pattern.fullmatch(value) for value in values)
