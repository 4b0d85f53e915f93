"""Make tests/host/data/qonnx: what QONNX's own executor answers, and networks as Brevitas exports them. Not a test.

    python3.11 -m venv /tmp/oracle
    /tmp/oracle/bin/pip install qonnx==1.0.0 brevitas==0.13.4 onnxoptimizer torch onnx onnxruntime
    /tmp/oracle/bin/python tests/host/make_qonnx_vectors.py

Made with torch 2.13.0, onnx 1.23.2, onnxruntime 1.32.0 and numpy 2.4.6. Nothing of these is needed to run the tests.

operators.npz: "NAME/x" and "NAME/y" of every case in tests/qonnx_cases.py, and "NAME/w" the weight behind a quantizer.
NETWORK.onnx: small networks with weights of a seed, built from Brevitas's layers in the way of its BNN-PYNQ examples
(https://github.com/Xilinx/brevitas, src/brevitas_examples/bnn_pynq) and exported by export_qonnx: with its TorchScript
exporter (opset 11, as older files have it, and its default) and the one that PyTorch uses now. One is tidied by
QONNX's cleanup, which writes datatypes and layouts into it; from that, QONNX's transformations made one channels last.
NETWORK.npz: "x" pixels (the network reads x / 255), "y" the executor's outputs, and for the first inputs of the
tensor NAME behind each quantizer of activations: "levels NAME" the values it has, "at NAME" which of them stands where.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import onnx
import torch
from brevitas.core.bit_width import BitWidthImplType
from brevitas.core.quant import QuantType
from brevitas.core.restrict_val import FloatToIntImplType, RestrictValueType
from brevitas.core.scaling import ScalingImplType
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.export import export_qonnx
from brevitas.inject import ExtendedInjector
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver
from dependencies import value
from numpy.typing import NDArray
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.cleanup import cleanup_model
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from qonnx_cases import cases

FOLDER = Path(__file__).parent / "data" / "qonnx"
INPUTS, LAYERS_OF = 32, 3  # how many inputs are run; of how many all layers are kept
MAX_BYTES = 60_000


class Common(ExtendedInjector):
    """Constant scales, as in the BNN-PYNQ networks: one bit is bipolar, more are narrow and signed."""

    bit_width_impl_type = BitWidthImplType.CONST
    scaling_impl_type = ScalingImplType.CONST
    restrict_scaling_type = RestrictValueType.FP
    zero_point_impl = ZeroZeroPoint
    float_to_int_impl_type = FloatToIntImplType.ROUND
    scaling_per_output_channel = False
    narrow_range = True
    signed = True

    @value
    def quant_type(bit_width: int) -> QuantType:  # noqa: N805  (what it depends on is found by name)
        return QuantType.BINARY if bit_width == 1 else QuantType.INT


class CommonWeight(Common, WeightQuantSolver):
    scaling_const = 1.0


class CommonAct(Common, ActQuantSolver):
    min_val, max_val = -1.0, 1.0


def act(bits: int) -> nn.Module:
    return qnn.QuantIdentity(act_quant=CommonAct, bit_width=bits)


def first_act() -> nn.Module:
    """8 bits in the form Q1.7."""
    form = {"restrict_scaling_type": RestrictValueType.POWER_OF_TWO, "narrow_range": False}
    return qnn.QuantIdentity(act_quant=CommonAct, bit_width=8, min_val=-1.0, max_val=1 - 2.0**-7, **form)


def conv(wide: tuple[int, int], bits: int, kernel: int = 3, **more: Any) -> nn.Module:
    form = {"bias": False, "weight_quant": CommonWeight, "weight_bit_width": bits}
    return qnn.QuantConv2d(*wide, kernel, **form, **more)


def linear(wide: tuple[int, int], bits: int) -> nn.Module:
    return qnn.QuantLinear(*wide, bias=False, weight_quant=CommonWeight, weight_bit_width=bits)


class Pixels(nn.Module):
    """Pixels of 0 to 1 as -1 to 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * x - torch.tensor([1.0])


class TensorNorm(nn.Module):
    """One mean and one deviation for the whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.deviation = nn.Buffer(torch.tensor([3.0])), nn.Buffer(torch.tensor([40.0]))
        self.weight, self.bias = nn.Parameter(torch.tensor([1.3])), nn.Parameter(torch.tensor([-0.2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / (self.deviation + 1e-4).pow(0.5) * self.weight + self.bias


def cnv(weight: int, bits: int, wide: tuple[int, ...] = (7, 9, 12, 16, 24)) -> nn.Sequential:
    """Two pairs of convolutions without padding, a max pool after each, two dense layers; 20 x 20 pixels."""
    a, b, c, d, hidden = wide
    layers: list[nn.Module] = [Pixels(), first_act()]
    for channels, pooled in (((1, a), False), ((a, b), True), ((b, c), False), ((c, d), True)):
        layers += [conv(channels, weight), nn.BatchNorm2d(channels[1], eps=1e-4), act(bits)]
        layers += [nn.MaxPool2d(2)] if pooled else []
    layers += [nn.Flatten(), linear((4 * d, hidden), weight), nn.BatchNorm1d(hidden, eps=1e-4), act(bits)]
    return nn.Sequential(*layers, linear((hidden, 10), weight), TensorNorm())


def lfc(weight: int, bits: int, hidden: int = 33) -> nn.Sequential:
    """Dense layers on 12 x 12 pixels, quantized like all that follows."""
    layers: list[nn.Module] = [nn.Flatten(), Pixels(), act(bits)]
    for wide in ((144, hidden), (hidden, hidden), (hidden, hidden)):
        layers += [linear(wide, weight), nn.BatchNorm1d(wide[1]), act(bits), nn.Dropout(0.2)]
    return nn.Sequential(*layers, linear((hidden, 10), weight), TensorNorm())


class Residual(nn.Module):
    """Learned scales: 4-bit weights per channel, unsigned 4-bit activations, a sum of quantized tensors, an average."""

    def __init__(self) -> None:
        super().__init__()
        weights = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
        relu = {"act_quant": Uint8ActPerTensorFloat, "bit_width": 4, "return_quant_tensor": True}
        self.first = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
        self.conv1 = qnn.QuantConv2d(1, 6, 3, padding=1, stride=2, bias=True, **weights)
        self.relu1 = qnn.QuantReLU(**relu)
        self.conv2 = qnn.QuantConv2d(6, 6, 3, padding=1, bias=False, **weights)
        self.norm2 = nn.BatchNorm2d(6)
        self.same = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=4, return_quant_tensor=True)
        self.relu2 = qnn.QuantReLU(**relu)
        self.pool = qnn.TruncAvgPool2d(kernel_size=3, bit_width=4)
        self.last = qnn.QuantLinear(24, 10, bias=True, **weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.conv1(self.first(x)))
        x = self.relu2(self.same(x) + self.same(self.norm2(self.conv2(x))))
        return self.last(torch.flatten(self.pool(x), 1))


# --- weights and files ------------------------------------------------------------------------------------------------


def randomized(net: nn.Module, shape: Sequence[int], seed: int) -> nn.Module:
    """Weights of a seed; batch normalizations of what comes in, with factors of either sign and 0."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    for module in net.modules():
        if isinstance(module, qnn.QuantConv2d | qnn.QuantLinear):
            nn.init.uniform_(module.weight.data, -1, 1)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.5
            size = module.num_features
            gamma = draw.uniform(0.5, 1.5, size) * draw.choice([-1, 1, 1], size)
            gamma[draw.integers(size)] = 0
            module.weight.data = torch.tensor(gamma, dtype=torch.float32)
            module.bias.data = torch.tensor(draw.uniform(-0.4, 0.4, size), dtype=torch.float32)
    net.train()
    for _ in range(4):
        net(torch.rand(16, *shape[1:]))
    return net.eval()


def exported(net: nn.Module, shape: Sequence[int], **how: Any) -> onnx.ModelProto:
    path = FOLDER / "exported.onnx"
    export_qonnx(net, args=torch.zeros(*shape), export_path=str(path), **how)
    model = onnx.load(path)
    for other in FOLDER.glob("exported.*"):
        other.unlink()
    return stripped(model)


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the exporter noted of the sources it read."""
    model.doc_string = model.graph.doc_string = ""
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


def networks() -> Iterator[tuple[str, onnx.ModelProto]]:
    image, small = (1, 1, 20, 20), (1, 1, 12, 12)
    script: dict[str, Any] = {"dynamo": False, "opset_version": 13}
    yield "cnv_w1a1", exported(randomized(cnv(1, 1), image, 1), image)
    yield "cnv_w1a2", exported(randomized(cnv(1, 2), image, 2), image, **script)
    yield "cnv_w2a2", exported(randomized(cnv(2, 2), image, 3), image, **{**script, "opset_version": 11})
    yield "lfc_w1a1", exported(randomized(lfc(1, 1), small, 4), small, **script)
    yield "lfc_w1a2", exported(randomized(lfc(1, 2), small, 5), small)
    yield "residual_w4a4", exported(randomized(Residual(), small, 6), small, **script)
    tiny = exported(randomized(cnv(1, 2, (4, 5, 6, 8, 9)), image, 7), image, **script)
    clean = cleanup_model(ModelWrapper(tiny)).transform(InferDataTypes())
    yield "cnv_clean", stripped(clean.model)
    yield (
        "cnv_last",
        stripped(ConvertToChannelsLastAndClean(make_input_channels_last=True).apply(clean)[0].model),
    )


def run(name: str, model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The executor's answers. A tensor behind an activation's quantizer is what no weight goes into."""
    wrapped = ModelWrapper(model).transform(InferShapes())
    kind = model.graph.input[0]
    shape = [size.dim_value for size in kind.type.tensor_type.shape.dim]
    weights = {tensor.name for tensor in model.graph.initializer}
    behind = [
        node.output[0]
        for node in wrapped.graph.node
        if node.op_type in ("BipolarQuant", "Quant", "Trunc") and node.input[0] not in weights
    ]
    pixels = np.random.default_rng(9).integers(0, 256, (INPUTS, *shape), np.uint8)
    made: dict[str, NDArray[Any]] = {"x": pixels}
    answers = []
    for index, x in enumerate(pixels):
        found = execute_onnx(wrapped, {kind.name: x.astype(np.float32) / np.float32(255)}, True)
        answers.append(found[model.graph.output[0].name])
        for tensor in behind if index < LAYERS_OF else ():
            made.setdefault(f"all {tensor}", np.zeros((LAYERS_OF, *found[tensor].shape), np.float32))[
                index
            ] = found[tensor]
    made["y"] = np.stack(answers)
    for tensor in behind:
        made[f"levels {tensor}"], places = np.unique(made.pop(f"all {tensor}"), return_inverse=True)
        made[f"at {tensor}"] = places.reshape(LAYERS_OF, *found[tensor].shape).astype(np.uint8)
    return made


def operators() -> dict[str, NDArray[Any]]:
    made = {}
    for case in cases():
        wrapped = ModelWrapper(case.model()).transform(InferShapes())
        found = execute_onnx(wrapped, {"x": case.x}, True)
        made[f"{case.name}/x"], made[f"{case.name}/y"] = case.x, found["y"]
        if "w" in case.constants:
            made[f"{case.name}/w"] = found["q"]
    return made


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    random.seed(0)  # QONNX draws names
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FOLDER / "operators.npz", **operators())
    for name, model in networks():
        path = FOLDER / f"{name}.onnx"
        onnx.save(model, path)
        np.savez_compressed(FOLDER / f"{name}.npz", **run(name, model))
        assert path.stat().st_size < MAX_BYTES, (name, path.stat().st_size)
        sys.stdout.write(f"{name}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
