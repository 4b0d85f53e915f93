"""How far each layer of a converted graph is from the float one: signal to quantization noise ratios."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import expose, float_activations, in_parts
from edgekit.host.graph import Graph, model_bytes, values
from edgekit.host.ort import open_model
from edgekit.host.stored import folded
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data

SAMPLES = 32
_FEWEST = 8
_CEILING_DB = 200.0  # equal to the last bit


def layer_sqnr(plain: Graph, converted: Graph, data: Data, samples: int = SAMPLES) -> Mapping[str, float]:
    """Tensor of `converted` -> SQNR in dB against the tensor of the same name in `plain`.

    A quantized tensor is compared as its readers see it, rounded. Everything before it is quantized too, so the figure
    falls from layer to layer: where it drops sharply, that layer hurts. At most `samples` samples, spread over `data`.
    """
    seen_as = {name: _as_read(converted, name) for name in float_activations(converted)}
    before_too = set(float_activations(plain))
    shared = [name for name in seen_as if name in before_too]
    if not shared:
        return {}  # asked for nothing, onnxruntime gives everything
    parts = in_parts(plain, shared)
    chosen = spread(data.count, max(_FEWEST, samples // len(parts)))  # a large network tells more per sample
    found: dict[str, float] = {}
    for names in parts:
        before = expose(plain, names)
        after = expose(converted, [seen_as[name] for name in names])
        signal, noise = np.zeros(len(names)), np.zeros(len(names))
        for index in chosen:
            sample = data.inputs(index)
            wanted = before.run(names, sample)
            came = after.run([seen_as[name] for name in names], sample)
            for place, (want, got) in enumerate(zip(wanted, came, strict=True)):
                signal[place] += float(np.square(want, dtype=np.float64).sum())
                noise[place] += float(np.square(want.astype(np.float64) - got).sum())
        found.update((name, decibel(s, n)) for name, s, n in zip(names, signal, noise, strict=True))
    return found


Answers = list[list[Array]]  # per sample every output of every exit


def answers_of(graph: Graph, data: Data, samples: int) -> Answers:
    """What the exits answer to at most `samples` samples, spread over `data`."""
    outputs = [name for entry in graph.exits for name in entry.outputs]
    session = open_model(model_bytes(folded(graph.model)))
    return [session.run(outputs, data.inputs(index)) for index in spread(data.count, samples)]


def check_finite(graph: Graph, answers: Answers, data: Data) -> None:
    """Raises BadInput where one of the network's `answers` (to `data`, see answers_of) is infinite or no number."""
    outputs = [name for entry in graph.exits for name in entry.outputs]
    for place, answer in zip(spread(data.count, len(answers)), answers, strict=True):
        for name, array in zip(outputs, answer, strict=True):
            if not np.isfinite(array).all():
                raise BadInput(
                    f"{data.source}: the network's output {name!r} is not finite for {data.name(place)}: "
                    "what comes close to it cannot be said"
                )


def sqnr_of(wanted: Answers, came: Answers) -> float:
    """SQNR in dB of the exits' outputs, the mean over them."""
    signal, noise = np.zeros(len(wanted[0])), np.zeros(len(wanted[0]))
    for want, got in zip(wanted, came, strict=True):
        signal += [float(np.square(array, dtype=np.float64).sum()) for array in want]
        noise += [float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(want, got, strict=True)]
    return float(np.mean([decibel(s, n) for s, n in zip(signal.tolist(), noise.tolist(), strict=True)]))


def answers_sqnr(plain: Graph, converted: Graph, data: Data, samples: int) -> float:
    """SQNR in dB of the exits' outputs on at most `samples` samples, the mean over outputs."""
    return sqnr_of(answers_of(plain, data, samples), answers_of(converted, data, samples))


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most 200 dB; 0 where there is noise and no signal; -200 for noise without bounds."""
    if noise <= 0:
        return _CEILING_DB
    if not np.isfinite(noise):  # an overflow, or no number: as far from the signal as can be
        return -_CEILING_DB
    return float(min(_CEILING_DB, 10 * np.log10(signal / noise))) if signal > 0 else 0.0


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly spread: the same every time."""
    return (
        sorted({index * count // wanted for index in range(wanted)}) if count > wanted else list(range(count))
    )


def _as_read(graph: Graph, name: str) -> str:
    """The tensor after its Quantize/DequantizeLinear pair, where it has one."""
    for reader in values(graph.model)[name].consumers():
        if reader.op_type == "QuantizeLinear":
            for code_reader in reader.outputs[0].consumers():
                if code_reader.op_type == "DequantizeLinear":
                    return code_reader.outputs[0].name or name
    return name
