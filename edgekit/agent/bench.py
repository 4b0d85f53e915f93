"""Time a round's candidates side by side in a child process with limits. Serves none of them, and keeps nothing.

`python -m edgekit.agent.bench FOLDER` is the child: it prints one JSON line. `time_candidates` is the parent's side.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgekit.agent.child import ChildLimits, Ended, child_parser, confine, run_child
from edgekit.core.bench import BenchReport, parse_reports, reports_json
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import BadInput, EdgekitError, one_line
from edgekit.runtime import command
from edgekit.runtime.data import Data
from edgekit.runtime.energy import metered, per_unit
from edgekit.runtime.health import read_health
from edgekit.runtime.power import PowerSensor, open_sensor
from edgekit.runtime.session import Session

_TIMING_SHARE = 0.6  # of the time there is; the rest is for opening, golden cases and energy
_ENERGY_S = 1.25
_NO_SENSOR = "none"


class RoundFailed(EdgekitError):
    """The child came to nothing. `reason`: crash or timeout."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def time_candidates(
    folder: Path, limits: ChildLimits, sensor: str, sysroot: Path, check: Callable[[], None]
) -> tuple[BenchReport, ...]:
    """Reports on every `.edge` in `folder`, by name. Whatever `check` (called all the time) raises ends the child.

    Raises RoundFailed where the child crashed or its time was over, WorldFailed where it could not be started.
    """
    arguments = [str(folder.absolute()), "--sensor", sensor, "--sysroot", str(sysroot.absolute())]
    ended = run_child("edgekit.agent.bench", arguments, limits, check)
    if ended.code is None:
        raise RoundFailed("timeout", f"measuring took longer than {limits.timeout_s:g} s")
    return _reports(ended)


def _reports(ended: Ended) -> tuple[BenchReport, ...]:
    lines = ended.out.strip().splitlines()
    if ended.code != 0 or not lines:
        raise RoundFailed("crash", f"measuring {ended.how}")
    try:
        return parse_reports(json.loads(lines[-1])["reports"], "reports")
    except (ValueError, KeyError, TypeError, BadInput) as err:
        raise RoundFailed("crash", f"measuring gave no reports: {one_line(err)}") from err


# --- the child ---------------------------------------------------------------------------------------------------


def _child(arguments: list[str]) -> int:
    parser = child_parser("edgekit.agent.bench", "Time the bundles in a folder side by side.")
    parser.add_argument("--sensor", default=_NO_SENSOR)
    parser.add_argument("--sysroot", type=Path, default=Path("/"))
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.timeout * _TIMING_SHARE
    confine(options)
    reports = reports_json(_time(options, end))
    sys.stdout.write(json.dumps({"v": 1, "reports": reports}) + "\n")
    return 0


def _time(options: argparse.Namespace, end: float) -> tuple[BenchReport, ...]:
    from edgekit.runtime.interleave import exit_latencies, in_turns, stage_latencies, turn_medians

    run = command.runner(options.sysroot)
    slowed = [read_health(options.sysroot, run).throttled]
    bundles = [open_bundle(path) for path in sorted(options.path.glob("*.edge"))]
    reports = [BenchReport(bundle.content_id) for bundle in bundles]
    opened: dict[int, tuple[Session, Data]] = {}
    for index, bundle in enumerate(bundles):
        try:
            reports[index], opened[index] = _open(bundle, options, reports[index])
        except EdgekitError as err:
            reports[index] = replace(reports[index], problems=(one_line(err),))
    sessions, inputs = zip(*opened.values(), strict=True) if opened else ((), ())
    turns = in_turns(sessions, inputs, limit_s=max(0.0, end - time.monotonic()))
    sensor = open_sensor(options.sensor, options.sysroot, run)
    for (index, (session, data)), mine in zip(opened.items(), turns, strict=True):
        energy_mj, why = _energy(session, data, sensor, end)
        reports[index] = replace(
            reports[index],
            exits=exit_latencies(mine),
            stages=stage_latencies(mine),
            turns_ms=turn_medians(mine),
            requests=sum(map(len, mine)),
            energy_mj=energy_mj,
            energy_why=why,
        )
    slowed.append(read_health(options.sysroot, run).throttled)
    throttled = None if None in slowed else any(slowed)
    return tuple(replace(report, throttled=throttled) for report in reports)


def _open(
    bundle: Bundle, options: argparse.Namespace, report: BenchReport
) -> tuple[BenchReport, tuple[Session, Data]]:
    """A candidate ready to be timed. Raises EdgekitError where it cannot be, also for golden cases that are off."""
    from edgekit.runtime.backends import opener
    from edgekit.runtime.measure import check_golden, golden_data
    from edgekit.runtime.session import open_session

    for backend in {part.backend for stage in bundle.manifest.stages for part in stage.parts}:
        opener(backend)  # a runtime is no candidate's own memory
    data = golden_data(bundle.manifest, bundle.read)
    before = _resident_mb()
    session = open_session(
        bundle.manifest,
        bundle.read,
        threads=options.threads,
        accepts_code=options.accepts_code,
        providers=tuple(options.providers.split(",")),
    )
    session.run_all(data.inputs(0))
    after = _resident_mb()
    off = check_golden(session, bundle.manifest, bundle.read)
    if off:
        session.close()
        raise BadInput("; ".join(off)[:1000])
    memory = None if before is None or after is None else round(max(0.0, after - before), 2)
    return replace(report, memory_mb=memory, providers=session.providers), (session, data)


def _energy(session: Session, data: Data, sensor: PowerSensor, end: float) -> tuple[float | None, str | None]:
    """mJ of a request run to the end, or why it is unknown."""
    why = sensor.read().why
    if why is not None:
        return None, why
    if time.monotonic() + _ENERGY_S > end:
        return None, "no time was left to measure it"

    def work() -> int:
        until, row = time.monotonic() + _ENERGY_S, 0
        while time.monotonic() < until:
            for _ in session.stages(data.inputs(row % data.count)):
                pass
            row += 1
        return row

    requests, window = metered(sensor, work)
    energy = per_unit(window, requests)
    return energy.mj, energy.why


def _resident_mb() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
