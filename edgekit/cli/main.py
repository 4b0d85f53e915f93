"""The `edgekit` command: finds the verb, runs it, and turns our errors into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from edgekit import __version__
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line

# verb -> its line in `edgekit --help`; the module edgekit/cli/<verb>.py is loaded only when the verb is used.
VERBS = {
    "profile": "List, show, check and measure device profiles.",
    "inspect": "Show a model's layers, cost, and what a profile can run.",
    "train": "Train a network in few bits or with few weights, by a recipe.",
    "convert": "Fit a model to a board and pack it as a bundle.",
    "run": "Run a bundle on inputs and print the answers.",
    "bench": "Measure a bundle on this machine.",
    "report": "Write a bundle's report as HTML.",
    "repo": "Keep the signed repository of bundles.",
    "push": "Sign a bundle and roll it out to boards.",
    "agent": "Run on a board: update, infer, measure, report.",
    "fleet": "Serve and watch a fleet of boards.",
    "native": "List the C kernels that are built and chosen.",
    "demo": "Run all of it on this machine, with simulated boards.",
}
INTERRUPTED = 130
# Packages that only some verbs need -> the extra that brings them.
EXTRAS = {
    "onnx": "host",
    "onnx_ir": "host",
    "onnxruntime": "ort",
    "fastapi": "fleet",
    "nicegui": "fleet",
    "sqlalchemy": "fleet",
    "uvicorn": "fleet",
    "torch": "train",
}


class Verbs(click.Group):
    """A group whose verbs are modules, imported only when used, so that --help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"edgekit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            raise click.UsageError(f"no command {args[0]!r}; there are: {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=Verbs,
    epilog="Example:  edgekit convert model.onnx --profile raspberrypi4b --calib images/ -o model.edge",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="edgekit")
def cli() -> None:
    """Fit a trained network to small boards, ship it signed, run it inside a budget, watch the fleet.

    Exit codes: 0 done; 1 done, but a limit is not met or some boards failed; 2 bad usage or bad input;
    3 network, broker or disk failed.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Never lets a traceback out for what a user or the world caused."""
    try:
        code = cli.main(args=arguments, prog_name="edgekit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.format_message(), err=True)
        return err.exit_code
    except SystemExit:  # click's word for a reader that went away: `edgekit ... | head`
        return 0
    except click.ClickException as err:
        return _complain(one_line_of(err), err.exit_code)
    except EdgekitError as err:
        return _complain(one_line(err), err.exit_code)
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _complain(
            f"{package} is not installed: pip install 'edgekit[{EXTRAS[package]}]'", BadInput.exit_code
        )
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", INTERRUPTED)
    except MemoryError:
        return _complain("out of memory", WorldFailed.exit_code)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as err:
        return _complain(one_line(err), BadInput.exit_code)
    except OSError as err:
        return _complain(one_line(err), WorldFailed.exit_code)


def one_line_of(err: click.ClickException) -> str:
    """A usage error's text with a pointer to the help of the command that was meant."""
    text = " ".join(err.format_message().split())
    context = getattr(err, "ctx", None)
    return f"{text} (see: {context.command_path} --help)" if context is not None else text


def _complain(text: str, code: int) -> int:
    click.echo(f"edgekit: {text}", err=True)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
