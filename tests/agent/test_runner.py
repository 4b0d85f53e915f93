from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import until
from bundles import SHAPE, write_null_bundle

from edgekit.agent.runner import Interval, NothingServes, Request, Runner, Serving
from edgekit.agent.serving import Server
from edgekit.core.errors import BadInput, EdgekitError
from edgekit.core.manifest import Manifest
from edgekit.core.policy import PolicySpec, parse_budget
from edgekit.runtime import command
from edgekit.runtime.policy import BudgetPolicy, make_policy
from edgekit.runtime.power import open_sensor
from edgekit.runtime.session import Answer, open_session

FULL = PolicySpec()


def inputs(winner: int = 0) -> dict[str, Any]:
    x = np.zeros(SHAPE, np.float32)
    x.flat[winner] = 1.0
    return {"x": x}


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., Serving]:
    def make(version: int = 1, **options: Any) -> Serving:
        bundle = write_null_bundle(tmp_path / f"{version}.edge", version=version, **options)
        session = open_session(bundle.manifest, bundle.read)
        return Serving(session, bundle.label, make_policy(FULL, bundle.manifest, None), "full")

    return make


def answers(runner: Runner, count: int, label: int | None = None) -> list[Answer | EdgekitError]:
    found: list[Answer | EdgekitError] = []
    for _ in range(count):
        assert runner.submit(Request(lambda manifest: (inputs(), label), found.append), 5.0)
    until(lambda: len(found) == count, "the answers")
    return found


def total(intervals: list[Interval]) -> tuple[int, int]:
    return sum(i.requests for i in intervals), sum(i.errors for i in intervals)


def test_a_request_is_answered_and_counted(runner: Runner, serving: Callable[..., Serving]) -> None:
    runner.swap(serving())
    answer = answers(runner, 3)[0]
    assert isinstance(answer, Answer)
    assert (answer.exit, answer.label) == ("exit3", 0)
    interval = runner.collect()[-1]
    assert (interval.bundle, interval.policy, interval.requests) == ("toy/1", "full", 3)
    assert interval.exit_counts == {"exit1": 0, "exit2": 0, "exit3": 3}
    assert interval.latency.count == 3
    assert 0 < interval.latency.sum_ms / 1e3 <= interval.busy_s
    assert runner.collect()[0].requests == 0


def test_labels_are_compared_after_the_answer_and_unlabelled_requests_do_not_count_as_wrong(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving())
    answers(runner, 2, label=0)
    answers(runner, 1, label=2)
    answers(runner, 4)
    interval = runner.collect()[-1]
    assert (interval.labelled, interval.correct, interval.requests) == (3, 2, 7)


def test_the_queue_is_bounded_and_a_full_one_makes_the_source_wait() -> None:
    runner = Runner(capacity=2)
    runner.start()
    request = Request(lambda manifest: (inputs(), None))
    assert runner.submit(request, 1.0)
    assert runner.submit(request, 1.0)
    assert not runner.submit(request, 0.05), "nothing serves: the third has no room"
    runner.stop(5.0)
    assert not runner.submit(request, 1.0), "a stopped runner takes nothing"


def test_switches_drop_no_request_and_every_one_is_counted_once(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    wanted, got = 400, []
    versions: list[str] = []

    def read(manifest: Manifest) -> Any:
        versions.append(str(manifest.version))
        return inputs(), None

    def feed() -> None:
        for _ in range(wanted):
            assert runner.submit(Request(read, got.append), 10.0)

    runner.swap(serving(1))
    feeder = threading.Thread(target=feed)
    feeder.start()
    for version in range(2, 8):
        reached = len(got) + 40
        until(lambda least=reached: len(got) >= min(least, wanted))  # type: ignore[misc]
        runner.swap(serving(version))
    feeder.join()
    until(lambda: len(got) == wanted, "all answers")
    assert all(isinstance(answer, Answer) for answer in got)
    assert versions == sorted(versions)
    intervals = runner.collect()
    assert total(intervals) == (wanted, 0)
    assert [i.bundle for i in intervals] == [None, *(f"toy/{v}" for v in range(1, 8))]


def test_requests_wait_until_something_serves(runner: Runner, serving: Callable[..., Serving]) -> None:
    got: list[Answer | EdgekitError] = []
    assert runner.submit(Request(lambda manifest: (inputs(), None), got.append), 1.0)
    runner.swap(None)
    assert got == []
    runner.swap(serving())
    until(lambda: len(got) == 1)


def test_a_request_that_fails_is_counted_and_the_next_one_is_answered(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving())
    got: list[Answer | EdgekitError] = []

    def unreadable(manifest: Manifest) -> Any:
        raise BadInput("image.png: not an image")

    def defect(manifest: Manifest) -> Any:
        raise KeyError("x")

    for read in (unreadable, defect, lambda manifest: ({"x": np.zeros(3)}, None)):
        assert runner.submit(Request(read, got.append), 1.0)
    until(lambda: len(got) == 3)
    assert all(isinstance(entry, BadInput) for entry in got)
    answers(runner, 1)
    assert total(runner.collect()) == (1, 3)


def test_another_policy_closes_the_interval_so_that_each_record_has_one(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    first = serving()
    runner.swap(first)
    answers(runner, 2)
    cheapest = PolicySpec("budget", parse_budget("25%"))
    runner.set_policy(make_policy(cheapest, first.session.manifest, None), str(cheapest))
    answers(runner, 5)
    assert [(i.policy, i.requests, dict(i.exit_counts)) for i in runner.collect()[1:]] == [
        ("full", 2, {"exit1": 0, "exit2": 0, "exit3": 2}),
        ("budget 25%", 5, {"exit1": 5, "exit2": 0, "exit3": 0}),
    ]


def test_stopping_answers_what_was_queued_when_drained_first(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving(delay_ms=1))
    got: list[Answer | EdgekitError] = []
    for _ in range(20):
        assert runner.submit(Request(lambda manifest: (inputs(), None), got.append), 1.0)
    assert runner.drain(5.0)
    runner.stop(5.0)
    assert len(got) == 20


# --- the server: which policy is in force ---


@pytest.fixture
def server(runner: Runner, tmp_path: Path) -> Server:
    sensor = open_sensor("none", tmp_path, command.runner(tmp_path))
    made = Server(runner, FULL, 0.5, 1, ("CPUExecutionProvider",), accepts_code=False, sensor=sensor)
    bundle = write_null_bundle(tmp_path / "served.edge")
    made.serve(made.open(bundle), FULL)
    return made


def policy_of(server: Server) -> str:
    return str(server.in_force.policy)


def test_throttling_tightens_the_policy_and_its_end_brings_the_wanted_one_back(
    server: Server, runner: Runner
) -> None:
    server.want(PolicySpec("budget", parse_budget("80%")))
    server.throttle(throttled=True)
    assert policy_of(server) == "budget 40%"
    assert server.in_force.why == "throttled: costs cut to 0.5 of budget 80%"
    answers(runner, 64)
    assert runner.collect()[-1].exit_counts.get("exit3", 0) == 0
    server.throttle(throttled=False)
    assert (policy_of(server), server.in_force.why) == ("budget 80%", None)


def test_what_a_budget_learnt_survives_throttling_and_commands_but_not_another_bundle(
    server: Server, runner: Runner, tmp_path: Path
) -> None:
    def learnt() -> float:
        assert runner.serving is not None
        assert isinstance(runner.serving.policy, BudgetPolicy)
        return runner.serving.policy.state.hardness

    server.want(PolicySpec("budget", parse_budget("80%")))
    answers(runner, 32)
    hardness = learnt()
    assert hardness != 1.0
    server.throttle(throttled=True)
    assert learnt() == hardness
    server.want(PolicySpec("budget", parse_budget("60%")))
    assert learnt() == hardness
    server.serve(
        server.open(write_null_bundle(tmp_path / "second.edge", version=2)), server.in_force.policy or FULL
    )
    assert learnt() == 1.0


def test_a_policy_that_comes_while_throttled_is_tightened_too(server: Server) -> None:
    server.throttle(throttled=True)
    assert policy_of(server) == "budget 50%"
    server.want(PolicySpec("budget", parse_budget("20%")))
    assert policy_of(server) == "budget 10%"
    server.throttle(throttled=False)
    assert policy_of(server) == "budget 20%"


def test_a_bundle_that_comes_while_throttled_begins_under_the_tight_policy(
    server: Server, tmp_path: Path
) -> None:
    server.throttle(throttled=True)
    bundle = write_null_bundle(tmp_path / "second.edge", version=2)
    server.serve(server.open(bundle), FULL)
    assert (server.in_force.label, policy_of(server)) == ("toy/2", "budget 50%")


def test_a_policy_this_board_cannot_have_serves_the_full_network_and_says_why(server: Server) -> None:
    server.want(PolicySpec("budget", parse_budget("5mJ")))
    assert policy_of(server) == "full"
    assert "power sensor" in (server.in_force.why or "")


def test_a_deadline_uses_times_measured_on_this_board(server: Server, runner: Runner) -> None:
    server.want(PolicySpec("anytime", deadline_ms=1e-3))
    answers(runner, 3)
    interval = runner.collect()[-1]
    assert interval.exit_counts == {"exit1": 3, "exit2": 0, "exit3": 0}
    assert interval.deadline_missed == 3


# --- callers beside sources, and requests that bring their policy ---


def call(runner: Runner, **more: Any) -> list[Answer | EdgekitError]:
    """Queue one call; its answer comes into the list."""
    got: list[Answer | EdgekitError] = []
    assert runner.call(Request(lambda manifest: (inputs(), None), got.append, **more))
    return got


def held(runner: Runner) -> threading.Event:
    """Keep the runner at work until the event is set."""
    begun, gate = threading.Event(), threading.Event()

    def read(manifest: Manifest) -> Any:
        begun.set()
        assert gate.wait(20)
        return inputs(), None

    assert runner.submit(Request(read), 5.0)
    assert begun.wait(20)
    return gate


def test_callers_and_sources_take_turns(runner: Runner, serving: Callable[..., Serving]) -> None:
    runner.swap(serving())
    order: list[str] = []

    def read(who: str) -> Callable[[Manifest], Any]:
        return lambda manifest: (order.append(who), (inputs(), None))[1]

    gate = held(runner)
    for index in range(4):
        assert runner.submit(Request(read(f"source {index}")), 1.0)
    for index in range(2):
        assert runner.call(Request(read(f"call {index}")))
    gate.set()
    until(lambda: len(order) == 6, "all of them")
    assert order == ["call 0", "source 0", "call 1", "source 1", "source 2", "source 3"]


def test_calls_are_refused_where_sources_wait(serving: Callable[..., Serving]) -> None:
    runner = Runner(capacity=2)
    runner.start()
    with pytest.raises(NothingServes, match="nothing is installed"):
        runner.call(Request(lambda manifest: (inputs(), None)))
    runner.swap(serving())
    gate = held(runner)
    first, second = call(runner), call(runner)
    assert not runner.call(Request(lambda manifest: (inputs(), None)))
    assert runner.wait_s == 0, "no request has been timed yet"
    gate.set()
    until(lambda: first and second, "both answers")
    runner.stop(5.0)
    assert not runner.call(Request(lambda manifest: (inputs(), None)))


def test_calls_that_wait_are_told_when_nothing_serves_any_more(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving())
    gate = held(runner)
    got = call(runner)
    stopper = threading.Thread(target=runner.swap, args=(None,))
    stopper.start()
    until(lambda: runner._orders, "the order")
    gate.set()
    stopper.join(20)
    assert isinstance(got[0], NothingServes)


def test_who_is_gone_makes_room_and_is_counted_but_not_answered(serving: Callable[..., Serving]) -> None:
    runner = Runner(capacity=1)
    runner.start()
    runner.swap(serving())
    gate = held(runner)
    gone = call(runner, cancelled=lambda: True)
    there = call(runner, cancelled=lambda: False)
    gate.set()
    until(lambda: there, "the answer of who is there")
    gate = held(runner)
    late = call(runner, cancelled=lambda: True)
    gate.set()
    answers(runner, 1)
    assert [(i.requests, i.cancelled, i.errors) for i in runner.collect()[1:]] == [(4, 2, 0)]
    runner.stop(5.0)
    assert (gone, late) == ([], [])


def test_a_mean_of_recent_requests_says_how_long_a_call_would_wait(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving(delay_ms=2))
    answers(runner, 3)
    gate = held(runner)
    for _ in range(10):
        call(runner)
    assert 0.05 < runner.wait_s < 1, "ten requests of three stages of 2 ms"
    gate.set()


def test_a_request_runs_under_the_policy_it_brings(runner: Runner, serving: Callable[..., Serving]) -> None:
    now = serving()
    runner.swap(now)
    said: list[str] = []

    def begun(manifest: Manifest, policy: str) -> None:
        said.append(f"{manifest.name} {policy}")

    cheap = call(runner, policy=PolicySpec("budget", parse_budget("25%")), begun=begun)
    plain = call(runner, begun=begun)
    dear = call(runner, policy=PolicySpec("budget", parse_budget("5mJ")))
    until(lambda: cheap and plain and dear, "the answers")
    assert [a.exit for a in (cheap[0], plain[0]) if isinstance(a, Answer)] == ["exit1", "exit3"]
    assert said == ["toy budget 25%", "toy full"]
    assert isinstance(dear[0], BadInput)
    assert "needs" in str(dear[0])
    assert [(i.policy, i.requests, i.errors) for i in runner.collect()[1:]] == [("full", 2, 1)]


def test_a_limit_that_the_bundle_cannot_keep_does_not_stop_it_from_answering(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    now = serving()
    tight = PolicySpec("budget", parse_budget("5mJ"))  # nothing measures energy here
    runner.swap(replace(now, limit=lambda spec: tight))
    got = call(runner, policy=FULL)
    until(lambda: got, "the answer")
    assert isinstance(got[0], Answer)


def test_controllers_of_requests_are_few_and_go_with_the_bundle(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving())
    for share in range(20, 60):
        got = call(runner, policy=PolicySpec("budget", parse_budget(f"{share}%")))
        until(lambda got=got: got, "the answer")  # type: ignore[misc]
    got = call(runner, policy=PolicySpec("anytime", deadline_ms=5.0))
    until(
        lambda: isinstance(got[0], EdgekitError) if got else False, "the refusal: nobody measured the stages"
    )
    assert len(runner._own) == 16
    runner.swap(serving(2))
    assert not runner._own


def test_time_before_its_turn_counts_into_a_requests_latency(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving())
    got = call(runner, arrived_s=runner.clock() - 1.0)
    until(lambda: got, "the answer")
    assert isinstance(got[0], Answer)
    assert 1000 <= got[0].latency_ms < 5000


def test_a_defect_of_who_asked_does_not_end_the_runner(
    runner: Runner, serving: Callable[..., Serving]
) -> None:
    runner.swap(serving())

    def broken(answer: object) -> None:
        raise KeyError(answer)

    assert runner.call(Request(lambda manifest: (inputs(), None), broken))
    answers(runner, 1)


def test_confidences_that_are_no_numbers_are_counted(runner: Runner, serving: Callable[..., Serving]) -> None:
    runner.swap(serving())
    x = np.full(SHAPE, np.nan, np.float32)
    assert runner.submit(Request(lambda manifest: ({"x": x}, None)), 5.0)
    answers(runner, 1)
    assert runner.collect()[-1].nan_confidences == 3
