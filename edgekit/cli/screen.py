"""A console for what boards and servers say: their texts are shown, and do nothing to the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import console as rich_console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from edgekit.core.errors import printable


class Console(rich_console.Console):
    """rich's, with escapes in place of control characters. Colours and the like come from rich alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's own."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(_lines(text), style)


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
