"""`edgekit agent`: the daemon on a board, and a look at what is wrong with its set-up."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from edgekit import __version__
from edgekit.cli.output import console, print_json
from edgekit.core.errors import BadInput
from edgekit.core.stopping import call_on_signal

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="agent.toml, as `edgekit fleet enroll` writes it.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


EXAMPLE = """\
[telemetry]
interval_s = 60              # a Record each
ack = "server"               # or "broker", for fleets without an edgekit server
outbox_mb = 64               # what may wait for the server
[source]
kind = "folder"              # none, folder, mqtt (the topic input), camera, stdin (a path or an object a line)
path = "images"              # sub-folder = label, where labels are known
loop = false                 # a folder or a video file, over and over
rate_hz = 10                 # left out: as fast as they are answered
watch = false                # a folder: files as they appear, once each
done = "keep"                # of a file that was watched for and answered: or "delete", "move:FOLDER"
device = 0                   # a camera: number, path of a device or a video file, address of a stream
exit_at_end = false          # the agent ends when the source does
max_input_bytes = 4194304    # of one message or line
max_waiting = 16             # messages; the next one is refused as busy
[[sink]]                     # where the source's answers go; any number of them
kind = "file"                # none, stdout, file, mqtt (the topic answer)
path = "answers.jsonl"       # one JSON object a line
max_mb = 16                  # then path.1, path.2, ...
keep = 5                     # of those
outputs = false              # the network's raw outputs as well
qos = 0                      # of mqtt: 0 or 1
[api]                        # Open Inference Protocol v2 over HTTP (extra api); left out: none
listen = "127.0.0.1:8000"    # or "unix:/run/edgekit/api.sock"
socket_mode = "0660"         # of a Unix socket
allow_remote = false         # true: addresses beyond this machine; nobody is asked who he is
timeout_s = 10               # for a client that is slow
max_connections = 64
[policy]
kind = "budget"              # full, anytime (deadline_ms), budget (budget), confidence (max_drop, points)
budget = "40%"               # or 3ms, 2MMAC, 5mJ
[trial]                      # of a new bundle, before it is committed: whichever comes first
requests = 100               # of its golden inputs, in a child process
seconds = 5
live_requests = 100          # then real ones, while the bundle before stays ready beside it; 0: none
live_seconds = 10
[limits]
throttled_factor = 0.6       # the budget's share while the board is throttled
accepts_code = false         # bundles with compiled libraries or bitstreams
max_bundle_mb = 512
accepts_measure = false      # time what `edgekit convert --on` sends, beside what serves
measure_timeout_s = 300
golden_timeout_s = 60        # for the child with the golden cases, besides trial.seconds
golden_memory_mb = 1024      # what it may take
min_interval_s = 1
threads = 1
[sensors]
power = "auto"               # the profile's; or rapl, hwmon, ina3221, rpi5_pmic, none
sysroot = "/"
simulated = false            # true: every figure says so
"""
_HELP = (
    """Run on a board until SIGTERM: fetch, verify, run, measure, report.

A broker or server that is away does not end it: it serves, keeps its records and tries again.

What may be changed in the agent.toml that `edgekit fleet enroll` wrote; paths are relative to it:

\b
"""
    + EXAMPLE
)


@click.group(
    help=_HELP,
    invoke_without_command=True,
    epilog="Example:  edgekit agent --config /etc/edgekit/agent.toml",
)
@_CONFIG
@_JSON
@click.option("-v", "--verbose", is_flag=True, help="Log more than warnings and changes.")
@click.pass_context
def command(ctx: click.Context, config_path: Path | None, as_json: bool, verbose: bool) -> None:
    """See _HELP."""
    if ctx.invoked_subcommand is not None:
        return
    from edgekit.agent.config import load_config
    from edgekit.agent.daemon import Agent

    config = load_config(_given(config_path, ctx))
    answers_on_stdout = any(sink.kind == "stdout" for sink in config.sinks)
    if answers_on_stdout and as_json:
        raise BadInput(f"--json and the sink stdout of {config.path} both want standard output: choose one")
    _log_to_stderr(verbose=verbose)
    for key in config.unknown:
        logging.getLogger("edgekit.agent").warning(
            "%s: %s is not known to this version, ignored", config.path, key
        )
    agent = Agent(config, __version__)
    call_on_signal(agent.stop, signal.SIGTERM, signal.SIGINT)
    summary = agent.run()
    if as_json:
        print_json(summary.to_json())
        return
    counts = ", ".join(f"{count} {word}" for word, count in summary.records.items())
    told = Console(stderr=True, highlight=False) if answers_on_stdout else console
    told.print(f"served {summary.bundle or 'nothing'}: {summary.requests} requests; records: {counts}")


@command.command(epilog="Example:  edgekit agent check --config /etc/edgekit/agent.toml")
@_CONFIG
@_JSON
@click.pass_context
def check(ctx: click.Context, config_path: Path | None, as_json: bool) -> int:
    """Say what is wrong with this board's set-up, one line each.

    Exit codes: 0 nothing; 1 it runs, but not as well as it could; 2 the set-up is wrong; 3 broker, repository or disk
    cannot be reached.
    """
    from edgekit.agent.check import exit_code, problems
    from edgekit.agent.config import load_config

    if config_path is None and ctx.parent is not None:
        config_path = ctx.parent.params.get("config_path")
    found = []
    for problem in problems(load_config(_given(config_path, ctx))):
        found.append(problem)
        if not as_json:
            console.print(f"{problem.what}: {problem.detail}", soft_wrap=True, markup=False)
    if as_json:
        print_json(
            {"problems": [{"what": p.what, "detail": p.detail, "exit_code": p.exit_code} for p in found]}
        )
    elif not found:
        console.print("nothing wrong")
    return exit_code(found)


def _given(path: Path | None, ctx: click.Context) -> Path:
    if path is None:
        raise click.UsageError("missing --config FILE", ctx)
    return path


def _log_to_stderr(*, verbose: bool) -> None:
    """One readable line each; libraries only where they warn."""
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.WARNING,
        force=True,
    )
    logging.getLogger("edgekit").setLevel(logging.DEBUG if verbose else logging.INFO)
