from __future__ import annotations

import json
from pathlib import Path

import pytest
from networks import NETWORKS, save

from edgekit.cli.main import run
from edgekit.cli.output import console
from edgekit.core.profile import known_profiles, profile, profile_from
from edgekit.core.resources import device_profile_files

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by COLUMNS: whatever a console saw when it was made stays.
    monkeypatch.setattr(console, "_width", 160)
    monkeypatch.setattr(console, "_height", 50)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "myboard.toml"
    shipped = device_profile_files()["raspberrypi4b"].read_text(encoding="utf-8")
    path.write_text(shipped.replace('name = "raspberrypi4b"', 'name = "myboard"'))
    return path


def test_list_shows_every_board_and_this_machine(capsys: Output) -> None:
    assert run(["profile", "list"]) == 0

    out = capsys.readouterr().out
    assert all(name in out for name in known_profiles())


def test_list_as_json_is_one_object_with_a_summary_of_each(capsys: Output) -> None:
    assert run(["profile", "list", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["v"] == 1
    assert [row["name"] for row in told["profiles"]] == list(known_profiles())
    assert all(set(row) == set(told["profiles"][0]) for row in told["profiles"])


def test_show_prints_each_figure_with_how_and_where_from_and_says_unknown(capsys: Output) -> None:
    assert run(["profile", "show", "raspberrypi4b"]) == 0

    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["cpu.clock_ghz"].split()[1:3] == ["1.5", "GHz"]
    assert "published" in rows["cpu.clock_ghz"]
    assert "Raspberry Pi 4 Model B product brief" in rows["cpu.clock_ghz"]
    assert "estimated" in rows["cost.macs_per_second.int8"]
    assert rows["power.idle_w"].split() == ["power.idle_w", "unknown"]


def test_show_as_json_gives_the_profile_back(capsys: Output) -> None:
    assert run(["profile", "show", "pynq-z1", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["v"] == 1
    assert profile_from(told["profile"], "json") == profile("pynq-z1")


def test_show_takes_a_file_and_host(capsys: Output, board: Path) -> None:
    assert run(["profile", "show", str(board)]) == 0
    assert run(["profile", "show", "host"]) == 0

    assert "This machine:" in capsys.readouterr().out


def test_show_does_not_take_brackets_in_a_title_for_colours(capsys: Output, board: Path) -> None:
    board.write_text(
        board.read_text().replace('title = "Raspberry Pi 4 Model B"', 'title = "Pi [bold]4[/nope]"')
    )

    assert run(["profile", "show", str(board)]) == 0
    assert "Pi [bold]4[/nope]" in capsys.readouterr().out


def test_an_unknown_profile_is_one_line_that_lists_the_known(capsys: Output) -> None:
    assert run(["profile", "show", "toaster"]) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"edgekit: unknown profile 'toaster'; known: {', '.join(known_profiles())}\n"


def test_check_accepts_a_good_file(capsys: Output, board: Path) -> None:
    assert run(["profile", "check", str(board)]) == 0

    assert capsys.readouterr().out == f"{board}: good, 8 figures known and 2 unknown\n"


def test_check_warns_of_what_it_ignores_and_of_what_looks_odd(capsys: Output, board: Path) -> None:
    text = board.read_text().replace('name = "myboard"', 'name = "raspberrypi5"\ncolour = "green"')
    text = text.replace('sensor = "none"', 'sensor = "wattmeter"').replace('int8_activation = "int8"', "")
    board.write_text(text)

    assert run(["profile", "check", str(board), "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["warnings"] == [
        "colour is not a key of format 1: ignored",
        'name is "raspberrypi5", the file is called myboard.toml',
        'name "raspberrypi5" is that of another profile, known to --profile',
        'power.sensor "wattmeter" is not installed here; known: hwmon, ina3221, none, rapl, rpi5_pmic',
        "backend onnxruntime runs int8 fast, but int8_activation is missing",
        "backend litert runs int8 fast, but int8_activation is missing",
    ]


def test_check_refuses_a_bad_file_with_code_2_and_one_line(capsys: Output, board: Path) -> None:
    board.write_text(board.read_text().replace("cores = 4", 'cores = "four"'))

    assert run(["profile", "check", str(board)]) == 2

    told = capsys.readouterr()
    assert told.err == f'edgekit: {board}: cpu.cores must be a positive integer, got "four"\n'
    assert told.out == ""


def test_check_of_a_shipped_profile_warns_of_nothing(capsys: Output) -> None:
    for path in device_profile_files().values():
        assert run(["profile", "check", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["warnings"] == []


@pytest.mark.parametrize("verb", [[], ["list"], ["show"], ["check"], ["measure"]])
def test_help_has_an_example(capsys: Output, verb: list[str]) -> None:
    assert run(["profile", *verb, "--help"]) == 0

    assert "Example:  edgekit profile" in capsys.readouterr().out


# --- measure ----------------------------------------------------------------------------------------------------------

TINY = ["--family", "Conv.1x1", "--family", "Add", "--family", "residual", "--most", "2", "--rounds", "1"]


def test_measure_writes_a_profile_that_check_accepts_and_inspect_uses(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    assert run(["profile", "measure", "-o", str(path), *TINY, "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["v"], told["file"], told["name"], told["networks"]) == (1, str(path), "here", 12)
    assert run(["profile", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    assert run(["profile", "show", str(path)]) == 0
    assert "Conv.1x1" in capsys.readouterr().out
    model = save(NETWORKS["depthwise"](0), tmp_path / "m.onnx")
    assert run(["inspect", str(model), "--profile", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"]["estimated_ms"] > 0


@pytest.mark.parametrize("event", [KeyboardInterrupt, MemoryError])
def test_measure_that_is_interrupted_leaves_the_old_file_and_no_half_one(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: type[BaseException]
) -> None:
    def interrupted(*_: object) -> None:
        raise event

    path = tmp_path / "here.toml"
    path.write_text("old")
    monkeypatch.setattr("edgekit.host.measure_costs.seconds_per_run", interrupted)

    assert run(["profile", "measure", "-o", str(path), *TINY]) in (130, 3)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["-o", "raspberrypi5.toml"],
            "--name must not be that of a profile there is already, got 'raspberrypi5'",
        ),
        (["-o", "a b.toml"], "--name must be letters"),
        (["-o", "nowhere/here.toml"], "-o must be a file in an existing folder"),
        (["-o", "here.toml", "--backend", "tensorflow"], "tensorflow"),
        (["-o", "here.toml", "--family", "Conv.9x9"], "unknown kind of network 'Conv.9x9'"),
    ],
)
def test_measure_refuses_before_it_works(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(["profile", "measure", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
