"""One small QONNX model for each thing an operator can say, and inputs that stand on and beside every border.

tests/host/make_qonnx_vectors.py runs them in QONNX's own executor; tests/host/test_qonnx.py compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
GENERAL, OLD, FINN = "qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"
CHANNELS_LAST = "qonnx.custom_op.channels_last"
MODES = ("ROUND", "round", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN")


@dataclass
class Case:
    """One node (more where `before` says so) between x and y."""

    name: str
    op: str
    x: Floats
    more: Sequence[Any] = ()  # further inputs: arrays, or names of tensors that `before` makes
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None  # of y; None: as x
    domain: str = GENERAL
    version: int = 1  # of the domain
    opset: int = 13
    before: Sequence[onnx.NodeProto] = ()
    constants: dict[str, Any] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        weights, inputs = [numpy_helper.from_array(np.array(v), k) for k, v in self.constants.items()], ["x"]
        for index, value in enumerate(self.more):
            inputs.append(value if isinstance(value, str) else f"p{index}")
            if not isinstance(value, str):
                weights.append(numpy_helper.from_array(np.array(value, np.float32), f"p{index}"))
        node = helper.make_node(self.op, inputs, ["y"], f"{self.op}_0", domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [*self.before, node],
            self.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, self.shape or self.x.shape)],
            weights,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(self.domain, self.version)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def around(low: float, high: float, scale: float = 1.0, zero: float = 0.0) -> Floats:
    """Values on, between and beyond the steps of a quantizer: all quarter steps where they are few, else some."""
    near = np.arange(-1.5, 6, 0.25)
    few = high - low < 12
    quarters = (
        np.arange(low - 1.5, high + 1.5, 0.25) if few else np.concatenate([low + near, near - 3, high - near])
    )
    random = np.random.default_rng(5).uniform(low - 1, high + 1, 20)
    steps = np.concatenate([quarters, random, [0.0, -0.0, 3 * low - 9, 3 * high + 9]])
    return ((steps - zero) * scale).astype(np.float32)[None]


def image(channels: int = 3, side: int = 4, reach: float = 2.0, seed: int = 1) -> Floats:
    """Random values, some of them rounded to eighths so that they stand on borders."""
    x = np.random.default_rng(seed).uniform(-reach, reach, (1, channels, side, side))
    return np.where(np.arange(side) % 2, np.round(x * 8) / 8, x).astype(np.float32)


def cases() -> Iterator[Case]:
    yield from bipolar()
    yield from quant_widths()
    yield from quant_forms()
    yield from computed()
    yield from trunc()
    yield from thresholds()
    yield from layers()


def bipolar() -> Iterator[Case]:
    x = image()
    yield Case("bipolar", "BipolarQuant", x, [1.0])
    yield Case("bipolar_brevitas", "BipolarQuant", x, [[0.37]], domain=OLD)
    yield Case("bipolar_finn", "BipolarQuant", x, [0.5], domain=FINN)
    yield Case("bipolar_channels", "BipolarQuant", x, [np.array([0.3, 1.7, -0.5])[:, None, None]])
    yield Case("bipolar_opset_11", "BipolarQuant", x, [[2.0]], opset=11)
    yield Case("bipolar_opset_9", "BipolarQuant", x, [2.0], opset=9)
    yield Case("bipolar_opset_21", "BipolarQuant", x, [2.0], opset=21, version=2)


def quant_widths() -> Iterator[Case]:
    for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32):
        for signed in (0, 1):
            for narrow in (0, 1):
                low = -(2.0 ** (bits - 1)) if signed else 0.0
                x = around(low, 2.0**bits + low - 1, 0.125)
                attributes = {"signed": signed, "narrow": narrow, "rounding_mode": "ROUND"}
                yield Case(f"quant_{bits}_{signed}_{narrow}", "Quant", x, [0.125, 0.0, bits], attributes)
    yield Case("quant_2.58", "Quant", around(-4, 4), [1, 0, 2.58], {"signed": 1, "narrow": 0})


def quant_forms() -> Iterator[Case]:
    four = {"signed": 1, "narrow": 0}
    for mode in MODES:
        x = around(-8, 7, 0.25)
        yield Case(f"quant_{mode}", "Quant", x, [0.25, 0.0, 4.0], {**four, "rounding_mode": mode})
    x = image(reach=9)
    scales = np.array([0.1, 0.77, 1.3])[:, None, None]
    yield Case("quant_scale", "Quant", x, [0.3, 0.0, 4.0], four)
    yield Case("quant_channels", "Quant", x, [scales[None], 0.0, 4.0], four)
    yield Case("quant_zero", "Quant", x, [0.3, 3.0, 4.0], {"signed": 0, "narrow": 0})
    yield Case("quant_zeros", "Quant", x, [scales, scales * 10, [4.0]], {"signed": 0, "narrow": 1})
    one = np.ones((1, 1))
    yield Case("quant_more_axes", "Quant", x.reshape(-1), [one, 0.0, 4.0], four, (1, x.size))
    yield Case("quant_spread", "Quant", x[0, :1], [scales, 0.0, 4.0], four, x.shape[1:])
    yield Case("quant_fraction", "Quant", x, [1.0, 0.5, 3.0], four)
    yield Case("quant_bipolar_zero", "Quant", x, [0.5, 0.75, 1.0], {"signed": 1, "narrow": 1})
    yield Case("quant_finn", "Quant", x, [[0.5], [0.0], [2.0]], four, domain=FINN)
    yield Case("quant_brevitas", "Quant", x, [[0.5], 0.0, 2.0], four, domain=OLD)
    yield Case("quant_opset_9", "Quant", x, [[0.5], 0.0, 2.0], {**four, "rounding_mode": "FLOOR"}, opset=9)
    yield Case("int_quant", "IntQuant", x, [0.5, 0.0, 4.0], {**four, "rounding_mode": "ROUND"})


def computed() -> Iterator[Case]:
    """Scales that other nodes make: from constants, and from the input."""
    four = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    made = helper.make_node("Mul", ["a", "b"], ["scale"], "product")
    bits = helper.make_node("Add", ["c", "c"], ["bits"], "sum")
    constants = {name: np.float32(value) for name, value in (("a", 0.3), ("b", 1.1), ("c", 2))}
    yield Case(
        "quant_computed",
        "Quant",
        image(),
        ["scale", 0.0, "bits"],
        four,
        before=[made, bits],
        constants=constants,
    )
    largest = helper.make_node("ReduceMax", ["size"], ["top"], "top", axes=[1, 2, 3], keepdims=1)
    before = [
        helper.make_node("Abs", ["x"], ["size"], "size"),
        largest,
        helper.make_node("Div", ["top", "c"], ["scale"], "scale"),
    ]
    constants = {"c": np.float32(7)}
    yield Case(
        "quant_dynamic", "Quant", image(), ["scale", 0.0, 4.0], four, before=before, constants=constants
    )
    yield Case("bipolar_dynamic", "BipolarQuant", image(), ["scale"], before=before, constants=constants)


def trunc() -> Iterator[Case]:
    x = np.round(image(reach=30) * 4) / 8
    for mode in MODES:
        attributes: dict[str, Any] = {"rounding_mode": mode}
        yield Case(f"trunc1_{mode}", "Trunc", x, [0.125, 0.0, 8.0, 4.0], attributes)
        attributes = {"rounding_mode": mode, "signed": 1, "narrow": 0}
        yield Case(f"trunc2_{mode}", "Trunc", x, [0.125, 0.0, 8.0, 2.0, 4.0], attributes, version=2)
    yield Case("trunc1_zero", "Trunc", x, [0.125, 2.0, 8.0, 6.0], {"rounding_mode": "FLOOR"}, domain=OLD)
    narrow = {"rounding_mode": "ROUND", "signed": 0, "narrow": 1}
    yield Case("trunc2_narrow", "Trunc", x, [0.125, 4.0, 8.0, 0.52, 4.0], narrow, version=2)
    scales = np.array([0.125, 0.25, 0.5])[:, None, None]
    channels = {"rounding_mode": "FLOOR"}
    yield Case("trunc2_channels", "Trunc", x, [scales, 0.0, 8.0, scales * 4, 5.0], channels, version=2)


def thresholds() -> Iterator[Case]:
    random = np.random.default_rng(3)
    x, table = image(), np.sort(np.round(random.uniform(-2, 2, (3, 3)) * 8) / 8, axis=1)
    two = {"out_dtype": "UINT2"}
    yield Case("threshold", "MultiThreshold", x, [table], two)
    yield Case("threshold_nchw", "MultiThreshold", x, [table], {**two, "data_layout": "NCHW"})
    yield Case("threshold_shared", "MultiThreshold", x, [table[:1]], two)
    bipolar = {"out_dtype": "BIPOLAR", "out_scale": 2.0, "out_bias": -1.0}
    yield Case("threshold_bipolar", "MultiThreshold", x, [table[:, :1]], bipolar)
    scaled = {"out_dtype": "FLOAT32", "out_scale": 0.3, "out_bias": -0.7}
    yield Case("threshold_scaled", "MultiThreshold", x, [table], scaled, domain=FINN)
    yield Case("threshold_unsorted", "MultiThreshold", x, [table[:, ::-1]], two)
    last = np.moveaxis(x, 1, -1)
    yield Case("threshold_nhwc", "MultiThreshold", last, [table], {**two, "data_layout": "NHWC"})
    yield Case("threshold_nc", "MultiThreshold", last[0, :, 0], [table], two)
    yield Case("threshold_nc_named", "MultiThreshold", last[0, :, 0], [table], {**two, "data_layout": "NC"})
    yield Case("threshold_nwc", "MultiThreshold", last[0], [table], two)
    yield Case("threshold_ncw", "MultiThreshold", x[0, None, :, 0], [table], {**two, "data_layout": "NCW"})
    yield Case("threshold_rank_5", "MultiThreshold", x[..., None], [table], two)
    many = np.sort(random.uniform(-2, 2, (3, 255)), axis=1)
    yield Case("threshold_255", "MultiThreshold", x, [many], {"out_dtype": "UINT8"})


def layers() -> Iterator[Case]:
    """Quantizers on weights; what conversions of QONNX graphs leave: channels last, integer average pools."""
    random = np.random.default_rng(4)
    w = random.uniform(-1, 1, (5, 3, 3, 3)).astype(np.float32)
    ternary = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
    scales = np.linspace(0.1, 0.5, 5).reshape(5, 1, 1, 1)
    constants = {"w": w, "s": np.float32(scales), "z": np.float32(0), "b": np.float32(2)}
    quant = helper.make_node("Quant", ["w", "s", "z", "b"], ["q"], "Quant_w", domain=GENERAL, **ternary)
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    made = {"before": [quant], "constants": constants, "shape": (1, 5, 4, 4)}
    yield Case("conv", "Conv", image(), ["q"], conv, domain="", version=13, **made)
    x = np.moveaxis(image(), 1, -1)
    last = {"domain": CHANNELS_LAST, "version": 13}
    conv = {**conv, "strides": [1, 1], "dilations": [1, 1], "group": 1}
    yield Case("conv_last", "Conv", x, [np.moveaxis(w, 1, -1)], conv, (1, 4, 4, 5), **last)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}
    yield Case("pool_last", "MaxPool", x, [], pool, (1, 2, 2, 3), **last)
    yield Case("pool_nhwc", "MaxPoolNHWC", x, [], {**pool, "ceil_mode": 0}, (1, 2, 2, 3))
    norm = [random.uniform(0.5, 1.5, 3) for _ in range(4)]
    yield Case("norm_last", "BatchNormalization", x, norm, {"epsilon": 1e-3}, **last)
    whole = np.random.default_rng(6).integers(0, 16, (1, 3, 6, 6)).astype(np.float32)
    average = {"stride": 2, "kernel": 2, "ibits": 4, "obits": 4, "signed": 0}
    yield Case("average", "QuantAvgPool2d", whole, [], average, (1, 3, 3, 3))
    average = {**average, "kernel": 3, "obits": 3, "data_layout": "NHWC"}
    yield Case("average_nhwc", "QuantAvgPool2d", np.moveaxis(whole, 1, -1), [], average, (1, 2, 2, 3))
    signed = {"stride": 3, "kernel": 3, "ibits": 4, "obits": 2, "signed": 1}
    yield Case("average_signed", "QuantAvgPool2d", whole - 8, [], signed, (1, 3, 2, 2))
    bits = random.integers(0, 2, (4, 7)).astype(np.float32)
    yield Case(
        "popcount", "XnorPopcountMatMul", bits, [random.integers(0, 2, (7, 5))], {}, (4, 5), domain=GENERAL
    )
    yield Case("marker", "DebugMarker", image(), [], {"export_debug_name": "here"})
