"""Recipes of training: what their files say, what their quantizers really make, and how networks get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.core.errors import BadInput
from edgekit.host.train.recipe import FOLDER, Bits, TrainRecipe, find_recipe, parse, recipe_names

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.compress import compress  # noqa: E402
from edgekit.host.train.networks import build  # noqa: E402
from edgekit.host.train.networks.small import Config  # noqa: E402
from edgekit.host.train.parts import activations_of, errors_of, quantizer_names, weights_of  # noqa: E402
from edgekit.host.train.quantized import quantized_layers, quantized_weights  # noqa: E402
from edgekit.host.train.quantizers.base import adopt, coded  # noqa: E402

ALL = [find_recipe(name) for name in recipe_names()]
FEW = 8  # bits: more levels are not counted
FLOAT = 32
# The survey's table: bits of a weight, an activation, a weight's gradient, an error; whether batch norms are used.
SURVEY = {
    "binaryconnect": (1, 32, 32, 32, True),
    "bnn": (1, 1, 32, 32, True),
    "bwn": (1, 32, 32, 32, True),
    "xnor": (1, 1, 32, 32, True),
    "twn": (2, 32, 32, 32, True),
    "ttq": (2, 32, 32, 32, True),
    "dorefa-w8a8g8": (8, 8, 32, 8, True),
    "terngrad": (32, 32, 2, 32, True),
    "wage": (2, 8, 8, 8, False),
}


def toml(**changes: Any) -> dict[str, Any]:
    return {"title": "T", "source": "S", "about": "A", **changes}


@pytest.mark.parametrize(("name", "row"), SURVEY.items())
def test_the_surveys_table_is_a_table_of_our_recipes(name: str, row: tuple[Any, ...]) -> None:
    recipe = find_recipe(name)
    bits = recipe.bits
    assert (bits.weights, bits.activations, bits.gradients, bits.errors, recipe.batch_norm) == row


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_each_recipe_says_where_it_is_from_and_why_its_figures_are_what_they_are(recipe: TrainRecipe) -> None:
    assert recipe.title
    assert recipe.source
    assert len(recipe.about.split()) > 10
    assert recipe.text.startswith("title = ")
    if recipe.name not in ("float32", "continue"):
        assert recipe.expected is not None, "what it may cost is part of a method"
        assert recipe.expected.against in (*recipe_names(), "control")


@pytest.mark.parametrize(
    "recipe", [each for each in ALL if each.weights.kind], ids=lambda recipe: recipe.name
)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_weights_have_only_the_levels_that_the_recipe_says(recipe: TrainRecipe, mode: str) -> None:
    make = weights_of(recipe)
    assert make is not None
    quantizer: Any = make()
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    adopt(quantizer, weight)
    if isinstance(quantizer, torch.nn.Module):
        quantizer.train(mode == "training")
        if mode == "evaluation" and quantizer_is_real(quantizer):
            pytest.skip("the method computes with its real weights after training")
    made = quantizer(weight).detach()
    most = (
        3
        if recipe.weights.kind in ("twn", "ttq", "wrpn", "wage") and recipe.bits.weights == 2
        else 2**recipe.bits.weights
    )
    rows = made if quantizer.scale(weight).numel() > 1 else made[None]
    counts = [len(torch.unique(row)) for row in rows]
    assert max(counts) <= most
    assert max(counts) > 1
    again = quantizer(weight).detach()
    assert recipe.name == "binaryconnect-stochastic" or torch.equal(made, again)


def quantizer_is_real(quantizer: Any) -> bool:
    return bool(getattr(quantizer, "real", False))


@pytest.mark.parametrize(
    "recipe",
    [each for each in ALL if each.activations.kind and each.bits.activations <= 8],
    ids=lambda recipe: recipe.name,
)
def test_activations_have_only_the_levels_that_the_recipe_says(recipe: TrainRecipe) -> None:
    make = activations_of(recipe)
    assert make is not None
    made = make().eval()(torch.linspace(-3, 3, 20_001)[None]).detach()
    signed = recipe.weights.kind == "wage"  # half of its levels are below zero, where a ReLU leaves none
    assert len(torch.unique(made)) == 2 ** (recipe.bits.activations - signed)


@pytest.mark.parametrize(
    "recipe",
    [each for each in ALL if each.errors.kind and each.bits.errors <= 8],
    ids=lambda recipe: recipe.name,
)
def test_errors_have_only_the_levels_that_the_recipe_says(recipe: TrainRecipe) -> None:
    make = errors_of(recipe)
    assert make is not None
    torch.manual_seed(0)
    value = torch.zeros(1, 5000, requires_grad=True)
    make()(value).backward(torch.randn(1, 5000))
    assert 10 < len(torch.unique(value.grad)) <= 2**recipe.bits.errors


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_each_recipe_fits_its_network_and_a_step_changes_what_is_trained(recipe: TrainRecipe) -> None:
    torch.manual_seed(0)
    config = Config(side=8, widths=(4, 4, 4), strides=(1, 2, 2), batch_norm=recipe.batch_norm)
    network = build("small", config)
    module = compress(network, recipe, fresh=recipe.start == "fresh").train()
    layers = list(quantized_layers(module))
    whole = recipe.layers.first == recipe.layers.last == "quantized"
    assert len(layers) == (0 if not recipe.weights.kind else 4 if whole else 2)
    made = module(torch.rand(6, 1, 8, 8))
    made.square().mean().backward()
    assert all(each.grad is not None for each in module.parameters())
    if layers:
        assert any(bool(layer.weight.grad.any()) for layer in layers) or recipe.name == "wrpn-w2a4"


def test_trained_weights_are_kept_where_a_recipe_starts_from_them() -> None:
    network = build("small")
    before = network.layers[3].weight.detach().clone()
    module = compress(network, find_recipe("ttq"), fresh=False)
    (held, weight, quantizer) = next(iter(quantized_weights(module)))
    assert torch.equal(held, before)
    assert float(quantizer.positive.detach()) == pytest.approx(
        float(before[before > 0.05 * before.abs().max()].mean()), rel=1e-5
    )
    assert coded(quantizer, weight) is not None


def test_fresh_weights_are_drawn_as_the_quantizer_wants_them() -> None:
    network = build("small")
    before = network.layers[3].weight.detach().clone()
    module = compress(network, find_recipe("binaryconnect"), fresh=True)
    assert not torch.equal(next(iter(quantized_layers(module))).weight.detach()[:1], before[:1])


def test_every_layer_has_a_quantizer_of_its_own() -> None:
    module = compress(build("small"), find_recipe("ttq"), fresh=True)
    quantizers = [layer.quantizer for layer in quantized_layers(module)]
    assert len({id(each) for each in quantizers}) == len(quantizers) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"titel": "x"}, "has no entry 'titel'; it has title, source"),
        ({"title": ""}, "title"),
        ({"start": "somehow"}, 'start must be one of fresh, trained, got "somehow"'),
        ({"weights": {"threshold": 0.7}}, "weights.quantizer"),
        ({"training": {"lr": "fast"}}, "training.lr must be"),
        ({"training": {"loss": "hinge"}}, "training.loss must be one of cross entropy, squared hinge"),
        ({"bits": {"weights": 0}}, "bits.weights"),
        ({"pruning": {"sparsity": 1.5}}, "pruning.sparsity"),
        ({"teaching": {"scheme": "D"}}, "teaching.scheme must be one of"),
        ({"layers": {"first": "half"}}, "layers.first must be one of float, quantized"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        parse(toml(**changes), "mine", "mine.toml")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("mine.toml")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            {"quantizer": "tenary"},
            "weights: quantizer must be one of constant, deterministic, .*, got 'tenary'",
        ),
        ({"quantizer": "twn", "treshold": 0.7}, "weights: has no option 'treshold'; it has threshold"),
        ({"quantizer": "twn", "threshold": "high"}, "weights.threshold must be"),
        ({"quantizer": "dorefa"}, "weights: wants bits"),
        ({"quantizer": "twn", "threshold": -1.0}, "threshold must be above 0, got -1.0"),
    ],
)
def test_a_wrong_quantizer_is_refused_before_any_work(weights: dict[str, Any], said: str) -> None:
    recipe = parse(toml(weights=weights), "mine", "mine.toml")
    with pytest.raises(BadInput, match=said):
        weights_of(recipe)


def test_a_recipe_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        (FOLDER / "twn.toml").read_text(encoding="utf-8").replace("0.7 #", "0.5 #"), encoding="utf-8"
    )
    recipe = find_recipe(str(path))
    assert (recipe.name, recipe.weights.options["threshold"]) == ("mine", 0.5)
    with pytest.raises(BadInput, match=r"recipe must be one of adaptive, .*got 'mine'"):
        find_recipe("mine")
    with pytest.raises(BadInput, match="must be an existing TOML file"):
        find_recipe(str(tmp_path / "other.toml"))


def test_nothing_is_quantized_where_nothing_is_named() -> None:
    assert find_recipe("float32").bits == Bits()
    network = build("small")
    assert compress(network, find_recipe("float32"), fresh=True) is network
    assert not list(quantized_layers(network))


def test_a_network_too_small_for_float_edges_is_refused() -> None:
    with pytest.raises(BadInput, match="2 layers with weights, and none is left to quantize"):
        compress(build("small", Config(widths=(4,), strides=(2,))), find_recipe("twn"), fresh=True)


def test_quantizers_are_found_by_their_files() -> None:
    assert {"twn", "ttq", "dorefa", "uniform", "per_filter"} <= set(quantizer_names("weights"))
    assert {"sign", "dorefa", "uniform", "ternary"} <= set(quantizer_names("activations"))
    assert quantizer_names("errors") == ("dfp", "dorefa", "half")
    assert "wage" in quantizer_names("activations")
