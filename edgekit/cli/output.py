"""How commands speak: one JSON object or tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgekit.cli.screen import Console
from edgekit.core.errors import printable

_WIDE = 240  # columns of a table that goes into a file or a pipe: nothing there needs it folded


def _width() -> int | None:
    """None: the terminal's, or what COLUMNS says."""
    return None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDE


console = Console(highlight=False, soft_wrap=True, width=_width())


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, with `"v":1` first."""
    text = json.dumps({"v": 1, **value}, ensure_ascii=False)
    if text != printable(text):  # what a peer gave steers no terminal; JSON alone sees only to the ASCII half
        text = json.dumps({"v": 1, **value})
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def progress() -> Progress:
    """A progress display on stderr; silent where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def clock(at: float) -> str:
    """A time (Unix seconds) in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure for a table; unknown stays visible as such."""
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as percent for a table."""
    return "unknown" if value is None else f"{100 * value:.{digits}f} %"


def counted(count: int, what: str) -> str:
    """`1 board`, `2 boards`."""
    return f"{count} {what}" + ("" if count == 1 else "s")
