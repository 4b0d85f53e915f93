"""A training recipe: one method as a TOML file, every figure with its reason. Reads files; trains nothing, no torch.

The files in recipes/ are the documentation of the methods as well: title, source and `about` say what a method is, its
tables name parts of edgekit (a quantizer is a file in quantizers/) and their options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.toml import read_toml
from edgekit.host.options import option, read_options

FOLDER = Path(__file__).with_name("recipes")
FLOAT_BITS = 32
INPUTS = ("standard", "pixels", "centred")
EDGES = ("float", "quantized")
ARITHMETICS = ("float32", "dfp16", "fp16", "bf16")
SCHEMES = ("", "A", "B", "C")


@dataclass(frozen=True)
class Bits:
    """Of a weight, an activation, a weight's gradient and an error (an activation's gradient) while it is trained."""

    weights: int = option(FLOAT_BITS, min=1, max=FLOAT_BITS)
    activations: int = option(FLOAT_BITS, min=1, max=FLOAT_BITS)
    gradients: int = option(FLOAT_BITS, min=1, max=FLOAT_BITS)
    errors: int = option(FLOAT_BITS, min=1, max=FLOAT_BITS)


@dataclass(frozen=True)
class Part:
    """Something of edgekit by its name, with options. kind "": none."""

    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layers:
    """first, last: whether the first and the last layer with weights are quantized as well, or stay float.

    last_activation: whether the activation before a float last layer is quantized. output_norm: the scores go through a
    batch norm, as those of networks do whose last layer is binary; "plain": one without factors of its own.
    """

    first: str = option("float", choices=EDGES)
    last: str = option("float", choices=EDGES)
    last_activation: str = option("quantized", choices=EDGES)
    output_norm: str = option("", choices=("", "learned", "plain"))


@dataclass(frozen=True)
class Teaching:
    """Distillation. scheme: Apprentice's A (both learn), B (a trained teacher), C (B from trained weights); "": none.

    hard, soft: shares of the labels and of the teacher's answers in the student's loss. joint: of the teacher's own
    loss in scheme A. temperature: of both softmaxes.
    """

    scheme: str = option("", choices=SCHEMES)
    hard: float = option(0.5, min=0.0)
    soft: float = option(0.5, min=0.0)
    joint: float = option(1.0, min=0.0)
    temperature: float = option(1.0, min=0.01)


@dataclass(frozen=True)
class Pruning:
    """sparsity: the share of each weight that is zero in the end, by Zhu and Gupta's schedule. 0: none.

    end: the share of all steps after which it is reached; every: steps between two rankings. edges: whether the first
    and the last layer are pruned as well ("quantized": yes, "float": no). group: "weight", each by itself, or
    "position", the same place of the kernel in all filters of a convolution: then the file's products are smaller.
    """

    sparsity: float = option(0.0, min=0.0, max=0.99)
    end: float = option(0.7, min=0.0, max=1.0)
    every: int = option(20, min=1)
    edges: str = option("float", choices=EDGES)
    group: str = option("weight", choices=("weight", "position"))


@dataclass(frozen=True)
class Lottery:
    """Tickets: rounds of training, pruning and rewinding. rounds: 0: none. rate: the share of what is left that goes.

    last_rate: of the last layer. Each round has a control, trained as long: the same masks on weights drawn anew.
    """

    rounds: int = option(0, min=0, max=50)
    rate: float = option(0.2, min=0.0, max=0.99)
    last_rate: float = option(0.1, min=0.0, max=0.99)


@dataclass(frozen=True)
class Adaptive:
    """A bit width for each weight, in the place of training. factor: the bound on the loss, of its own; 0: none.

    delta: the first trust region, as a share of each tensor's range. directed: towards smaller loss a weight may go as
    far as that. rounds: at most.
    """

    factor: float = option(0.0, min=0.0)
    delta: float = option(0.05, min=0.0, max=1.0)
    directed: bool = True
    rounds: int = option(25, min=1, max=1000)


@dataclass(frozen=True)
class Schooling:
    """How weights are updated.

    schedule: "cosine" to 0, "exponential" to lr * last, or "drops": the factor on lr from a share of all steps on.
    warm_up: share of all steps, of the cosine. loss_scale: of 16-bit floats, 0: none, -1: dynamic. workers: these tell
    one another gradients of three levels, clipped to ternary_clip standard deviations (TernGrad), a step for each one's
    batch; 0: there is one, and it tells nobody.
    """

    loss: str = option("cross entropy", choices=("cross entropy", "squared hinge", "sum of squares"))
    optimizer: str = option("adam", choices=("adam", "sgd", "wage"))
    lr: float = option(2e-3, min=0.0)
    momentum: float = option(0.9, min=0.0, max=1.0)
    weight_decay: float = option(0.0, min=0.0)
    schedule: str = option("cosine", choices=("cosine", "exponential", "drops"))
    drops: Mapping[str, float] = option({})
    warm_up: float = option(0.0, min=0.0, max=1.0)
    last: float = option(1e-3, min=0.0, max=1.0)
    epochs: int = option(6, min=1)
    batch: int = option(100, min=1)
    shift: int = option(0, min=0)
    flip: bool = False
    loss_scale: float = option(0.0, min=-1.0)
    workers: int = option(0, min=0, max=64)
    ternary_clip: float = option(2.5, min=0.0)


@dataclass(frozen=True)
class Expected:
    """What faithful means: on Fashion-MNIST at most `points` below another recipe's mean accuracy over three seeds.

    at_most: for a method that is known to fail there: no better than this accuracy. against "control": of lottery
    tickets, the same masks on weights drawn anew.
    """

    against: str = "float32"
    points: float = option(0.0, min=-100.0, max=100.0)
    at_most: float = option(1.0, min=0.0, max=1.0)


@dataclass(frozen=True)
class TrainRecipe:
    """One method. start: "fresh" weights, or "trained" ones that are compressed. network: where none is named.

    input: of a network by name: "standard", each channel with mean 0 and deviation 1; "pixels" 0-255 as they are, as
    binary networks read them; "centred", pixel / 127.5 - 1. text: of the file.
    """

    name: str
    title: str
    source: str
    about: str
    start: str = "fresh"
    network: str = "small"
    batch_norm: bool = True
    input: str = "standard"
    bits: Bits = field(default_factory=Bits)
    weights: Part = field(default_factory=Part)
    activations: Part = field(default_factory=Part)
    errors: Part = field(default_factory=Part)
    layers: Layers = field(default_factory=Layers)
    teaching: Teaching = field(default_factory=Teaching)
    pruning: Pruning = field(default_factory=Pruning)
    lottery: Lottery = field(default_factory=Lottery)
    adaptive: Adaptive = field(default_factory=Adaptive)
    training: Schooling = field(default_factory=Schooling)
    expected: Expected | None = None
    text: str = ""

    @property
    def wants_teacher(self) -> bool:
        """Whether it cannot do without a trained teacher."""
        return self.teaching.scheme in ("B", "C")


_TEXTS = ("title", "source", "about")
_PARTS = {"weights": "quantizer", "activations": "quantizer", "errors": "quantizer"}
_TABLES: Mapping[str, type[Any]] = {
    "bits": Bits,
    "layers": Layers,
    "teaching": Teaching,
    "pruning": Pruning,
    "lottery": Lottery,
    "adaptive": Adaptive,
    "training": Schooling,
    "expected": Expected,
}
_OTHERS = ("start", "network", "batch_norm", "input")


def recipe_names() -> tuple[str, ...]:
    """Every recipe that comes with edgekit, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def find_recipe(name: str) -> TrainRecipe:
    """The recipe of this name, or in this TOML file. Raises BadInput, WorldFailed."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in recipe_names():
            raise BadInput(f"recipe must be one of {', '.join(recipe_names())}, or a TOML file, got {name!r}")
        path = FOLDER / f"{name}.toml"
    found = parse(read_toml(path), path.stem, name)
    return replace(found, text=path.read_text(encoding="utf-8"))


def parse(data: Mapping[str, Any], name: str, where: str) -> TrainRecipe:
    """Read the tables of a TOML file. Raises BadInput for what is unknown, missing or of the wrong type."""
    known = (*_TEXTS, *_OTHERS, *_PARTS, *_TABLES)
    for key in data:
        if key not in known:
            raise BadInput(f"{where}: has no entry {key!r}; it has {', '.join(known)}")
    found: dict[str, Any] = {key: checks.text(data.get(key), f"{where}: {key}") for key in _TEXTS}
    if "start" in data:
        found["start"] = checks.choice(data["start"], f"{where}: start", ("fresh", "trained"))
    if "network" in data:
        found["network"] = checks.text(data["network"], f"{where}: network")
    if "batch_norm" in data:
        found["batch_norm"] = checks.flag(data["batch_norm"], f"{where}: batch_norm")
    if "input" in data:
        found["input"] = checks.choice(data["input"], f"{where}: input", INPUTS)
    for key, kind in _PARTS.items():
        if key in data:
            table = dict(checks.table(data[key], f"{where}: {key}"))
            part = checks.text(table.pop(kind, None), f"{where}: {key}.{kind}")
            found[key] = Part(part, table)
    for key, cls in _TABLES.items():
        if key in data:
            found[key] = read_options(cls, checks.table(data[key], f"{where}: {key}"), f"{where}: {key}")
    return TrainRecipe(name=name, **found)
