"""The converter's own door to onnxruntime: a model opened quietly, on one thread. Production runs the Session."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.runtime.backends import Array
from edgekit.runtime.quiet_ort import LEFT_OUT, onnxruntime

_FATAL_ONLY = 4
_PROVIDERS = ["CPUExecutionProvider"]


class OpenModel(Protocol):
    """What is used of onnxruntime's InferenceSession."""

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]:
        """The named outputs (None: all) for one set of inputs."""


def open_model(content: bytes, *, optimize: bool = True) -> OpenModel:
    """A session over a model's bytes. Raises BadInput when onnxruntime refuses it."""
    options = _options()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session: OpenModel = _session(content, options)
    except Exception as err:  # onnxruntime's errors share no root but Exception
        raise refused(err) from err
    return session


class Profiled:
    """A session that notes every node's time. last_ms: what the last run took."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.last_ms = 0.0

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]:
        """See OpenModel."""
        start = time.perf_counter()
        outputs: list[Array] = self._session.run(names, inputs)
        self.last_ms = (time.perf_counter() - start) * 1e3
        return outputs

    def end(self) -> Path:
        """Stop; the file of events, in Chrome's trace format."""
        return Path(self._session.end_profiling())


def profiled_session(content: bytes, folder: Path) -> Profiled:
    """A session that writes its profile into `folder`. Raises BadInput when onnxruntime refuses the model."""
    options = _options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    try:
        return Profiled(_session(content, options))
    except Exception as err:  # onnxruntime's errors share no root but Exception
        raise refused(err) from err


def optimize_offline(content: bytes, target: Path) -> None:
    """Write the model to `target` after onnxruntime's basic, hardware-independent rewrites.

    Raises BadInput when onnxruntime refuses the model, WorldFailed when it cannot write the file.
    """
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    try:
        _session(content, options)
    except Exception as err:  # onnxruntime's errors share no root but Exception
        open_model(content)  # whose fault it was
        raise WorldFailed(f"{target}: could not be written: {one_line(err)[:200]}") from err


def refused(err: Exception) -> BadInput:
    """onnxruntime's complaint as one line of ours."""
    return BadInput(f"onnxruntime {onnxruntime.__version__} refuses the model: {one_line(err)[:300]}")


def _session(content: bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(
        content, options, providers=_PROVIDERS, disabled_optimizers=[*LEFT_OUT]
    )


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    return options
