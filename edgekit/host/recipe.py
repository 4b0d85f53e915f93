"""The Recipe noun: the resolved choices that made a bundle, as TOML inside it. A rerun by it decides nothing anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.toml import read_toml
from edgekit.host.calibrate import METHODS
from edgekit.host.passes import PASSES
from edgekit.host.passes.base import Int8

FORMAT = 1
MEMBER = "recipe.toml"


@dataclass(frozen=True)
class Step:
    """A step that was taken back, for a layer or the whole ("*"). Why stands in the report: it may be a measurement."""

    layer: str
    name: str


@dataclass(frozen=True)
class Recipe:
    """What it took to make the bundle, besides the model and the data.

    passes: in order. int8: None where the network stayed float. validation_fraction: what was set aside of the
    calibration data where no validation data was given. points: size of the table of operating points at most.
    """

    profile: str
    backend: str
    passes: tuple[str, ...]
    int8: Int8 | None
    taken_back: tuple[Step, ...]
    seed: int
    validation_fraction: float
    points: int
    golden: int

    def to_toml(self) -> str:
        """The file. The same recipe gives the same text."""
        lines = [
            "# The choices that made this bundle: edgekit convert MODEL --recipe THIS ... makes it again.",
            f"format = {FORMAT}",
            f"profile = {json.dumps(self.profile)}",
            f"backend = {json.dumps(self.backend)}",
            f"passes = {json.dumps(list(self.passes))}",
            f"seed = {self.seed}",
            f"validation_fraction = {self.validation_fraction}",
            f"points = {self.points}",
            f"golden = {self.golden}",
        ]
        if self.int8 is not None:
            lines += [
                "",
                "[int8]",
                f"activation = {json.dumps(self.int8.activation)}",
                f"reduce_range = {json.dumps(self.int8.reduce_range)}",
                f"method = {json.dumps(self.int8.method)}",
                f"keep_float = {json.dumps(list(self.int8.keep_float))}",
            ]
        for step in self.taken_back:
            lines += [
                "",
                "[[taken_back]]",
                f"layer = {json.dumps(step.layer)}",
                f"step = {json.dumps(step.name)}",
            ]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str) -> Recipe:
        """Read the tables of a TOML file. Raises BadInput."""
        if checks.integer(data.get("format"), f"{where}: format", 1) > FORMAT:
            raise BadInput(
                f"{where}: recipe format {data['format']} is newer than this edgekit reads: update edgekit"
            )
        passes = checks.rows(
            data.get("passes"), f"{where}: passes", lambda v, w: checks.choice(v, w, tuple(PASSES))
        )
        int8 = checks.optional(data.get("int8"), f"{where}: int8", _int8)
        if (int8 is not None) != ("quantize_static" in passes):
            raise BadInput(f"{where}: a table [int8] goes with the pass quantize_static, and it needs one")
        return cls(
            profile=checks.name(data.get("profile"), f"{where}: profile"),
            backend=checks.name(data.get("backend"), f"{where}: backend"),
            passes=passes,
            int8=int8,
            taken_back=checks.rows(data.get("taken_back", []), f"{where}: taken_back", _step),
            seed=checks.integer(data.get("seed"), f"{where}: seed"),
            validation_fraction=checks.number(
                data.get("validation_fraction"), f"{where}: validation_fraction", 0.01, 0.99
            ),
            points=checks.integer(data.get("points"), f"{where}: points", 2, 1000),
            golden=checks.integer(data.get("golden"), f"{where}: golden", 1, 10_000),
        )


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises BadInput, WorldFailed."""
    return Recipe.parse(read_toml(path), str(path))


def _int8(value: object, where: str) -> Int8:
    data = checks.table(value, where)
    return Int8(
        checks.choice(data.get("activation"), f"{where}.activation", ("uint8", "int8")),
        checks.flag(data.get("reduce_range", False), f"{where}.reduce_range"),
        checks.choice(data.get("method"), f"{where}.method", tuple(METHODS)),
        checks.rows(data.get("keep_float", []), f"{where}.keep_float", checks.text),
    )


def _step(value: object, where: str) -> Step:
    data = checks.table(value, where)
    return Step(
        checks.text(data.get("layer"), f"{where}.layer"), checks.text(data.get("step"), f"{where}.step")
    )
