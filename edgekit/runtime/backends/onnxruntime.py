"""Run a stage's ONNX part with onnxruntime, its inputs and outputs bound once to the Session's buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from edgekit.core.errors import BadBundle, BadInput, one_line
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.quiet_ort import LEFT_OUT
from edgekit.runtime.quiet_ort import onnxruntime as ort

_FATAL_ONLY = 4
# Releases up to 1.20 at least lay weights into the arena, which never gives back what repacking them leaves unused: up
# to 2.3 times the weights stay taken.
_WEIGHTS_OUTSIDE_ARENA = ("session.use_device_allocator_for_initializers", "1")
_IDENTITY = bytes.fromhex(  # y = x, both float32 of shape (1,); opset 13
    "080712003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


class OrtRunner:
    """One InferenceSession and its I/O binding."""

    def __init__(self, session: Any, binding: Any, file: str) -> None:
        self.provider = str(session.get_providers()[0])
        self._run = _direct(session, binding)
        self._kept = session, binding
        self._file = file

    def run(self) -> None:
        """See backends.Runner."""
        try:
            self._run()
        except Exception as err:  # onnxruntime's errors share no root but Exception
            raise BadBundle(f"{self._file}: onnxruntime failed: {one_line(err)}") from err


def _direct(session: Any, binding: Any) -> Callable[[], None]:
    """The call behind onnxruntime's Python wrapper, with run options made once: 1.2 us when empty instead of 1.9.

    1.32's wrapper takes 26 us to look at options, so that they go with this call only.
    """
    try:
        return partial(session._sess.run_with_iobinding, binding._iobinding, ort.RunOptions())  # noqa: SLF001
    except AttributeError:  # a release that names them otherwise
        return partial(session.run_with_iobinding, binding)


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open an ONNX part. Raises BadBundle when onnxruntime refuses it, BadInput for an unavailable provider."""
    missing = [name for name in options.providers if name not in ort.get_available_providers()]
    if len(missing) == len(options.providers):
        available = ", ".join(ort.get_available_providers())
        raise BadInput(f"onnxruntime here has none of {', '.join(options.providers)}; it has {available}")
    settings = _settings(options.threads)
    providers = [name for name in options.providers if name not in missing]
    key = f"{part.backend} {part.sha256}"
    try:
        session = options.opened.get(key)
        if session is None:
            session = ort.InferenceSession(
                data, settings, providers=providers, disabled_optimizers=[*LEFT_OUT]
            )
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(part.in_file(name), "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(
                part.in_file(name), "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )
    except Exception as err:  # onnxruntime's errors share no root but Exception
        raise BadBundle(f"{part.file}: onnxruntime {ort.__version__} refuses it: {one_line(err)}") from err
    _check_shapes(part, session)
    options.opened[key] = session
    # kept to open the file a second time, which we never do: all weights twice
    vars(session).update(_model_bytes=None)
    return OrtRunner(session, binding, part.file)


def warm_up() -> None:
    """Open and run a network of nothing: what the runtime makes once in a process is made then."""
    session = ort.InferenceSession(_IDENTITY, _settings(1), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)})


def _settings(threads: int) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _FATAL_ONLY
    settings.add_session_config_entry(*_WEIGHTS_OUTSIDE_ARENA)
    return settings


def _check_shapes(part: Part, session: Any) -> None:
    """Bound buffers are written blindly: what the graph says must be what the manifest says."""
    for wanted, found in ((part.inputs, session.get_inputs()), (part.outputs, session.get_outputs())):
        shapes = {node.name: tuple(node.shape) for node in found}
        if shapes != {part.in_file(tensor.name): tensor.shape for tensor in wanted}:
            raise BadBundle(f"{part.file}: the graph's tensors are {shapes}, not those its manifest lists")
