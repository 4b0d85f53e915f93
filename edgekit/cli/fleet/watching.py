"""`--watch`: a verb's answer again and again, on a terminal in place of the one before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from edgekit.cli.output import console, print_json
from edgekit.core.errors import WorldFailed, one_line

Answer = tuple[Mapping[str, Any], Sequence[RenderableType]]
"""The object for --json, and what people see."""

watch_option = click.option(
    "--watch",
    "watch",
    type=click.FloatRange(min=0.2),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Ask again every so many seconds (2) until Ctrl-C; with --json one object a line.",
)


def show(
    ask: Callable[[], Answer],
    watch: float | None,
    *,
    as_json: bool,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Print what `ask` gives; every `watch` seconds until Ctrl-C where asked for.

    A server that answered once and then is away is said to be, and asked again. Raises what `ask` does.
    """
    answer = ask()
    if watch is None:
        _print(answer, as_json)
        return
    with contextlib.suppress(KeyboardInterrupt), _screen(as_json) as live:
        while True:
            if live is None:
                _print(answer, as_json)
            else:
                live.update(Group(*answer[1]), refresh=True)
            answer = _next(ask, answer, live, watch, wait)


def _next(
    ask: Callable[[], Answer], last: Answer, live: Live | None, watch: float, wait: Callable[[float], None]
) -> Answer:
    """The next answer there is; until then the last one stays, with a line about why."""
    while True:
        wait(watch)
        try:
            return ask()
        except WorldFailed as err:
            line = f"{time.strftime('%H:%M:%S')} {one_line(err)}; asking again every {watch:g} s"
            if live is None:
                Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
            else:
                live.update(Group(*last[1], Text(line, "red")), refresh=True)


def _print(answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json(answer[0])
        return
    for part in answer[1]:
        console.print(part, soft_wrap=isinstance(part, (str, Text)))


def _screen(as_json: bool) -> contextlib.AbstractContextManager[Live | None]:
    if as_json or not console.is_terminal:
        return contextlib.nullcontext()
    return Live(console=console, auto_refresh=False, vertical_overflow="crop")
