"""What a source is: it hands inputs over, waits for room, and counts what it lets go. Knows no runner and no sink."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from edgekit.agent.runner import Sample
from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest
from edgekit.core.policy import PolicySpec
from edgekit.runtime.data import load_data

MAX_ID = 128  # characters


@dataclass(frozen=True)
class Input:
    """One input on its way to an answer.

    id: asked once the input was read, or could not be. read: see Request; raising BadInput is how an input is broken.
    done: called when it was answered or found broken. policy: this input's own. arrived_s: when it came
    (time.monotonic), where somebody waits for its answer: the time it waited counts.
    """

    id: Callable[[], str]
    read: Callable[[Manifest], Sample]
    done: Callable[[], None] | None = None
    policy: PolicySpec | None = None
    arrived_s: float | None = None


class Taker(Protocol):
    """Takes what a source brings."""

    def __call__(self, given: Input, /) -> bool:
        """Take an input, waiting for room; False: the agent is stopping."""

    def refuse(self, name: str | None, why: str) -> None:
        """An input that is not taken: its sender hears why. name: its id, where one is known. Never waits."""

    def let_go(self, count: int) -> None:
        """So many inputs are dropped unread and unanswered. Never waits."""

    @property
    def serves(self) -> bool:
        """Whether a bundle is there to answer."""

    def tell(self, kind: str, detail: dict[str, Any]) -> None:
        """Something an operator should know, see messages.Event."""


class Source(Protocol):
    """Brings inputs until it has no more or `stopped` is set; then none of its threads is left.

    A broken input is handed over like any other: its `read` raises, and it is counted and answered with its error.
    A source that is fed by messages has a method `receive` besides, see mqtt.py.
    """

    def run(self, take: Taker, stopped: threading.Event) -> int:
        """Returns how many inputs were handed over."""


def broken(name: str, why: str) -> Input:
    """An input of which no more is known than what is wrong with it."""

    def read(_: Manifest) -> NoReturn:
        raise BadInput(why)

    return Input(lambda: name, read)


def read_file(path: Path, manifest: Manifest) -> Sample:
    """The one sample in a file: an image, or an .npz of one. Raises BadInput."""
    data = load_data(path, manifest.inputs, manifest.labels)
    if data.count != 1:
        raise BadInput(f"{path}: must hold one sample, got {data.count}")
    return data.inputs(0), None if data.labels is None else int(data.labels[0])
