"""The sensor of a board that has none: always unknown, never 0."""

from __future__ import annotations

from pathlib import Path

from edgekit.runtime.command import CommandRunner
from edgekit.runtime.power.reading import Reading, no_selector


class NoSensor:
    """Answers every reading with the reason."""

    name = "none"

    def read(self) -> Reading:
        return Reading(why="this board has no power sensor")


def open_none(root: Path, run: CommandRunner, selector: str) -> NoSensor:
    """Factory of `none`."""
    no_selector("none", selector)
    return NoSensor()
