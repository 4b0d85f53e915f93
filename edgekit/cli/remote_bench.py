"""A `Bench` that is a board: candidates go to its agent as one signed round, and its reports come back."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.client import Client, Conflict
from edgekit.core import jobs
from edgekit.core.bench import BenchReport, parse_reports
from edgekit.core.bundle import Bundle
from edgekit.core.candidates import pack_candidates, unpack_candidates
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line

if TYPE_CHECKING:
    from edgekit.host.bench import Bench, Candidate
    from edgekit.repo.keys import PrivateKey
    from edgekit.repo.metadata import TargetsMetadata
    from edgekit.runtime.data import Data

LIFE_S = 900.0  # what a round may take, all in all
_SILENT_S = 90.0  # after that the server has ended the job itself
_ATTEMPTS = 5  # somebody else may publish between our reading and our writing
_POLL_S = 0.3

Say = Callable[[str], None]
_Next = Callable[["TargetsMetadata"], "TargetsMetadata"]


def say_on_stderr(line: str) -> None:
    """Progress for people; silent where stderr is no terminal."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


def remote_bench(
    client: Client,
    board: str,
    profile: str,
    key_path: Path,
    *,
    life_s: float = LIFE_S,
    say: Say = say_on_stderr,
) -> Bench:
    """Rounds for `board`, signed with the key for measuring; checked now, before hours of work end there.

    Raises BadInput where the board is another kind than `profile` or not willing, or this key may not sign;
    WorldFailed where the server cannot be reached. The bench raises BadInput where the board refuses a round,
    WorldFailed where it failed, or nothing came in time.
    """
    from edgekit.host.bench import as_bundle
    from edgekit.repo.keys import read_key

    key = read_key(key_path)
    _check_board(client, board, profile)
    _current(client, key, key_path)

    def bench(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        with tempfile.TemporaryDirectory(prefix="edgekit-round-") as scratch:
            file, folder = Path(scratch, "round.edge"), Path(scratch, "candidates")
            folder.mkdir()
            file.write_bytes(pack_candidates([as_bundle(entry, data, profile) for entry in candidates]))
            bundles = unpack_candidates(file, folder)
            say(f"{board}: measuring {len(bundles)} candidates ({file.stat().st_size / 1e6:.1f} MB)")
            try:
                label = _publish(client, board, file, bundles, key, key_path)
                job = _follow(client, client.measure(label, life_s), life_s + _SILENT_S)
            finally:
                with contextlib.suppress(
                    EdgekitError
                ):  # the next round takes it away, or its metadata expires
                    _withdraw(client, board, key, key_path)
        return _reports(job["devices"][board], board, bundles)

    return bench


def _check_board(client: Client, board: str, profile: str) -> None:
    found = client.device(board)
    if found["profile"] not in (None, profile):
        raise BadInput(
            f"--on {board} is a {found['profile']}, the model is converted for --profile {profile}"
        )
    if not found["online"]:
        raise BadInput(f"--on {board} must be online (edgekit fleet devices), it is not")
    if found.get("accepts_measure") is False:
        raise BadInput(
            f"--on {board} does not accept measuring: accepts_measure = true in its agent.toml, [limits]"
        )


def _current(client: Client, key: PrivateKey, key_path: Path) -> TargetsMetadata:
    """The measure metadata in force: ours to build on. Raises BadInput where another key signed it."""
    from edgekit.repo.metadata import is_signed_by, parse_targets

    current = parse_targets(client.measure_metadata(), f"{client.url}: measure metadata")
    if not is_signed_by(current, key):
        raise BadInput(f"{key_path} is not the key that signs what this server's boards measure")
    return current


def _publish(
    client: Client,
    board: str,
    file: Path,
    bundles: Sequence[Bundle],
    key: PrivateKey,
    key_path: Path,
) -> str:
    """Upload the round and put it in force; its label."""
    from edgekit.repo.add import measure
    from edgekit.repo.delegate import with_candidates

    label = ""

    def change(current: TargetsMetadata) -> TargetsMetadata:
        nonlocal label
        new, target = with_candidates(current, board, file, bundles, datetime.now(timezone.utc))
        label = target.label
        return new

    client.upload_bundle(file, measure(file)[1])
    _sign(client, change, key, key_path)
    return label


def _withdraw(client: Client, board: str, key: PrivateKey, key_path: Path) -> None:
    from edgekit.repo.delegate import without_candidates

    _sign(
        client,
        lambda current: without_candidates(current, board, datetime.now(timezone.utc)),
        key,
        key_path,
    )


def _sign(client: Client, change: _Next, key: PrivateKey, key_path: Path) -> None:
    from edgekit.repo.add import sign_targets

    for _ in range(_ATTEMPTS):
        new = change(_current(client, key, key_path))
        try:
            client.publish_rounds(sign_targets(deepcopy(new), key))
        except Conflict:
            continue
        return
    raise WorldFailed(f"others published at the same time, {_ATTEMPTS} times over: try again")


def _follow(client: Client, job: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """The job when its board has ended it. A short outage is waited out. Raises WorldFailed."""
    end = time.monotonic() + wait_s
    while True:
        if {row["state"] for row in job["devices"].values()} <= jobs.FINAL:
            return job
        if time.monotonic() >= end:
            raise WorldFailed(f"job {job['job_id']}: its board did not end it within {wait_s:.0f} s")
        time.sleep(_POLL_S)
        try:
            job = client.job(job["job_id"])
        except WorldFailed:
            if time.monotonic() >= end:
                raise


def _reports(row: dict[str, Any], board: str, bundles: Sequence[Bundle]) -> tuple[BenchReport, ...]:
    """What the board reported. Raises BadInput (refused), WorldFailed."""
    if row["state"] != jobs.MEASURED:
        why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
        kind = BadInput if row["state"] == "refused" else WorldFailed
        raise kind(f"--on {board}: measuring {row['state']}: {why or 'no reason given'}")
    try:
        reports = parse_reports(row["reports"], f"{board}: reports")
    except BadInput as err:
        raise WorldFailed(one_line(err)) from err
    if [report.content_id for report in reports] != [bundle.content_id for bundle in bundles]:
        raise WorldFailed(f"--on {board}: the board reported on other candidates than it was sent")
    return reports
