"""The Recipe noun: the resolved choices that made a bundle, as TOML inside it. A rerun by it decides nothing anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.manifest import BoardLimits
from edgekit.core.toml import read_toml
from edgekit.host.options import write_options
from edgekit.host.passes import Step, step

FORMAT = 2
MEMBER = "recipe.toml"
_PASS = "pass"  # noqa: S105  (the key of a step's name, no secret)


@dataclass(frozen=True)
class TakenBack:
    """A step that was taken back, for a layer or the whole ("*"). Why stands in the report: it may be a measurement."""

    layer: str
    step: str


@dataclass(frozen=True)
class Recipe:
    """What it took to make the bundle, besides the model and the data.

    steps: the passes in order with all their options. validation_fraction: what was set aside of the calibration data
    where no validation data was given. points: size of the table of operating points at most. images_s: throughput that
    an FPGA overlay was folded for; None: the fastest that fits, or no overlay. limits: what a board must keep, as the
    user set it.
    """

    profile: str
    backend: str
    steps: tuple[Step, ...]
    taken_back: tuple[TakenBack, ...]
    seed: int
    validation_fraction: float
    points: int
    golden: int
    images_s: float | None = None
    limits: BoardLimits = field(default_factory=BoardLimits)

    def limited(self, limits: BoardLimits) -> Recipe:
        """The recipe with those of `limits` that are set, before its own."""
        return replace(self, limits=replace(self.limits, **limits.to_json()))

    def to_toml(self) -> str:
        """The file. The same recipe gives the same text."""
        lines = [
            "# The choices that made this bundle: edgekit convert MODEL --recipe THIS ... makes it again.",
            f"format = {FORMAT}",
            f"profile = {json.dumps(self.profile)}",
            f"backend = {json.dumps(self.backend)}",
            f"seed = {self.seed}",
            f"validation_fraction = {self.validation_fraction}",
            f"points = {self.points}",
            f"golden = {self.golden}",
            *([] if self.images_s is None else [f"images_s = {self.images_s!r}"]),
        ]
        limits = self.limits.to_json()
        if limits:
            lines += ["", "[limits]", *(f"{key} = {value!r}" for key, value in limits.items())]
        for taken in self.steps:
            lines += [
                "",
                "[[step]]",
                f"{_PASS} = {json.dumps(taken.name)}",
                *write_options(taken.options).splitlines(),
            ]
        for back in self.taken_back:
            lines += [
                "",
                "[[taken_back]]",
                f"layer = {json.dumps(back.layer, ensure_ascii=False)}",
                f"step = {json.dumps(back.step, ensure_ascii=False)}",
            ]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str) -> Recipe:
        """Read the tables of a TOML file. Raises BadInput."""
        found = checks.integer(data.get("format"), f"{where}: format", 1)
        if found != FORMAT:
            what = (
                "newer than this edgekit reads: update edgekit"
                if found > FORMAT
                else "no longer read: convert anew"
            )
            raise BadInput(f"{where}: recipe format {found} is {what}")
        return cls(
            profile=checks.name(data.get("profile"), f"{where}: profile"),
            backend=checks.name(data.get("backend"), f"{where}: backend"),
            steps=checks.rows(data.get("step", []), f"{where}: step", _step),
            taken_back=checks.rows(data.get("taken_back", []), f"{where}: taken_back", _taken_back),
            seed=checks.integer(data.get("seed"), f"{where}: seed"),
            validation_fraction=checks.number(
                data.get("validation_fraction"), f"{where}: validation_fraction", 0.01, 0.99
            ),
            points=checks.integer(data.get("points"), f"{where}: points", 2, 1000),
            golden=checks.integer(data.get("golden"), f"{where}: golden", 1, 10_000),
            images_s=checks.optional(
                data.get("images_s"), f"{where}: images_s", lambda v, w: checks.number(v, w, 1e-9)
            ),
            limits=BoardLimits.parse(data.get("limits", {}), f"{where}: limits"),
        )


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises BadInput, WorldFailed."""
    return Recipe.parse(read_toml(path), str(path))


def _step(value: object, where: str) -> Step:
    data = checks.table(value, where)
    options = {key: entry for key, entry in data.items() if key != _PASS}
    return step(checks.text(data.get(_PASS), f"{where}.{_PASS}"), where, **options)


def _taken_back(value: object, where: str) -> TakenBack:
    data = checks.table(value, where)
    return TakenBack(
        checks.text(data.get("layer"), f"{where}.layer"), checks.text(data.get("step"), f"{where}.step")
    )
