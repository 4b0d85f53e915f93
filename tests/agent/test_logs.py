"""The agent's log: plain lines, JSON lines, journald's priorities; what nobody caught is there too."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Site, until

from edgekit.agent import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook
    yield
    root.handlers[:], root.level = handlers, level
    sys.excepthook, threading.excepthook = hooks


def written(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_record_is_one_json_object_a_line() -> None:
    stream, fields = io.StringIO(), {"device": "demo/pi5"}
    logs.set_up(stream, as_json=True, verbose=False, fields=fields)
    fields["boot_id"] = "b1"
    log = logging.getLogger("edgekit.agent.test")
    log.info("two\nlines %s", "é")
    with logs.about_job("job-1"):
        log.warning("inside")
    try:
        raise ValueError("a defect")
    except ValueError:
        log.exception("met one")
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    sys.excepthook(OSError, OSError("gone"), None)
    first, second, third, fourth, fifth = written(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "edgekit.agent.test",
        "message": "two\nlines é",
        "device": "demo/pi5",
        "boot_id": "b1",
    }
    assert (second["job_id"], "job_id" in third) == ("job-1", False)
    assert "ValueError: a defect" in third["exception"]
    assert (fourth["level"], fourth["message"]) == ("critical", "thread worker met a defect and is over")
    assert "ZeroDivisionError" in fourth["exception"]
    assert "OSError: gone" in fifth["exception"]


def test_plain_lines_are_the_default_and_libraries_only_warn() -> None:
    stream = io.StringIO()
    logs.set_up(stream, as_json=False, verbose=False, fields={})
    logging.getLogger("edgekit.agent.test").info("ready")
    logging.getLogger("edgekit.agent.test").debug("details")
    logging.getLogger("tuf").info("chatter")
    logging.getLogger("urllib3.connectionpool").warning("Connection pool is full")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(" INFO edgekit.agent.test: ready")


@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_peer_gave_steers_no_terminal_that_the_log_is_read_on(as_json: bool) -> None:
    stream = io.StringIO()
    logs.set_up(stream, as_json=as_json, verbose=False, fields={})
    try:
        raise ValueError("\x9b2J")
    except ValueError:
        logging.getLogger("edgekit.agent.test").exception("got %s", "\x1b[2J\u202e")
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))
    assert "u202e" in stream.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_for_the_journal_begin_with_their_priority(tmp_path: Path, as_json: bool) -> None:
    with (tmp_path / "log").open("w+") as stream:
        found = os.fstat(stream.fileno())
        for journal in (f"{found.st_dev}:{found.st_ino}", "1:2"):
            logs.set_up(stream, as_json=as_json, verbose=True, fields={}, journal=journal)
            log = logging.getLogger("edgekit.agent.test")
            log.error("first\nsecond")
            log.debug("third")
        stream.seek(0)
        lines = stream.read().splitlines()
    here, elsewhere = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert [line[:3] for line in here] == (["<3>", "<7>"] if as_json else ["<3>", "<3>", "<7>"])
    assert not any(line.startswith("<") for line in elsewhere)


def test_an_agent_told_to_logs_json_alone_with_its_names_and_no_secret(site: Site) -> None:
    site.board.write(log={"json": True})
    process = site.board.spawn()
    end = site.run(site.add(version=1), 1)
    assert end["state"] == "active"
    process.terminate()
    process.communicate(timeout=20)
    text = (site.board.folder / "agent.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    info = site.server.last("info")
    assert info is not None
    assert {line["device"] for line in lines} == {"demo/pi5"}
    assert info["boot_id"] in {line.get("boot_id") for line in lines}
    assert any(line.get("job_id") == end["job_id"] for line in lines)
    assert site.repository.TOKEN not in text


def test_what_ends_an_agent_is_a_json_line_too(site: Site) -> None:
    site.board.write(log={"json": True}, sensors={"power": "nuclear"})
    process = site.board.spawn()
    until(lambda: process.poll() is not None, "the end")
    (line,) = [json.loads(line) for line in (site.board.folder / "agent.log").read_text().splitlines()]
    assert (process.returncode, line["level"]) == (2, "critical")
    assert "unknown power sensor 'nuclear'" in line["message"]
