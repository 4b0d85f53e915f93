"""A backend without a runtime, for tests and dry runs: a part is a few lines of JSON arithmetic. Not for models.

`{"outputs": {NAME: {"op": "affine", "from": NAME, "scale": a, "offset": b}}}`: out[i] = a * in[i mod len(in)] + b, or
`{"op": "softmax_max", "from": NAME}`: the largest softmax probability; `"delay_ms": d` makes the part take that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgekit.core import checks
from edgekit.core.errors import BadBundle, BadInput
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner

_Step = Callable[[], None]


class NullRunner:
    """Runs the steps in order."""

    provider = "null"

    def __init__(self, steps: tuple[_Step, ...], delay_s: float) -> None:
        self._steps = steps
        self._delay_s = delay_s

    def run(self) -> None:
        """See backends.Runner."""
        if self._delay_s:
            time.sleep(self._delay_s)
        for step in self._steps:
            step()


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a null part. Raises BadBundle when its program is not as described above."""
    del options
    try:
        program = checks.table(checks.parse_json(data, part.file), part.file)
        delay_ms = checks.number(program.get("delay_ms", 0.0), f"{part.file}: delay_ms", 0.0, 60_000.0)
        wanted = checks.table(program.get("outputs"), f"{part.file}: outputs")
        if set(wanted) != set(outputs):
            raise BadInput(f"{part.file}: outputs must be {sorted(outputs)}, got {sorted(wanted)}")
        known = dict(inputs)
        steps = []
        for name, step in wanted.items():
            steps.append(
                _step(
                    checks.table(step, f"{part.file}: {name}"), known, outputs[name], f"{part.file}: {name}"
                )
            )
            known[name] = outputs[name]
    except BadInput as err:
        raise BadBundle(str(err)) from err
    return NullRunner(tuple(steps), delay_ms / 1e3)


def _step(step: Mapping[str, Any], known: Mapping[str, Array], out: Array, where: str) -> _Step:
    source = known.get(checks.text(step.get("from"), f"{where}.from"))
    if source is None:
        raise checks.wrong(f"{where}.from", f"one of {sorted(known)}", step.get("from"))
    values: Array = source
    if checks.choice(step.get("op"), f"{where}.op", ("affine", "softmax_max")) == "softmax_max":

        def softmax_max() -> None:
            shifted = np.exp(values.astype(np.float64) - values.max())
            out[...] = 1.0 / shifted.sum()

        return softmax_max
    scale = checks.number(step.get("scale", 1.0), f"{where}.scale")
    offset = checks.number(step.get("offset", 0.0), f"{where}.offset")

    def affine() -> None:
        np.copyto(out, np.resize(values, out.shape) * scale + offset, casting="unsafe")

    return affine
