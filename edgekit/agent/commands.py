"""Commands that come in over MQTT: signed by the control key, for this board and new, or refused and reported."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edgekit.agent.config import Config
from edgekit.agent.control import load_control_key, open_desired, open_one_shot
from edgekit.agent.jobs import Verdict, job_of, job_of_shot, judge, judge_shot
from edgekit.agent.state import Job, StateFile
from edgekit.core import checks
from edgekit.core.errors import BadInput, Refused, one_line
from edgekit.core.messages import Desired, OneShot
from edgekit.core.trust import REASONS

log = logging.getLogger(__name__)
_MAX_REPORTS = (
    100  # per start: who floods the board with bad commands fills neither its disk nor the server's
)
UNKNOWN_JOB = "unknown"

Refusal = Callable[[str, str | None, str, str], None]
"""Reports a refused command: job_id, target, reason, detail."""


class Taker(Protocol):
    """What is needed of install.Worker."""

    def take(self, job: Job, n: int) -> None:
        """Remember an accepted command and work on it."""


class ShotTaker(Protocol):
    """What is needed of shots.Shots."""

    def take(self, job: Job) -> None:
        """Remember an accepted one-shot and work on it."""


class Commands:
    """Judges each command once; the same bytes again come to nothing."""

    def __init__(self, config: Config) -> None:
        """Raises BadInput where the control key is none."""
        self._address = config.address
        self._key = load_control_key(config.trust.control_key, f"{config.path}: trust.control_key")
        self._refused: set[bytes] = set()
        self._receiving = threading.Lock()  # what is new is decided once

    def attach(self, state: StateFile, worker: Taker, shots: ShotTaker, refuse: Refusal) -> None:
        """Where accepted and refused commands go."""
        self._state, self._worker, self._shots, self._refuse = state, worker, shots, refuse

    def receive(self, kind: str, payload: Mapping[str, Any]) -> None:
        """One decoded message, over MQTT or from a stick."""
        with self._receiving:
            self._judge(kind, payload)

    def _judge(self, kind: str, payload: Mapping[str, Any]) -> None:
        opened: Desired | OneShot
        try:
            opened = (open_desired if kind == "desired" else open_one_shot)(payload, self._key)
        except Refused as err:
            self._say(payload, err.reason, one_line(err))
            return
        except BadInput as err:  # signed, but by a server that knows more than this agent
            self._say(payload, "beyond-limits", one_line(err))
            return
        if isinstance(opened, Desired):
            verdict = judge(opened, self._address, self._state.current)
            self._obey(opened, verdict)
        else:
            verdict = judge_shot(opened, self._address, self._state.current)
            self._obey_shot(opened, verdict)
        if verdict.reason is not None:
            self._say(payload, verdict.reason, f"{REASONS[verdict.reason]} ({verdict.detail})")

    def _obey(self, desired: Desired, verdict: Verdict) -> None:
        if verdict.take:
            self._worker.take(job_of(desired), desired.n)
        elif verdict.seen:
            self._state.note(n=desired.n, rev=desired.rev)

    def _obey_shot(self, shot: OneShot, verdict: Verdict) -> None:
        if verdict.take:
            self._shots.take(job_of_shot(shot))
        elif verdict.seen:
            self._state.note(shot_n=shot.n)

    def _say(self, payload: Mapping[str, Any], reason: str, detail: str) -> None:
        """Report a refusal, once for the same command."""
        seen = hashlib.sha256(_form(payload)).digest()
        if seen in self._refused or len(self._refused) >= _MAX_REPORTS:
            return
        self._refused.add(seen)
        log.warning("command refused: %s", detail)
        self._refuse(_job_id(payload), _target(payload), reason, detail)


def _form(payload: Mapping[str, Any]) -> bytes:
    """A command that anybody may have sent, for comparison: it may hold what cannot be signed, or be no JSON again."""
    try:
        return json.dumps(payload, sort_keys=True).encode()
    except (ValueError, RecursionError):
        return b""


def _job_id(payload: Mapping[str, Any]) -> str:
    try:
        return checks.name(payload.get("job_id"), "job_id")
    except BadInput:
        return UNKNOWN_JOB


def _target(payload: Mapping[str, Any]) -> str | None:
    try:
        return checks.text(payload.get("target"), "target")
    except BadInput:
        return None
