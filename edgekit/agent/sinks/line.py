"""One answer as one JSON object: what every sink gives, and the topic `answer` carries.

    {"v": 1, "id", "label", "class", "exit", "confidence", "latency_ms", "bundle", "time"}

`label` is the class's name where the bundle has names. `outputs` (by name, nested lists) only where asked for. An input
that was broken, refused or not answered has `error` besides, and null for what is not known. `time`: Unix seconds, null
while the clock is not trusted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgekit.core.checks import canonical_json
from edgekit.core.errors import EdgekitError, one_line
from edgekit.core.manifest import Manifest
from edgekit.runtime.backends import Array
from edgekit.runtime.session import Answer

_MAX_ERROR = 500


def line_of(
    name: str | None,
    result: Answer | EdgekitError,
    served: Manifest | None,
    time: float | None,
    *,
    outputs: bool = False,
) -> bytes:
    """The line with its newline. name: the input's id. served: of the bundle whose turn it was, where one was asked."""
    content: dict[str, Any] = {
        "v": 1,
        "id": None if name is None else _plain(name),
        "label": None,
        "class": None,
        "exit": None,
        "confidence": None,
        "latency_ms": None,
        "bundle": None if served is None else f"{served.name}/{served.version}",
        "time": None if time is None else round(time, 3),
    }
    if isinstance(result, EdgekitError):
        content["error"] = _plain(one_line(result)[:_MAX_ERROR])
        return canonical_json(content) + b"\n"
    number = result.label
    names = None if served is None else served.labels
    content |= {
        "class": number,
        "label": names[number] if number is not None and names is not None and number < len(names) else None,
        "exit": result.exit,
        "confidence": _finite(result.confidence),
        "latency_ms": round(result.latency_ms, 4),
    }
    if outputs:
        content["outputs"] = {key: _lists(array) for key, array in result.outputs.items()}
    return canonical_json(content) + b"\n"


def _plain(text: str) -> str:
    """A file's name may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode()


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _lists(array: Array) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()
