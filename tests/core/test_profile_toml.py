from __future__ import annotations

import dataclasses

import pytest

from edgekit.core.figure import Figure
from edgekit.core.profile import OpCosts, known_profiles, parse_profile, profile
from edgekit.core.profile_toml import profile_toml


@pytest.mark.parametrize("name", [name for name in known_profiles() if name != "host"])
def test_every_shipped_profile_survives_being_written(name: str) -> None:
    assert parse_profile(profile_toml(profile(name)), "written.toml") == profile(name)


def test_classes_of_operators_survive_with_dots_quotes_and_unknown_figures() -> None:
    board = profile("raspberrypi4b")
    some = OpCosts(call_overhead_us=Figure(1.5, "us", "measured", "2026-01-02", 'a "quoted" machine'))
    operators = {"Conv.1x1.odd": {"float32": some, "int8": some}, "Add": {"int8": OpCosts()}}
    made = dataclasses.replace(board, cost=dataclasses.replace(board.cost, operators=operators))

    read = parse_profile(profile_toml(made, "two\nlines"), "written.toml")

    assert read.cost.operators["Conv.1x1.odd"] == operators["Conv.1x1.odd"]
    assert profile_toml(made, "two\nlines").startswith("# two\n# lines\nformat = 1\n")


def test_an_unknown_format_under_an_operator_is_kept_as_an_ignored_key() -> None:
    text = profile_toml(profile("raspberrypi4b")) + "\n[cost.operators.Conv.int3]\ncalls = 1\n"

    read = parse_profile(text, "written.toml")

    assert any(key.startswith("cost.operators.Conv.int3") for key in read.extra)
