"""How much lower the quality of leaving early may really be than a few validation samples say."""

from __future__ import annotations

import math

_Z95 = 1.6448536269514722  # one-sided 95 %


def paired_low(gained: int, lost: int, count: int, z: float = _Z95) -> float:
    """Lower one-sided 95 % bound of (share gained - share lost), from paired counts.

    gained, lost: samples right only when leaving early, and right only with the full network; all others say nothing.
    The score bound of Tango (Statistics in Medicine 17, 1998, 891-908), Wilson's for paired differences: with nothing
    gained and nothing lost it is -z^2 / (count + z^2), about -2.7 samples.
    """
    if not count:
        return -1.0
    low, high = -1.0, (gained - lost) / count
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _score(gained, lost, count, middle) < z else (middle, high)
    return low


def _score(gained: int, lost: int, count: int, difference: float) -> float:
    """Standard deviations between what was seen and a true `difference`, under which the variance is estimated."""
    a = 2.0 * count
    b = -gained - lost + (2 * count - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * share_lost + difference * (1 - difference))
    off = gained - lost - count * difference
    return off / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, off) if off else 0.0
