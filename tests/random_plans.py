"""Random plans that make sense, with every kind of operator, coding, padding and shape; and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.native import plan as p

Array = NDArray[Any]
CHANNELS = (1, 2, 3, 5, 8, 9, 31, 32, 33, 63, 64, 65, 70, 100, 128, 129, 200)
INT32 = np.iinfo(np.int32)
TYPES = (p.BITS, p.U8, p.I8, p.I32, p.F32)
CODINGS = (p.BIPOLAR, p.UNSIGNED2, p.SIGNED2, p.TERNARY)


@dataclass
class Drawn:
    """A plan that grows. ends: tensors after which only outputs come."""

    rng: np.random.Generator
    tensors: list[p.PlanTensor] = field(default_factory=list)
    operators: list[p.Operator] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def add(self, kind: int, inputs: tuple[int, ...], made: p.PlanTensor, of: p.Parameters = None) -> int:
        self.tensors.append(made)
        self.operators.append(p.Operator(kind, inputs, len(self.tensors) - 1, of))
        return len(self.tensors) - 1


def random_plan(seed: int, steps: int = 5) -> p.Plan:
    """A plan of up to `steps` operators; the same seed gives the same one."""
    drawn = Drawn(np.random.default_rng(seed))
    for _ in range(1 + drawn.chance(0.3)):
        drawn.tensors.append(_input(drawn))
    wanted = int(drawn.rng.integers(1, steps + 1))
    for _ in range(wanted * 8):
        if len(drawn.operators) == wanted:
            break
        at = drawn.pick([index for index in range(len(drawn.tensors)) if index not in drawn.ends])
        _grow(drawn, at)
    used = {index for operator in drawn.operators for index in operator.inputs}
    tensors = [
        replace(tensor, name=f"t{index}", is_output=True)
        if not tensor.is_input and (index not in used or drawn.chance(0.1))
        else tensor
        for index, tensor in enumerate(drawn.tensors)
    ]
    return p.Plan(tuple(tensors), tuple(drawn.operators))


def random_codes(rng: np.random.Generator, tensor: p.PlanTensor) -> Array:
    """Codes, integers or floats for an input, (h, w, c)."""
    shape = (tensor.h, tensor.w, tensor.c)
    if tensor.type == p.BITS:
        return rng.integers(0, p.LEVELS[tensor.coding], shape, dtype=np.int32)
    if tensor.type == p.F32:
        values = rng.normal(0, 10.0 ** rng.integers(-2, 4), shape).astype(np.float32)
        half = np.rint(values) + np.float32(0.5)
        return np.where(rng.random(shape) < 0.2, half, values).astype(np.float32)
    low, high = {p.U8: (0, 255), p.I8: (-128, 127), p.I32: (-1000, 1000)}[tensor.type]
    if tensor.type == p.I32 and rng.random() < 0.2:
        low, high = INT32.min, INT32.max
    return rng.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(np.int32)


def _input(drawn: Drawn) -> p.PlanTensor:
    kind = drawn.pick(TYPES)
    h, w = (1, 1) if drawn.chance(0.2) else drawn.rng.integers(1, 8, 2).tolist()
    return p.PlanTensor(
        *(kind, h, w, drawn.pick(CHANNELS)),
        coding=drawn.pick(CODINGS) if kind == p.BITS else 0,
        is_input=True,
        channels_first=kind != p.BITS and drawn.chance(0.5),
        name=f"in{len(drawn.tensors)}",
    )


def _plain(source: p.PlanTensor, kind: int, coding: int = 0, **changes: Any) -> p.PlanTensor:
    return replace(
        source,
        **{"type": kind, "coding": coding, "is_input": False, "channels_first": False, "name": "", **changes},
    )


def _grow(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    options = [_copy, _pool]
    if source.type == p.F32:
        options += [_quantize, _threshold, _add, _softmax, _quantize, _threshold]
    else:
        options += [_sum, _add, _affine]
    if source.type in (p.BITS, p.U8, p.I8):
        options += [linear_on] * 6
    if source.type in (p.U8, p.I8, p.I32):
        options += [_threshold] * 2
    if source.type == p.I32:
        options += [_requantize] * 2
    drawn.pick(options)(drawn, at)


def linear_on(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    rng = drawn.rng
    bipolar = source.type == p.BITS and source.coding == p.BIPOLAR
    if drawn.chance(0.25):
        kernel, pads, stride = (source.h, source.w), (0, 0, 0, 0), (1, 1)
    else:
        kernel = (drawn.pick((1, 2, 3, 5)), drawn.pick((1, 3, 3, 5)))
        top, bottom = rng.integers(0, kernel[0], 2).tolist() if drawn.chance(0.6) else (0, 0)
        left, right = rng.integers(0, kernel[1], 2).tolist() if drawn.chance(0.6) else (0, 0)
        pads, stride = (top, left, bottom, right), tuple(rng.integers(1, 4, 2).tolist())
    h, w = source.h + pads[0] + pads[2] - kernel[0], source.w + pads[1] + pads[3] - kernel[1]
    if h < 0 or w < 0:
        return
    coding = drawn.pick((p.BIPOLAR, p.BIPOLAR, p.UNSIGNED2, p.SIGNED2, p.TERNARY, p.INTEGER8))
    out_c = drawn.pick(CHANNELS)
    shape = (out_c, *kernel, source.c)
    weights = (
        rng.integers(-128, 128, shape).astype(np.int8)
        if coding == p.INTEGER8
        else rng.integers(0, p.LEVELS[coding], shape).astype(np.uint8)
    )
    of = p.Linear(
        *(weights, coding, kernel, (stride[0], stride[1]), pads),
        pad=drawn.pick((p.PAD_MINUS, p.PAD_PLUS, p.PAD_ZERO, p.PAD_ZERO)) if bipolar else p.PAD_ZERO,
    )
    made = _plain(source, p.I32, h=h // stride[0] + 1, w=w // stride[1] + 1, c=out_c)
    epilogue = drawn.pick((p.SUMS, p.THRESHOLDS, p.THRESHOLDS, p.THRESHOLDS, p.SCALED))
    if epilogue == p.THRESHOLDS:
        coding = drawn.pick(CODINGS)
        made = replace(made, type=p.BITS, coding=coding)
        spread = max(1.0, np.sqrt(kernel[0] * kernel[1] * source.c) * drawn.pick((0.5, 1.0, 60.0, 3000.0)))
        of = replace(of, epilogue=epilogue, thresholds=_integers(drawn, out_c, p.LEVELS[coding] - 1, spread))
    if epilogue == p.SCALED:
        made = replace(made, type=p.F32)
        of = replace(of, epilogue=epilogue, scale=_floats(drawn, out_c), bias=_floats(drawn, out_c))
    drawn.add(p.LINEAR, (at,), made, of)


def _floats(drawn: Drawn, count: int) -> Array:
    return drawn.rng.normal(0, 1, count).astype(np.float32)


def _integers(drawn: Drawn, channels: int, count: int, spread: float) -> Array:
    """Thresholds that rise within a channel; a few are always or never reached."""
    found = np.rint(drawn.rng.normal(0, spread, (channels, count))).astype(np.int64)
    found[drawn.rng.random(found.shape) < 0.03] = INT32.min
    found[drawn.rng.random(found.shape) < 0.03] = INT32.max
    return np.sort(found, axis=1).astype(np.int32)


def _threshold(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    rng = drawn.rng
    if drawn.chance(0.6):
        coding = drawn.pick(CODINGS)
        levels, first, made = p.LEVELS[coding], 0, _plain(source, p.BITS, coding)
    else:
        levels = drawn.pick((2, 3, 15, 255, 256))
        low, kind = drawn.pick(((0, p.U8), (-128, p.I8)))
        first, made = low + int(rng.integers(0, 257 - levels)), _plain(source, kind)
    falling = rng.random(source.c) < 0.5 if drawn.chance(0.6) else None
    thresholds: Array = _integers(drawn, source.c, levels - 1, drawn.pick((3.0, 100.0, 1000.0)))
    if source.type == p.F32:
        thresholds = np.sort(rng.normal(0, 10, thresholds.shape).astype(np.float32), axis=1)
    if falling is not None:
        thresholds[falling] = thresholds[falling, ::-1]
    drawn.add(p.THRESHOLD, (at,), made, p.Threshold(thresholds, first, falling))


def _window(drawn: Drawn, source: p.PlanTensor) -> p.Window:
    kernel = (
        int(drawn.rng.integers(1, min(source.h, 3) + 1)),
        int(drawn.rng.integers(1, min(source.w, 3) + 1)),
    )
    stride = drawn.rng.integers(1, 4, 2).tolist()
    return p.Window(kernel, (stride[0], stride[1]))


def _windowed(source: p.PlanTensor, of: p.Window, kind: int, coding: int) -> p.PlanTensor:
    h = (source.h - of.kernel[0]) // of.stride[0] + 1
    w = (source.w - of.kernel[1]) // of.stride[1] + 1
    return _plain(source, kind, coding, h=h, w=w)


def _pool(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    of = _window(drawn, source)
    if drawn.chance(0.5):
        of = replace(of, smallest=drawn.rng.random(source.c) < 0.5)
    drawn.add(p.POOL, (at,), _windowed(source, of, source.type, source.coding), of)


def _sum(drawn: Drawn, at: int) -> None:
    of = _window(drawn, drawn.tensors[at])
    drawn.add(p.SUM, (at,), _windowed(drawn.tensors[at], of, p.I32, 0), of)


def _add(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    floats = source.type == p.F32
    fits = [
        index
        for index, other in enumerate(drawn.tensors)
        if (other.h, other.w, other.c) == (source.h, source.w, source.c)
        and (other.type == p.F32) == floats
        and index not in drawn.ends
    ]
    drawn.add(p.ADD, (at, drawn.pick(fits)), _plain(source, p.F32 if floats else p.I32))


def _affine(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    of = p.Affine(_floats(drawn, source.c), _floats(drawn, source.c))
    drawn.add(p.AFFINE, (at,), _plain(source, p.F32), of)


def _quantize(drawn: Drawn, at: int) -> None:
    low, kind = drawn.pick(((0, p.U8), (-128, p.I8)))
    scale = float(np.float32(drawn.pick((0.25, 1.0, 0.1, 3.7))))
    of = p.Quantize(scale, low + int(drawn.rng.integers(0, 256)))
    drawn.add(p.QUANTIZE, (at,), _plain(drawn.tensors[at], kind), of)


def _requantize(drawn: Drawn, at: int) -> None:
    source, rng = drawn.tensors[at], drawn.rng
    low, high, kind = drawn.pick(((0, 255, p.U8), (-128, 127, p.I8), (INT32.min, INT32.max, p.I32)))
    of = p.Requantize(
        *(int(low), int(high)),
        multiplier=rng.integers(-(2**20), 2**20, source.c).astype(np.int32),
        addend=rng.integers(-(2**40), 2**40, source.c),
        shift=rng.integers(0, 40, source.c).astype(np.uint8),
    )
    drawn.add(p.REQUANTIZE, (at,), _plain(source, kind), of)


def _softmax(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    one = drawn.chance(0.5)
    made = _plain(source, p.F32, **({"h": 1, "w": 1, "c": 1} if one else {}))
    drawn.ends.add(drawn.add(p.CONFIDENCE if one else p.SOFTMAX, (at,), made))


def _copy(drawn: Drawn, at: int) -> None:
    source = drawn.tensors[at]
    count = source.count
    sides = [n for n in range(1, 9) if count % n == 0]
    h = drawn.pick(sides)
    w = drawn.pick([n for n in range(1, 9) if count // h % n == 0])
    drawn.add(p.COPY, (at,), _plain(source, source.type, source.coding, h=h, w=w, c=count // h // w))
