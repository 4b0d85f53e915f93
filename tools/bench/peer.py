#!/usr/bin/env python3
"""Quantize one network with one of the other tools, as its documentation advises. A worker of convert_peers.py.

    python tools/bench/peer.py {prepare,onnxruntime,nncf,litert} MODEL CALIBRATION.npz OUTPUT

Runs in an environment that has the tool, imports nothing of ours, and writes one model file. The .npz holds an array
of ready tensors for each input, samples along the first axis.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has an axis
_NO_SATURATION = (
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimddp",
)  # 8-bit products do not overflow 16 bits there


def samples(path: Path) -> list[dict[str, Any]]:
    """Each sample's tensors by input name, batch 1."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    return [{name: array[index : index + 1] for name, array in arrays.items()} for index in range(count)]


def prepare(model: Path, output: Path) -> None:
    """onnxruntime's advice before quantizing: opset 13 or newer, shapes inferred, normalizations folded."""
    import onnx
    import onnx.version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = onnx.load(model)
    if (
        next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
        < PER_CHANNEL_OPSET
    ):
        model = output.with_suffix(".newer.onnx")
        onnx.save(onnx.version_converter.convert_version(proto, PER_CHANNEL_OPSET), model)
    try:
        quant_pre_process(str(model), str(output))
    except Exception as err:  # noqa: BLE001  (its symbolic shape inference fails on some networks with just that)
        print(f"peer: prepared without symbolic shapes: {err}", file=sys.stderr)
        quant_pre_process(str(model), str(output), skip_symbolic_shape=True)


def onnxruntime(model: Path, calibration: Path, output: Path) -> None:
    """quantize_static: QDQ, per channel, MinMax, uint8 activations and int8 weights (7 bits where 8 would overflow)."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples: Iterator[dict[str, Any]] = iter(samples(calibration))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._samples, None)

    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        prepare(model, prepared)
        shared: dict[str, Any] = {
            "quant_format": QuantFormat.QDQ,
            "per_channel": True,
            "reduce_range": not any(flag in flags for flag in _NO_SATURATION),
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            "calibrate_method": CalibrationMethod.MinMax,
        }
        try:
            quantize_static(str(prepared), str(output), Reader(), **shared)
        except ValueError as err:  # its correction of weights for small biases fails on some dense layers
            print(f"peer: without the adjustment of weights for biases: {err}", file=sys.stderr)
            shared["extra_options"] = {"QDQDisableWeightAdjustForInt32Bias": True}
            quantize_static(str(prepared), str(output), Reader(), **shared)


def nncf(model: Path, calibration: Path, output: Path) -> None:
    """nncf.quantize with its defaults, on the same prepared network: its ONNX examples start from folded ones too."""
    import onnx

    library = importlib.import_module("nncf")

    data = samples(calibration)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        prepare(model, prepared)
        made = library.quantize(onnx.load(prepared), library.Dataset(data), subset_size=len(data))
    onnx.save(made, output)


def litert(model: Path, calibration: Path, output: Path) -> None:
    """litert-quantizer's recipe static_wi8_ai8 on a float .tflite: int8 activations and weights, per channel."""
    recipe = importlib.import_module("litert_quantizer.recipe")
    content = with_signature(model.read_bytes())
    tool = importlib.import_module("litert_quantizer.quantizer").Quantizer(content, recipe.static_wi8_ai8())
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(model_content=content)
    signatures = interpreter.get_signature_list()
    signature = next(iter(signatures))
    names = signatures[signature]["inputs"]
    shapes = [tuple(entry["shape"]) for entry in interpreter.get_input_details()]
    data = [
        {name: fitted(value, shape) for name, value, shape in zip(names, row.values(), shapes, strict=True)}
        for row in samples(calibration)
    ]
    found = tool.calibrate({signature: data}, num_threads=1)
    output.unlink(missing_ok=True)  # it writes over nothing
    tool.quantize(found).export_model(str(output))


def with_signature(content: bytes) -> bytes:
    """The same .tflite with what the quantizer goes by: a signature where it has none, a name for every tensor."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers: Any = importlib.import_module("flatbuffers")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if model.signatureDefs:
        return content

    def mapped(prefix: str, tensors: Any) -> list[Any]:
        made = []
        for position, tensor in enumerate(tensors):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = f"{prefix}{position}", int(tensor)
            made.append(entry)
        return made

    seen: set[Any] = {None, b"", ""}
    for position, tensor in enumerate(model.subgraphs[0].tensors):
        if tensor.name in seen:
            tensor.name = f"tensor_{position}".encode()
        seen.add(tensor.name)
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = mapped("input_", model.subgraphs[0].inputs)
    signature.outputs = mapped("output_", model.subgraphs[0].outputs)
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def fitted(value: Any, shape: tuple[int, ...]) -> Any:
    """NCHW to NHWC where the .tflite wants that."""
    if value.ndim == 4 and value.shape != shape:
        value = value.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tool", choices=("prepare", "onnxruntime", "nncf", "litert"))
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args()
    if asked.tool == "prepare":
        prepare(asked.model, asked.output)
    else:
        {"onnxruntime": onnxruntime, "nncf": nncf, "litert": litert}[asked.tool](
            asked.model, asked.calibration, asked.output
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
