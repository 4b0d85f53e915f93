"""Quantizers by their names in a recipe: a file in quantizers/ says WEIGHTS, ACTIVATIONS or ERRORS. Trains nothing.

WEIGHTS: a class (or function) whose keyword arguments are the options in a recipe, and whose instances are
WeightQuantizers; each layer gets one of its own. ACTIVATIONS, ERRORS: the same for modules that stand where a ReLU
stood, and behind it. Where activations have them, INPUTS and OUTPUTS are for the network's input and its scores.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from torch import nn

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.host.train import quantizers
from edgekit.host.train.quantizers.base import WeightQuantizer
from edgekit.host.train.recipe import Part, TrainRecipe

_ROLES = {"weights": "WEIGHTS", "activations": "ACTIVATIONS", "errors": "ERRORS"}
_BORDERS = ("INPUTS", "OUTPUTS")
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLAIN = "relu"  # activations that stay as they are


def quantizer_names(role: str) -> tuple[str, ...]:
    """Names of the files in quantizers/ that have something for "weights", "activations" or "errors"."""
    modules = (entry.name for entry in pkgutil.iter_modules(quantizers.__path__))
    return tuple(name for name in modules if hasattr(_module(name), _ROLES[role]))


def weights_of(recipe: TrainRecipe) -> Callable[[], WeightQuantizer] | None:
    """What makes a layer's quantizer of weights; None: they stay float. Raises BadInput for a wrong name or option."""
    return _maker(recipe, "weights", recipe.weights)


def activations_of(recipe: TrainRecipe) -> Callable[[], nn.Module] | None:
    """What makes the module in the place of a ReLU; None: it stays."""
    return None if recipe.activations.kind == PLAIN else _maker(recipe, "activations", recipe.activations)


def errors_of(recipe: TrainRecipe) -> Callable[[], nn.Module] | None:
    """What makes the module behind a quantized layer that quantizes what comes back through it; None: nothing."""
    return _maker(recipe, "errors", recipe.errors)


def borders_of(recipe: TrainRecipe) -> tuple[nn.Module | None, nn.Module | None]:
    """Modules for the network's input and its scores, where the activations' quantizer has such."""
    if activations_of(recipe) is None:
        return None, None
    part = recipe.activations
    found = (getattr(_module(part.kind), name, None) for name in _BORDERS)
    first, last = (None if made is None else made(**part.options) for made in found)
    return first, last


def _module(name: str) -> Any:
    return importlib.import_module(f"{quantizers.__name__}.{name}")


def _maker(recipe: TrainRecipe, role: str, part: Part) -> Callable[[], Any] | None:
    if not part.kind:
        return None
    where = f"recipe {recipe.name}: {role}"
    known = quantizer_names(role)
    if part.kind not in known:
        raise BadInput(f"{where}: quantizer must be one of {', '.join(known)}, got {part.kind!r}")
    made = getattr(_module(part.kind), _ROLES[role])
    options = _checked(made, part.options, where)
    made(**options)  # its own limits are checked before any work
    return lambda: made(**options)


def _checked(made: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options as the signature wants them."""
    parameters = {
        key: each for key, each in inspect.signature(made).parameters.items() if each.kind not in _ANY
    }
    hints = get_type_hints(made.__init__ if inspect.isclass(made) else made)
    for key in given:
        if key not in parameters:
            raise BadInput(f"{where}: has no option {key!r}; it has {', '.join(parameters) or 'none'}")
    missing = [
        key
        for key, each in parameters.items()
        if each.default is inspect.Parameter.empty and key not in given
    ]
    if missing:
        raise BadInput(f"{where}: wants {', '.join(missing)}")
    return {key: _value(value, hints.get(key), f"{where}.{key}") for key, value in given.items()}


def _value(value: Any, hint: Any, where: str) -> Any:
    if hint is bool:
        return checks.flag(value, where)
    if hint is int:
        return checks.integer(value, where)
    if hint is float:
        return float(checks.number(value, where))
    return checks.text(value, where)
