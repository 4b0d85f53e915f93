"""A full disk, a broker that is gone, a power cut: answers may be lost and are counted, and the board serves on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Site, make_site, until
from taking import png

from edgekit.agent.sinks import outlet
from edgekit.core.messages import ANSWER


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        (made.board.folder / "images").mkdir()
        for number in range(3):
            (made.board.folder / f"images/{number}.png").write_bytes(png(number))
        yield made


def serve(site: Site, **sink: object) -> None:
    site.board.write(source={"kind": "folder", "path": "images", "loop": True, "rate_hz": 200}, sink=sink)
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"


def more_requests(site: Site) -> None:
    before = site.server.requests()
    until(lambda: site.server.requests() > before + 20, "more answers")


def test_a_full_disk_stops_no_answer_and_the_file_goes_on_when_there_is_room(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(outlet.Outlet.__init__.__kwdefaults__, "held_bytes", 2000)
    monkeypatch.setattr(outlet, "MAX_DELAY_S", 0.1)
    path = site.board.folder / "answers.jsonl"
    path.symlink_to("/dev/full")
    serve(site, kind="file", path="answers.jsonl")
    until(lambda: site.server.events("sink-failing"), "the event")
    assert "No space left" in site.server.events("sink-failing")[0]["detail"]["why"]
    more_requests(site)
    path.unlink()
    until(lambda: site.server.events("sink-works"), "the recovery")
    more_requests(site)
    site.board.stop()
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(answers) > 20
    assert len(site.server.events("sink-failing")) == 1
    lost = sum(record["answers_lost"] for record in site.server.records())
    assert lost > 0
    assert len(answers) + lost == site.server.requests()


def test_a_broker_that_is_gone_stops_no_answer_and_what_comes_later_is_sent(site: Site) -> None:
    serve(site, kind="mqtt", qos=1)

    def answers() -> int:
        return sum(1 for kind, _ in list(site.server.heard) if kind == ANSWER)

    until(lambda: answers() > 5, "answers")
    agent = site.board.running[-1][0]
    site.broker.stop()
    until(lambda: not agent._uplink.connected.is_set(), "the loss")
    before = agent._requests
    until(lambda: agent._requests > before + 50, "answers that are counted meanwhile")
    site.broker.start()
    until(site.server.client.is_connected)
    heard = answers()
    until(lambda: answers() > heard + 20, "answers again")


def test_a_killed_agent_leaves_at_most_one_torn_line_and_the_next_one_cuts_it_off(site: Site) -> None:
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    site.board.stop()
    site.board.write(
        source={"kind": "folder", "path": "images", "loop": True, "rate_hz": None},
        sink={"kind": "file", "path": "answers.jsonl", "max_mb": 0.01, "keep": 3},
    )
    path = site.board.folder / "answers.jsonl"
    for _ in range(2):
        process = site.board.spawn()
        size = path.stat().st_size if path.exists() else 0
        until(lambda size=size: path.exists() and path.stat().st_size not in (0, size), "answers")
        process.kill()
        process.communicate()
    with path.open("a") as file:
        file.write('{"id": "to')
    process = site.board.spawn()
    until(lambda: (path.with_name("answers.jsonl.1")).exists() and path.exists())
    size = path.stat().st_size
    until(lambda: path.exists() and path.stat().st_size != size, "answers of the last agent")
    process.terminate()
    process.communicate()
    files = sorted(site.board.folder.glob("answers.jsonl*"))
    assert 2 <= len(files) <= 4
    for file_ in files:
        for line in file_.read_text().splitlines():
            assert json.loads(line)["bundle"] == "toy/1"
