"""`edgekit agent`: the daemon on a board, and a look at what is wrong with its set-up."""

from __future__ import annotations

import faulthandler
import logging
import os
import pwd
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from edgekit import __version__
from edgekit.cli.output import console, print_json
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.files import write_atomic
from edgekit.core.stopping import call_on_signal

if TYPE_CHECKING:
    from edgekit.agent.config import Config

_LAST_S = 1.9  # after a signal: what the agent's own end takes, and a little
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
[api]                        # Open Inference Protocol v2 over HTTP (extra api); left out: no
listen = "127.0.0.1:8000"    # or "unix:/run/edgekit/api.sock"
socket_mode = "0660"         # of a Unix socket
allow_remote = false         # true: addresses beyond this machine; nobody is asked who he is
timeout_s = 10               # for a client that is slow
max_connections = 64
[policy]
kind = "budget"              # full, anytime (deadline_ms), budget (budget), confidence (max_drop, points)
budget = "40%"               # or 3ms, 2MMAC, 5mJ
[update]
jitter_s = 30                # a job asks the server after a random part of it, so that not all boards do at once
rate_kb_s = 250              # of a download; left out: as fast as it goes
refresh_h = 24               # how often the signed metadata is looked at without a job
sticks = ["/media/*/*/edgekit"]  # folders that `edgekit fleet stick` wrote, looked for all the time
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
[log]
json = false                 # true: one JSON object a line
verbose = false              # true: more than warnings and changes
[sensors]
power = "auto"               # the profile's; or rapl, hwmon, ina3221, rpi5_pmic, none
sysroot = "/"
simulated = false            # true: every figure says so
"""
_HELP = (
    """Run on a board until SIGTERM: fetch, verify, run, measure, report.

A broker or server that is away does not end it: it serves, keeps its records and tries again. `edgekit agent set-up`
makes a board's supervisor and its systemd unit, and lets `edgekit push` update the agent itself (docs/board.md).

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
    from edgekit.agent.logs import set_up as set_up_logs

    config = load_config(_given(config_path, ctx))
    fields = {"device": config.address}
    faulthandler.enable()  # a watchdog ends a hung agent with SIGABRT: its stacks say where it hung
    set_up_logs(
        sys.stderr,
        as_json=config.log.as_json,
        verbose=verbose,
        fields=fields,
        journal=os.environ.get("JOURNAL_STREAM", ""),
    )
    answers_on_stdout = any(sink.kind == "stdout" for sink in config.sinks)
    if answers_on_stdout and as_json:
        raise BadInput(f"--json and the sink stdout of {config.path} both want standard output: choose one")
    log, ended = logging.getLogger("edgekit.agent"), threading.Event()
    for key in config.unknown:
        log.warning("%s: %s is not known to this version, ignored", config.path, key)
    try:
        agent = Agent(config, __version__)
        fields["boot_id"] = agent.boot_id
        call_on_signal(lambda: _end(agent.stop, ended), signal.SIGTERM, signal.SIGINT)
        summary = agent.run()
        ended.set()
    except EdgekitError as err:
        if not config.log.as_json:
            raise
        log.critical("%s", one_line(err))
        ctx.exit(err.exit_code)
    if as_json:
        print_json(summary.to_json())
        ctx.exit(agent.exit_code)
    counts = ", ".join(f"{count} {word}" for word, count in summary.records.items())
    told = Console(stderr=True, highlight=False) if answers_on_stdout else console
    told.print(f"served {summary.bundle or 'nothing'}: {summary.requests} requests; records: {counts}")
    ctx.exit(agent.exit_code)


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


def _end(stop: Callable[[], None], ended: threading.Event) -> None:
    """Have the agent end; where a hung disk or library keeps it, end it as a power cut would, which harms nothing."""
    stop()
    if not ended.wait(_LAST_S):
        sys.stderr.write("edgekit: something hangs (the disk?), ended without a goodbye\n")
        sys.stderr.flush()
        os._exit(WorldFailed.exit_code)


_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="The supervisor's folder [default: /var/lib/edgekit/supervisor].",
)
_USER = click.option("--user", default="edgekit", show_default=True, help="Who the agent runs as.")
_UNIT_FILE = Path("/etc/systemd/system/edgekit-agent.service")


@command.command(
    epilog="Example:  edgekit agent unit --config /etc/edgekit/agent.toml > edgekit-agent.service"
)
@_CONFIG
@_ROOT
@_USER
@click.option(
    "--plain", is_flag=True, help="Start the agent without its supervisor: it cannot be updated then."
)
@click.option("--memory-high", default="60%", show_default=True, help="Above this it is slowed down.")
@click.option("--memory-max", default="75%", show_default=True, help="What takes more is ended.")
@_JSON
@click.pass_context
def unit(
    ctx: click.Context,
    config_path: Path | None,
    root: Path | None,
    user: str,
    plain: bool,
    memory_high: str,
    memory_max: str,
    as_json: bool,
) -> None:
    """Print the systemd unit of this board's agent: what it may touch follows from its config."""
    from edgekit.agent import unit as units

    chosen = None if plain else _root(root)
    config, start = _start(ctx, config_path, chosen)
    service = units.Service(start, user, chosen, memory_high, memory_max)
    text = units.unit(config, service)
    if as_json:
        print_json({"unit": text})
    else:
        sys.stdout.write(text)


@command.command("set-up", epilog="Example:  edgekit agent set-up --config /etc/edgekit/agent.toml --systemd")
@_CONFIG
@_ROOT
@_USER
@click.option("--systemd", is_flag=True, help=f"Write {_UNIT_FILE} as well; systemctl is yours to call.")
@_JSON
@click.pass_context
def set_up(
    ctx: click.Context,
    config_path: Path | None,
    root: Path | None,
    user: str,
    systemd: bool,
    as_json: bool,
) -> None:
    """Make the supervisor that keeps the agent running and tries its updates.

    The edgekit that runs this command becomes the board's first environment, and the one it falls back to: leave it
    where it is. Run again, this replaces the supervisor and keeps what was installed by updates.
    """
    from edgekit.agent import unit as units
    from edgekit.agent.set_up import set_up as make

    chosen = _root(root)
    config, start = _start(ctx, config_path, chosen)
    owner = _account(user) if os.geteuid() == 0 else None  # known before anything is made
    make(chosen)
    if owner is not None:
        _give_to(owner, chosen)
    if systemd:
        write_atomic(_UNIT_FILE, units.unit(config, units.Service(start, user, chosen)).encode())
    if as_json:
        written = str(_UNIT_FILE) if systemd else None
        print_json({"supervisor": str(chosen), "start": list(start), "unit": written})
        return
    console.print(f"supervisor: {chosen}", soft_wrap=True, markup=False)
    if systemd:
        console.print(f"unit: {_UNIT_FILE}", soft_wrap=True, markup=False)
    by_hand = "systemctl daemon-reload && systemctl enable --now edgekit-agent"
    console.print(f"start it with: {by_hand if systemd else shlex.join(start)}", soft_wrap=True, markup=False)


def _root(given: Path | None) -> Path:
    from edgekit.agent.unit import STATE

    return (given or STATE / "supervisor").absolute()


def _start(ctx: click.Context, path: Path | None, root: Path | None) -> tuple[Config, Sequence[str]]:
    """The config, and what starts the agent on it."""
    from edgekit.agent.config import load_config
    from edgekit.agent.set_up import start_command

    if path is None and ctx.parent is not None:
        path = ctx.parent.params.get("config_path")
    config = load_config(_given(path, ctx))
    return config, start_command(root, config.path.resolve())


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError as err:
        raise BadInput(f"there is no user {user!r}: useradd --system {user}, or give --user") from err


def _give_to(owner: pwd.struct_passwd, root: Path) -> None:
    """The supervisor's folder belongs to who runs it; so nobody else's program is started there."""
    try:
        for path in (root, *root.rglob("*")):
            os.lchown(path, owner.pw_uid, owner.pw_gid)
    except OSError as err:
        raise WorldFailed(f"{root}: could not be given to {owner.pw_name}: {err.strerror}") from err


def _given(path: Path | None, ctx: click.Context) -> Path:
    if path is None:
        raise click.UsageError("missing --config FILE", ctx)
    return path
