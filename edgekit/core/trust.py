"""Decide whether a board may run a target. Pure rules: enforced by the agent, previewed by repo and fleet. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.core.errors import Refused
from edgekit.core.target import Target
from edgekit.core.wheel import older

# What a refusal can be called in job events. The first group is decided here, the second by the metadata client.
REASONS = {
    "revoked": "the target was revoked",
    "wrong-profile": "the target is not for this board's profile",
    "older": "the target is older than what runs, and is not allowed for rolling back",
    "changed-content": "the target has the running version's number but other content",
    "other-board": "the target is for another board to measure",
    "wrong-use": "the target is for another use",
    "wrong-python": "the environment is not for this board's Python",
    "wrong-machine": "the environment is not for this board's processor or system",
    "measure-not-accepted": "this board's config does not accept measuring",
    "code-not-accepted": "the bundle runs code of its own, and this board's config does not allow it",
    "unknown-target": "the signed metadata does not name this target",
    "unsigned": "the metadata is not signed by enough trusted keys",
    "rollback": "the metadata is older than what this board has seen",
    "expired": "the metadata has expired",
    "tampered": "the file is not the one that was signed",
    "bad-bundle": "the file is signed but is no bundle this agent reads",
    "bad-signature": "the command is not signed by the enrolled control key",
    "wrong-board": "the command is for another board",
    "replayed": "the command's number is not above the last one",
    "no-supervisor": "this agent runs under no supervisor, and cannot be updated from outside",
    "beyond-limits": "the command is outside this board's local limits",
}

# How long each role's metadata is signed for, in seconds; below a third of it an alarm is raised.
LIVES_S = {
    "root": 365 * 86_400.0,
    "targets": 365 * 86_400.0,
    "snapshot": 30 * 86_400.0,
    "timestamp": 14 * 86_400.0,
}


def near_expiry(role: str, expires: float, now: float) -> bool:
    """Whether less than a third of the role's life is left, or nothing (Unix seconds). Other roles: never."""
    return expires - now < LIVES_S.get(role, 0.0) / 3


@dataclass(frozen=True)
class Board:
    """What a board accepts: its profile and what its local config allows. name: None where it does not matter.

    python, machine, glibc: what an environment must be made for, such as "3.11", "aarch64", "2.36"; None: not known.
    """

    profile: str
    accepts_measure: bool = False
    accepts_code: bool = False
    name: str | None = None
    python: str | None = None
    machine: str | None = None
    glibc: str | None = None


@dataclass(frozen=True)
class Running:
    """The committed bundle of a board, or the environment its agent runs in."""

    name: str
    version: int
    content_id: str


@dataclass(frozen=True)
class Decision:
    """accept, or refuse with one of REASONS."""

    reason: str | None
    detail: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the target may run."""
        return self.reason is None

    def enforce(self) -> None:
        """Raise Refused unless accepted."""
        if self.reason is not None:
            raise refusal(self.reason, self.detail)


def refusal(reason: str, detail: str = "") -> Refused:
    """The error for one of REASONS."""
    sentence = REASONS[reason]
    return Refused(reason, f"{sentence} ({detail})" if detail else sentence)


def decide(target: Target, board: Board, running: Running | None, use: str = "run") -> Decision:
    """Accept or refuse a target whose signature already held.

    A board never goes to an older version of the bundle it runs unless the target's state is `allowed`; the same
    version must have the same content. Another name is another model and has its own versions. A target for measuring
    is called as the one board it is for.
    """
    if target.state == "revoked":
        return Decision("revoked", target.label)
    if board.profile not in target.profiles:
        return Decision(
            "wrong-profile", f"{target.label} is for {', '.join(target.profiles)}; here is {board.profile}"
        )
    if target.use != use:
        return Decision("wrong-use", target.label)
    if target.use == "measure" and not board.accepts_measure:
        return Decision("measure-not-accepted", target.label)
    if target.use == "measure" and board.name not in (None, target.name):
        return Decision("other-board", f"{target.label}; here is {board.name}")
    if target.use == "agent" and (unfit := _unfit(target, board)) is not None:
        return unfit
    if target.executes_code and not board.accepts_code:
        return Decision("code-not-accepted", target.label)
    if running is not None and running.name == target.name:
        if target.version < running.version and target.state != "allowed":
            return Decision("older", f"{target.label}; version {running.version} runs")
        if target.version == running.version and target.content_id != running.content_id:
            return Decision("changed-content", target.label)
    return Decision(None)


def _unfit(target: Target, board: Board) -> Decision | None:
    """Why an environment does not run on the board."""
    if board.python is not None and board.python not in target.pythons:
        return Decision(
            "wrong-python", f"{target.label} is for {_some(target.pythons)}; here is {board.python}"
        )
    if board.machine is not None and target.machines and board.machine not in target.machines:
        return Decision(
            "wrong-machine", f"{target.label} is for {_some(target.machines)}; here is {board.machine}"
        )
    if board.glibc is not None and target.glibc is not None and older(board.glibc, target.glibc):
        return Decision("wrong-machine", f"{target.label} needs glibc {target.glibc}; here is {board.glibc}")
    return None


def _some(words: tuple[str, ...]) -> str:
    return ", ".join(words) or "none"
