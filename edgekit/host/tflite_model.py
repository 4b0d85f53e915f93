"""Read a .tflite file: its tensors at the border and its operators, each with what it computes. Changes nothing.

The file is parsed whole with the schema before the runtime sees it, so that a damaged one is an error and no crash.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core.cost import Work
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.manifest import DTYPES, Tensor

SUFFIX = ".tflite"
_IDENTIFIER = b"TFL3"
_PATIENCE_S = 300
_INT8 = ("int8", "uint8")
_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")

# TFLite's name -> the operator as ONNX and the cost model call it; the others are called by their own
_ONNX_NAMES = {
    "CONV_2D": "Conv",
    "DEPTHWISE_CONV_2D": "Conv.depthwise",
    "TRANSPOSE_CONV": "ConvTranspose",
    "FULLY_CONNECTED": "Gemm",
    "BATCH_MATMUL": "MatMul",
    "MAX_POOL_2D": "MaxPool",
    "AVERAGE_POOL_2D": "AveragePool",
    "MEAN": "ReduceMean",
    "CONCATENATION": "Concat",
    "LOGISTIC": "Sigmoid",
    "RELU6": "Clip",
    "PADV2": "Pad",
    "QUANTIZE": "QuantizeLinear",
    "DEQUANTIZE": "DequantizeLinear",
}


@dataclass(frozen=True)
class BorderTensor:
    """An input or output. scale, zero: how its codes are read, None where they are numbers."""

    tensor: Tensor
    scale: float | None
    zero: int | None


@dataclass(frozen=True)
class Operator:
    """One operator of the main graph: its name in TFLite, its version, the tensor it makes, and what it computes."""

    code: str
    version: int
    output: str
    work: Work


@dataclass(frozen=True)
class TfliteModel:
    """A .tflite file. parameters: numbers in its constants."""

    content: bytes
    inputs: tuple[BorderTensor, ...]
    outputs: tuple[BorderTensor, ...]
    operators: tuple[Operator, ...]
    parameters: int


def is_tflite(path: Path) -> bool:
    """Whether the file calls itself one; its content is not looked at."""
    return path.suffix == SUFFIX


def read_tflite(path: Path) -> TfliteModel:
    """The model in a file.

    Raises BadInput: not a TFLite model, custom operators (named), shapes or types that no manifest holds;
    MissingExtra without ai-edge-litert; WorldFailed when the disk does not give it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    if content[4:8] != _IDENTIFIER:
        raise BadInput(f"{path}: must be a TFLite model, got a file of another format")
    try:
        return _parse(content, str(path))
    except EdgekitError:
        raise
    except Exception as err:  # a damaged flatbuffer makes its reader stumble anywhere
        raise BadInput(f"{path}: the TFLite model is damaged: {one_line(err)[:160]}") from err


def check_runs(path: Path) -> None:
    """Open and run the file once on zeros, in a process of its own: LiteRT aborts on some models that it takes.

    Raises BadInput with what LiteRT says of it, MissingExtra without ai-edge-litert.
    """
    importlib.import_module("edgekit.runtime.backends.litert")  # whether it is there
    code = "import sys; from edgekit.host.tflite_model import run_once; run_once(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise BadInput(f"{path}: LiteRT does not finish a run in {_PATIENCE_S} s") from err
    if done.returncode == BadInput.exit_code:
        raise BadInput(done.stderr.strip())
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise BadInput(f"{path}: LiteRT crashes on it (exit code {done.returncode}): {last[0][:200]}")


def run_once(file: str) -> None:
    """What check_runs starts: exit code 0, or 2 with the complaint on stderr."""
    try:
        open_interpreter(Path(file).read_bytes(), file).invoke()
    except BadInput as err:
        sys.exit(_complain(str(err)))
    except (RuntimeError, ValueError) as err:
        sys.exit(_complain(f"{file}: LiteRT cannot run it: {one_line(err)[:300]}"))


def _complain(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return BadInput.exit_code


def open_interpreter(content: bytes, where: str, *, reference: bool = False) -> Any:
    """LiteRT over the model. reference: with its plain kernels, which round as the specification says."""
    from edgekit.runtime.backends.litert import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    try:
        made = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
        made.allocate_tensors()
    except (RuntimeError, ValueError) as err:
        raise BadInput(f"{where}: LiteRT refuses it: {one_line(err)[:300]}") from err
    return made


def _parse(content: bytes, where: str) -> TfliteModel:
    from edgekit.host.lower.tflite.writer import schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if not model.subgraphs:
        raise BadInput(f"{where}: must be a TFLite model, got one without a graph")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    graph = model.subgraphs[0]
    tensors = [_Described(tensor, model.buffers[tensor.buffer]) for tensor in graph.tensors]
    operators = []
    for index, entry in enumerate(graph.operators or ()):
        code = model.operatorCodes[entry.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = names.get(number, f"operator {number}")
        made = [tensors[tensor] for tensor in entry.outputs]
        label = made[0].name if made else ""
        if name == "CUSTOM":
            custom = (code.customCode or b"").decode("utf-8", "replace")
            raise BadInput(
                f"{where}: node {label or index!r} is the custom operator {custom!r}, which no board has"
            )
        given = [tensors[tensor] for tensor in entry.inputs if tensor >= 0]
        operators.append(
            Operator(name, int(code.version), label or f"{name} {index}", _work(name, given, made))
        )
    inputs, outputs = (
        tuple(
            tensors[tensor].border(f"{where}: {side} {position}") for position, tensor in enumerate(numbers)
        )
        for side, numbers in (("input", graph.inputs), ("output", graph.outputs))
    )
    border = [entry.tensor.name for entry in (*inputs, *outputs)]
    if len(set(border)) != len(border) or not inputs or not outputs:
        raise BadInput(f"{where}: inputs and outputs must each have a name of their own, got {border}")
    parameters = sum(entry.count for entry in tensors if entry.stored)
    return TfliteModel(content, inputs, outputs, tuple(operators), parameters)


class _Described:
    """One tensor of the file, as far as it is looked at here."""

    def __init__(self, tensor: Any, buffer: Any) -> None:
        from edgekit.host.lower.tflite.writer import DTYPES as TYPES

        self.name = (tensor.name or b"").decode("utf-8", "replace")
        self.shape = tuple(max(1, int(size)) for size in (tensor.shape if tensor.shape is not None else ()))
        self.dtype = TYPES.get(tensor.type, f"type {tensor.type}")
        self.stored = 0 if buffer.data is None else len(buffer.data)
        self.quant = tensor.quantization

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        width = {"float32": 4, "int32": 4, "int64": 8, "float16": 2, "int16": 2}.get(self.dtype, 1)
        return self.stored or self.count * width

    def border(self, where: str) -> BorderTensor:
        if self.dtype not in DTYPES:
            raise BadInput(f"{where} must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if not self.name:
            raise BadInput(f"{where} must have a name, got none")
        scale = None if self.quant is None or self.quant.scale is None else self.quant.scale
        scale = None if scale is None or len(scale) != 1 else float(scale[0])
        zero = (
            None if scale is None else int(self.quant.zeroPoint[0]) if self.quant.zeroPoint is not None else 0
        )
        return BorderTensor(Tensor(self.name, self.dtype, self.shape), scale, zero)


def _work(code: str, given: Sequence[_Described], made: Sequence[_Described]) -> Work:
    out = made[0] if made else None
    constant = all(
        entry.stored for entry in given
    )  # a DEQUANTIZE of a weight: done once, when the file opens
    free = code in _VIEWS or constant
    codes = out is not None and (out.dtype in _INT8 or (bool(given) and given[0].dtype in _INT8))
    return Work(
        _ONNX_NAMES.get(code, "".join(word.capitalize() for word in code.split("_"))),
        "int8" if codes and not constant else "float32",
        0 if out is None else MACS.get(code, _none)(given, out),
        0 if free else sum(entry.bytes for entry in (*given, *made)),
        0 if free else 1,
    )


def _none(given: Sequence[_Described], out: _Described) -> int:
    del given, out
    return 0


def _conv(given: Sequence[_Described], out: _Described) -> int:
    return out.count * math.prod(given[1].shape[1:])


def _depthwise(given: Sequence[_Described], out: _Described) -> int:
    return out.count * math.prod(given[1].shape[1:3])


def _transpose_conv(given: Sequence[_Described], out: _Described) -> int:
    del out
    return given[2].count * math.prod(given[1].shape[:3])


def _dense(given: Sequence[_Described], out: _Described) -> int:
    return out.count * given[1].shape[-1]


def _matmul(given: Sequence[_Described], out: _Described) -> int:
    return out.count * given[0].shape[-1]


MACS: Mapping[str, Callable[[Sequence[_Described], _Described], int]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": _matmul,
}
