"""Say how far two lowerings of one graph are from each other, and from the float network. Chooses nothing.

Both run as boards run them, through a Session, on the same samples. What differs then is how two runtimes round: the
codes of a layer may be one off, and a network that amplifies carries that on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend
from edgekit.core.report import ExitParity, Parity
from edgekit.host.graph import Graph
from edgekit.host.pack import Draft, draft
from edgekit.host.split import split
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data
from edgekit.runtime.session import is_class_vector

STEPS = 255  # of an 8-bit range: the unit of differences


def parity(
    graph: Graph, plain: Graph, data: Data, backends: tuple[str, str] = ("onnxruntime", "litert")
) -> Parity:
    """Run `graph` lowered to both backends, and the float network `plain` on the first, over all of `data`.

    Raises BadInput where a backend cannot hold the graph, MissingExtra where one is not installed.
    """
    if [entry.name for entry in graph.exits] != [entry.name for entry in plain.exits]:
        raise BadInput("both graphs must have the same exits")
    stages = split(graph)
    made = [draft(graph, stages, Backend(name), "parity", 1, "host") for name in backends]
    reference = draft(plain, split(plain), Backend(backends[0]), "parity", 1, "host")
    answers = [_answers(entry, data) for entry in (*made, reference)]
    names = [entry.name for entry in graph.exits]
    return Parity(
        backends,
        data.count,
        _compared(names, answers[0], answers[1]),
        (_compared(names, answers[2], answers[0]), _compared(names, answers[2], answers[1])),
    )


def _answers(made: Draft, data: Data) -> list[Array]:
    """Per exit all answers, (samples, *shape)."""
    session = made.open()
    found: list[list[Array]] = [[] for _ in session.exits]
    for row in range(data.count):
        for index, _ in session.stages(data.inputs(row)):
            found[index].append(session.output(index).copy())
    session.close()
    return [np.stack(rows) for rows in found]


def _compared(names: Sequence[str], wanted: Sequence[Array], came: Sequence[Array]) -> tuple[ExitParity, ...]:
    rows = []
    for name, want, got in zip(names, wanted, came, strict=True):
        span = max(float(want.max()) - float(want.min()), 1e-6)
        off = np.abs(want.astype(np.float64) - got) * (STEPS / span)
        agreement = float((_top(want) == _top(got)).mean()) if is_class_vector(want[0]) else None
        rows.append(ExitParity(name, agreement, float(off.max()), float(off.mean())))
    return tuple(rows)


def _top(answers: Array) -> NDArray[np.int64]:
    top: NDArray[np.int64] = answers.reshape(len(answers), -1).argmax(axis=1)
    return top
