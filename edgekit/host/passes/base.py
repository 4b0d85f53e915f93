"""What a pass is, and what it may know besides the graph. Knows none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.errors import BadInput
from edgekit.host.cache import Cache, graph_bytes, graph_from, key_of
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

    hurried: no more is measured than a step asks for, though a later one may ask for more. cache, data_key: where long
    work is kept, and what the data is there. A context remembers what it has measured and made: passes that ask for
    the same calibration get the same one, and a step is not taken twice.
    """

    data: Data | None = None
    reference: Graph | None = None
    seed: int = 1
    watch: Watch = unwatched
    hurried: bool = False
    cache: Cache = field(default_factory=Cache)
    data_key: str = ""
    _seen: dict[str, Calibration] = field(default_factory=dict, repr=False, compare=False)
    _made: dict[str, Graph] = field(default_factory=dict, repr=False, compare=False)

    def samples(self, wanted_by: str) -> Data:
        """The calibration inputs. Raises BadInput where there are none."""
        if self.data is None:
            raise BadInput(f"{wanted_by} needs calibration data: give --calib")
        return self.data

    def calibration(self, graph: Graph, wanted_by: str = "calibration", method: str = "") -> Calibration:
        """What the graph's activations look like on the data, seen once. Raises BadInput without data.

        method: the only one whose ranges will be asked for, "" for any: minmax alone is quicker.
        """
        data = self.samples(wanted_by)
        key = graph.fingerprint()
        if key not in self._seen or (self._seen[key].methods and method not in self._seen[key].methods):
            alone = ("minmax",) if method == "minmax" and self.hurried else ()
            with self.watch("calibrate", data.count) as tick:
                self._seen[key] = calibrate(graph, data, tick, alone)
        return self._seen[key]

    def made(self, graph: Graph, name: str, options: str, make: Callable[[], Graph], *, keep: bool) -> Graph:
        """What a step makes of a graph: remembered, and kept in the cache where that is worth it."""
        other = "" if self.reference is None else self.reference.fingerprint()
        key = key_of("graph", graph.fingerprint(), name, options, other, self.data_key, str(self.seed))
        if key not in self._made:
            content = self.cache.get(key) if keep else None
            self._made[key] = make() if content is None else graph_from(content, graph)
            if keep and content is None:
                self.cache.put(key, graph_bytes(self._made[key]))
        return self._made[key]


@dataclass(frozen=True)
class Pass:
    """One step. options: a frozen dataclass whose fields are the keys of the recipe's `[[step]]`.

    min_sqnr_db: how close its outputs stay, with its default options, to the graph's it was given; conformance checks
    it: 10 log10(signal / error) over the exits' outputs of small random networks. rounds: it leaves the float numbers:
    the graph before the first such step is what later ones correct errors against. costly: worth keeping on disk.
    resolve: options -> options that say all it would find out by measuring, for the recipe; None: they do already.
    """

    name: str
    apply: Callable[[Graph, Any, Context], Graph]
    min_sqnr_db: float
    options: type = NoOptions
    rounds: bool = False
    costly: bool = False
    resolve: Callable[[Graph, Any, Context], Any] | None = None


@dataclass(frozen=True)
class Step:
    """A pass with its options resolved: one `[[step]]` of a recipe."""

    name: str
    options: Any = field(default_factory=NoOptions)
