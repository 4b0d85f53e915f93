"""Which boards a job is for, as people write it: `all`, or pairs such as `tag=site-a,profile=raspberrypi5`."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import BadInput

KEYS = ("tag", "profile", "name")


def parse_selector(text: str) -> Mapping[str, frozenset[str]]:
    """Key -> its alternatives; empty for `all`. Raises BadInput."""
    if text.strip() == "all":
        return {}
    found: dict[str, set[str]] = {}
    for pair in text.split(","):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in KEYS or not value:
            raise BadInput(
                f'--to must be "all" or pairs such as tag=site-a,profile=raspberrypi5,name=pi5-a, got {pair.strip()!r}'
            )
        found.setdefault(key, set()).add(value)
    return {key: frozenset(values) for key, values in found.items()}
