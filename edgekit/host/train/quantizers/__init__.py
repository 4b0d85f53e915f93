"""Quantizers for training: how values become few levels going forward, and what gradient comes back. One a file.

sign, ternary, and in dorefa: activations. deterministic, per_filter, constant, twn, wrpn and dorefa: weights on
multiples of a scale, with what becomes of the real-valued ones after each update; the layers of quantized.py take any
of them, and a file holds their codes. ttq, points: weights at learned levels; no layer and no file takes them yet.
sign(0) is +1 everywhere.
"""

from __future__ import annotations

from edgekit.host.train.quantizers.base import WeightQuantizer
from edgekit.host.train.quantizers.constant import Constant
from edgekit.host.train.quantizers.deterministic import Deterministic
from edgekit.host.train.quantizers.per_filter import PerFilter
from edgekit.host.train.quantizers.sign import Sign, sign
from edgekit.host.train.quantizers.ternary import Ternary

__all__ = ["Constant", "Deterministic", "PerFilter", "Sign", "Ternary", "WeightQuantizer", "sign"]
