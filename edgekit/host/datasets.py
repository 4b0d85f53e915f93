"""Which data serves for what: calibration sets ranges, validation thresholds, evaluation judges and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.core.manifest import Input
from edgekit.core.report import DataUse
from edgekit.runtime.data import Data, load_data

VALIDATION_FRACTION = 0.2
NOT_SEPARATE = "evaluation (the validation data: no --eval was given)"


class Described(Protocol):
    """A model, as far as data must fit it: a Graph is one."""

    @property
    def inputs(self) -> tuple[Input, ...]: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...


@dataclass(frozen=True)
class Datasets:
    """separate: evaluation is data that nothing was chosen on."""

    calibration: Data
    validation: Data
    evaluation: Data
    separate: bool

    def uses(self) -> tuple[DataUse, ...]:
        """For the report."""
        roles = ("calibration", "validation", "evaluation" if self.separate else NOT_SEPARATE)
        every = zip(roles, (self.calibration, self.validation, self.evaluation), strict=True)
        return tuple(DataUse(role, data.source, data.count, data.labels is not None) for role, data in every)


def read_datasets(
    graph: Described, calib: Path, val: Path | None, evaluation: Path | None, fraction: float, seed: int
) -> Datasets:
    """Open the data and set validation aside: a seeded `fraction` of the calibration data where none is given.

    Raises BadInput for data that does not fit the model.
    """

    def read(path: Path) -> Data:
        return load_data(path, graph.inputs, graph.labels)

    calibration = read(calib)
    if val is not None:
        validation = read(val)
    else:
        calibration, validation = calibration.split(fraction, seed)
    judged = validation if evaluation is None else read(evaluation)
    return Datasets(calibration, validation, judged, separate=evaluation is not None)


def labelled_by(data: Data, answers: NDArray[np.int64] | None) -> Data:
    """The data with another network's answers for labels: accuracy on it is agreement with that network. None: none."""
    return replace(data, labels=answers)
