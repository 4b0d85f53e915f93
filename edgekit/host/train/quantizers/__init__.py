"""Quantizers for training: how values become few levels going forward, and what gradient comes back. One a file.

sign: activations. deterministic, per_filter, constant: weights, with what becomes of the real-valued ones after each
update and how they are stored. All count sign(0) as +1.
"""

from __future__ import annotations

from edgekit.host.train.quantizers.base import WeightQuantizer
from edgekit.host.train.quantizers.constant import Constant
from edgekit.host.train.quantizers.deterministic import Deterministic
from edgekit.host.train.quantizers.per_filter import PerFilter
from edgekit.host.train.quantizers.sign import Sign, sign

__all__ = ["Constant", "Deterministic", "PerFilter", "Sign", "WeightQuantizer", "sign"]
