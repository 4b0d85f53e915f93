"""Quantizers for training: how values become few levels going forward, and what gradient comes back. One a file.

sign, ternary: activations. deterministic, per_filter, constant: binary weights, with what becomes of the real-valued
ones after each update and how they are stored. dorefa, wrpn, twn, ttq, points: two to eight bits; no layer and no file
takes them yet. sign(0) is +1 everywhere.
"""

from __future__ import annotations

from edgekit.host.train.quantizers.base import WeightQuantizer
from edgekit.host.train.quantizers.constant import Constant
from edgekit.host.train.quantizers.deterministic import Deterministic
from edgekit.host.train.quantizers.per_filter import PerFilter
from edgekit.host.train.quantizers.sign import Sign, sign
from edgekit.host.train.quantizers.ternary import Ternary

__all__ = ["Constant", "Deterministic", "PerFilter", "Sign", "Ternary", "WeightQuantizer", "sign"]
