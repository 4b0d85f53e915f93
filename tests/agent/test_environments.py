"""The agent's own update, with the real supervisor, agents and environments: what it ends in, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Site, until
from supervised import Supervised, environment, wheel

from edgekit.agent.environments import Environments
from edgekit.agent.environments import Supervised as Site_
from edgekit.agent.repository.base import Found
from edgekit.agent.state import Job, State
from edgekit.agent.wheels import build
from edgekit.core.environment import open_environment
from edgekit.core.errors import WorldFailed
from edgekit.core.target import Target
from edgekit.core.trust import Board


@pytest.fixture
def board(site: Site) -> Iterator[Supervised]:
    made = Supervised(site)
    yield made
    made.kill()


def info(board: Supervised) -> Any:
    return board.site.server.last("info")


def reported(board: Supervised) -> Any:
    return board.site.server.last("reported")


def test_a_new_environment_takes_over_and_serves_what_served_before(board: Supervised) -> None:
    board.started()
    assert board.site.run(board.site.add(version=1), 1)["state"] == "active"
    assert info(board)["environment"] is None
    label = board.add(1)
    end = board.update(label)
    assert end["state"] == "active", (end, board.said)
    assert board.site.server.states(end["job_id"]) == [
        "received",
        "downloading",
        "verifying",
        "installed",
        "trial",
        "active",
    ]
    until(lambda: info(board)["environment"] == label, "the new environment's info")
    until(lambda: reported(board)["bundle"] == "toy/1", "the bundle")
    assert board.state["current"] in board.environments
    assert board.state["previous"] == "first"
    assert board.site.run(board.site.add(version=2), 2)["state"] == "active", "bundles go on"
    state = board.site.board.folder / "state"
    until(lambda: not (state / "state.before.json").exists(), "the cleaning up")
    assert board.update(label)["state"] == "active", "what runs already is there at once"
    second = board.update(board.add(2))
    assert second["state"] == "active"
    until(lambda: len(board.environments) == 3, "first, the one before and this one")


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        ("raise SystemExit(7)", "crash", "it ended with 7"),
        pytest.param(
            "import time; time.sleep(60)", "timeout", "it was not ready within 3 s", marks=pytest.mark.slow
        ),
        pytest.param(
            "from edgekit.agent import supervisor; supervisor.CONFIRMED = 'lost.json'",
            "timeout",
            "it did not confirm itself within 4 s",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_that_does_not_stand_its_trial_is_taken_back_and_said_so(
    board: Supervised, code: str, reason: str, detail: str
) -> None:
    board.start("--start-s", "3", "--trial-s", "4")
    until(lambda: info(board), "the birth")
    assert board.site.run(board.site.add(version=1), 1)["state"] == "active"
    end = board.update(board.add(1, code))
    assert (end["state"], end["reason"]) == ("failed", reason)
    assert detail in end["detail"]
    assert board.site.server.states(end["job_id"])[-3:] == ["trial", "rolling_back", "failed"]
    until(lambda: board.environments == {"first"}, "the cleaning up")
    until(lambda: reported(board)["bundle"] == "toy/1", "the old one serves")
    (event,) = board.site.server.events("rollback")
    assert (event["detail"]["from"], event["detail"]["reason"]) == ("agent/1", reason)
    assert board.update(board.add(2))["state"] == "active", "a failed one does not stand in the way"


def test_without_a_supervisor_it_is_refused(site: Site) -> None:
    site.board.start()
    until(lambda: site.server.last("info"), "the birth")
    label = site.repository.add_environment(site.folder, environment())
    shot = site.server.order("pi5", label, action="update-agent")
    end = site.server.ended(shot.job_id)
    assert (end["state"], end["reason"]) == ("refused", "no-supervisor")


def test_what_is_not_for_this_board_or_not_as_signed_is_refused(board: Supervised) -> None:
    board.started()
    wrong = {
        "wrong-python": {"pythons": ("3.9",)},
        "wrong-machine": {"machines": ("vax",)},
        "wrong-profile": {"profiles": ("jetson-nano",)},
    }
    for version, (reason, changes) in enumerate(wrong.items(), 1):
        end = board.update(board.add(version, **changes))
        assert (end["state"], end["reason"]) == ("refused", reason)
    bad = wheel("bad", {"bad.py": "good = 1"}, **{"bad.py": "evil = 1"})
    outside = wheel("out", {"../../../escaped.py": "evil = 1"})
    for version, (name, data) in enumerate({"bad": bad, "out": outside, "no": b"no zip"}.items(), 10):
        end = board.update(board.add(version, wheels={f"{name}-1-py3-none-any.whl": data}))
        assert (end["state"], end["reason"]) == ("refused", "bad-bundle"), name
    lies = board.site.repository.add_environment(board.site.folder, environment(20), {"content_id": "a" * 64})
    assert board.update(lies)["reason"] == "bad-bundle"
    tampered = board.add(21)
    path = next(path for path in board.site.repository.files if path.endswith("agent/21.env"))
    board.site.repository.files[path] = bytes(reversed(board.site.repository.files[path]))
    assert board.update(tampered)["reason"] == "tampered"
    assert board.update(board.site.add(version=1))["reason"] == "unknown-target"
    until(lambda: board.environments == {"first"}, "the cleaning up")
    assert not list(board.site.folder.rglob("escaped.py"))


def test_a_full_disk_fails_the_job_cleanly(board: Supervised) -> None:
    """The child may write no file above a limit: what a full disk does to it, in the same system calls."""
    board.start(before="import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))")
    until(lambda: info(board), "the birth")
    large = wheel("large", {"large.py": "x = 1\n" * 500_000})
    end = board.update(board.add(1, wheels={"large-1-py3-none-any.whl": large}))
    assert (end["state"], end["reason"]) == ("failed", "disk")
    assert "could not be installed: File too large" in end["detail"]
    until(lambda: board.environments == {"first"}, "the cleaning up")
    assert board.update(board.add(2))["state"] == "active"


def test_a_bundle_on_trial_is_finished_first(board: Supervised) -> None:
    board.started()
    assert board.site.run(board.site.add(version=1), 1)["state"] == "active"
    board.site.repository.gate.clear()
    board.site.server.desire("pi5", board.site.add(version=2, padding=100_000), 2)
    until(lambda: "downloading" in board.site.server.states("job-2"), "the bundle's download")
    board.site.repository.gate.set()
    end = board.update(board.add(1))
    assert end["state"] == "active"
    assert board.site.server.ended("job-2")["state"] == "active"
    events = [(e["job_id"], e["state"]) for e in board.site.server.job_events()]
    assert events.index(("job-2", "active")) < events.index((end["job_id"], "trial"))


def test_a_state_that_the_old_agent_cannot_read_is_the_one_from_before_the_trial(board: Supervised) -> None:
    """A new agent writes a state of its own kind, serves for a while and dies: what served before serves again."""
    board.started()
    assert board.site.run(board.site.add(version=1), 1)["state"] == "active"
    path = board.site.board.folder / "state/state.json"
    end = board.update(board.add(1, f"open({str(path)!r}, 'w').write('{{\"v\": 2}}'); raise SystemExit(7)"))
    assert (end["state"], end["reason"]) == ("failed", "crash")
    until(lambda: reported(board)["bundle"] == "toy/1", "what served before")
    assert board.site.board.state["active"]["label"] == "toy/1"
    assert board.site.board.state["rev"] == 1


def test_fields_that_a_newer_agent_wrote_are_kept() -> None:
    state = State(
        shots=(Job("j", 1, "a/1", None, None, 2e9, extra={"hue": 3}),), extra={"moon": {"phase": 1}}
    )
    data = state.to_json()
    assert data["moon"] == {"phase": 1}
    assert data["shots"][0]["hue"] == 3
    assert State.parse(json.loads(json.dumps(data)), "state") == state
    assert State.parse(State().to_json(), "state").extra == {}


@pytest.mark.parametrize(
    ("who", "state"),
    [
        ("agent", "trial"),
        ("supervisor", "verifying"),
        *(
            pytest.param(who, state, marks=pytest.mark.slow)
            for who, state in (
                ("agent", "downloading"),
                ("agent", "verifying"),
                ("supervisor", "downloading"),
                ("supervisor", "trial"),
            )
        ),
    ],
)
def test_whoever_is_killed_the_update_ends(board: Supervised, who: str, state: str) -> None:
    process = board.started()
    assert board.site.run(board.site.add(version=1), 1)["state"] == "active"
    label = board.add(1, "import time; time.sleep(0.3)")
    if state == "downloading":
        board.site.repository.gate.clear()
    shot = board.site.server.order("pi5", label, action="update-agent")
    until(lambda: state in board.site.server.states(shot.job_id), state)
    for pid in agents(board) if who == "agent" else [process.pid]:
        os.kill(pid, signal.SIGKILL)
    board.site.repository.gate.set()
    if who == "supervisor":
        process.wait()
        board.start()
    end = board.site.server.ended(shot.job_id)
    assert end["state"] == "active", end
    until(lambda: info(board)["environment"] == label, "the new environment")
    until(lambda: reported(board)["bundle"] == "toy/1", "the bundle")


def agents(board: Supervised) -> list[int]:
    """Process ids of this board's agents."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "agent" in words and str(board.site.board.config) in words and "-m" in words:
            found.append(int(path.parent.name))
    return found


def test_sigterm_while_an_environment_is_installed_ends_it_in_time_and_it_goes_on_later(
    board: Supervised,
) -> None:
    process = board.started()
    many = wheel("many", {f"many/m{n}.py": f"x = {n}\n" for n in range(3000)})
    shot = board.site.server.order(
        "pi5", board.add(1, wheels={"many-1-py3-none-any.whl": many}), action="update-agent"
    )
    until(lambda: list((board.folder / "environments").glob(".new-*/lib")), "the installing")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 2.5
    board.start()
    assert board.site.server.ended(shot.job_id)["state"] == "active"


# --- what the disk, or the supervisor's folder, may have in store -------------------------------------------------


class AtOnce:
    """A shots.Turn that never waits."""

    def check(self, job: Job) -> None: ...

    def patiently(self, job: Job, action: Callable[[], Any]) -> Any:
        return action()

    def pause(self, seconds: float) -> None: ...


ORDER = Job("job-1", 1, "agent/1", None, None, 2e9, action="update-agent")
IDS = {name: character * 64 for name, character in {"runs": "a", "before": "b", "failed": "c"}.items()}


def actions(folder: Path, target: Target | None = None, length: int = 1000) -> Environments:
    """The action alone, under a supervisor's folder with three environments and what was begun."""
    for name in (*IDS.values(), ".part-x", ".new-x", "first"):
        (folder / "environments" / name).mkdir(parents=True)
    found = None if target is None else Found(target, target.path, length, "f" * 64)
    repository = SimpleNamespace(find=lambda *given: found)
    nothing = SimpleNamespace(bundle=None, connected=False)
    return Environments(
        site=Site_(folder, IDS["runs"], None),
        repository=lambda: repository,  # type: ignore[arg-type,return-value]
        install=lambda *given: None,
        board=Board("raspberrypi5"),
        max_bytes=10**9,
        state_file=folder / "state.json",
        idle=lambda: True,
        service=lambda: nothing,  # type: ignore[arg-type,return-value]
        unhealthy=lambda: None,
        steady_s=0.0,
        leave=lambda: None,
        passed=lambda: None,
        tell=lambda kind, detail: None,
        say=lambda text: None,
    )


def left(folder: Path) -> set[str]:
    return {path.name for path in (folder / "environments").iterdir()}


@pytest.mark.parametrize("trial", [None, "soon", 7, [], {"id": None}, {"id": IDS["failed"]}])
def test_environments_that_the_supervisor_needs_stay_whatever_stands_beside_them_in_its_state(
    tmp_path: Path, trial: object
) -> None:
    action = actions(tmp_path)
    state = {"current": IDS["runs"], "previous": IDS["before"], "trial": trial}
    (tmp_path / "state.json").write_text(json.dumps(state))
    action.clean_up()
    on_trial = {IDS["failed"]} if trial == {"id": IDS["failed"]} else set()
    assert left(tmp_path) == {"first", IDS["runs"], IDS["before"]} | on_trial


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{", "\0" * 100], ids=["gone", "empty", "strange", "torn", "zeros"]
)
def test_no_environment_goes_while_nobody_knows_which_one_is_needed(
    tmp_path: Path, content: str | None
) -> None:
    action = actions(tmp_path)
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    action.clean_up()
    assert left(tmp_path) == {"first", *IDS.values()}
    assert action.steps["rolling_back"](ORDER, AtOnce()).event == "restored"
    assert left(tmp_path) == {"first", *IDS.values()}


def test_a_folder_of_environments_that_is_gone_ends_neither_the_agent_nor_its_job(tmp_path: Path) -> None:
    action = actions(tmp_path)
    shutil.rmtree(tmp_path / "environments")
    action.clean_up()
    assert action.steps["rolling_back"](ORDER, AtOnce()).event == "restored"


def test_a_disk_without_room_for_an_environment_fails_the_job_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("agent", 1, ("raspberrypi5",), "agent", "current", "d" * 64)
    action = actions(tmp_path, target, length=50_000_000)
    assert action.steps["received"](ORDER, AtOnce()).event == "accept"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=60_000_000))
    with pytest.raises(WorldFailed, match=r"50\.0 MB are still to come .* make room on the disk"):
        action.steps["received"](ORDER, AtOnce())


def test_a_disk_without_room_for_what_it_unpacks_to_is_said_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = wheel("large", {"large.py": "x = 1\n" * 500_000, "data.bin": "y" * 1_000_000})
    file = tmp_path / "environment.env"
    file.write_bytes(environment(wheels={"large-1-py3-none-any.whl": large}))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=22_000_000))
    with pytest.raises(WorldFailed, match=r"7\.0 MB are still to come"):
        build(open_environment(file, 10**9), tmp_path / "new", 10**9)
    assert not list((tmp_path / "new").rglob("large.py"))
