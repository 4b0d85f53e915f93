"""Run a stage's TFLite part with LiteRT (ai-edge-litert), the maintained successor of TensorFlow Lite's runtime."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import MissingExtra
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.backends._tflite import check_works, open_tflite

__all__ = ["Interpreter", "OpResolverType", "open_part"]

_NEEDS = "backend litert needs: pip install 'edgekit[litert]'"

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError as err:
    raise MissingExtra(_NEEDS) from err
check_works(Interpreter, _NEEDS)


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a TFLite part. Raises BadBundle when LiteRT refuses it."""
    return open_tflite(Interpreter, "LiteRT", data, part, inputs, outputs, options)
