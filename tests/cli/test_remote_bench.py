"""A board as a bench: what is asked of the server, and what its answers come to. The whole way is in tests/e2e."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from bundles import null_bundle

from edgekit.cli import remote_bench as subject
from edgekit.cli.main import run
from edgekit.cli.remote_bench import remote_bench
from edgekit.client import Client, Conflict
from edgekit.core.bench import BenchReport
from edgekit.core.bundle import open_bundle
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed
from edgekit.core.report import Latency
from edgekit.host.bench import Bench
from edgekit.host.pack import Finished
from edgekit.repo.init import init
from edgekit.repo.metadata import measure_bytes, read_current
from edgekit.repo.publish import publish_measure
from edgekit.runtime.data import Data

DATA = Data("none", range(1), None, lambda index: {}, str)
MS = Latency(1.0, 1.0, 1.0, 1.0)


class Server(Client):
    """A server made of a repository's folder; its board ends every job as `answers` says, one after the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__("http://nowhere", "token")
        object.__setattr__(self, "folder", folder)
        object.__setattr__(self, "answers", [])
        object.__setattr__(self, "uploads", {})
        object.__setattr__(self, "conflicts", 0)
        object.__setattr__(self, "board", {"profile": "host", "online": True})

    def device(self, name: str, window_s: float | None = None) -> dict[str, Any]:
        return self.board

    def measure_metadata(self) -> bytes:
        return measure_bytes(self.folder)

    def upload_bundle(self, path: Path, sha256: str) -> None:
        kept = self.folder / f"{sha256}.edge"
        kept.write_bytes(path.read_bytes())
        self.uploads[sha256] = kept

    def publish_rounds(self, metadata: bytes) -> dict[str, Any]:
        if self.conflicts:
            object.__setattr__(self, "conflicts", self.conflicts - 1)
            raise Conflict("somebody else published meanwhile")
        publish_measure(self.folder, metadata, self.uploads, datetime.now(timezone.utc))
        return {}

    def measure(self, target: str, expires_s: float | None = None) -> dict[str, Any]:
        return self.job("job")

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        row = {"state": "pending", "reason": None, "detail": None, "reports": [], **answer}
        return {"job_id": "job", "devices": {"pi5": row}}

    folder: Path
    answers: list[Any]
    uploads: dict[str, Path]
    conflicts: int
    board: dict[str, Any]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(subject, "_POLL_S", 0.0)
    init(tmp_path / "repo", datetime.now(timezone.utc))
    return Server(tmp_path / "repo")


@pytest.fixture
def bench(server: Server) -> Bench:
    return remote_bench(server, "pi5", "host", server.folder / "keys/measure.pem")


@pytest.fixture
def candidate(tmp_path: Path) -> Callable[[int], Finished]:
    def make(version: int) -> Finished:
        path = tmp_path / f"{version}.edge"
        path.write_bytes(null_bundle(version=version))
        bundle = open_bundle(path)
        return Finished(
            bundle.manifest, {member.name: bundle.read(member.name) for member in bundle.manifest.files}
        )

    return make


def done(*made: Finished) -> dict[str, Any]:
    reports = [BenchReport(entry.content_id, exits=(MS,), turns_ms=(1.0,)).to_json() for entry in made]
    return {"state": "done", "reports": reports}


def rounds(server: Server) -> list[str]:
    measure = read_current(server.folder).measure
    assert measure is not None
    return list(measure.signed.targets)


def test_a_round_is_published_measured_and_withdrawn(
    server: Server, bench: Bench, candidate: Callable[[int], Finished]
) -> None:
    one, two = candidate(1), candidate(2)
    server.answers.extend([{}, {"state": "measuring"}, WorldFailed("a short outage"), done(one, two)])
    server_conflicts(server, 1)
    reports = bench([one, two], DATA)
    assert [report.content_id for report in reports] == [one.content_id, two.content_id]
    assert server.answers == []
    assert rounds(server) == []
    assert len(server.uploads) == 1


def server_conflicts(server: Server, count: int) -> None:
    """So many publications are refused because somebody was first."""
    object.__setattr__(server, "conflicts", count)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ({"state": "refused", "reason": "measure-not-accepted"}, BadInput, "refused: measure-not-accepted"),
        ({"state": "failed", "reason": "crash", "detail": "SIGKILL"}, WorldFailed, "failed: crash: SIGKILL"),
        ({"state": "expired", "reason": "silent"}, WorldFailed, "expired: silent"),
        ({"state": "done", "reports": [{}]}, WorldFailed, "content_id"),
        ({"state": "done", "reports": []}, WorldFailed, "other candidates than it was sent"),
        (WorldFailed("no answer"), WorldFailed, "no answer"),
        (Conflict("pi5 measures already"), Conflict, "measures already"),
    ],
)
def test_whatever_a_round_comes_to_it_is_withdrawn_and_its_end_said(
    server: Server,
    bench: Bench,
    candidate: Callable[[int], Finished],
    answer: Any,
    error: type[EdgekitError],
    says: str,
) -> None:
    server.answers.append(answer)
    with pytest.raises(error, match=says):
        bench([candidate(1)], DATA)
    assert rounds(server) == []


def test_reports_on_other_candidates_are_not_believed(
    server: Server, bench: Bench, candidate: Callable[[int], Finished]
) -> None:
    server.answers.append(done(candidate(2)))
    with pytest.raises(WorldFailed, match="other candidates than it was sent"):
        bench([candidate(1)], DATA)


def test_a_board_that_never_ends_the_job_is_not_waited_for_for_ever(
    server: Server, candidate: Callable[[int], Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_SILENT_S", -1.0)
    bench = remote_bench(server, "pi5", "host", server.folder / "keys/measure.pem", life_s=0.5)
    server.answers.append({"state": "downloading"})
    with pytest.raises(WorldFailed, match="did not end it within"):
        bench([candidate(1)], DATA)


def test_others_who_publish_all_the_time_are_given_up_on(
    server: Server, bench: Bench, candidate: Callable[[int], Finished]
) -> None:
    server_conflicts(server, 100)
    with pytest.raises(WorldFailed, match="others published at the same time"):
        bench([candidate(1)], DATA)


@pytest.mark.parametrize(
    ("board", "says"),
    [
        ({"profile": "raspberrypi5", "online": True}, "is a raspberrypi5, the model is converted for"),
        ({"profile": "host", "online": False}, "must be online"),
        ({"profile": "host", "online": True, "accepts_measure": False}, "accepts_measure = true"),
    ],
)
def test_a_board_that_cannot_measure_this_is_said_before_the_work(
    server: Server, board: dict[str, Any], says: str
) -> None:
    object.__setattr__(server, "board", board)
    with pytest.raises(BadInput, match=says):
        remote_bench(server, "pi5", "host", server.folder / "keys/measure.pem")


def test_another_key_is_refused_before_the_work(server: Server) -> None:
    with pytest.raises(BadInput, match="is not the key that signs what this server's boards measure"):
        remote_bench(server, "pi5", "host", server.folder / "keys/targets.pem")


def test_on_wants_a_server_and_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.onnx"
    model.touch()
    words = [
        "convert",
        str(model),
        "--profile",
        "host",
        "--calib",
        str(tmp_path),
        "-o",
        str(tmp_path / "o.edge"),
    ]
    assert run([*words, "--on", "pi5"]) == 2
    assert "--on DEVICE wants --server URL and --key FILE" in capsys.readouterr().err
