"""A trained module as an ONNX model that tells `edgekit convert` about itself. No wrong export leaves this module.

PyTorch's exporter by tracing writes the file: it needs no further package from PyTorch 2.6 to 2.13 and folds a batch
norm into the convolution before it. What tracing cannot see (a way through the network that depends on the data) is
found by comparing both on random inputs.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.manifest import Input
from edgekit.host.load import EXITS, INPUT, LABELS
from edgekit.host.ort import OpenModel, open_model
from edgekit.host.train.outputs import Outputs, outputs_of

OPSET, IR_VERSION = 17, 8
TOLERANCE = 1e-4  # of the largest number at an exit, where that is above 1
_COMPARED = 8  # random inputs
_WRAPPER = "/module/"  # how names begin that come from inside _Flat


def exit_names(count: int) -> tuple[str, ...]:
    """exit1, exit2, ...; the only exit is called final, as in a file without exits."""
    return tuple(f"exit{place + 1}" for place in range(count)) if count > 1 else ("final",)


def to_onnx(
    module: nn.Module,
    image: Input,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    samples: NDArray[Any] | None = None,
    tolerance: float = TOLERANCE,
) -> bytes:
    """The module, in evaluation mode, as an ONNX file for one sample: opset 17, batch norms folded, our metadata in it.

    module: takes [N, ...] and gives Outputs or logits per exit (host/train/outputs.py). image: its input, with batch 1;
    names: of the exits, their outputs are called the same; a confidence the module computes becomes the output
    `EXIT/confidence` of shape [1]. samples: further inputs [N, ...] to compare on, besides random ones. Raises BadInput
    where the module cannot be exported, or the file, run in onnxruntime, gives other answers than the module to
    `tolerance` of the largest: wider than 1e-4 where activations are rounded, and the last bit decides about a step.
    """
    return export(module, image, labels, names, _inputs(image, samples), tolerance=tolerance)


def export(
    module: nn.Module,
    image: Input,
    labels: Sequence[str] | None,
    names: Sequence[str] | None,
    compared: Sequence[NDArray[Any]],
    rewrite: Callable[[onnx.ModelProto], None] = lambda proto: None,
    runnable: Callable[[bytes], bytes] = lambda content: content,
    *,
    fused: bool = True,
    tolerance: float = TOLERANCE,
) -> bytes:
    """The file that to_onnx and to_qonnx make, checked on `compared`: inputs of the whole shape. Integers are cast.

    rewrite: changes what was traced before it is described; runnable: the file as onnxruntime can run it. fused: it may
    compute several nodes as one, which rounds otherwise; not where a sign may hang on the last bit.
    """
    training = module.training
    module.eval()
    flat = _Flat(module)
    try:
        with torch.no_grad():
            each = [outputs_of(module(flat.input(torch.from_numpy(one)))) for one in compared]
        called = tuple(names or exit_names(len(each[0].logits)))
        if len(called) != len(each[0].logits):
            raise BadInput(f"export: the network has {len(each[0].logits)} exits, got {len(called)} names")
        wanted = [_named(one, called) for one in each]
        proto = _traced(flat, torch.from_numpy(compared[0]), image.tensor.name, list(wanted[0]))
        rewrite(proto)
        _describe(proto, image, labels, called, wanted[0])
        content: bytes = proto.SerializeToString(deterministic=True)
        compare(open_model(runnable(content), optimize=fused), image.tensor.name, compared, wanted, tolerance)
    finally:
        module.train(training)
    return content


def _inputs(image: Input, samples: NDArray[Any] | None) -> list[NDArray[Any]]:
    """Single inputs of the whole shape, normal numbers first."""
    shape, dtype = image.tensor.shape, np.dtype(image.tensor.dtype)
    if shape[0] != 1 or dtype != np.float32:
        raise BadInput(f"to_onnx: wants an input of float32 with batch 1, got {dtype} {list(shape)}")
    random = np.random.default_rng(0)
    found = list(random.standard_normal((_COMPARED, *shape)).astype(dtype))
    found += [] if samples is None else list(np.ascontiguousarray(samples, dtype).reshape(-1, *shape))
    return found


def _named(made: Outputs, names: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor of the file by name: the logits in order, then the confidences."""
    found = dict(zip(names, made.logits, strict=True))
    if made.confidences:
        found.update((f"{name}/confidence", made.confidences[place]) for place, name in enumerate(names))
    return {name: value.float() for name, value in found.items()}


class _Floats(nn.Module):
    """A cast by this name: modules take floats, a file may take pixels."""

    def forward(self, value: Tensor) -> Tensor:
        return value if value.dtype == torch.float32 else value.float()


class _Flat(nn.Module):
    """The module with a plain tuple of tensors as its answer, as tracing wants it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.input = _Floats()

    def forward(self, value: Tensor) -> tuple[Tensor, ...]:
        made = outputs_of(self.module(self.input(value)))
        return tuple(self.input(each) for each in (*made.logits, *made.confidences))


def _traced(flat: _Flat, example: Tensor, name: str, outputs: list[str]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # tracing still works everywhere
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # the comparison says it better
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # convert folds anyway
        path = Path(folder) / "module.onnx"
        options: dict[str, Any] = {"input_names": [name], "output_names": outputs, "opset_version": OPSET}
        try:
            torch.onnx.export(flat.eval(), (example,), str(path), dynamo=False, **options)
            return onnx.load_model(path)
        except OSError as err:
            raise WorldFailed(f"to_onnx: {folder}: {err.strerror or err}") from err
        except Exception as err:  # PyTorch's exporter raises anything
            raise BadInput(f"to_onnx: the module cannot be exported: {one_line(err)[:200]}") from err


def _describe(
    proto: onnx.ModelProto,
    image: Input,
    labels: Sequence[str] | None,
    names: Sequence[str],
    made: Mapping[str, Tensor],
) -> None:
    """Our metadata, and names without the wrapper that was traced."""
    exits = [{"name": name, "output": name} for name in names]
    for entry in exits:
        if f"{entry['name']}/confidence" in made:
            entry["confidence"] = f"{entry['name']}/confidence"
    told: dict[str, Any] = {EXITS: exits, INPUT: image.to_json()}
    if image.preprocess is None:
        del told[INPUT]["preprocess"]
    if labels is not None:
        told[LABELS] = list(labels)
    for node in proto.graph.node:
        node.name, node.doc_string = _bare(node.name), ""
        for side in (node.input, node.output):
            side[:] = [_bare(value) for value in side]
    for info in proto.graph.value_info:
        info.name = _bare(info.name)
    for weight in proto.graph.initializer:
        weight.name = _bare(weight.name)
    proto.ir_version = IR_VERSION
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in told.items()})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise BadInput(f"to_onnx: the exported file is no valid model: {one_line(err)[:200]}") from err


def _bare(name: str) -> str:
    return "/" + name.removeprefix(_WRAPPER) if name.startswith(_WRAPPER) else name


def compare(
    session: OpenModel,
    name: str,
    inputs: Sequence[NDArray[Any]],
    wanted: Sequence[Mapping[str, Tensor]],
    tolerance: float,
) -> None:
    """Raises BadInput where the file's answers to any input are further off than `tolerance` of the largest."""
    for one, answers in zip(inputs, wanted, strict=True):
        made = session.run(list(answers), {name: one})
        for (output, answer), got in zip(answers.items(), made, strict=True):
            right = answer.numpy()
            scale = max(1.0, float(np.abs(right).max()))
            far = float(np.abs(right - got).max()) / scale if right.shape == got.shape else np.inf
            if not far <= tolerance:
                raise BadInput(
                    f"to_onnx: the file must give the module's {output} to {tolerance:g}, got {far:.1e} off: "
                    "the module's way must not depend on the data"
                )
