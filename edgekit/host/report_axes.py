"""A linear axis of a picture: where values stand, and which round ones get a grid line."""

from __future__ import annotations

import math

_GRID = (1, 2, 5)
_LINES = 6


class Scale:
    """From `low` to `high`, drawn from pixel `start` to pixel `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def at(self, value: float) -> float:
        """Where a value stands, in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def lines(self, most: int = _LINES) -> tuple[list[float], int]:
        """Round values for grid lines, about `most`, and the digits they need."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (*_GRID, 10) if power * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        count = int((self.high - first * step) / step + 1e-9) + 1
        return [(first + index) * step for index in range(count)], max(
            0, -math.floor(math.log10(step) + 1e-9)
        )
