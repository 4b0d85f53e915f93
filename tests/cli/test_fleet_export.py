"""`edgekit fleet export|events|bundles` against a real server whose store is filled."""

from __future__ import annotations

import csv
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from big_store import Size, fill
from servers import FleetServer, write_config

from edgekit.cli.fleet.export import moment
from edgekit.cli.main import run
from edgekit.core.errors import BadInput
from edgekit.core.exported import COLUMNS
from edgekit.core.schemas import OUTPUTS
from edgekit.fleet.store import open_store

jsonschema = pytest.importorskip("jsonschema")
LITTLE = Size(boards=40, hours=30, minute_boards=4, minutes=20, records=0, events=80, jobs=1)
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    config = write_config(tmp_path_factory.mktemp("fleet"), 1)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    store = open_store(config.database_url)
    fill(store, time.time(), LITTLE)
    store.close()
    server = FleetServer(config)
    yield server
    server.end()


@pytest.fixture
def fleet(
    server: FleetServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a verb of `edgekit fleet` in a folder of its own; what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0, url: str = "") -> Any:
        where = ["--server", url or server.url, "--token-file", str(server.config.token_file)]
        capsys.readouterr()
        assert run(["fleet", *arguments, *where]) == code
        out, err = capsys.readouterr()
        if code:
            assert err.count("\n") == 1
            return err
        if "--json" not in arguments:
            return out
        jsonschema.validate(json.loads(out), OUTPUTS[f"fleet {arguments[0]}"])
        return json.loads(out)

    return call


def test_the_three_kinds_of_file_hold_the_same_rows(fleet: Command) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for end in ("jsonl", "csv", "parquet"):
        found = fleet("export", "hours", "-o", f"hours.{end}", "--until", "2100-01-01", "--json")
        assert found["rows"] == LITTLE.boards * LITTLE.hours
    lines = [json.loads(line) for line in Path("hours.jsonl").read_text().splitlines()]
    with Path("hours.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    table = parquet.read_table("hours.parquet")
    assert table.column_names == list(COLUMNS["hours"])
    assert str(table.schema.field("at").type) == "timestamp[ms, tz=UTC]"
    assert len(lines) == len(cells) == table.num_rows
    for line, row, typed in zip(lines, cells, table.to_pylist(), strict=True):
        assert row["cursor"] == line["cursor"] == typed["cursor"]
        assert int(row["requests"]) == line["requests"] == typed["requests"]
        assert typed["at"].isoformat()[:19] == line["at"][:19]
        assert typed["latency_p99_ms"] == line["latency_p99_ms"] == float(row["latency_p99_ms"])


def test_an_export_of_some_boards_and_days_says_what_it_wrote(fleet: Command) -> None:
    said = fleet("export", "hours", "-o", "some.csv", "--since", "5h", "--to", "name=b00003")
    assert re.match(r"some\.csv: 5 rows of hours, 0\.0 MB, in \d", said)
    empty = fleet("export", "records", "-o", "none.parquet", "--json")
    assert empty["rows"] == 0
    assert pytest.importorskip("pyarrow.parquet").read_table("none.parquet").num_rows == 0
    events = fleet("export", "events", "-o", "events.csv", "--json")
    assert events["rows"] == LITTLE.events


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_a_connection_that_breaks_leaves_no_file_and_what_was_there_stays(
    fleet: Command, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"hours.{end}").write_text("old")
    row = json.dumps(dict.fromkeys(COLUMNS["hours"])).encode() + b"\n"
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            peer, _ = door.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                peer.sendall(b"%x\r\n%s\r\n" % (len(row), row))

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        assert "no answer from the fleet server" in fleet(
            "export", "hours", "-o", f"hours.{end}", code=3, url=url
        )
        thread.join()
    assert [path.name for path in Path().iterdir()] == [f"hours.{end}"]
    assert Path(f"hours.{end}").read_text() == "old"


def test_what_cannot_be_is_said_in_a_line(fleet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ".parquet, .csv or .jsonl" in fleet("export", "hours", "-o", "x.xls", code=2)
    assert "--since must be an age" in fleet("export", "hours", "-o", "x.csv", "--since", "soon", code=2)
    assert "--to must be" in fleet("export", "hours", "-o", "x.csv", "--to", "x", code=2)
    assert "since must be before" in fleet(
        "export", "hours", "-o", "x.csv", "--since", "1h", "--until", "2h", code=2
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'edgekit[export]'" in fleet("export", "hours", "-o", "x.parquet", code=2)
    assert list(Path().iterdir()) == []


def test_ages_and_dates_are_read_in_utc() -> None:
    assert moment("2h", 10_000, "--since") == 2_800
    assert moment("1.5m", 1_000, "--since") == 910
    assert moment("1970-01-02", 0, "--since") == 86_400
    assert moment("1970-01-01T01:00:00+01:00", 0, "--since") == 0
    with pytest.raises(BadInput, match="--until must be"):
        moment("7", 0, "--until")


def test_events_are_said_in_words_and_filtered(fleet: Command) -> None:
    found = fleet("events", "--kind", "rollback", "--limit", "1000", "--json")["events"]
    assert len(found) == len([n for n in range(LITTLE.events) if n % 3 == 0])
    assert {event["kind"] for event in found} == {"rollback"}
    of_one = fleet("events", "--device", found[0]["device"], "--json")["events"]
    assert {event["device"] for event in of_one} == {found[0]["device"]}
    lines = fleet("events", "--kind", "rollback", "--limit", "3").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        f"{event['device']}  {event['text']}" for event in reversed(found[:3])
    ]
    assert fleet("events", "--kind", "nothing") == "no such event\n"
    assert "no board called" in fleet("events", "--device", "nobody", code=2)


def test_bundles_are_told_with_their_boards_and_a_change_between_versions(fleet: Command) -> None:
    found = fleet("bundles", "--hours", "48", "--json")["bundles"]
    assert {row["bundle"] for row in found} >= {"toy/1", "toy/2", "other/7"}
    said = fleet("bundles", "toy", "--hours", "48")
    assert "toy/1" in said
    assert re.search(r"toy/1 -> toy/2 on \d+ boards: p99", said)
    assert "nothing" in fleet("bundles", "nothing", code=2)


def test_boards_are_filtered_sorted_and_counted(fleet: Command) -> None:
    found = fleet("devices", "--sort", "temperature_c", "--descending", "--limit", "3", "--json")
    assert [row["name"] for row in found["devices"]] == ["b00038", "b00037", "b00036"]
    assert found["total"] == LITTLE.boards
    assert "3 of 40 boards: --all shows all" in fleet("devices", "--limit", "3")
    one = fleet("devices", "--search", "0003", "--tag", "site-4")
    assert "b00003" in one
    assert one.splitlines()[-1] == "1 board"
    assert fleet("devices", "--profile", "nothing") == "no such board\n"
    assert "not both" in fleet("devices", "b00001", "--state", "online", code=2)
    assert len(fleet("devices", "--all", "--json")["devices"]) == LITTLE.boards


def test_status_jobs_and_one_board_are_told(fleet: Command) -> None:
    said = fleet("status", "--hours", "48")
    assert re.search(r"pynq-z2 +\d+ +8 ", said)
    assert re.search(r"toy/1 +\d+ +\d+ ", said)
    fleet("status", "--json")
    assert len(fleet("jobs", "--limit", "1", "--json")["jobs"]) == 1
    job = fleet("jobs", "job-1", "--state", "failed", "--json")["job"]
    assert {row["state"] for row in job["devices"].values()} <= {"failed"}
    assert "give the JOB" in fleet("jobs", "--state", "failed", code=2)
    board = fleet("devices", "b00006")
    assert "low on memory" in board
    assert "setting log.verbose = true" in board
    assert "idle power 1500 mW" in board
