"""A loaded bundle that answers requests stage by stage. Not thread-safe: one owner at a time. Reads no label."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Exit, Manifest
from edgekit.core.trust import refusal
from edgekit.runtime import heap
from edgekit.runtime.backends import Array, Options, Runner, allocate, opener
from edgekit.runtime.policy import Policy

Clock = Callable[[], float]  # seconds, monotonic


class Answer(NamedTuple):
    """What one request brought. A tuple because one is made per request: it costs a third of a frozen dataclass.

    outputs: the exit's output by name. confidence: None where the network has none. latency_ms: from the coming of the
    request (what it waited before `run` was called counts) to the answer. deadline_missed: the policy had a deadline
    and the answer came after it. nan_confidences: how many exits gave no number for a confidence.
    """

    outputs: Mapping[str, Array]
    exit: str
    exit_index: int
    confidence: float | None
    latency_ms: float
    deadline_missed: bool = False
    nan_confidences: int = 0

    @property
    def label(self) -> int | None:
        """The class of the only output, see class_of; None where there are several."""
        return class_of(next(iter(self.outputs.values()))) if len(self.outputs) == 1 else None


def class_of(output: Array) -> int | None:
    """Index of the largest value of a class vector, or a single whole number, as ArgMax gives it; else None."""
    if is_class_vector(output):
        return int(output.argmax())
    single = output.size == 1 and output.dtype.kind in "iu" and output.flat[0] >= 0
    return int(output.flat[0]) if single else None


def is_class_vector(output: Array) -> bool:
    """Whether an output is one vector with a value per class: exactly one axis is longer than 1."""
    return sum(1 for size in output.shape if size > 1) == 1


class Session:
    """Stages opened once, every tensor that crosses a border in a buffer that stays where it is."""

    def __init__(
        self,
        manifest: Manifest,
        runners: tuple[tuple[Runner, ...], ...],
        buffers: Mapping[str, Array],
        clock: Clock,
    ) -> None:
        self.manifest = manifest
        self.exits: tuple[Exit, ...] = manifest.exits
        self.providers = tuple(runner.provider for stage in runners for runner in stage)
        self._runs = tuple(tuple(runner.run for runner in stage) for stage in runners)
        self._buffers = buffers
        self._inputs = tuple((entry.tensor.name, buffers[entry.tensor.name]) for entry in manifest.inputs)
        self._confidences: tuple[Callable[[], float] | None, ...] = tuple(
            None if leaving.confidence is None else buffers[leaving.confidence].item for leaving in self.exits
        )
        self._last = len(self.exits) - 1
        self._clock = clock

    def run(self, inputs: Mapping[str, Array], policy: Policy, waited_ms: float = 0.0) -> Answer:
        """Answer one request. inputs: each model input by name, of its full shape and dtype (batch 1).

        waited_ms: what the request has already waited, in a queue say: it counts against a deadline and into the
        latency. Raises BadInput for inputs that do not fit, BadBundle when the runtime fails.
        """
        clock = self._clock
        start = clock() - waited_ms / 1e3
        self._fill(inputs)
        index, last, confidence, nans = 0, self._last, None, 0
        for index, stage in enumerate(self._runs):
            for run in stage:
                run()
            read = self._confidences[index]
            confidence = None if read is None else read()
            if confidence is None:
                continue
            nans += confidence != confidence  # noqa: PLR0124  # a NaN; math.isnan is a call more per exit
            if index == last:
                break
            if policy.leave(index, confidence, (clock() - start) * 1e3, waited_ms):
                break
        leaving = self.exits[index]
        outputs = {name: self._buffers[name].copy() for name in leaving.outputs}
        latency_ms = (clock() - start) * 1e3
        policy.observe(index, latency_ms, waited_ms)
        deadline_ms = policy.deadline_ms
        missed = deadline_ms is not None and latency_ms > deadline_ms
        return Answer(outputs, leaving.name, index, confidence, latency_ms, missed, nans)

    def stages(self, inputs: Mapping[str, Array]) -> Iterator[tuple[int, float]]:
        """Run stage after stage to the end; yields its index and the ms since the start. For measuring."""
        start = self._clock()
        self._fill(inputs)
        for index, stage in enumerate(self._runs):
            for run in stage:
                run()
            yield index, (self._clock() - start) * 1e3

    def output(self, exit_index: int) -> Array:
        """The buffer of an exit's output: valid until the next run."""
        return self._buffers[self.exits[exit_index].output]

    def confidence(self, exit_index: int) -> float | None:
        """An exit's confidence in the last run; None where it has none."""
        read = self._confidences[exit_index]
        return None if read is None else read()

    def run_all(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run every stage; copies of everything the stages made: outputs, confidences, hand-over tensors."""
        for _ in self.stages(inputs):
            pass
        names = {entry.tensor.name for entry in self.manifest.inputs}
        return {name: buffer.copy() for name, buffer in self._buffers.items() if name not in names}

    def _fill(self, inputs: Mapping[str, Array]) -> None:
        for name, buffer in self._inputs:
            array = inputs.get(name)
            if array is None or array.shape != buffer.shape or array.dtype != buffer.dtype:
                came = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
                raise BadInput(f"input {name!r} must be {buffer.dtype} {list(buffer.shape)}, got {came}")
            np.copyto(buffer, array)

    def close(self) -> None:
        """Free the runtimes. The session cannot be used afterwards."""
        self._runs = ()
        heap.give_back()


def open_session(
    manifest: Manifest,
    read: Callable[[str], bytes],
    *,
    threads: int = 1,
    accepts_code: bool = False,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
    clock: Clock = time.perf_counter,
) -> Session:
    """Open every part of every stage. read: member name -> bytes (`bundle.read`).

    Raises Refused when a part runs code and `accepts_code` is false, MissingExtra when a runtime is not installed,
    BadBundle when a runtime refuses its part.
    """
    if manifest.executes_code and not accepts_code:
        raise refusal("code-not-accepted", manifest.name)
    options = Options(threads, providers, members=read)
    buffers = {
        entry.tensor.name: allocate(entry.tensor.dtype, entry.tensor.shape) for entry in manifest.inputs
    }
    stages = []
    for stage in manifest.stages:
        runners = []
        for part in stage.parts:
            outputs = {tensor.name: allocate(tensor.dtype, tensor.shape) for tensor in part.outputs}
            inputs = {tensor.name: buffers[tensor.name] for tensor in part.inputs}
            runners.append(opener(part.backend)(read(part.file), part, inputs, outputs, options))
            buffers.update(outputs)
        stages.append(tuple(runners))
    heap.give_back()
    return Session(manifest, tuple(stages), buffers, clock)
