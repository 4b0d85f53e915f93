"""Decide where a finished network gets exits, and which heads: those that lower its mean cost at equal answers.

Every candidate cut gets candidate heads, fitted on calibration data and judged on validation data: by the mean cost of
a request when as many leave early as keep a given agreement with the last exit. What does not pay goes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from edgekit.core.cost import STAGE, Work, predict
from edgekit.core.errors import BadInput
from edgekit.core.profile import Profile
from edgekit.core.report import Dropped
from edgekit.host.exits.cuts import Cut, check_can_have_exits, named_cuts, spread_cuts
from edgekit.host.exits.heads import LINEAR, MOST_SAMPLES, Place, Seen, blank, place_of, samples_seen, see
from edgekit.host.formats import estimates
from edgekit.host.graph import Graph, static_shape, values
from edgekit.host.node_times import node_times
from edgekit.host.passes import Context, Step
from edgekit.host.passes.exits import Exits, fit, with_heads
from edgekit.host.split import live_nodes, reads
from edgekit.host.work import layers
from edgekit.runtime.data import Data

AGREEMENT = 0.99  # with the last exit, at which candidates are compared
MOST_EXITS = 4  # that "auto" puts in
_WORTH = 0.02  # of the full cost: what a head must save to stay
_CHUNKS = 100  # in which samples are let go early
_TRADES, _SWEEPS = 17, 2  # how finely exits trade changed answers with each other, and how often
_CONVS = (16, 32, 64)
_MOST_HEAD = 0.06  # of the network's MACs, a head with a convolution
_FEWEST = 64  # samples to fit a head on, and as many to judge it
_FEWEST_SAMPLES, _SEEN_MACS = 1024, 4e11  # samples of a large network, and the MACs that all may take
_HEAD_STEPS, _HEAD_BATCH, _FEWEST_EPOCHS = 400, 64, 3  # of a convolution that is only tried
_SURE = 3.0  # with nothing wrong among n samples, 3/n may be wrong (95 %): the rule of three
_BORDER_MS = 0.004  # what one more stage does on a desktop processor, beside its nodes (seen: 0.002 to 0.008)

NodeTimes = Callable[[Graph], Mapping[str, float] | None]
"""Node -> ms on the target, None where nobody knows: then MACs are the cost."""


@dataclass(frozen=True)
class Wanted:
    """What was asked for: as many early exits as pay ("auto"), that many, or behind these nodes or tensors."""

    count: int | None = None
    names: tuple[str, ...] = ()


def parse_exits(text: str) -> Wanted:
    """Read `auto`, a number, or names with commas between them. Raises BadInput."""
    if text == "auto":
        return Wanted()
    if text.isdecimal():
        if not 1 <= int(text) <= MOST_EXITS * 2:
            raise BadInput(f"--exits must be auto, 1 to {MOST_EXITS * 2}, or names of nodes, got {text}")
        return Wanted(int(text))
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise BadInput(f"--exits must be auto, a number, or names of nodes with commas between, got {text!r}")
    return Wanted(None, names)


@dataclass(frozen=True)
class Planned:
    """The step to take (None: no exit pays), what was dropped, and what the user should know."""

    step: Step | None
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]


NOTHING = Planned(None, (), ())


@dataclass(frozen=True)
class Candidate:
    """A head that could stand at a cut, judged on samples it was not fitted to.

    at, own: cost of the network up to there, and of the head with its border, both over the whole network's.
    confidence: of its answers; right: those that are the last exit's.
    """

    cut: Cut
    kind: str
    at: float
    own: float
    confidence: NDArray[np.float32]
    right: NDArray[np.bool_]


def plan_exits(
    graph: Graph,
    wanted: Wanted,
    context: Context,
    times: NodeTimes,
    border_ms: float | None,
    judged_on: Data | None = None,
    *,
    candidates: int = 8,
    epochs: int = 12,
) -> Planned:
    """Choose cuts and heads for a classifier with one exit. Reads no label.

    times: what each node takes on the target; border_ms: what one more stage does. judged_on: data that heads are not
    fitted on, a quarter of the calibration data where None. candidates: cuts that are tried where none are named.
    Raises BadInput for a network that cannot have exits, without calibration data, or for names that are no place;
    where answers are not finite.
    """
    check_can_have_exits(graph)
    cuts = named_cuts(graph, wanted.names) if wanted.names else _narrow(spread_cuts(graph, candidates))
    data = context.samples("--exits")
    if data.count < 2 * _FEWEST:
        raise BadInput(
            f"--exits wants at least {2 * _FEWEST} calibration inputs beside those that validate, got {data.count}"
        )
    if not cuts:
        return Planned(None, (), ("--exits: the network has no place where an exit could stand",))
    judged, costs, broken = _judge(
        graph, cuts, context, times, border_ms, judged_on, epochs, named=bool(wanted.names)
    )
    cuts = tuple(cut for cut in cuts if any(entry.cut == cut for entry in judged))
    most = len(cuts) if wanted.names else wanted.count or MOST_EXITS
    chosen = _named(judged) if wanted.names else _choose(judged, most)
    dropped = (
        *broken,
        *(_dropped(judged, chosen, cut) for cut in cuts if cut not in [c.cut for c in chosen]),
    )
    notes = _told(chosen, len(judged[0].right) if judged else 0, costs.whole_ms, named=bool(wanted.names))
    if wanted.count is not None and len(chosen) < wanted.count:
        notes.append(f"--exits {wanted.count}: only {len(chosen)} pay for themselves")
    if not find_spec("torch"):
        notes.append(
            "--exits: heads with a convolution want PyTorch (pip install 'edgekit[train]'); linear ones were tried"
        )
    if not chosen:
        return Planned(None, dropped, tuple(notes))
    options = Exits(
        tuple(entry.cut.tensor for entry in chosen),
        tuple(entry.kind for entry in chosen),
        epochs=epochs,
        samples=_samples(graph),
    )
    return Planned(Step("exits", options), dropped, tuple(notes))


def _narrow(cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """Without those where far more crosses the border than elsewhere."""
    typical = float(np.median([cut.handed_bytes for cut in cuts])) if cuts else 0.0
    return tuple(cut for cut in cuts if cut.handed_bytes <= 4 * typical)


# --- candidates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Costs:
    """What parts cost over the whole network. whole_ms: the full cost; None where times are unknown: MACs count then.

    up_to: node of a cut -> all that it needs; own: (tensor, kind) -> a head there with its border.
    """

    up_to: Mapping[str, float]
    own: Mapping[tuple[str, str], float]
    whole_ms: float | None


def _judge(
    graph: Graph,
    cuts: Sequence[Cut],
    context: Context,
    times: NodeTimes,
    border_ms: float | None,
    judged_on: Data | None,
    epochs: int,
    *,
    named: bool,
) -> tuple[list[Candidate], _Costs, list[Dropped]]:
    """Every head that could stand at a cut, fitted on one part of the data, run on another.

    A convolution is tried only where it would pay if it were always right, and for a few hundred steps. Raises BadInput
    for a named cut whose values are not finite; others are dropped.
    """
    places = {cut: place_of(graph, cut.tensor) for cut in cuts}
    classes = math.prod(static_shape(values(graph.model)[graph.exits[-1].output]) or ())
    whole = float(sum(layer.macs for layer in layers(graph.model)))
    wide = {cut: _convolution(place, classes, whole) for cut, place in places.items()}
    maps = [kind is not None for kind in wide.values()]
    parts = dict(zip(cuts, _parts(graph, [*places.values()], context, judged_on, maps), strict=True))
    dropped = []
    for cut, both in parts.items():
        broken = next((part.not_finite for part in both if part.not_finite is not None), None)
        if broken is not None:
            why = f"what it gives for {broken} is not finite"
            if named:
                raise BadInput(f"--exits: no exit can stand behind {cut.node!r}: {why}")
            dropped.append(Dropped(cut.node, f"exit after {cut.cost_share:.0%} of the MACs", why))
    sound = [cut for cut in cuts if cut.node not in [entry.layer for entry in dropped]]
    if not sound:
        return [], _Costs({}, {}, None), dropped
    costs = _costs(graph, [(cut, places[cut], wide[cut]) for cut in sound], classes, times, border_ms)
    steps = len(parts[sound[0]][0].wanted) // _HEAD_BATCH  # an epoch's
    quick = Exits(epochs=min(epochs, max(_FEWEST_EPOCHS, _HEAD_STEPS // max(1, steps))))

    def candidate(cut: Cut, kind: str) -> Candidate:
        learn, check = parts[cut]
        answers = fit(kind, places[cut], learn, quick, context).answer(check)
        right = answers.argmax(axis=1) == check.wanted.argmax(axis=1)
        return Candidate(
            cut, kind, costs.up_to[cut.node], costs.own[cut.tensor, kind], answers.max(axis=1), right
        )

    found = [candidate(cut, LINEAR) for cut in sound]
    linear = _choose(found, MOST_EXITS)
    least = _safe_cost(linear)
    for cut in sound:
        kind = wide[cut]
        if kind is not None and (named or _could_pay(linear, least, cut, costs, kind)):
            found.append(candidate(cut, kind))
    return found, costs, dropped


def samples_for(macs: int) -> int:
    """Samples whose answers heads learn: fewer for a large network, by its MACs, so that a rerun takes as many."""
    return int(min(MOST_SAMPLES, max(_FEWEST_SAMPLES, _SEEN_MACS / max(1, macs))))


def _samples(graph: Graph) -> int:
    return samples_for(sum(layer.macs for layer in layers(graph.model)))


def _could_pay(linear: Sequence[Candidate], least: float, cut: Cut, costs: _Costs, kind: str) -> bool:
    """Whether that head would lower the mean cost if it were always right and sure of it."""
    at, own = costs.up_to[cut.node], costs.own[cut.tensor, kind]
    count = len(linear[0].right) if linear else 1
    always = Candidate(cut, kind, at, own, np.ones(count, np.float32), np.ones(count, np.bool_))
    others = [entry for entry in linear if entry.cut != cut]
    return min(_safe_cost([always]), _safe_cost(_in_order([*others, always]))) <= least - _WORTH


def _parts(
    graph: Graph, places: Sequence[Place], context: Context, judged_on: Data | None, maps: Sequence[bool]
) -> list[tuple[Seen, Seen]]:
    """Of each place what heads are fitted on, and what they are judged on."""
    found, samples = [], _samples(graph)
    alone = judged_on is None or judged_on.count < _FEWEST
    for what, data in (
        ("learn from", context.samples("--exits")),
        ("judge by", None if alone else judged_on),
    ):
        if data is not None:
            with context.watch(f"answers to {what}", samples_seen(data, places, samples, maps)) as tick:
                found.append(see(graph, places, data, tick, samples=samples, maps=maps))
    if alone:
        learn, check = _halves(len(found[0][0].wanted), context.seed)
        return [(mine.part(learn), mine.part(check)) for mine in found[0]]
    return list(zip(*found, strict=True))


def _halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Three quarters of the samples to fit a head on, the rest to judge it."""
    order = np.random.default_rng(seed).permutation(count)
    judged = max(_FEWEST // 2, count // 4)
    return sorted(order[judged:].tolist()), sorted(order[:judged].tolist())


def _convolution(place: Place, classes: int, whole: float) -> str | None:
    """The widest convolution worth a try: one that costs little. None where none can be."""
    if not place.takes_convolution or not find_spec("torch"):
        return None
    able = [f"conv{n}" for n in _CONVS if place.macs(f"conv{n}", classes) <= _MOST_HEAD * whole]
    return able[-1] if able else None


# --- what they cost ---------------------------------------------------------------------------------------------------


def _costs(
    graph: Graph,
    heads: Sequence[tuple[Cut, Place, str | None]],
    classes: int,
    times: NodeTimes,
    border_ms: float | None,
) -> _Costs:
    """Costs of cuts and of heads there; heads are put into the graph to be timed, with any weights."""
    measured = times(graph)
    macs = {layer.name: float(layer.macs) for layer in layers(graph.model)}
    cost = measured or macs
    whole = sum(cost.values())
    up_to = _costs_up_to(graph, [cut.node for cut, _, _ in heads], cost)
    wide = [(place, kind) for _, place, kind in heads if kind is not None]
    own: dict[tuple[str, str], float] = {}
    for group in ([(place, LINEAR) for _, place, _ in heads], wide):
        if not group:
            continue
        with_them = with_heads(
            graph, [place for place, _ in group], [blank(*entry, classes) for entry in group]
        )
        found = times(with_them) if measured else None
        for (place, kind), leaving in zip(group, with_them.exits, strict=False):
            alone = sum(ms for name, ms in (found or {}).items() if name.startswith(f"{leaving.name}/"))
            pace = whole / max(1.0, sum(macs.values()))
            own[place.tensor, kind] = (alone or place.macs(kind, classes) * pace) + (
                (border_ms or 0.0) if measured else 0.0
            )
    return _Costs(
        {node: value / whole for node, value in up_to.items()},
        {key: value / whole for key, value in own.items()},
        whole if measured else None,
    )


def _costs_up_to(graph: Graph, nodes: Sequence[str], cost: Mapping[str, float]) -> dict[str, float]:
    """Node -> cost of all that it needs, itself included."""
    live = live_nodes(graph.model)
    by_name = {node.name or "": node for node in graph.model.graph}
    found = {}
    for name in nodes:
        stack, needed = [by_name[name]], set()
        while stack:
            node = stack.pop()
            if node in needed or node not in live:
                continue
            needed.add(node)
            stack += [maker for value in reads(node) if (maker := value.producer()) is not None]
        names = [
            node.name or "" for node in graph.model.graph if node in needed
        ]  # an order: sums are of floats
        found[name] = sum(cost.get(entry, 0.0) for entry in names)
    return found


# --- choosing ---------------------------------------------------------------------------------------------------------


def mean_cost(chosen: Sequence[Candidate], agreement: float = AGREEMENT) -> float:
    """Mean cost of a request over the whole network's, when exits let go as many as keep that agreement.

    chosen: cheapest first. Samples leave in the order of an exit's confidence. For one exit it is exact. For more it is
    greedy (in each step the exit that saves most per answer it changes), then exits trade changed answers in pairs:
    for two of them within a few percent of the best (tests/host/test_exits.py).
    """
    if not chosen:
        return 1.0
    leaving = _Leaving.of(chosen, agreement)
    none = (0,) * len(chosen)
    best = leaving.best(none, 0) if len(chosen) == 1 else leaving.traded(leaving.greedy())
    return leaving.cost(best)


def _safe_cost(chosen: Sequence[Candidate]) -> float:
    """The mean cost when one answer more goes wrong than was seen: few judged samples must not promise much."""
    return mean_cost(chosen, AGREEMENT + 1 / len(chosen[0].right)) if chosen else 1.0


@dataclass(frozen=True)
class _Leaving:
    """Who could leave where. reaches: of each exit how many of its most confident samples leave there if they come.

    orders: [exits, samples], most confident first; ranks: a sample's place in it. costs and wrong: of every exit, the
    last one's own among them.
    """

    orders: NDArray[np.int64]
    ranks: NDArray[np.int64]
    costs: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    allowed: int

    @classmethod
    def of(cls, chosen: Sequence[Candidate], agreement: float) -> _Leaving:
        """What the candidates did on the judged samples."""
        count = len(chosen[0].right)
        heads = np.cumsum([entry.own for entry in chosen])
        costs = np.array(
            [*(entry.at + own for entry, own in zip(chosen, heads, strict=True)), 1.0 + heads[-1]]
        )
        wrong = np.array([*(~entry.right for entry in chosen), np.zeros(count, np.bool_)])
        orders = np.array([np.argsort(-entry.confidence, kind="stable") for entry in chosen])
        return cls(
            orders, np.argsort(orders, axis=1), costs, wrong, math.floor(count * (1 - agreement) + 1e-9)
        )

    def taken(self, reaches: Sequence[int], but: int = -1) -> NDArray[np.int64]:
        """The exit each sample leaves at, as if there were no exit `but`."""
        found = np.full(self.ranks.shape[1], len(self.ranks))
        for place in reversed(range(len(self.ranks))):
            if place != but:
                found[self.ranks[place] < reaches[place]] = place
        return found

    def cost(self, reaches: Sequence[int]) -> float:
        """Mean cost of a request."""
        return float(self.costs[self.taken(reaches)].mean())

    def best(self, reaches: tuple[int, ...], place: int) -> tuple[int, ...]:
        """The same with that reach of one exit that costs least; itself where none is allowed."""
        others, samples = self.taken(reaches, place), np.arange(self.ranks.shape[1])
        spent = int(self.wrong[others, samples].sum())
        order = self.orders[place]
        moves = others[order] > place
        saved = np.where(moves, self.costs[others[order]] - self.costs[place], 0.0)
        harm = self.wrong[place, order].astype(np.int64) - self.wrong[others[order], order]
        saved = np.concatenate([[0.0], np.cumsum(saved)])
        harm = np.concatenate([[0], np.cumsum(np.where(moves, harm, 0))])
        allowed = spent + harm <= self.allowed
        if not allowed.any():
            return reaches
        reach = int(np.where(allowed, saved, -np.inf).argmax())
        return (*reaches[:place], reach, *reaches[place + 1 :])

    def greedy(self) -> tuple[int, ...]:
        """A first choice, in steps of a hundredth of the samples, four of them for a look over a few bad answers."""
        count = self.ranks.shape[1]
        leaves_at, left, spent = np.full(count, len(self.orders)), [0] * len(self.orders), 0
        step = max(1, count // _CHUNKS)
        while True:
            found: tuple[float, int, NDArray[np.int64], int] | None = None
            for place, order in enumerate(self.orders):
                for reach in (step, 4 * step):
                    chunk = order[left[place] : left[place] + reach]
                    moved = chunk[leaves_at[chunk] > place]
                    saved = float((self.costs[leaves_at[moved]] - self.costs[place]).sum())
                    harm = int(self.wrong[place, moved].sum()) - int(
                        self.wrong[leaves_at[moved], moved].sum()
                    )
                    if saved <= 0 or spent + harm > self.allowed:
                        continue
                    worth = saved / max(harm, 0.1)
                    if found is None or worth > found[0]:
                        found = (worth, place, chunk, harm)
            if found is None:
                return tuple(left)
            _, place, chunk, harm = found
            left[place] += len(chunk)
            leaves_at[chunk] = np.minimum(leaves_at[chunk], place)
            spent += harm

    def traded(self, reaches: tuple[int, ...]) -> tuple[int, ...]:
        """Better reaches: one exit's is set anew, then others take what is allowed, until nothing is won."""
        count, places = self.ranks.shape[1], range(len(self.orders))
        cost = self.cost(reaches)
        for _ in range(_SWEEPS):
            before = cost
            for first, second in itertools.permutations(places, 2):
                for reach in (*np.linspace(0, count, _TRADES).astype(np.int64).tolist(), reaches[first]):
                    other = (*reaches[:first], reach, *reaches[first + 1 :])
                    other = self.best(self.best(other, second), first)
                    worth = self.cost(other)
                    if worth < cost - 1e-9 and self._is_allowed(other):
                        reaches, cost = other, worth
            if cost == before:
                break
        return reaches

    def _is_allowed(self, reaches: tuple[int, ...]) -> bool:
        samples = np.arange(self.ranks.shape[1])
        return int(self.wrong[self.taken(reaches), samples].sum()) <= self.allowed


def _choose(judged: Sequence[Candidate], most: int) -> list[Candidate]:
    """One after another the head that lowers the mean cost most, while it pays; then those that no longer do go."""
    chosen: list[Candidate] = []
    cost = 1.0
    while len(chosen) < most:
        taken = {entry.cut for entry in chosen}
        offers = [
            (_safe_cost(_in_order([*chosen, entry])), place)
            for place, entry in enumerate(judged)
            if entry.cut not in taken
        ]
        if not offers or min(offers)[0] > cost - _WORTH:
            break
        cost, place = min(offers)
        chosen = _in_order([*chosen, judged[place]])
    for entry in list(chosen):
        rest = [other for other in chosen if other is not entry]
        if rest and _safe_cost(rest) <= cost + _WORTH / 2:
            chosen, cost = rest, _safe_cost(rest)
    return chosen


def _named(judged: Sequence[Candidate]) -> list[Candidate]:
    """Of each cut the head that alone brings the lowest cost."""
    best: dict[str, Candidate] = {}
    for entry in judged:
        other = best.get(entry.cut.tensor)
        if other is None or _safe_cost([entry]) < _safe_cost([other]):
            best[entry.cut.tensor] = entry
    return _in_order(list(best.values()))


def _in_order(chosen: Sequence[Candidate]) -> list[Candidate]:
    return sorted(chosen, key=lambda entry: entry.at)


def _dropped(judged: Sequence[Candidate], chosen: Sequence[Candidate], cut: Cut) -> Dropped:
    """Why no exit stands there."""
    entry = min((c for c in judged if c.cut == cut), key=lambda c: _safe_cost([c]))
    alone, now = _safe_cost([entry]), _safe_cost(chosen)
    why = f"alone it brings {alone:.2f}x of the full cost at {AGREEMENT:.0%} agreement"
    if chosen:
        beside = _safe_cost(_in_order([*chosen, entry]))
        why += f", beside the chosen ones {beside:.2f}x where they bring {now:.2f}x"
    return Dropped(cut.node, f"exit ({entry.kind}) after {cut.cost_share:.0%} of the MACs", why)


def _told(chosen: Sequence[Candidate], count: int, whole_ms: float | None, *, named: bool) -> list[str]:
    """What is expected of them, in a sentence each. count: samples they were judged on."""
    few = (
        f"exits: they were judged on {count} samples, too few to tell {AGREEMENT:.0%} from "
        f"{max(0.0, 1 - _SURE / max(1, count)):.1%} of the same answers; {_SURE / (1 - AGREEMENT):.0f} would do"
    )
    doubts = [few] if 0 < count * (1 - AGREEMENT) < _SURE else []
    if not chosen:
        return ["--exits: no exit pays for itself here, so the network keeps its only one", *doubts]
    cost = _safe_cost(chosen)
    unit = "its time" if whole_ms is not None else "its MACs"
    notes = [
        f"exits: {len(chosen)} early; expected mean cost {cost:.2f}x of {unit} at {AGREEMENT:.0%} of the same answers",
        *doubts,
    ]
    if named:
        for entry in chosen:
            rest = [other for other in chosen if other is not entry]
            if _safe_cost(rest) <= cost + _WORTH / 2:
                notes.append(f"exits: the one behind {entry.cut.node} does not pay for itself")
    return notes


def target_times(profile: Profile, data: Data, *, here: bool) -> tuple[NodeTimes, float | None]:
    """What nodes and borders take on the target: by this machine's profiler, else by the profile's cost model."""
    if here:
        return (lambda graph: node_times(graph, data)), _BORDER_MS

    return (lambda graph: estimates(graph, profile)), predict(
        profile, [Work(STAGE, "float32", 0, 0, 1)]
    ).value
