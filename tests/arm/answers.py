"""Run by a board's own Python and by this machine's: every tensor that a bundle computes for its golden inputs.

python answers.py BUNDLE OUT.npz    Names in OUT: TENSOR for the session's; KERNELS/NUMBER for a plan's outputs by each
set of kernels that this CPU runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgekit.core.bundle import open_bundle
from edgekit.native import door
from edgekit.native.plan_door import outside_dtype, outside_shape
from edgekit.runtime.measure import load_array
from edgekit.runtime.session import open_session


def main(path: Path, out: Path) -> None:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    inputs = {name: load_array(bundle.read(file), file) for name, file in manifest.golden.inputs.items()}
    cases = [{name: array[case] for name, array in inputs.items()} for case in range(manifest.golden.count)]
    session = open_session(manifest, bundle.read)
    made = [{name: np.array(array) for name, array in session.run_all(case).items()} for case in cases]
    answers = {name: np.stack([case[name] for case in made]) for name in made[0]}
    for part in (part for stage in manifest.stages for part in stage.parts if part.backend == "native"):
        content = bundle.read(part.file)
        for kernels in sorted({row.name for row in door.kernels() if row.supported}):
            plan = door.open_plan(content, kernels=kernels)
            outputs = [np.zeros(outside_shape(tensor), outside_dtype(tensor)) for tensor in plan.outputs]
            rows = []
            for case in cases:
                plan.run([np.ascontiguousarray(array) for array in case.values()], outputs)
                rows.append([output.copy() for output in outputs])
            for number in range(len(outputs)):
                answers[f"{kernels}/{number}"] = np.stack([row[number] for row in rows])
    np.savez(out, **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
