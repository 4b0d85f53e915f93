"""What `agent check` says of the board itself: every line is provoked once, and a good board says nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Board, Mosquitto, make_certificate
from bundles import write_null_bundle

from edgekit.agent import check
from edgekit.agent.check_board import UNIT, Machine, Problem, board_problems, no_permission
from edgekit.agent.clock import EARLIEST
from edgekit.agent.config import Config, load_config
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.slots import Slot, Slots
from edgekit.agent.state import State, StateFile
from edgekit.core.errors import BadInput
from edgekit.core.manifest import BoardLimits

NOW = EARLIEST + 10**8
GOOD = Machine(lambda: NOW, lambda: True, lambda path: 10**10, lambda package: "1.0")
MEMORY = "MemTotal:  524288 kB\nMemAvailable:  262144 kB\n"
DISK = "/dev/root / ext4 rw,noatime 0 0\n/dev/mmcblk0p3 {state} ext4 rw,noatime,{options} 0 0\n"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    folder = tmp_path / "board"
    folder.mkdir()
    for name in ("root.json", "control.pub"):
        (folder / name).write_text("{}")
    settings: dict[str, dict[str, Any]] = {
        "device": {"fleet": "demo", "name": "pi5", "profile": "raspberrypi5", "state_dir": "state"},
        "broker": {"host": "127.0.0.1", "tls": False},
        "repository": {"url": "http://127.0.0.1:1/repo"},
        "sensors": {"sysroot": "sysroot"},
    }
    made = Board(folder, "pi5", settings)
    made.write()
    plant(made, "proc/meminfo", MEMORY)
    plant(made, "proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 500000 4096 100\n")
    plant(made, "proc/self/mounts", DISK.format(state=folder / "state", options="relatime"))
    plant(made, UNIT, "[Service]\nWatchdogSec=60\n")
    return made


def plant(board: Board, name: str, content: str) -> None:
    path = board.folder / "sysroot" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def install(board: Board, **options: Any) -> None:
    """A committed bundle of the null backend, and a state that knows it."""
    slots = Slots(board.folder / "state/slots", 2**30)
    made = write_null_bundle(board.folder / "made.edge", profiles=("raspberrypi5",), **options)
    path = slots.path(made.content_id)
    path.parent.mkdir()
    shutil.copy(made.path, path)
    remember(board, active=Slot(made.content_id, made.label))


def remember(board: Board, **state: Any) -> None:
    (board.folder / "state").mkdir(exist_ok=True)
    StateFile(board.folder / "state/state.json", State).commit(**state)


def found(board: Board, **machine: Callable[..., Any]) -> list[Problem]:
    return list(board_problems(load_config(board.config), dataclasses.replace(GOOD, **machine)))


def the_only(problems: list[Problem], what: str, code: int = 1) -> str:
    assert [(problem.what, problem.exit_code) for problem in problems] == [(what, code)]
    assert "\n" not in problems[0].detail
    return problems[0].detail


def test_a_good_board_says_nothing(board: Board) -> None:
    assert found(board) == []
    remember(board, good_time=NOW - 60, metadata_expires={"timestamp": NOW + 13 * 86_400, "root": NOW + 3e7})
    install(board, limits=BoardLimits(memory_mb=100))
    assert found(board) == []


def test_a_board_that_says_nothing_has_nothing_wrong(board: Board) -> None:
    shutil.rmtree(board.folder / "sysroot")
    assert found(board) == []


@pytest.mark.parametrize("folder", ["", "state"])
def test_a_folder_that_everybody_can_write_to(board: Board, folder: str) -> None:
    (board.folder / "state").mkdir(exist_ok=True)
    (board.folder / folder).chmod(0o777)
    assert "chmod o-w" in the_only(found(board), "folder")


def test_a_disk_without_room_for_the_outbox_and_a_bundle(board: Board) -> None:
    assert found(board, free_bytes=lambda path: 65 * 2**20) == []
    assert "lower telemetry.outbox_mb" in the_only(found(board, free_bytes=lambda path: 63 * 2**20), "disk")
    (board.folder / "state").mkdir(exist_ok=True)
    (board.folder / "state/outbox.db").write_bytes(bytes(5 * 2**20))
    assert found(board, free_bytes=lambda path: 63 * 2**20) == [], "what it holds it has already"


@pytest.mark.parametrize(("now", "good_time"), [(0.0, 0.0), (NOW, NOW + 10**6)], ids=["1970", "went back"])
def test_a_clock_that_cannot_be_right(board: Board, now: float, good_time: float) -> None:
    remember(board, good_time=good_time, metadata_expires={"timestamp": NOW})
    assert "set it, or let NTP" in the_only(found(board, now=lambda: now), "clock")


def test_a_clock_that_nobody_synchronizes(board: Board) -> None:
    board.write(sensors={"sysroot": "/"})
    config = load_config(board.config)
    assert not any(p.what == "clock" for p in board_problems(config, GOOD))
    machine = dataclasses.replace(GOOD, synchronized=lambda: False)
    (said,) = (p.detail for p in board_problems(config, machine) if p.what == "clock")
    assert said.startswith("not synchronized")


@pytest.mark.parametrize(
    ("role", "days", "word"),
    [("timestamp", 4, "ends"), ("snapshot", -1, "ended"), ("root", 121, "ends"), ("targets", 121, "ends")],
)
def test_metadata_that_somebody_should_have_renewed(board: Board, role: str, days: float, word: str) -> None:
    remember(board, metadata_expires={role: NOW + days * 86_400})
    assert f"the repository's {role} {word} on " in the_only(found(board), "metadata")
    remember(board, metadata_expires={role: NOW + (days + 12) * 86_400})
    assert found(board) == []


def test_a_runtime_that_the_installed_bundle_needs_and_that_is_gone(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(board)
    assert found(board, installed=lambda package: None) == [], "the null backend needs none"
    monkeypatch.setattr("edgekit.agent.check_board.PACKAGES", {"null": ("nullruntime",)})
    assert "pip install nullruntime" in the_only(found(board, installed=lambda package: None), "runtime", 2)
    assert found(board) == []


def test_a_bundle_that_is_too_large_for_the_memory(board: Board) -> None:
    install(board, limits=BoardLimits(memory_mb=300))
    assert "more than half of the board's 512 MB" in the_only(found(board), "memory")


@pytest.mark.parametrize(
    ("swap", "root", "said"),
    [
        ("/dev/mmcblk0p3 partition 100000 2048 -2", "/dev/sda1", True),
        ("/var/swap file 100000 2048 -2", "/dev/mmcblk0p2", True),
        ("/var/swap file 100000 0 -2", "/dev/mmcblk0p2", False),
        ("/var/swap file 100000 2048 -2", "/dev/nvme0n1p2", False),
        ("/dev/sda2 partition 100000 2048 -2", "/dev/sda1", False),
    ],
)
def test_swap_that_is_used_on_a_card(board: Board, swap: str, root: str, said: bool) -> None:
    plant(board, "proc/swaps", f"Filename Type Size Used Priority\n{swap}\n")
    plant(board, "proc/self/mounts", f"{root} / ext4 rw 0 0\n")
    problems = found(board)
    assert bool(problems) == said
    if said:
        assert "2 MB lie in" in the_only(problems, "swap")


@pytest.mark.parametrize("option", ["sync", "strictatime", "data=journal"])
def test_a_mount_that_wears_the_card_out(board: Board, option: str) -> None:
    plant(board, "proc/self/mounts", DISK.format(state=board.folder / "state", options=option))
    assert f"is mounted with {option}" in the_only(found(board), "mount")
    plant(
        board, "proc/self/mounts", f"/dev/root / ext4 rw,{option} 0 0\n/dev/sda1 {board.folder} ext4 rw 0 0\n"
    )
    assert found(board) == [], "the file system that holds the folder counts"


def test_a_unit_without_a_watchdog(board: Board) -> None:
    plant(board, UNIT, "[Service]\n# WatchdogSec=60\nWatchdogSec=0\n")
    assert "has no WatchdogSec" in the_only(found(board), "unit")


def test_who_may_read_a_sensor_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "energy_uj"
    file.touch(0o400)
    assert no_permission(f"no permission to read {file}").startswith(": only ")
    assert no_permission("the device behind it is gone") == ""
    video = 44

    class Status:
        st_mode, st_uid, st_gid = 0o100440, 0, video

    monkeypatch.setattr(Path, "stat", lambda path: Status())
    monkeypatch.setattr(
        "edgekit.agent.check_board.grp.getgrgid", lambda gid: type("G", (), {"gr_name": "video"})
    )
    assert "usermod -aG video" in no_permission(f"no permission to read {file}")


def test_a_state_folder_that_is_read_only_says_what_to_do(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:  # noqa: A002  (its name there)
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(check.tempfile, "TemporaryFile", refuse)
    (problem,) = check._state_folder(load_config(board.config))
    assert (problem.what, problem.exit_code) == ("state", 3)
    assert "mount it for writing" in problem.detail


# --- the broker's certificate ---


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("broker")
    made = Mosquitto(folder, tls=True)
    yield made, folder
    made.stop()


def greeted(board: Board, **broker: Any) -> str:
    board.write(broker={"tls": True, **broker})
    config: Config = load_config(board.config)
    with pytest.raises(BadInput) as caught:
        check._broker(config)
    return str(caught.value)


def test_a_certificate_for_another_name_is_told_apart(board: Board, tls_broker: Any) -> None:
    broker, folder = tls_broker
    said = greeted(board, host="localhost", port=broker.port, ca=str(folder / "ca.pem"))
    assert "its certificate is for another name: broker.host must be one that it holds, got localhost" in said


def test_an_authority_that_is_not_known_is_told_apart(board: Board, tls_broker: Any, tmp_path: Path) -> None:
    broker, _ = tls_broker
    make_certificate(tmp_path)
    said = greeted(board, port=broker.port, ca=str(tmp_path / "ca.pem"))
    assert "set broker.ca to" in said


def test_a_port_without_tls_is_told_apart(board: Board, tmp_path: Path) -> None:
    plain = Mosquitto(tmp_path)
    try:
        assert "is TLS spoken on that port? else broker.tls = false" in greeted(board, port=plain.port)
    finally:
        plain.stop()


@pytest.mark.parametrize(
    ("failed", "hint"),
    [
        (NetworkFailed("it answered 401", 401), "repository.token_file"),
        (NetworkFailed("SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] unknown issuer"), "repository.ca"),
    ],
)
def test_a_repository_that_does_not_let_the_board_in_is_said_with_the_setting_to_look_at(
    board: Board, monkeypatch: pytest.MonkeyPatch, failed: NetworkFailed, hint: str
) -> None:
    def reachable(*_: object) -> None:
        raise failed

    monkeypatch.setattr("edgekit.agent.repository.client.reachable", reachable)
    with pytest.raises(BadInput, match=hint):
        check._repository(load_config(board.config))
