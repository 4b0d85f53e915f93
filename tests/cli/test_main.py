"""The command root: quick help, one line per error, exit codes that mean what they say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgekit.cli import main
from edgekit.cli.main import VERBS, cli, run
from edgekit.core.errors import BadInput, WorldFailed

ROOT = Path(main.__file__).parent


def test_help_loads_nothing_that_a_verb_needs() -> None:
    code = (
        "import sys\nfrom edgekit.cli.main import run\nassert run(['--help']) == 0\n"
        "heavy = {'numpy', 'rich', 'onnx', 'onnxruntime', 'PIL', 'tuf', 'paho', 'sqlalchemy', 'nicegui', 'torch'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


def test_every_verb_has_a_file_and_every_file_is_a_verb() -> None:
    shared = {
        "__init__",
        "bench_curves",
        "environment",
        "main",
        "options",
        "output",
        "overlay",
        "remote_bench",
        "profile_refine",
        "repo_keys",
        "rollout_shown",
        "screen",
        "server",
        "session",
    }
    files = {path.stem for path in ROOT.glob("*.py")} | {
        path.parent.name for path in ROOT.glob("*/__init__.py")
    }
    assert files - shared == set(VERBS)


def _commands(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [
            pair for verb, child in command.commands.items() for pair in _commands(child, f"{name} {verb}")
        ]
    return [(name, command)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_json_and_help_with_an_example(verb: str) -> None:
    command = importlib.import_module(f"edgekit.cli.{verb}").command
    for name, leaf in _commands(command, verb):
        assert leaf.help, name
        epilog = (leaf.epilog or command.epilog or "").replace("\b", "")
        assert re.match(r"Examples?:\s+edgekit ", epilog), name
        assert any("--json" in option.opts for option in leaf.params), name


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["frob"], "no command 'frob'; there are: profile, inspect"),
        (["bench"], "Missing argument 'BUNDLE'. (see: edgekit bench --help)"),
        (["bench", "x.edge", "--frob"], "No such option"),
        (["bench", "missing.edge"], "missing.edge: no such file"),
        (["bench", "x.edge", "--policy", "maybe"], "'maybe' is not one of"),
        (["run", "x.edge", "y.png", "--budget", "three"], "--budget must be a positive amount such as 3ms"),
        (["run", "x.edge", "y.png", "--policy", "budget"], "it needs one"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(
    arguments: list[str],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert wanted in err
    assert err.startswith("edgekit: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("two\nlines"), 2),
        (WorldFailed("broker away"), 3),
        (OSError(28, "No space left on device"), 3),
        (FileNotFoundError(2, "No such file or directory"), 2),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 3),
    ],
)
def test_what_a_verb_raises_becomes_one_line_and_its_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "invoke", fail)
    assert run(["native"]) == code
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("package", "extra"), [("onnx", "host"), ("sqlalchemy", "fleet"), ("onnxruntime", "ort")]
)
def test_a_missing_package_names_the_extra_that_brings_it(
    package: str, extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError(f"No module named '{package}.sub'", name=f"{package}.sub")

    monkeypatch.setattr(cli, "invoke", fail)
    assert run(["native"]) == 2
    assert capsys.readouterr().err == f"edgekit: {package} is not installed: pip install 'edgekit[{extra}]'\n"


def test_convert_on_a_machine_without_onnx_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['onnx'] = None\nfrom edgekit.cli.main import main\n"
        "sys.argv = ['edgekit', 'inspect', 'x.onnx']\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgekit: onnx is not installed: pip install 'edgekit[host]'\n"


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "invoke", fail)
    with pytest.raises(ZeroDivisionError):
        run(["native"])


def test_a_reader_that_goes_away_is_not_worth_a_word() -> None:
    code = "from edgekit.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "profile", "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(30)
        assert process.stderr is not None
        assert process.stderr.read() == b""
