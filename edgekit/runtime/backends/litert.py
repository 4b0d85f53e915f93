"""Run a stage's TFLite part with LiteRT (ai-edge-litert), the maintained successor of TensorFlow Lite's runtime."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import MissingExtra
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.backends._tflite import open_tflite

_REMEDY = "ai-edge-litert does not work here: pip install 'edgekit[litert]'"

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError as err:
    raise MissingExtra("ai-edge-litert is not installed: pip install 'edgekit[litert]'") from err


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a TFLite part. Raises BadBundle when LiteRT refuses it."""
    return open_tflite(Interpreter, "LiteRT", _REMEDY, data, part, inputs, outputs, options)
