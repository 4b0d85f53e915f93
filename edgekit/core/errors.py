"""The one root of edgekit's errors, with the exit code each kind means. Foreign errors are wrapped, never leaked."""

from __future__ import annotations

from unicodedata import category


class EdgekitError(Exception):
    """Root of every error edgekit raises on purpose. Its text is one line: what was wanted, what came, what to do."""

    exit_code = 2


class BadInput(EdgekitError):
    """What the user or a peer gave cannot be used: wrong file, wrong name, wrong shape, wrong option."""


class BadBundle(BadInput):
    """A bundle is damaged, hostile or of a format this version does not read."""


class MissingExtra(BadInput):
    """An optional dependency is not installed; the message names the pip command."""


class Refused(EdgekitError):
    """A trust rule said no. `reason` is one of the words in `core.trust.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WorldFailed(EdgekitError):
    """Network, broker or disk failed: the same call may succeed later."""

    exit_code = 3


def one_line(err: BaseException) -> str:
    """The error's text folded to one line, as `printable` has it; the class name where it has no text."""
    text = printable(" ".join(str(err).split()))
    return text or type(err).__name__


def printable(text: str) -> str:
    """A text that may hold what a peer gave, with escapes for what would steer a terminal, break a line or turn it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or category(c) == "Zs" else ascii(c)[1:-1] for c in text)
