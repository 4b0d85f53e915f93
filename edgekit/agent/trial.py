"""Try a bundle's golden cases in a child process with limits: what crashes, hangs or swallows memory does so there.

`python -m edgekit.agent.trial BUNDLE` is the child: it prints one JSON line. `try_out` is the parent's side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.agent.child import SHOWN, ChildLimits, Ended, child_parser, confine, run_child
from edgekit.core.bundle import open_bundle
from edgekit.core.errors import EdgekitError, MissingExtra, one_line


@dataclass(frozen=True)
class TrialResult:
    """reason: None when it passed; else golden, runtime (not installed), crash or timeout, and `detail` in words."""

    reason: str | None
    detail: str | None
    seconds: float


def try_out(bundle: Path, limits: ChildLimits, check: Callable[[], None]) -> TrialResult:
    """Run the child to its end or to its limits. Whatever `check` raises (called all the time) ends the child first."""
    ended = run_child("edgekit.agent.trial", [str(bundle)], limits, check)
    if ended.code is None:
        return TrialResult("timeout", f"the trial took longer than {limits.timeout_s:g} s", ended.seconds)
    return _result(ended)


def _result(ended: Ended) -> TrialResult:
    lines = ended.out.strip().splitlines()
    try:
        verdict = json.loads(lines[-1]) if lines else {}
    except ValueError:
        verdict = {}
    if ended.code == 0 and verdict.get("ok") is True:
        return TrialResult(None, None, ended.seconds)
    if ended.code == 0 and verdict.get("ok") is False:
        reason = "runtime" if verdict.get("runtime") is False else "golden"
        return TrialResult(reason, "; ".join(verdict.get("failures", []))[:SHOWN], ended.seconds)
    return TrialResult("crash", f"the trial {ended.how}", ended.seconds)


def _child(arguments: list[str]) -> int:
    options = child_parser("edgekit.agent.trial", "Try a bundle's golden cases.").parse_args(arguments)
    confine(options)
    runtime = True
    try:
        failures = _failures(options)
    except MissingExtra as err:
        runtime, failures = False, [one_line(err)]
    verdict = {"v": 1, "ok": not failures, "runtime": runtime, "failures": failures}
    sys.stdout.write(json.dumps(verdict) + "\n")
    return 0


def _failures(options: argparse.Namespace) -> list[str]:
    """One line for each. Raises MissingExtra where the board lacks the runtime."""
    from edgekit.runtime.measure import check_golden
    from edgekit.runtime.session import open_session

    try:
        bundle = open_bundle(options.path)
        session = open_session(
            bundle.manifest,
            bundle.read,
            threads=options.threads,
            accepts_code=options.accepts_code,
            providers=tuple(options.providers.split(",")),
        )
        return list(check_golden(session, bundle.manifest, bundle.read))
    except MissingExtra:
        raise
    except EdgekitError as err:
        return [one_line(err)]


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
