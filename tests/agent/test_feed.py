"""From the source to the runner and on to the sinks: bounds, counts, ends; and the agent as a part of a pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Site, until
from bundles import write_null_bundle
from taking import png, text

from edgekit.agent import config
from edgekit.agent.feed import MOST, Feed
from edgekit.agent.runner import Runner, Serving
from edgekit.agent.sinks import Sinks
from edgekit.agent.sources import Input, Taker
from edgekit.agent.sources.base import broken
from edgekit.core.bundle import Bundle
from edgekit.core.policy import PolicySpec
from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import open_session


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_null_bundle(tmp_path / "toy.edge")


class Listed:
    """A source of these inputs; `extra` is called before it ends."""

    def __init__(self, inputs: list[Input], extra: Callable[[Taker], object] = lambda take: None) -> None:
        self.inputs = inputs
        self.extra = extra
        self.taken = 0

    def run(self, take: Taker, stopped: threading.Event) -> int:
        for given in self.inputs:
            if not take(given):
                break
            self.taken += 1
        self.extra(take)
        return self.taken


def image(number: int, done: Callable[[], None] | None = None) -> Input:
    from edgekit.agent.sources.envelope import input_from_json

    made = input_from_json({"image": text(png(number % 256))}, str(number), files=False)
    return Input(made.id, made.read, done)


class Fed:
    """A feed, and what came of it."""

    def __init__(self, folder: Path, runner: Runner, source: Listed) -> None:
        self.path = folder / "answers.jsonl"
        self.ended: list[int] = []
        self.told: list[str] = []
        self.sinks = Sinks(
            (config.Sink("file", path=self.path),),
            lambda: None,  # type: ignore[arg-type,return-value]
            lambda: 5.0,
            lambda kind, _: self.told.append(kind),
        )
        self.feed = Feed(
            source, self.sinks, runner, ended=self.ended.append, tell=lambda kind, _: self.told.append(kind)
        )
        self.sinks.start()
        self.feed.start()

    def lines(self) -> list[dict[str, Any]]:
        self.feed.stop()
        self.feed.join(5.0)
        self.sinks.finish(5.0)
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def serve(runner: Runner, bundle: Bundle) -> None:
    session = open_session(bundle.manifest, bundle.read)
    policy = make_policy(PolicySpec(), bundle.manifest, None)
    runner.swap(Serving(session, bundle.label, policy, "full"))


def test_every_input_is_answered_in_order_and_its_source_is_told(
    tmp_path: Path, runner: Runner, bundle: Bundle
) -> None:
    serve(runner, bundle)
    done: list[int] = []
    inputs = [image(number, lambda number=number: done.append(number)) for number in range(50)]  # type: ignore[misc]
    fed = Fed(tmp_path, runner, Listed([*inputs, broken("b", "made up")]))
    until(lambda: fed.ended == [51], "the source's end")
    assert done == list(range(50))
    lines = fed.lines()
    assert [entry["id"] for entry in lines] == [*map(str, range(50)), "b"]
    assert (lines[-1]["error"], lines[-1]["bundle"], lines[-1]["time"]) == ("made up", "toy/1", 5.0)
    intervals = runner.collect()
    assert (sum(i.requests for i in intervals), sum(i.errors for i in intervals)) == (50, 1)


def test_only_few_inputs_are_held_however_many_the_source_has(
    tmp_path: Path, runner: Runner, bundle: Bundle
) -> None:
    source = Listed([image(number) for number in range(100)])
    fed = Fed(tmp_path, runner, source)
    until(lambda: source.taken == MOST)
    fed.feed.join(0.05)
    assert (source.taken, fed.ended) == (MOST, [])
    assert not fed.feed.serves
    serve(runner, bundle)
    assert fed.feed.serves
    until(lambda: fed.ended == [100])
    assert len(fed.lines()) == 100


def test_it_can_be_stopped_while_nothing_serves(tmp_path: Path, runner: Runner) -> None:
    source = Listed([image(number) for number in range(100)])
    fed = Fed(tmp_path, runner, source)
    until(lambda: source.taken == MOST)
    fed.feed.stop()
    fed.feed.join(5.0)
    assert not fed.feed.is_alive()
    assert fed.ended == []


def test_what_never_became_a_request_is_counted_once(tmp_path: Path, runner: Runner, bundle: Bundle) -> None:
    serve(runner, bundle)

    def extra(take: Taker) -> None:
        take.let_go(3)
        take.refuse("late", "busy: made up")

    fed = Fed(tmp_path, runner, Listed([image(1)], extra))
    until(lambda: fed.ended)
    assert fed.feed.take_counts() == (4, 0)
    assert fed.feed.take_counts() == (0, 0)
    assert {entry["id"]: entry.get("error") for entry in fed.lines()} == {"1": None, "late": "busy: made up"}


def test_a_source_with_a_defect_is_over_and_the_rest_goes_on(
    tmp_path: Path, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Taker) -> None:
        raise RuntimeError("made up")

    fed = Fed(tmp_path, runner, Listed([], fail))
    until(lambda: fed.ended == [0])
    assert "source met a defect" in caplog.text


def test_an_inputs_own_policy_decides_its_exit(tmp_path: Path, runner: Runner, bundle: Bundle) -> None:
    serve(runner, bundle)
    plain = image(1)
    own = Input(lambda: "own", plain.read, policy=PolicySpec("confidence", max_drop=100.0))
    fed = Fed(tmp_path, runner, Listed([plain, own]))
    until(lambda: fed.ended)
    assert [entry["exit"] for entry in fed.lines()] == ["exit3", "exit1"]


# --- the whole agent ---


@pytest.fixture
def installed(site: Site) -> Site:
    """A board that has toy/1 and is not running."""
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    site.board.stop()
    return site


def pipeline(site: Site, *options: str) -> subprocess.Popen[str]:
    code = "from edgekit.cli.main import main; main()"
    command = [sys.executable, "-c", code, "agent", "--config", str(site.board.config), *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    site.board.processes.append(process)
    return process


def test_in_a_pipeline_it_answers_every_line_and_ends_with_its_input(installed: Site) -> None:
    installed.board.write(source={"kind": "stdin", "exit_at_end": True}, sink={"kind": "stdout"})
    folder = installed.board.folder
    (folder / "a.png").write_bytes(png(10))
    lines = [str(folder / "a.png"), "{", json.dumps({"id": "x", "image": text(png(20)), "label": "one"})]
    out, err = pipeline(installed).communicate("\n".join(lines), timeout=60)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(entry["class"], "error" in entry) for entry in answers] == [(0, False), (None, True), (0, False)]
    assert [entry["id"] for entry in answers[1:]] == ["2", "x"]
    assert "served toy/1: 2 requests" in err
    assert installed.board.processes[-1].returncode == 0


def test_a_reader_that_goes_away_does_not_end_the_agent(installed: Site) -> None:
    installed.board.write(source={"kind": "stdin"}, sink={"kind": "stdout"})
    process = pipeline(installed)
    assert process.stdin is not None
    assert process.stdout is not None
    installed.server.heard.clear()
    line = json.dumps({"image": text(png(1))}) + "\n"
    process.stdin.write(line)
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["class"] == 0
    process.stdout.close()

    def over() -> bool:
        process.stdin.write(line)  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return bool(installed.server.events("sink-over"))

    until(over, "the sink's end")
    before = installed.server.requests()
    process.stdin.write(line * 10)
    process.stdin.close()
    until(lambda: installed.server.events("source-ended"), "the end of the input")
    until(lambda: installed.server.requests() >= before + 10, "the answers' being counted")
    assert process.poll() is None
    until(lambda: sum(record["answers_lost"] for record in installed.server.records()) >= 10, "their loss")


def test_answers_and_the_summary_do_not_share_standard_output(installed: Site) -> None:
    installed.board.write(sink={"kind": "stdout"})
    _, err = pipeline(installed, "--json").communicate(timeout=60)
    assert installed.board.processes[-1].returncode == 2, err
    assert "both want standard output: choose one" in err


def test_several_sinks_are_a_list(installed: Site) -> None:
    config_file = installed.board.config
    sinks = '[[sink]]\nkind = "file"\npath = "a.jsonl"\n[[sink]]\nkind = "file"\npath = "b.jsonl"\noutputs = true\n'
    installed.board.write(source={"kind": "stdin", "exit_at_end": True})
    config_file.write_text(config_file.read_text() + sinks)
    pipeline(installed).communicate(json.dumps({"id": "x", "image": text(png(1))}), timeout=60)
    a, b = (json.loads((installed.board.folder / name).read_text()) for name in ("a.jsonl", "b.jsonl"))
    assert {key: value for key, value in b.items() if key != "outputs"} == a
    assert list(b["outputs"]) == ["exit3"]
