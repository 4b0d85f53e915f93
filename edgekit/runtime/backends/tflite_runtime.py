"""Run a stage's TFLite part with tflite-runtime, where LiteRT has no wheel: Python 3.11 at most, numpy below 2.

It does not verify a file before it reads it; the hashes in the manifest must have been checked.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import MissingExtra
from edgekit.core.manifest import Part
from edgekit.runtime.backends import Array, Options, Runner
from edgekit.runtime.backends._tflite import check_works, open_tflite

_NEEDS = "backend tflite-runtime needs: pip install tflite-runtime 'numpy<2' (Python 3.11 at most)"

try:
    from tflite_runtime.interpreter import Interpreter
except (ImportError, AttributeError) as err:  # AttributeError: a numpy that it does not know
    raise MissingExtra(_NEEDS) from err
check_works(Interpreter, _NEEDS)  # it imports under numpy 2, and then opens no model


def open_part(
    data: bytes, part: Part, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Options
) -> Runner:
    """Open a TFLite part. Raises BadBundle when tflite-runtime refuses it."""
    return open_tflite(Interpreter, "tflite-runtime", data, part, inputs, outputs, options)
