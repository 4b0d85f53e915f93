"""What a pass is, and what it may know besides the graph. Knows none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import Calibration, calibrate
from edgekit.host.graph import Graph
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.data import Data


@dataclass(frozen=True)
class NoOptions:
    """For a pass that leaves nothing to choose."""


@dataclass(frozen=True)
class Context:
    """What a pass may know. data: calibration inputs. reference: the float network that errors are corrected against.

    A context remembers what it has measured, per graph: passes that ask for the same calibration get the same one.
    """

    data: Data | None = None
    reference: Graph | None = None
    seed: int = 1
    watch: Watch = unwatched
    _seen: dict[str, Calibration] = field(default_factory=dict, repr=False, compare=False)

    def samples(self, wanted_by: str) -> Data:
        """The calibration inputs. Raises BadInput where there are none."""
        if self.data is None:
            raise BadInput(f"{wanted_by} needs calibration data: give --calib")
        return self.data

    def calibration(self, graph: Graph, wanted_by: str = "calibration") -> Calibration:
        """What the graph's activations look like on the data, seen once. Raises BadInput without data."""
        data = self.samples(wanted_by)
        key = graph.fingerprint()
        if key not in self._seen:
            with self.watch("calibrate", data.count) as tick:
                self._seen[key] = calibrate(graph, data, tick)
        return self._seen[key]


@dataclass(frozen=True)
class Pass:
    """One step. options: a frozen dataclass whose fields are the keys of the recipe's `[[step]]`.

    min_sqnr_db: how close its outputs stay, with its default options, to the graph's it was given; conformance checks
    it: 10 log10(signal / error) over the exits' outputs of small random networks.
    """

    name: str
    apply: Callable[[Graph, Any, Context], Graph]
    min_sqnr_db: float
    options: type = NoOptions


@dataclass(frozen=True)
class Step:
    """A pass with its options resolved: one `[[step]]` of a recipe."""

    name: str
    options: Any = field(default_factory=NoOptions)
