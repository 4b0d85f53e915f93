"""The recipe: what it writes it reads, and what it cannot be is one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import BoardLimits
from edgekit.host.convert import BEFORE, check_recipe
from edgekit.host.passes import step
from edgekit.host.recipe import Recipe, TakenBack, read_recipe
from edgekit.runtime.detect import find_profile

INT8 = Recipe(
    profile="raspberrypi5",
    backend="onnxruntime",
    steps=(
        step("confidence"),
        step("fold"),
        step("quantize_static", activation="int8", method="mse", keep_float=['a "quoted" node', "über 𝕏"]),
    ),
    taken_back=(TakenBack("*", "prune"),),
    seed=7,
    validation_fraction=0.25,
    points=12,
    golden=16,
)


@pytest.mark.parametrize(
    "recipe",
    [
        INT8,
        Recipe("host", "onnxruntime", (step("fold"),), (TakenBack("*", "quantize_static"),), 1, 0.2, 24, 16),
        replace(INT8, limits=BoardLimits(latency_ms=8.5, energy_mj=0.1)),
    ],
)
def test_a_recipe_reads_what_it_writes(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert read_recipe(path) == recipe
    assert read_recipe(path).to_toml() == recipe.to_toml()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("format = 2", "format = 3", "recipe format 3 is newer"),
        ("format = 2", "format = 1", "recipe format 1 is no longer read"),
        ('"fold"', '"polish"', "unknown pass 'polish'; known: .*confidence, .*fold"),
        ('method = "mse"', 'method = "magic"', "method must be one of minmax"),
        ('method = "mse"', "method = 3", "method must be one of minmax"),
        ('"quantize_static"', '"fold"', r"has no option 'activation'; it has none"),
        ("reduce_range = false", "reduce_range = 1", "reduce_range must be true or false"),
        ("points = 12", "points = 1", "points must be a whole number from 2"),
        ("seed = 7", "", "seed must be a whole number"),
        ("format = 2", "format = ", "must be a TOML file"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(INT8.to_toml().replace(old, new, 1))
    with pytest.raises(BadInput, match=said):
        read_recipe(path)


def test_a_limit_that_is_set_goes_before_the_recipes_own_and_the_others_stay() -> None:
    recipe = replace(INT8, limits=BoardLimits(latency_ms=8.5, energy_mj=0.1))
    assert recipe.limited(BoardLimits()).limits == recipe.limits
    assert recipe.limited(BoardLimits(latency_ms=4.0)).limits == BoardLimits(latency_ms=4.0, energy_mj=0.1)


def test_a_recipe_for_another_board_is_refused() -> None:
    with pytest.raises(BadInput, match="is for the profile raspberrypi5, got --profile raspberrypi4b"):
        check_recipe(INT8, find_profile("raspberrypi4b"))


def test_exits_stand_right_after_what_every_network_goes_through() -> None:
    profile = find_profile(INT8.profile)
    there, late = (
        (*BEFORE, step("exits", cuts=("n",))),
        (*BEFORE, step("equalize"), step("exits", cuts=("n",))),
    )
    check_recipe(replace(INT8, steps=there), profile)
    with pytest.raises(BadInput, match="right after fold"):
        check_recipe(replace(INT8, steps=late), profile)
    with pytest.raises(BadInput, match="right after fold"):
        check_recipe(replace(INT8, steps=(*there, there[-1])), profile)
