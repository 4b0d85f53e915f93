"""onnxruntime, imported so that it sends nothing anywhere. The one place that imports it; the rest takes it from here.

Its Linux wheels report events to the vendor's server unless ORT_DISABLE_TELEMETRY is set before the import; a board
that is nobody's business must not do that. Whoever wants it sets the variable to 0 himself.
"""

from __future__ import annotations

import os

from edgekit.core.errors import MissingExtra

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
except ImportError as err:
    raise MissingExtra("onnxruntime is not installed: pip install 'edgekit[ort]'") from err

# New releases (1.32, not 1.20) quantize float weights by themselves where a product stands between quantized tensors:
# a layer left in float would run in int8 on one board and in float on another. A name that it does not know is ignored.
LEFT_OUT = ("WeightBiasQuantization",)

__all__ = ["LEFT_OUT", "onnxruntime"]
