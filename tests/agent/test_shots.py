"""The thread of one-shots, with actions made up: what they do wrong costs their own job at most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from agents import until

from edgekit.agent.jobs import Outcome
from edgekit.agent.shots import Shots, Step, begun_again
from edgekit.agent.state import Job, State, StateFile


def job(n: int) -> Job:
    return Job(f"job-{n}", n, "toy/1", None, None, 2e9, action="look")


class Messy:
    """Does its job, and cannot clean up."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.steps: Mapping[str, Step] = {"received": self._received}

    def _received(self, job: Job, turn: object) -> Outcome:
        self.done.append(job.job_id)
        return Outcome("looked")

    def resumed(self, job: Job) -> Job:
        return begun_again(job)

    def clean_up(self) -> None:
        raise OSError("the card is gone")


class Walked:
    """Shots on a state file, with everything it reports."""

    def __init__(self, folder: Path) -> None:
        self.state = StateFile(folder / "state.json", State)
        self.action = Messy()
        self.said: list[tuple[str, str]] = []
        self.shots = Shots(state=self.state, actions={"look": self.action}, report=self._report)

    def _report(self, job: Job) -> bool:
        self.said.append((job.job_id, job.state))
        return True


@pytest.fixture
def walked(tmp_path: Path) -> Iterator[Walked]:
    made = Walked(tmp_path)
    yield made
    made.shots.stop(2.0)


def test_an_action_that_cannot_clean_up_ends_neither_the_start_nor_the_thread(walked: Walked) -> None:
    walked.shots.restore()
    walked.shots.start()
    for n in (1, 2):
        walked.shots.take(job(n))
        until(lambda n=n: (f"job-{n}", "done") in walked.said, f"job {n}'s end")
    assert walked.action.done == ["job-1", "job-2"]
    assert walked.shots.is_alive()


def test_a_job_that_had_ended_is_neither_done_nor_reported_again_at_the_next_start(walked: Walked) -> None:
    walked.shots.start()
    walked.shots.take(job(1))
    until(lambda: walked.state.current.shots[0].reported, "its end")
    walked.shots.stop(2.0)
    again = Walked(walked.state._path.parent)
    again.shots.restore()
    again.shots.start()
    again.shots.take(job(2))
    until(lambda: ("job-2", "done") in again.said, "the next one's end")
    again.shots.stop(2.0)
    assert again.action.done == ["job-2"]
    assert {said for said, _ in again.said} == {"job-2"}
