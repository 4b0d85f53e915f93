"""tools/simulated_fleet.py with a real broker and a real server."""

import importlib.util
import subprocess
import sys
import time
from collections import Counter

import pytest
import sqlalchemy as sa
from agents import until
from servers import Broker, FleetServer, write_config
from simulation import SIMULATED_FLEET, Simulation, check_all_stored_once, enroll_many, stored

from edgekit.core.histogram import Histogram
from edgekit.core.target import Target
from edgekit.fleet import schema as db
from edgekit.fleet.enroll import prepare
from edgekit.fleet.jobs import Order, create_job, known_devices
from edgekit.fleet.store import open_store

BOARDS = 50
TARGET = Target("demo", 2, ("raspberrypi5", "raspberrypi4b"), "run", "current", "a" * 64)
SCENARIO = {"jobs": [{"target": "demo/2", "fail": 0.2, "reason": "golden", "silent": 0.1}], "step_s": 0.02}


def imported():
    """The behaviour alone: it needs no broker."""
    spec = importlib.util.spec_from_file_location(
        "simulated_behaviour", SIMULATED_FLEET.with_name("simulated_behaviour.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulated_behaviour"] = module
    spec.loader.exec_module(module)
    return module


behaviour = imported()


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path / "broker")
    yield broker
    broker.stop()


@pytest.fixture
def config(tmp_path, broker):
    config = write_config(tmp_path, broker.port)
    prepare(config)
    return config


@pytest.fixture
def server(config):
    server = FleetServer(config)
    yield server
    server.end()


@pytest.fixture
def simulation(tmp_path, config, broker):
    enroll_many(config, BOARDS, tmp_path / "boards.jsonl", ["raspberrypi5", "raspberrypi4b"])
    simulation = Simulation(
        tmp_path / "boards.jsonl",
        broker.port,
        *("--control-key", str(config.control_public_file), "--interval-s", "0.5"),
        *("--ramp-s", "0.5", "--resend-s", "2", "--report-s", "0.1"),
        scenario=SCENARIO,
    )
    yield simulation
    simulation.process.kill()
    simulation.stop()


def test_all_that_was_made_is_stored_once_over_lost_connections_reboots_and_a_new_broker(
    tmp_path, config, broker, server, simulation
):
    until(lambda: simulation.progress.get("connected") == BOARDS, "all connections")
    until(lambda: simulation.progress["acked"] >= 2 * BOARDS, "acks")
    assert simulation.do("hang_up", share=0.5) == {"answer": "hang_up", "boards": BOARDS // 2}
    simulation.do("reboot", names=["sim-00000", "sim-00001"])
    until(lambda: simulation.progress["connections"] >= BOARDS * 1.5, "their return")
    broker.stop()
    until(lambda: simulation.progress["connected"] == 0, "the loss of the broker")
    until(lambda: simulation.progress["held"] >= BOARDS, "Records that wait")
    broker.start()
    until(lambda: simulation.progress["connected"] == BOARDS, "the return of all")
    simulation.do("event", name="sim-00003", kind="throttle", detail={"on": True})
    simulation.settle()
    made = simulation.made(tmp_path)
    assert [len(made[f"sim-0000{number}"]) for number in (0, 1, 2)] == [2, 2, 1]
    assert check_all_stored_once(config, made) == simulation.progress["records"]
    assert list(stored(config, db.events)) == [("sim-00003", made["sim-00003"][0][0])]
    assert simulation.stop() == 0


def test_jobs_end_as_the_scenario_says_and_the_server_hears_why(config, server, simulation):
    until(lambda: simulation.progress.get("connected") == BOARDS, "all connections")
    store = open_store(config.database_url)
    with store.write() as connection:
        order = Order(target=TARGET, selector="all")
        job_id = create_job(connection, order, known_devices(connection), time.time())
    until(
        lambda: sum(simulation.progress["jobs"].values()) + simulation.progress["gone_silent"] == BOARDS,
        "ends",
    )
    paths = [
        behaviour.parse_scenario(SCENARIO).path_of(f"sim-{n:05d}", "demo/2", present=False)
        for n in range(BOARDS)
    ]
    fails = sum(path is not None and path[1] == "golden" for path in paths)
    silent = paths.count(None)
    assert fails > 2
    assert silent > 1
    expected = {"active": BOARDS - fails - silent, "failed": fails, "pending": silent}
    query = (
        sa.select(db.job_devices.c.state, db.job_devices.c.reason)
        .join(db.jobs, db.jobs.c.id == db.job_devices.c.job)
        .where(db.jobs.c.job_id == job_id)
    )

    def rows():
        with store.read() as connection:
            return connection.execute(query).all()

    until(lambda: Counter(row.state for row in rows()) == expected, "the server's word")
    assert {row.reason for row in rows()} == {None, "golden"}
    until(lambda: simulation.progress["connected"] == BOARDS - silent, "the loss of the silent ones")
    runs = [simulation.do("board", name=f"sim-{number:05d}")["bundle"] for number in range(BOARDS)]
    assert Counter(runs) == {"demo/2": BOARDS - fails - silent, "demo/1": fails + silent}
    store.close()


def test_a_command_that_it_does_not_know_is_a_line_and_the_end_of_stdin_is_its_end(simulation):
    assert "must be one of" in simulation.do("dance")["error"]
    assert "must be a simulated board's" in simulation.do("board", name="nobody")["error"]
    assert "must be of" in simulation.do("set", colour="blue")["error"]
    simulation.process.stdin.close()
    assert simulation.process.wait(10) == 0


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SIMULATED_FLEET), *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_boards_that_are_no_boards_are_a_line_and_exit_code_2(tmp_path):
    path = tmp_path / "boards.jsonl"
    path.write_text('{"name": "a", "password": "p"}\n{"name": "../x", "password": "p"}\n')
    found = run("--credentials", str(path))
    assert found.returncode == 2
    assert "line 2: name must be a name" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_more_boards_than_file_descriptors_are_refused(tmp_path):
    path = tmp_path / "boards.jsonl"
    path.write_text("".join(f'{{"name": "b{number}", "password": "p"}}\n' for number in range(200)))
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); "
    limit += "resource.setrlimit = lambda *_: (_ for _ in ()).throw(ValueError()); "
    limit += f"sys.path.insert(0, {str(SIMULATED_FLEET.parent)!r}); "
    limit += f"sys.argv = ['x', '--credentials', {str(path)!r}]; "
    limit += f"runpy.run_path({str(SIMULATED_FLEET)!r}, None, '__main__')"
    found = subprocess.run(
        [sys.executable, "-c", limit], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert found.returncode == 2
    assert "200 boards need 264 file descriptors, and this process may have 100" in found.stderr


def p99(scenario, profile, bundle):
    """p50 and p99 over all its made-up intervals."""
    intervals = behaviour.Intervals(behaviour.parse_scenario(scenario)).of(profile, bundle, 60.0)
    total = Histogram()
    for interval in intervals:
        total = total + Histogram.parse(interval["latency"], "latency")
    return total.percentile_ms(50), total.percentile_ms(99)


def test_a_tail_doubles_p99_on_its_profile_alone_and_leaves_the_median():
    scenario = {"speed": {}, "bundles": {"demo/2": {"on": {"raspberrypi4b": {"tail": 2.0}}}}}
    before, other, slow = (
        p99(scenario, *what)
        for what in (("raspberrypi4b", "demo/1"), ("raspberrypi5", "demo/2"), ("raspberrypi4b", "demo/2"))
    )
    assert other == pytest.approx(before, rel=0.1)
    assert slow[0] == pytest.approx(before[0], rel=0.1)
    assert slow[1] == pytest.approx(2 * before[1], rel=0.15)


def test_the_same_seed_makes_the_same_fleet_and_another_one_another():
    one, same, other = (behaviour.parse_scenario({"seed": seed}) for seed in (1, 1, 2))
    names = [f"b{number}" for number in range(1000)]
    assert [one.profile_of(name) for name in names] == [same.profile_of(name) for name in names]
    assert [one.profile_of(name) for name in names] != [other.profile_of(name) for name in names]
    assert behaviour.Intervals(one).of("p", "demo/1", 10.0) == behaviour.Intervals(same).of(
        "p", "demo/1", 10.0
    )
    shares = Counter(one.profile_of(name) for name in names)
    assert 0.4 < shares["raspberrypi5"] / 1000 < 0.6
